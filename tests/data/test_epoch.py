"""How rows are dealt to batches: against counts by hand, and on data that repeat themselves as people's files do."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acge_lightning.data import (
    ClassificationDataModule,
    ClusteringDataModule,
    MixtureDataModule,
    PairDataModule,
    RerankingDataModule,
    RetrievalDataModule,
    STSDataModule,
    UnlabelledDataModule,
)
from acge_lightning.data.epoch import batch_sizes, deal, deal_by_rank, even_sizes
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.errors import InputError


def batches_of(order, sizes):
    return np.split(order, np.cumsum(sizes))[: len(sizes)]


# ---- sizes


@given(st.integers(1, 3000), st.integers(2, 300))
@example(65, 64)
@example(44, 8)
@example(9, 8)
def test_batches_use_all_rows_but_fewer_than_eight(rows, batch_size):
    sizes = batch_sizes(rows, batch_size)
    assert sizes.max() <= batch_size
    assert sizes.min() >= 1
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    if rows <= batch_size:
        assert sizes.tolist() == [rows]
        return
    assert 0 <= rows - sizes.sum() < 8
    assert len(sizes) == -(-int(sizes.sum()) // batch_size)  # no more batches than are needed
    share = next(n for n in (8, 4, 2, 1) if batch_size % n == 0)
    assert not (sizes % share).any()
    assert sizes.max() - sizes.min() <= share


def test_batch_sizes_by_hand():
    assert batch_sizes(128, 64).tolist() == [64, 64]
    assert batch_sizes(65, 64).tolist() == [64]
    assert batch_sizes(72, 64).tolist() == [40, 32]
    assert batch_sizes(10, 3).tolist() == [3, 3, 2, 2]
    assert Counter(batch_sizes(2000, 32).tolist()) == {32: 61, 24: 2}


# ---- dealing


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 30), min_size=1, max_size=120), st.integers(1, 20), st.integers(0, 9))
@example([5] * 40, 8, 0)
@example([5] * 9 + [6, 7], 4, 1)
def test_every_batch_has_an_even_share_of_every_key(keys, batches, seed):
    keys = np.array(keys)
    sizes = np.full(min(batches, len(keys)), len(keys) // min(batches, len(keys)))
    order = deal(keys, sizes, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(keys)))
    dealt = Counter(keys[order[: sizes.sum()]].tolist())
    for batch in batches_of(order, sizes):
        for key, count in Counter(keys[batch].tolist()).items():
            assert count <= -(-dealt[key] // len(sizes))
    for key, count in dealt.items():
        assert min((keys[batch] == key).sum() for batch in batches_of(order, sizes)) >= count // len(sizes)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=150), st.integers(2, 40), st.integers(0, 9))
def test_sizes_that_differ_are_kept_and_no_key_that_fits_is_repeated(keys, batch_size, seed):
    keys, sizes = np.array(keys), batch_sizes(len(keys), batch_size)
    order = deal(keys, sizes, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(keys)))
    dealt = Counter(keys[order[: sizes.sum()]].tolist())
    open_to_all = sizes.min()  # rounds in which every batch takes part
    for batch in batches_of(order, sizes):
        for key, count in Counter(keys[batch].tolist()).items():
            assert count <= -(-dealt[key] // len(sizes)) + sizes.max() - open_to_all


def test_distinct_keys_are_any_permutation():
    orders = [deal(np.arange(40), np.full(4, 10), np.random.default_rng(seed)) for seed in range(300)]
    assert len({tuple(order.tolist()) for order in orders}) == 300
    first = np.array([np.flatnonzero(order < 1)[0] // 10 for order in orders])  # the batch of row 0
    assert np.bincount(first, minlength=4).min() > 45
    together = [len({int(np.flatnonzero(order == row)[0]) // 10 for row in (0, 1)}) == 1 for order in orders]
    assert 40 < sum(together) < 100  # 9 of 39 by chance


def test_two_rows_of_a_key_meet_all_others_over_the_epochs():
    keys = np.arange(40) // 2
    met = np.zeros((20, 20), dtype=int)
    for seed in range(60):
        for batch in batches_of(deal(keys, np.full(4, 10), np.random.default_rng(seed)), np.full(4, 10)):
            assert len(set(keys[batch].tolist())) == 10
            met[np.ix_(keys[batch], keys[batch])] += 1
    others = met[~np.eye(20, dtype=bool)]
    assert others.min() > 0.4 * others.mean()
    assert others.max() < 1.8 * others.mean()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=100), st.integers(1, 9), st.integers(0, 5))
def test_ranks_are_spread_evenly(values, batches, seed):
    values, batches = np.array(values), min(batches, len(values))
    sizes = np.full(batches, len(values) // batches)
    order = deal_by_rank(values, sizes, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(values)))
    ranked = np.sort(values[order[: sizes.sum()]])
    for batch in batches_of(order, sizes):
        for round_, value in enumerate(np.sort(values[batch])):
            assert ranked[round_ * batches] <= value <= ranked[(round_ + 1) * batches - 1]


def test_even_sizes():
    assert even_sizes(7, 3).tolist() == [3, 2, 2]
    assert even_sizes(2, 3).tolist() == [1, 1, 0]


# ---- files as people have them


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def epoch_of(data):
    data.setup()
    sampler = TaskBatchSampler({"task": data})
    return [sampler[step] for step in range(len(sampler))]


def zipf(n, kinds):
    shares = 1 / np.arange(1, kinds + 1)
    return np.random.default_rng(0).choice(kinds, n, p=shares / shares.sum()).tolist()


def faq(n, answers):
    return [{"query": f"question {i}", "positive": f"answer {a}"} for i, a in zip(range(n), answers, strict=False)]


FILES = {
    "faq of 20 answers": (RetrievalDataModule, 32, faq(2000, [i % 20 for i in range(2000)])),
    "faq of one answer for half": (RetrievalDataModule, 32, faq(600, [i if i % 2 else 0 for i in range(600)])),
    "faq with a long tail": (RetrievalDataModule, 64, faq(5000, zipf(5000, 100))),
    "questions that repeat": (RetrievalDataModule, 16, [{"query": f"q{i % 9}", "positive": f"a{i}"} for i in range(400)]),
    "rerank lists of shared texts": (
        RerankingDataModule,
        16,
        [{"query": f"q{i}", "positive": f"a{i % 5}", "negative": [f"a{(i + 1) % 5}", f"b{i % 7}"]} for i in range(300)],
    ),
    "scored pairs of 40 by 50 texts": (
        STSDataModule,
        64,
        [{"text1": f"a{i}", "text2": f"b{j}", "score": (i * j) % 6} for i in range(40) for j in range(50)],
    ),
    "pairs of which few are alike": (
        PairDataModule,
        32,
        [{"text1": f"a{i % 11}", "text2": f"b{i}", "label": int(i % 20 == 0)} for i in range(640)],
    ),
    "labels with a long tail": (
        ClusteringDataModule,
        32,
        [{"text": f"t{i}", "label": label} for i, label in enumerate(zipf(1000, 50))],
    ),
    "one text under a label many times": (
        ClassificationDataModule,
        32,
        [{"text": f"t{i % 30}", "label": i % 3} for i in range(500)],
    ),
    "texts that repeat": (UnlabelledDataModule, 64, [{"text": f"t{t}"} for t in zipf(3000, 200)]),
}


@pytest.mark.parametrize("name", FILES)
def test_an_epoch_uses_every_row(tmp_path, name):
    kind, batch_size, rows = FILES[name]
    data = kind(write(tmp_path, rows), batch_size=batch_size, holdout=0.0, cache_dir=tmp_path / "cache")
    epoch = epoch_of(data)
    used = np.concatenate([batch.positions for batch in epoch])
    assert len(np.unique(used)) == len(used) > len(rows) - 8
    assert max(len(batch.positions) for batch in epoch) <= batch_size
    assert len(used) >= 0.98 * len(rows)


@pytest.mark.parametrize("name", ["faq of 20 answers", "faq with a long tail", "texts that repeat", "questions that repeat"])
def test_a_text_is_in_a_batch_as_often_as_it_must_be(tmp_path, name):
    kind, batch_size, rows = FILES[name]
    data = kind(write(tmp_path, rows), batch_size=batch_size, holdout=0.0, cache_dir=tmp_path / "cache")
    epoch = epoch_of(data)
    texts, row = data.texts_of(np.zeros(len(data)))
    repeated = texts.reshape(len(data), -1)
    column = {"questions that repeat": 0}.get(name, repeated.shape[1] - 1)
    total = Counter(repeated[:, column].tolist())
    for batch in epoch:
        for text, count in Counter(repeated[batch.positions, column].tolist()).items():
            assert abs(count - total[text] / len(epoch)) <= 9  # batches differ by eight rows
            assert count == 1 or total[text] > len(epoch)
    assert row[-1] == len(data) - 1


def test_every_batch_has_rare_labels_and_groups(tmp_path):
    rows = [{"text": f"t{i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(960)]
    data = ClusteringDataModule(write(tmp_path, rows), batch_size=48, holdout=0.0, cache_dir=tmp_path / "cache")
    for batch in epoch_of(data):
        rare = int((batch.positions % 10 == 0).sum())
        assert 2 <= rare <= 8  # 4.8 on average, in groups of four


def test_equal_texts_of_a_label_are_in_different_groups(tmp_path):
    rows = [{"text": f"t{i % 40}", "label": i % 2} for i in range(160)]
    data = ClusteringDataModule(write(tmp_path, rows), batch_size=160, holdout=0.0, cache_dir=tmp_path / "cache")
    order = epoch_of(data)[0].positions.reshape(-1, 4)
    for group in order:
        assert len({i % 2 for i in group}) == 1
        assert len({i % 40 for i in group}) == 4


# ---- random negatives in place of positives that come again


def shared(folder, **options):
    """96 questions, half of which share an answer."""
    rows = [{"query": f"q{i}", "positive": [f"a{i if i % 2 else 0}"], "negative": [f"a{(i + 2) % 96}"]} for i in range(96)]
    return RetrievalDataModule(write(folder, rows), batch_size=16, holdout=0.0, cache_dir=folder / "cache", **options)


def test_random_negatives_make_up_for_positives_that_come_again(tmp_path):
    data = shared(tmp_path, negatives=0)
    for batch in epoch_of(data):
        alone = data.examples(batch.positions, batch.draws)
        with_them = data.examples(batch.positions, batch.draws, batch.random_negatives)
        repeats = 16 - len(set(alone.columns[1]))
        assert len(alone.columns) == 2
        assert 6 <= repeats <= 8
        assert len(set(with_them.columns[2])) == len(with_them.columns[2]) == repeats
        assert not set(with_them.columns[2]) & set(with_them.columns[1])
        assert all(int(text[1:]) % 2 for text in with_them.columns[2])  # other rows' answers


def test_random_negatives_follow_from_the_draws_and_change_with_them(tmp_path):
    data = shared(tmp_path)
    first, again = (epoch_of(data) for _ in range(2))
    assert all((a.random_negatives == b.random_negatives).all() for a, b in zip(first, again, strict=True))
    assert len({tuple(batch.random_negatives.tolist()) for batch in first}) == len(first)
    counts = Counter(np.concatenate([batch.random_negatives for batch in first]).tolist())
    assert len(counts) > 25
    for batch in first:  # nor are they what a query brings along itself
        own = data.examples(batch.positions, batch.draws).columns[2]
        assert not set(data.train.read_texts(batch.random_negatives)) & set(own)


def test_distinct_positives_and_rerank_lists_get_no_random_negatives(tmp_path):
    rows = [{"query": f"q{i}", "positive": [f"a{i}"], "negative": ["n"]} for i in range(32)]
    data = RetrievalDataModule(write(tmp_path / "a", rows), batch_size=8, holdout=0.0, cache_dir=tmp_path / "cache")
    assert not any(len(batch.random_negatives) for batch in epoch_of(data))
    kind, size, rows = FILES["rerank lists of shared texts"]
    data = kind(write(tmp_path / "b", rows), batch_size=size, holdout=0.0, cache_dir=tmp_path / "cache")
    assert not any(len(batch.random_negatives) for batch in epoch_of(data))


# ---- nothing to learn

SAME = {"query": "q", "positive": "p", "negative": "n"}
NOTHING = {
    "one score": (STSDataModule, [{"text1": f"a{i}", "text2": f"b{i}", "score": 3} for i in range(20)], "have the score 3.0"),
    "one label": (PairDataModule, [{"text1": f"a{i}", "text2": f"b{i}", "label": 1} for i in range(20)], "have the label 1"),
    "one class": (ClassificationDataModule, [{"text": f"a{i}", "label": "x"} for i in range(20)], "have the label x"),
    "a class each": (ClusteringDataModule, [{"text": f"a{i}", "label": i} for i in range(20)], "no two texts of one label"),
    "a text each class": (
        ClusteringDataModule,
        [{"text": f"a{i % 4}", "label": i % 4} for i in range(20)],
        "no two texts of one label",
    ),
    "one text": (UnlabelledDataModule, [{"text": "a"}] * 20, "its 20 training rows have one distinct text"),
    "one text, two labels": (
        ClusteringDataModule,
        [{"text": "a", "label": i % 2} for i in range(20)],
        "have one distinct text",
    ),
    "equal triplets": (RetrievalDataModule, [SAME] * 20, "its 20 training rows have one distinct query"),
    "one answer": (
        RetrievalDataModule,
        [{"query": f"q{i}", "positive": "p"} for i in range(20)],
        "no text that is wrong for a query",
    ),
    "rerank lists without negatives": (
        RerankingDataModule,
        [{"query": f"q{i}", "positive": f"p{i}"} for i in range(20)],
        "no text that is wrong for a query",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_data_with_nothing_to_learn_are_refused(tmp_path, name):
    kind, rows, message = NOTHING[name]
    data = kind(write(tmp_path, rows), holdout=0.0, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=f"task mine has nothing to learn: .*{message}"):
        MixtureDataModule({"mine": data}).setup()
    MixtureDataModule({"mine": data, "other": other(tmp_path)}, weights={"mine": 0}).setup()  # to be evaluated only, it may be


def other(folder):
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(4)]
    return RetrievalDataModule(write(folder / "other", rows), holdout=0.0, cache_dir=folder / "cache")


def test_one_answer_with_negatives_can_be_learnt(tmp_path):
    rows = [{"query": f"q{i}", "positive": "p", "negative": f"n{i}"} for i in range(20)]
    data = RetrievalDataModule(write(tmp_path, rows), holdout=0.0, cache_dir=tmp_path / "cache")
    MixtureDataModule({"mine": data}).setup()
    bare = RetrievalDataModule(tmp_path, negatives=0, holdout=0.0, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match="no text that is wrong"):
        MixtureDataModule({"mine": bare}).setup()


def test_too_few_rows_of_another_label_are_said(tmp_path, caplog):
    rows = [{"text1": f"a{i}", "text2": f"b{i}", "label": int(i < 3)} for i in range(320)]
    data = PairDataModule(write(tmp_path, rows), batch_size=32, holdout=0.0, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        MixtureDataModule({"mine": data}).setup()
    assert "only 3 of 320 training rows have another label than 0, so 7 of 10 batches of an epoch teach nothing" in caplog.text


def test_lists_without_a_negative_are_counted(tmp_path, caplog):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}"] if i % 4 else []} for i in range(20)]
    data = RerankingDataModule(write(tmp_path, rows), holdout=0.0, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        MixtureDataModule({"mine": data}).setup()
    assert "5 of 20 training rows list no negative and teach nothing" in caplog.text
