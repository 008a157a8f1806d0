"""Mined negatives in batches: which come along, what they are judged, and when those of a step are in force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from family_rows import beir, write

from acge_lightning.data import MixtureDataModule, RerankingDataModule, RetrievalDataModule
from acge_lightning.data.loaders import batches_before
from acge_lightning.data.mined_negatives import MinedNegatives
from acge_lightning.data.records import text_id
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.losses.contrastive import InfoNCE

ROWS = [{"query": f"q{i}", "positive": [f"p{i % 20}"], "negative": [f"n{i}", f"m{i}"][: i % 3]} for i in range(40)]


@pytest.fixture
def rows_data(tmp_path):
    """Rows of which two each share a positive, with 0 to 2 listed negatives."""
    write(tmp_path / "train.jsonl", ROWS)
    return RetrievalDataModule(tmp_path, batch_size=8, negatives=1, holdout=0.0, cache_dir=tmp_path / "cache")


def random_mined(data, n=3, seed=0, share=0.8):
    """Negatives drawn for some rows, none of which is a text that any of them judges."""
    rng, split = np.random.default_rng(seed), data.train
    rows = np.sort(rng.permutation(len(data))[: int(share * len(data))])
    texts = rng.integers(-1, len(split.candidate_ids), (len(rows), n))
    for row, mined in zip(rows.tolist(), texts, strict=True):
        judged = split.text_ids[split.judged_texts(split.with_equal_text(np.array([row])))[0]]
        mined[np.isin(split.candidate_ids[mined], judged)] = -1
    return MinedNegatives(rows, np.sort(texts)[:, ::-1].copy())


def test_they_are_looked_up_by_row():
    rng = np.random.default_rng(0)
    mined = MinedNegatives(np.array([1, 4, 6, 9]), rng.integers(-1, 30, (4, 3)))
    table = {row: [t for t in texts if t >= 0] for row, texts in zip(mined.rows.tolist(), mined.texts.tolist(), strict=True)}
    for positions in ([], [0], [9, 1, 1], list(range(11))):
        texts, owner = mined.of(np.array(positions, dtype=np.int64))
        assert texts.tolist() == [t for p in positions for t in table.get(p, [])]
        assert owner.tolist() == [i for i, p in enumerate(positions) for _ in table.get(p, [])]
    empty = MinedNegatives(np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.int64))
    assert [len(part) for part in empty.of(np.arange(5))] == [0, 0]


def test_new_ones_are_counted_among_rows_of_both():
    earlier = MinedNegatives(np.array([0, 2, 5]), np.array([[1, 2], [3, -1], [7, 8]]))
    later = MinedNegatives(np.array([2, 3, 5]), np.array([[4, 3], [1, 2], [8, -1]]))
    assert later.new_since(earlier) == (1, 3)
    assert earlier.new_since(earlier) == (0, 5)


@pytest.mark.parametrize("kind", ["rows", "a corpus"])
def test_a_batch_has_the_mined_ones_of_its_rows(kind, rows_data, tmp_path):
    """Against a loop: listed and mined ones, each once, but for positives of the batch; the mined ones are judged 0."""
    if kind == "rows":
        data = rows_data
    else:
        beir(tmp_path / "beir")
        data = RetrievalDataModule(tmp_path / "beir", batch_size=8, negatives=1, cache_dir=tmp_path / "cache")
    split, rng = data.train, np.random.default_rng(1)
    for turn in range(20):
        positions, draws = rng.permutation(len(data))[:8], rng.random(8)
        data.mined = None
        bare = data.examples(positions, draws)
        data.mined = random_mined(data, seed=turn)
        batch = data.examples(positions, draws)
        assert batch.columns[:2] == bare.columns[:2]
        listed = bare.columns[2] if len(bare.columns) > 2 else []
        mined = dict(zip(data.mined.rows.tolist(), data.mined.texts.tolist(), strict=True))
        own = [(i, t) for i, row in enumerate(positions.tolist()) for t in mined.get(row, []) if t >= 0]
        texts = split.read_candidates(np.array([t for _, t in own], dtype=np.int64))
        expected = list(dict.fromkeys(t for t in [*listed, *texts] if t not in bare.columns[1]))
        assert (batch.columns[2] if len(batch.columns) > 2 else []) == expected
        assert [text_id(text) for column in batch.columns for text in column] == np.concatenate(batch.ids).tolist()
        judged = [[text_id(batch.columns[0][i]), text_id(text), 0] for (i, _), text in zip(own, texts, strict=True)]
        assert batch.labels.tolist() == [*bare.labels.tolist(), *judged]


def test_a_positive_of_another_query_is_no_negative_of_that_query(rows_data):
    """q0 has p0 and, in another row, p1; p1 is mined for q2, and comes to a batch with q0's first row."""
    rows = [{"query": "q0", "positive": ["p0"]}, {"query": "q0", "positive": ["p1"]}, {"query": "q2", "positive": ["p2"]}]
    folder = rows_data.cache_dir.parent / "other"
    write(folder / "train.jsonl", rows)
    data = RetrievalDataModule(folder, holdout=0.0, cache_dir=rows_data.cache_dir)
    data.mined = MinedNegatives(np.array([2]), np.array([[1]]))
    batch = data.examples(np.array([0, 2]), np.zeros(2))
    assert batch.columns == (["q0", "q2"], ["p0", "p2"], ["p1"])
    embeddings = [torch.randn(len(column), 4, requires_grad=True) for column in batch.columns]
    ids = [torch.from_numpy(i) for i in batch.ids]
    masks = InfoNCE().targets(embeddings, batch.labels, ids)["query_to_doc"]
    assert masks.tolist() == [[False, False, True], [False, False, False]]


def test_lists_to_be_ranked_take_them_as_their_own(tmp_path):
    """Where a query sees its own negatives alone, those that are mined for it are among them."""
    write(tmp_path / "train.jsonl", [{"query": f"q{i}", "positive": [f"p{i}"], "negative": [f"n{i}"]} for i in range(4)])
    data = RerankingDataModule(tmp_path, holdout=0.0, cache_dir=tmp_path / "cache")
    number = data.train.text_ids.tolist().index(text_id("n3"))
    data.mined = MinedNegatives(np.array([0]), np.array([[number]]))
    batch = data.examples(np.array([0, 1]), np.zeros(2))
    assert batch.columns[2] == ["n0", "n1", "n3"]
    embeddings = [torch.randn(len(column), 4) for column in batch.columns]
    masks = data.default_loss().targets(embeddings, batch.labels, [torch.from_numpy(i) for i in batch.ids])
    assert (~masks["query_to_doc"]).tolist() == [[True, False, True, False, True], [False, True, False, True, False]]


# ---- when they are in force


class Shifting:
    """Gives each row one negative, a number that is the last change at or before the step."""

    def __init__(self, data, every):
        self.data, self.every, self.prepared = data, every, []

    def next_change(self, step):
        return step - step % self.every + self.every

    def prepare(self, step):
        self.prepared.append(step)
        numbers = np.full((len(self.data), 1), step // self.every, dtype=np.int64)
        self.data.mined = MinedNegatives(np.arange(len(self.data)), numbers)


@pytest.mark.parametrize(("workers", "accumulate", "every", "step"), [(0, 1, 2, 0), (2, 1, 2, 3), (2, 2, 1, 1), (0, 3, 7, 2)])
def test_a_batch_has_those_of_its_optimizer_step(workers, accumulate, every, step, tmp_path):
    """With processes that read ahead too: none takes what was in force before, or what will be."""
    rows = [{"query": f"q{i}", "positive": [f"p{i}"]} for i in range(12)]  # whose positives are the numbers that are mined
    rows += [{"query": f"r{i}", "positive": [f"s{i}"], "negative": [f"n{i}"]} for i in range(60)]
    write(tmp_path / "train.jsonl", rows)
    data = RetrievalDataModule(tmp_path, batch_size=6, negatives=1, holdout=0.0, cache_dir=tmp_path / "cache")
    mixture = MixtureDataModule({"a": data}, num_workers=workers)
    mixture.trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=accumulate, global_rank=0, world_size=1)
    mixture.setup()
    mixture.bind(static(train_vocabulary(["q p n m 0123456789"] * 3, "bpe", 100), dim=4))
    mixture.changes = changes = Shifting(data, every)
    mined = {text_id(f"p{i}"): i for i in range(12)}
    seen = [{mined[i] for i in batch.ids[2].tolist() if i in mined} for batch in mixture.train_dataloader()]

    length = len(mixture.sampler)
    starts = {batches_before(length, accumulate, s): s for s in range(length + 1)}
    begin = batches_before(length, accumulate, step)
    steps = [max(s for start, s in starts.items() if start <= batch) for batch in range(begin, length)]
    assert len(seen) == len(steps)
    for numbers, of in zip(seen, steps, strict=True):
        assert numbers in ({of // every}, set()), "none where it is a positive of the batch"
    assert sum(map(bool, seen)) > len(seen) // 2
    assert changes.prepared == [s for s in range(step, steps[-1] + 1) if s == step or s % every == 0]
