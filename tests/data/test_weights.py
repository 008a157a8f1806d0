"""Rows that are drawn in proportion to a column of weights: how often, in which batches, and what is told of it."""

import gzip
import json
import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from family_rows import FAMILIES, row_for

from acge_lightning.data import (
    MixtureDataModule,
    RetrievalDataset,
    STSDataModule,
    STSDataset,
)
from acge_lightning.data.epoch import resample
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def make(tmp_path):
    """A data set of a family, whose rows have these weights under `quality`."""

    def made(weights, family="sts", change=lambda row: row, name="data", **options):
        rows = [row_for(family, i) | ({} if w is None else {"quality": w}) for i, w in enumerate(weights)]
        folder = tmp_path / name / family
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text(lines(map(change, rows)), encoding="utf-8")
        options = {"batch_size": 8, "holdout": 0.0, "weight_column": "quality", **options}
        return FAMILIES[family](folder, cache_dir=tmp_path / "cache", **options)

    return made


def mixed_weights(n, seed=0):
    return np.random.default_rng(seed).choice([0.1, 0.5, 1.0, 1.5], n).tolist()


def epoch(sampler, name, number):
    """The batches of a task's epoch, of a mixture of one task."""
    size = sampler.batches[name]
    return [sampler[step].positions for step in range(number * size, (number + 1) * size)]


# ---- how often


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_as_often_as_their_weights_say(seed):
    rng = np.random.default_rng(seed)
    weights = rng.choice([0, 0.01, 0.3, 1, 7.5], 60)
    count = int(rng.integers(1, 200))
    expected = [count * weight / sum(weights) for weight in weights]
    total = np.zeros(60)
    for _ in range(400):
        drawn = Counter(resample(weights, count, rng).tolist())
        assert sum(drawn.values()) == count
        for row, e in enumerate(expected):
            assert int(e + 1e-9) <= drawn[row] <= int(np.ceil(e - 1e-9))
            total[row] += drawn[row]
    for row, e in enumerate(expected):
        assert total[row] / 400 == pytest.approx(e, abs=0.13)  # five standard errors


def test_equal_weights_are_all_rows_once():
    for weight in (1.0, 0.3, 1e-300, 1e300):
        assert sorted(resample(np.full(1000, weight), 1000, np.random.default_rng(0)).tolist()) == list(range(1000))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_epoch_of_every_family_has_each_row_in_proportion(make, family):
    weights = mixed_weights(64)
    data = make(weights, family)
    assert data.weights.tolist() == weights
    sampler = TaskBatchSampler({"a": data}, seed=1)
    times = np.zeros(64)
    for number in range(30):
        batches = epoch(sampler, "a", number)
        assert [len(batch) for batch in batches] == [8] * 8
        drawn = Counter(np.concatenate(batches).tolist())
        for row, weight in enumerate(weights):
            expected = 64 * weight / sum(weights)
            assert int(expected) <= drawn[row] <= int(expected) + 1
            times[row] += drawn[row] / 30
        if family in ("retrieval", "reranking", "unlabelled"):  # a row that comes twice is in two batches
            assert all(len(np.unique(batch)) == 8 for batch in batches)
    for row, weight in enumerate(weights):
        assert times[row] == pytest.approx(64 * weight / sum(weights), abs=0.4)


@pytest.mark.parametrize("family", ["sts", "clustering"])
def test_batches_keep_the_make_up_of_their_family(make, family):
    """Labels from the whole range, and texts with partners of their label, of the rows that were drawn."""
    data = make([4.0 if i % 6 == 0 else 0.5 for i in range(96)], family, batch_size=24)
    sampler = TaskBatchSampler({"a": data})
    for batch in (batch for number in range(4) for batch in epoch(sampler, "a", number)):
        labels = data.examples(batch, np.zeros(len(batch))).labels.tolist()
        if family == "sts":
            assert 4 <= sum(labels) <= 20
        assert sum(count > 1 for count in Counter(labels).values()) >= 2


def test_a_batch_is_a_function_of_seed_and_step(make):
    def made(seed=3):
        return TaskBatchSampler({"a": make(mixed_weights(50)), "b": make([None] * 30, weight_column=None, name="b")}, seed=seed)

    in_turn = [(b.task, b.positions.tolist(), b.draws.tolist()) for b in map(made().__getitem__, range(60))]
    one = made()
    for step in np.random.default_rng(0).permutation(60).tolist():
        batch = one[step]
        assert (batch.task, batch.positions.tolist(), batch.draws.tolist()) == in_turn[step]
    assert [made(4)[step].positions.tolist() for step in range(5)] != [positions for _, positions, _ in in_turn[:5]]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_column_nothing_changes(make, family):
    """Batches as they are made from the seed alone, also of rows that happen to have such a column."""
    data = make(mixed_weights(50), family, weight_column=None)
    assert data.weights is None
    sampler = TaskBatchSampler({"a": data}, seed=5)
    sizes = sampler.sizes["a"]
    for number in range(3):
        rng = np.random.default_rng([5, 0, number])
        order = data.order(rng, rng.random(50), sizes)
        expected = np.split(order[: sizes.sum()], np.cumsum(sizes)[:-1])
        expected = [expected[i].tolist() for i in rng.permutation(len(expected))]
        assert [batch.tolist() for batch in epoch(sampler, "a", number)] == expected
        assert sorted(order.tolist()) == list(range(50))
    assert data.fingerprint() == make([None] * 50, family, weight_column=None).fingerprint()


# ---- reading


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file(tmp_path, kind):
    path = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        path.write_text(lines([row_for("sts", i) | {"权重": (i + 1) / 8} for i in range(8)]), encoding="utf-8")
    elif kind == "csv":
        path.write_text(
            "text1,text2,label,权重\n" + "".join(f"a{i},b{i},{i % 2},{(i + 1) / 8}\n" for i in range(8)), encoding="utf-8"
        )
    else:
        columns = {key: [row_for("sts", i)[key] for i in range(8)] for key in ("text1", "text2", "label")}
        pq.write_table(pa.table(columns | {"权重": [(i + 1) / 8 for i in range(8)], "more": [0] * 8}), path)
    data = STSDataset(path, holdout=0.0, cache_dir=tmp_path / "cache", weight_column="权重")
    assert data.weights.tolist() == [(i + 1) / 8 for i in range(8)]


def test_a_column_of_weights_is_not_taken_for_a_field(make):
    def scored(row):
        return {"text1": row["text1"], "text2": row["text2"], "label": row["label"], "score": row["quality"]}

    data = make([0.5, 2.0, 3.0], change=scored, weight_column="score")
    assert data.weights.tolist() == [0.5, 2.0, 3.0]
    assert data.train.column("score").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (-1, "field 'quality' is -1, and a weight is 0 or more"),
        ("much", "field 'quality' is 'much', not a number"),
        (None, "field 'quality' is missing"),
        ("nan", "field 'quality' is 'nan', not a finite number"),
        (float("inf"), "field 'quality' is inf, not a finite number"),
    ],
)
def test_bad_weights_name_file_line_and_remedy(make, weight, reason):
    with pytest.raises(InputError, match=rf"train.jsonl, line 3: {reason}"):
        make([1, 1, weight, 1]).open()
    data = make([1, 2, weight, 4], on_bad_row="skip", max_bad_fraction=0.5)
    assert data.weights.tolist() == [1, 2, 4]


def test_weights_are_for_training_rows_only(make, tmp_path):
    data = make([1.0, 2.0, 3.0])
    (tmp_path / "data" / "sts" / "dev.jsonl").write_text(lines([row_for("sts", 10), row_for("sts", 11)]), encoding="utf-8")
    assert data.weights.tolist() == [1, 2, 3]
    assert data.opened_splits["dev"].weights is None


def test_weights_follow_their_rows_through_holdout_and_limits(make):
    data = make([i + 1 for i in range(200)], holdout=0.3, max_train=50)
    rows = [int(row["text1"][1:]) for row in data.train.take(np.arange(50))]
    assert data.weights.tolist() == [row + 1 for row in rows]


def test_queries_of_a_beir_folder_have_weights(tmp_path):
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": f"d{i}", "text": f"document {i}"} for i in range(9)]
    queries = [{"_id": f"q{i}", "text": f"query {i}", "quality": i / 4} for i in range(9)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write(lines(rows))
    (tmp_path / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in (7, 2, 0, 5))
    )
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq8\td8\t1\nq1\td1\t1\n")
    data = RetrievalDataset(tmp_path, holdout=0.0, cache_dir=tmp_path / "cache", weight_column="quality")
    weight_of = dict(zip(data.train.read_queries(np.arange(len(data))), data.weights.tolist(), strict=True))
    assert weight_of == {"query 2": 0.5, "query 5": 1.25, "query 7": 1.75}  # 0 does not train
    assert data.opened_splits["test"].weights is None
    assert len(data.opened_splits["test"]) == 2


def test_rows_of_weight_0_do_not_train_and_are_counted(make, caplog):
    data = make([0, 1, 2, 0, 3])
    with caplog.at_level(logging.WARNING):
        assert data.weights.tolist() == [1, 2, 3]
    assert "2 of 5 training rows have the quality 0 and do not train" in caplog.text
    with pytest.raises(InputError, match="all 3 training rows have the quality 0: give some more"):
        make([0, 0, 0], name="none").open()


def test_other_weights_are_other_data(make):
    one, same, other = (make(weights, name=f"n{i}") for i, weights in enumerate(([1, 2, 3], [1, 2, 3], [1, 2, 4])))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.fingerprint() != make([1, 2, 3], weight_column=None, name="off").fingerprint()
    before = MixtureDataModule({"a": one}).state_dict()
    MixtureDataModule({"a": same}).load_state_dict(before)
    with pytest.raises(InputError, match="task a has other training rows since the checkpoint was written"):
        MixtureDataModule({"a": other}).load_state_dict(before)


def test_checked_rows_are_kept_apart_by_the_column(make):
    both = [
        make([1, 2, 3], change=lambda row: row | {"other": 9 - row["quality"]}, weight_column=c) for c in ("quality", "other")
    ]
    assert [data.weights.tolist() for data in both] == [[1, 2, 3], [8, 7, 6]]


# ---- what is told


@pytest.mark.parametrize("world", [1, 3])
def test_coverage_is_the_expected_number_of_distinct_rows(make, world):
    data = make(mixed_weights(64))
    sampler = TaskBatchSampler({"a": data})
    distinct = []
    for number in range(60):
        batches = epoch(sampler, "a", number)
        distinct.append(len(np.unique(np.concatenate([batch[: len(batch) // world * world] for batch in batches]))))
    coverage = sampler.coverage(world, 0)["a"]
    assert coverage.rows == 64
    assert coverage.used == pytest.approx(np.mean(distinct), abs=2)
    assert not coverage.whole
    assert TaskBatchSampler({"a": make([2.0] * 64, name="equal")}).coverage(1, 0)["a"].used == 64


def test_rows_that_weights_leave_out_are_told(make, caplog, tmp_path):
    make([0.01] * 60 + [1.0] * 4)
    data = STSDataModule(tmp_path / "data" / "sts", 8, holdout=0.0, cache_dir=tmp_path / "cache", weight_column="quality")
    mixture = MixtureDataModule({"a": data})
    mixture.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1)
    mixture.bind(static(train_vocabulary(["ab0123456789"] * 3, vocab_size=60), dim=8))
    with caplog.at_level(logging.WARNING):
        mixture.train_dataloader()
    expected = sum(min(1, 64 * w / 4.6) for w in [0.01] * 60 + [1.0] * 4)
    assert f"a: by their weights, an epoch trains on about {round(expected)} of 64 rows" in caplog.text
    assert "batch_size" not in caplog.text
