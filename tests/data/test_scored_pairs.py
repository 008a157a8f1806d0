"""Scored and labelled pairs: training examples, batches and evaluation sets."""

import numpy as np
import pytest
from family_rows import SCORED, epoch_order, texts_of, uniform, write

from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.records import text_id


@pytest.mark.parametrize(("family", "label"), [("sts", "score"), ("pair", "label")])
def test_pair_examples(tmp_path, make, family, label):
    rows = [{"text1": f"A{i}", "text2": f"b{i % 4}", label: (i * 7 % 5) / 2 if label == "score" else i % 2} for i in range(30)]
    write(tmp_path / "train.jsonl", rows)
    data = make(family, holdout=0.0)
    positions = np.array([29, 3, 3, 0])
    found = data.examples(positions, uniform(4))
    chosen = [rows[i] for i in positions]
    assert found.columns == ([row["text1"] for row in chosen], [row["text2"] for row in chosen])
    assert found.roles == ("text", "text")
    assert [ids.tolist() for ids in found.ids] == [[text_id(text) for text in column] for column in found.columns]
    assert found.labels.tolist() == [float(row[label]) for row in chosen]
    values, row = data.texts_of(uniform(30))
    assert values.tolist() == [text_id(r[name]) for r in rows for name in ("text1", "text2")]
    assert row.tolist() == [i for i in range(30) for _ in "12"]
    assert sorted(data.train_texts()) == sorted(r[name] for r in rows for name in ("text1", "text2"))


@pytest.mark.parametrize(("family", "label"), [("sts", "score"), ("pair", "label")])
def test_pair_evaluation(tmp_path, make, family, label):
    rows = [{"text1": f"a{i}", "text2": f"a{i * i % 7}", label: i % 2} for i in range(12)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "dev.jsonl", rows)
    found = make(family).evaluation("dev")
    texts = texts_of(found)
    assert sorted(texts) == sorted({row[name] for row in rows for name in ("text1", "text2")})
    assert [(texts[int(i)], texts[int(j)], value) for i, j, value in found.labels.tolist()] == [
        (row["text1"], row["text2"], row[label]) for row in rows
    ]
    assert found.roles == ((len(texts), "text"),)
    assert len(found) == len(texts)


def test_sts_keeps_scores_exact_for_evaluation(tmp_path, make):
    write(tmp_path / "dev.jsonl", [{"text1": "a", "text2": "b", "score": 3.2000000000000001}, {**SCORED[0], "score": "3.21"}])
    assert make("sts").evaluation("dev").labels[:, 2].tolist() == [3.2, 3.21]


def test_neutral_pairs_take_no_part(tmp_path, make):
    rows = [{"text1": f"a{i}", "text2": "b", "label": ("neutral", "entailment", "contradiction")[i % 3]} for i in range(9)]
    write(tmp_path / "train.jsonl", rows)
    data = make("pair", holdout=0.0)
    assert data.examples(np.arange(len(data)), uniform(6)).labels.tolist() == [1, 0] * 3


def test_a_pair_has_the_same_key_in_either_order(tmp_path, make):
    pairs = [("a", "b"), ("b", "a"), ("A", "ｂ"), ("a", "c"), ("a", "a"), ("b", "b"), ("c", "b")]
    write(tmp_path / "train.jsonl", [{"text1": a, "text2": b, "score": 0} for a, b in pairs])
    data = make("sts", holdout=0.0)
    keys = data.keys(data.train).tolist()
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 5


def test_rare_positives_are_in_every_batch(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text1": f"a{i}", "text2": f"b{i}", "label": int(i % 10 == 3)} for i in range(200)])
    data = make("sts", batch_size=20, holdout=0.0)
    for seed in range(5):
        order = epoch_order(data, seed)
        assert sorted(order.tolist()) == list(range(200))
        batches = order.reshape(10, 20)
        assert [sum(i % 10 == 3 for i in batch) for batch in batches.tolist()] == [2] * 10


@pytest.mark.parametrize("family", ["sts", "pair"])
@pytest.mark.parametrize("rows", [64, 65, 95, 127, 500])
def test_every_batch_spans_the_labels(tmp_path, make, rows, family):
    labels = [i % 2 for i in range(rows)] if family == "pair" else (uniform(rows) ** 3 * 5).tolist()
    name = "label" if family == "pair" else "score"
    write(tmp_path / "train.jsonl", [{"text1": f"a{i}", "text2": f"b{i}", name: v} for i, v in enumerate(labels)])
    data = make(family, batch_size=32, holdout=0.0)
    sizes = batch_sizes(rows, 32)
    order = epoch_order(data, 0)
    assert sorted(order.tolist()) == list(range(rows))
    ranked = np.sort(labels)
    for batch in np.split(order, np.cumsum(sizes))[: len(sizes)]:
        found = np.sort(np.array(labels)[batch])
        for rank, value in enumerate(found):  # the k-th lies about where the k-th of as many equal parts does
            near = ranked[max(0, rank * rows // len(batch) - 40) : (rank + 1) * rows // len(batch) + 40]
            assert near[0] <= value <= near[-1]
        assert found[0] <= np.quantile(labels, 0.2)
        assert found[-1] >= np.quantile(labels, 0.8)


def test_few_pairs_make_one_short_batch(tmp_path, make):
    write(tmp_path / "train.jsonl", SCORED[:5])
    order = epoch_order(make("sts", holdout=0.0), 0)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]


def test_pair_epochs_differ_in_batches_and_in_rows_left_out(tmp_path, make):
    write(tmp_path / "train.jsonl", [{**row, "score": 1} for row in SCORED])
    data = make("sts", batch_size=8, holdout=0.0)
    epochs = [epoch_order(data, seed).tolist() for seed in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    used = [frozenset(epoch[: batch_sizes(30, 8).sum()]) for epoch in epochs]
    assert len(set(used)) > 10
    assert frozenset().union(*used) == set(range(30))
    assert epoch_order(data, 3).tolist() == epochs[3]
