"""Which rows form the batch of a step: against a plain greedy loop, and as a function of (seed, step) alone."""

import json
from collections import Counter

import numpy as np
import pytest

from acge_lightning.data import ClusteringDataModule, RetrievalDataModule, STSDataModule
from acge_lightning.data.epoch import batch_sizes, deal
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.errors import InputError


class Task:
    """What the sampler asks of a task: rows with given texts, and weights if any."""

    def __init__(self, texts, batch_size=4, weights=None):
        self.texts = np.array(list(texts))
        self.batch_size = batch_size
        self.weights = None if weights is None else np.array(weights, dtype=float)

    def __len__(self):
        return len(self.texts)

    def random_negatives(self, positions, draws):
        assert len(draws) == len(positions)
        return positions[:0]

    def order(self, rng, draws, sizes, drawn=None):
        assert len(draws) == len(self)
        return deal(self.texts, sizes, rng) if drawn is None else drawn[deal(self.texts[drawn], sizes, rng)]


def distinct(n, batch_size=4):
    return Task(range(n), batch_size)


# ---- steps


def shown(batch):
    return batch.task, batch.positions.tolist(), batch.draws.tolist()


def mixed(seed=0, **options):
    tasks = {"a": distinct(40), "b": Task([i // 2 for i in range(30)], 3), "c": distinct(9, 2)}
    return TaskBatchSampler(tasks, seed=seed, **options)


def test_a_step_is_a_function_of_seed_and_number():
    steps = 70  # several rounds, many epochs
    in_turn = [shown(batch) for batch in map(mixed(7, temperature=3).__getitem__, range(steps))]
    one = mixed(7, temperature=3)
    for step in np.random.default_rng(0).permutation(steps):
        assert shown(one[int(step)]) == in_turn[step]
        assert shown(mixed(7, temperature=3)[int(step)]) == in_turn[step]
    other = mixed(8, temperature=3)
    assert [shown(other[step]) for step in range(steps)] != in_turn


def test_the_seed_changes_schedule_order_and_draws():
    def parts(seed):
        sampler = mixed(seed)
        found = [sampler[i] for i in range(len(sampler))]
        return [b.task for b in found], [b.positions.tolist() for b in found if b.task == "a"], [b.draws[0] for b in found]

    for first, second in zip(parts(0), parts(1), strict=True):
        assert first != second


@pytest.mark.parametrize("batch_size", [4, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.0, float("inf")])
def test_an_epoch_visits_every_row_once(batch_size, temperature):
    tasks = {"small": distinct(28, batch_size), "large": distinct(140, batch_size), "odd": distinct(31, batch_size)}
    sampler = TaskBatchSampler(tasks, temperature=temperature)
    visits = {name: [] for name in tasks}
    for step in range(4 * len(sampler)):
        batch = sampler[step]
        visits[batch.task].append(batch)
    for name, data in tasks.items():
        sizes = batch_sizes(len(data), batch_size)
        size = len(sizes)
        epochs = [visits[name][i : i + size] for i in range(0, len(visits[name]) - size + 1, size)]
        assert epochs
        orders = []
        for epoch in epochs:
            rows = np.concatenate([batch.positions for batch in epoch])
            assert len(np.unique(rows)) == len(rows) == sizes.sum() > len(data) - 4
            assert sorted(len(batch.positions) for batch in epoch) == sorted(sizes.tolist())
            if name != "odd":
                assert sorted(rows.tolist()) == list(range(len(data)))
            orders.append(tuple(rows.tolist()))
        assert len(set(orders)) == len(orders)  # newly shuffled each time


def test_a_row_keeps_its_draw_through_an_epoch_and_gets_another_in_the_next():
    sampler = TaskBatchSampler({"a": distinct(40)})
    epochs = [np.empty(40) for _ in range(3)]
    for step in range(30):
        batch = sampler[step]
        epochs[step // 10][batch.positions] = batch.draws
    assert all(((draws >= 0) & (draws < 1)).all() and len(np.unique(draws)) == 40 for draws in epochs)
    assert len({draws[0] for draws in epochs}) == 3
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.6


def test_tasks_do_not_share_their_randomness():
    sampler = TaskBatchSampler({"a": distinct(40), "b": distinct(40)})
    found = {"a": [], "b": []}
    for step in range(20):
        found[sampler[step].task].extend(sampler[step].positions.tolist())
    assert sorted(found["a"]) == sorted(found["b"])
    assert found["a"] != found["b"]


def test_a_text_that_repeats_is_in_every_batch():
    texts = [0] * 10 + list(range(1, 7))
    sampler = TaskBatchSampler({"a": Task(texts, 4)})
    batches = [sampler[i].positions.tolist() for i in range(4)]
    assert sorted(row for batch in batches for row in batch) == list(range(16))
    assert sorted([texts[row] for row in batch].count(0) for batch in batches) == [2, 2, 3, 3]


def test_batches_drawn_before_a_step_are_counted():
    sampler = mixed(3, temperature=2)
    counts = Counter()
    for step in range(2 * len(sampler) + 5):
        assert {name: sampler.drawn(name, step) for name in "abc"} == {name: counts[name] for name in "abc"}
        counts[sampler[step].task] += 1


def test_a_task_with_less_than_a_batch_gives_all_it_has():
    sampler = TaskBatchSampler({"a": distinct(5, 64)})
    assert len(sampler) == 1
    assert [sorted(sampler[i].positions.tolist()) for i in range(3)] == [[0, 1, 2, 3, 4]] * 3


# ---- shares


def expected_counts(batches, weights, temperature):
    shares = np.array(weights) * np.array(batches, dtype=float) ** (1 / temperature)
    return [max(1, round(float(share))) for share in shares / shares.sum() * sum(batches)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0, float("inf")])
@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 0.5), (1, 1, 0.001)])
def test_counts_follow_weight_size_and_temperature(weights, temperature):
    tasks = {"a": distinct(400), "b": distinct(103), "c": distinct(17)}
    sampler = TaskBatchSampler(tasks, dict(zip(tasks, weights, strict=True)), temperature)
    expected = expected_counts([100, 25, 4], weights, temperature)
    assert list(sampler.counts.values()) == expected
    assert len(sampler) == sum(expected)
    for turn in range(2):  # every round has just these
        found = Counter(sampler[step].task for step in range(turn * len(sampler), (turn + 1) * len(sampler)))
        assert found == dict(zip("abc", expected, strict=True))


def test_counts_by_hand():
    tasks = {"a": distinct(64), "b": distinct(16)}  # 16 and 4 batches
    assert TaskBatchSampler(tasks).counts == {"a": 16, "b": 4}
    assert TaskBatchSampler(tasks, temperature=2.0).counts == {"a": 13, "b": 7}  # 4 : 2 of 20
    assert TaskBatchSampler(tasks, temperature=float("inf")).counts == {"a": 10, "b": 10}
    assert TaskBatchSampler(tasks, {"a": 0.25}).counts == {"a": 10, "b": 10}
    assert TaskBatchSampler(tasks, {"b": 4, "c": 9}, float("inf")).counts == {"a": 4, "b": 16}


def test_tasks_are_spread_over_the_round():
    sampler = TaskBatchSampler({"a": distinct(400), "b": distinct(400)})
    first = [sampler[step].task for step in range(100)]
    assert 30 < first.count("a") < 70
    second = [sampler[step].task for step in range(200, 300)]
    assert first != second


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({}, {}, "there is no task to train on: give one a weight above 0"),
        ({"a": distinct(9)}, {"temperature": 0}, r"mixture.temperature=0 must be above 0 \(1 is proportional, .inf even\)"),
        ({"a": distinct(9)}, {"temperature": -1.0}, "temperature=-1.0"),
        ({"a": distinct(9)}, {"temperature": float("nan")}, "temperature=nan"),
        ({"a": distinct(9)}, {"weights": {"a": 0}}, r"weights {'a': 0} must be above 0"),
        ({"a": distinct(9), "b": distinct(9)}, {"weights": {"b": -1}}, "must be above 0"),
        ({"a": distinct(9)}, {"weights": {"a": float("nan")}}, "must be above 0"),
        ({"a": distinct(9), "b": distinct(9)}, {"weights": {"a": float("inf")}}, "must be above 0, and finite"),
    ],
)
def test_wrong_mixtures_are_refused(tasks, options, message):
    with pytest.raises(InputError, match=message):
        TaskBatchSampler(tasks, **options)


# ---- with the families


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_families_keep_their_order_and_texts_hardly_repeat(tmp_path):
    rng = np.random.default_rng(0)
    sts = [{"text1": f"a{i % 70}", "text2": f"b{i}", "label": int(i % 10 == 0)} for i in range(300)]
    classed = [{"text": f"t{i % 180}", "label": i % 180 // 20} for i in range(200)]
    asked = [{"query": f"q{i % 80}", "positive": [f"p{j}" for j in rng.choice(60, 3, replace=False)]} for i in range(120)]
    options = {"cache_dir": tmp_path / "cache", "holdout": 0.0}
    tasks = {
        "sts": STSDataModule(write(tmp_path / "sts", sts), batch_size=20, **options),
        "labels": ClusteringDataModule(write(tmp_path / "labels", classed), batch_size=20, **options),
        "asked": RetrievalDataModule(write(tmp_path / "asked", asked), batch_size=10, **options),
    }
    sampler = TaskBatchSampler(tasks)
    seen = Counter()
    for step in range(2 * len(sampler)):
        batch = sampler[step]
        found = tasks[batch.task].examples(batch.positions, batch.draws)
        assert 16 <= len(batch.positions) <= 20 or batch.task == "asked"
        if batch.task == "asked":
            assert 8 <= len(batch.positions) <= 10
            assert all(len(np.unique(ids)) >= len(ids) - 2 for ids in found.ids)
        if batch.task == "sts":
            assert 1 <= found.labels.sum() <= 4  # about 2
        if batch.task == "labels":
            assert sum(n > 1 for n in Counter(found.labels.tolist()).values()) >= 3
        seen[batch.task] += 1
    assert set(seen) == set(tasks)


def test_the_positive_of_a_query_changes_with_the_epoch(tmp_path):
    rows = [{"query": f"q{i}", "positive": [f"p{i}", f"r{i}", f"s{i}"]} for i in range(8)]
    data = RetrievalDataModule(write(tmp_path, rows), batch_size=8, holdout=0.0, cache_dir=tmp_path / "cache")
    sampler = TaskBatchSampler({"a": data})
    drawn = {i: Counter() for i in range(8)}
    for batch in map(sampler.__getitem__, range(60)):
        for row, positive in zip(batch.positions.tolist(), data.examples(batch.positions, batch.draws).columns[1], strict=True):
            drawn[row][positive] += 1
    for row, counts in drawn.items():
        assert set(counts) == {f"p{row}", f"r{row}", f"s{row}"}
        assert min(counts.values()) > 6
