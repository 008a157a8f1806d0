"""The seven task families: splits, subsets, training examples and evaluation sets, against loops over the raw rows."""

import gzip
import json
import logging
import math
import os
import pickle
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import acge_lightning.data
from acge_lightning.data import (
    ClassificationDataset,
    ClusteringDataset,
    PairDataset,
    RerankingDataset,
    RetrievalDataset,
    STSDataset,
    UnlabelledDataset,
)
from acge_lightning.data.collate import Collate
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.loaders import StepDataset
from acge_lightning.data.records import text_id
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.data.unlabelled import view
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import positive_mask
from acge_lightning.metrics.task_metrics import Retrieval

DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLE = Path(__file__).parents[2] / "acge_lightning" / "sample"
FAMILIES = {
    "sts": STSDataset,
    "pair": PairDataset,
    "clustering": ClusteringDataset,
    "classification": ClassificationDataset,
    "retrieval": RetrievalDataset,
    "reranking": RerankingDataset,
    "unlabelled": UnlabelledDataset,
}
SCORED = [{"text1": f"a{i}", "text2": f"b{i}", "score": i / 10} for i in range(30)]
CLASSED = [{"text": f"t{i}", "label": "xyz"[i % 3]} for i in range(30)]


@pytest.fixture
def make(tmp_path):
    """A data set on `tmp_path`, whose cache lies beside it."""
    return lambda family, path=tmp_path, **options: FAMILIES[family](path, cache_dir=tmp_path / "cache", **options)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row_for(family, i):
    """A row whose texts are its own."""
    if family in ("sts", "pair"):
        return {"text1": f"a{i}", "text2": f"b{i}", "label": i % 2}
    if family in ("retrieval", "reranking"):
        return {"query": f"q{i}", "positive": [f"p{i}"], "negative": [f"n{i}", f"m{i}"]}
    return {"text": f"t{i}", "label": i % 3}


def first_texts(data, role):
    """The first text of each row of a split, found by its hash."""
    known = {text_id(f"{letter}{i}"): i for i in range(3000) for letter in "aqt"}
    data.open()
    return [known[i] for i in data.opened_splits[role].first_ids.tolist()]


def uniform(n, seed=0):
    return np.random.default_rng(seed).random(n)


def epoch_order(data, seed):
    data.open()
    return data.order(np.random.default_rng(seed), uniform(len(data)), batch_sizes(len(data), data.batch_size))


def texts_of(found):
    return found.texts.to_pylist()


# ---- splits and subsets


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_are_the_files(tmp_path, make, family):
    for role, rows in (("train", range(20)), ("dev", range(20, 26)), ("test", range(26, 30))):
        write(tmp_path / f"{role}.jsonl", [row_for(family, i) for i in rows])
    data = make(family)
    assert first_texts(data, "train") == list(range(20))
    assert first_texts(data, "dev") == list(range(20, 26))
    assert first_texts(data, "test") == list(range(26, 30))
    assert len(data) == 20
    for role in ("dev", "test"):
        assert data.keys(data.opened_splits[role]).tolist() == data.evaluation(role).keys.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_holdout_becomes_dev(tmp_path, make, family):
    repeated = [row_for(family, i // 2) for i in range(800)]  # every first text twice
    write(tmp_path / "train.jsonl", repeated)
    write(tmp_path / "test.jsonl", [row_for(family, 500)])
    data = make(family, holdout=0.2)
    train, dev = first_texts(data, "train"), first_texts(data, "dev")
    assert sorted(train + dev) == sorted(i // 2 for i in range(800))
    assert not set(train) & set(dev)
    assert 0.15 < len(dev) / 800 < 0.25
    assert (train, dev) == tuple(first_texts(make(family, holdout=0.2), role) for role in ("train", "dev"))
    assert set(dev) < set(first_texts(make(family, holdout=0.4), "dev"))
    assert make(family, holdout=0.0).evaluation("dev") is None


def test_holdout_does_not_move_rows_when_others_join(tmp_path, make):
    write(tmp_path / "train.jsonl", [row_for("sts", i) for i in range(1000)])
    before = set(first_texts(make("sts"), "dev"))
    write(tmp_path / "train.jsonl", [row_for("sts", i) for i in range(1200)])
    after = set(first_texts(make("sts"), "dev"))
    assert before == {i for i in after if i < 1000}
    assert after - before


def test_holdout_is_not_taken_where_it_is_not_needed(tmp_path, make):
    write(tmp_path / "train.jsonl", [row_for("sts", i) for i in range(200)])
    assert len(make("sts", holdout=0.0)) == 200
    assert make("sts", holdout=0.0).evaluation("dev") is None
    assert len(make("unlabelled", columns={"text": "text1"})) == 200  # only if asked
    write(tmp_path / "dev.jsonl", [row_for("sts", 300)])
    assert len(make("sts")) == 200
    assert first_texts(make("sts"), "dev") == [300]


def test_holdout_leaves_no_part_empty(tmp_path, make):
    write(tmp_path / "train.jsonl", [row_for("sts", 1)] * 40)  # one first text: all or nothing
    for holdout in (0.01, 0.5, 0.99):
        assert len(make("sts", holdout=holdout)) == 40


def test_limits_draw_evenly_and_always_the_same(tmp_path, make):
    for role in ("train", "dev", "test"):
        write(tmp_path / f"{role}.jsonl", [row_for("clustering", i) for i in range(1000)])
    data = make("clustering", max_train=100, max_dev=50)
    found = first_texts(data, "train")
    assert len(found) == len(set(found)) == len(data) == 100
    assert found == sorted(found)
    assert 350 < np.mean(found) < 650
    assert len(np.unique(np.array(found) // 100)) == 10
    assert [len(first_texts(data, role)) for role in ("dev", "test")] == [50, 50]
    assert [len(data.evaluation(role)) for role in ("dev", "test")] == [50, 50]
    again = make("clustering", max_train=100, max_dev=50)
    assert first_texts(again, "train") == found
    assert first_texts(again, "dev") == first_texts(data, "dev")
    assert len(make("clustering", max_train=5000)) == 1000


def test_the_limit_of_training_rows_does_not_change_dev(tmp_path, make):
    write(tmp_path / "train.jsonl", [row_for("sts", i) for i in range(1000)])
    whole, small = make("sts"), make("sts", max_train=50, max_dev=20)
    assert len(small) == 50
    assert set(first_texts(small, "dev")) < set(first_texts(whole, "dev"))
    assert set(first_texts(small, "train")) < set(first_texts(whole, "train"))


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_a_limited_part_are_its_rows(tmp_path, make, family):
    write(tmp_path / "train.jsonl", [row_for(family, i) for i in range(60)])
    write(tmp_path / "dev.jsonl", [row_for(family, i) for i in range(60)])
    data = make(family, max_train=20, max_dev=10)
    numbers = first_texts(data, "train")
    positions = np.array([19, 0, 7])
    found = data.examples(positions, uniform(3))
    expected = [row_for(family, numbers[i]) for i in positions]
    assert found.columns[0] == [row.get("query", row.get("text1", row.get("text"))) for row in expected]
    if family in ("retrieval", "reranking"):
        assert found.columns[1] == [row["positive"][0] for row in expected]
        assert set(found.columns[2]) <= {text for row in expected for text in row["negative"]}
    values, row = data.texts_of(uniform(20))
    assert values[np.searchsorted(row, np.arange(20))].tolist() == data.train.first_ids.tolist()


def test_a_single_file_trains_and_is_held_out(tmp_path, make):
    path = write(tmp_path / "rows.jsonl", [row_for("sts", i) for i in range(300)])
    write(tmp_path / "dev.jsonl", [row_for("sts", 900)])  # not looked at
    data = make("sts", path)
    train, dev = first_texts(data, "train"), first_texts(data, "dev")
    assert sorted(train + dev) == list(range(300))
    assert dev
    assert data.evaluation("test") is None


def test_a_single_file_with_a_dev_file_beside_it(tmp_path, make):
    path = write(tmp_path / "rows.jsonl", [row_for("sts", i) for i in range(30)])
    write(tmp_path / "other.jsonl", [row_for("sts", 900)])
    data = make("sts", path, splits={"dev": "other.jsonl"})
    assert (len(data), first_texts(data, "dev")) == (30, [900])


def test_splits_may_have_other_names(tmp_path, make):
    write(tmp_path / "learn.jsonl", [row_for("sts", i) for i in range(20)])
    write(tmp_path / "validation.jsonl", [row_for("sts", 100)])
    write(tmp_path / "test.jsonl", [row_for("sts", 200)])
    data = make("sts", splits={"train": "learn", "dev": "validation", "test": None})
    assert (len(data), first_texts(data, "dev"), data.evaluation("test")) == (20, [100], None)
    data = make("sts", splits={"train": "learn", "dev": "test.jsonl", "test": "validation"})
    assert (first_texts(data, "dev"), first_texts(data, "test")) == ([200], [100])
    data = make("sts", splits={"train": None, "dev": "validation"})
    assert first_texts(data, "dev") == [100]
    with pytest.raises(InputError, match=r"has no train split: name its file under splits\.train, or give the task weight 0"):
        len(data)


def test_sharded_splits_and_mixed_formats(tmp_path, make):
    rows = [row_for("sts", i) for i in range(30)]
    (tmp_path / "data").mkdir()
    for i in range(3):
        pq.write_table(pa.Table.from_pylist(rows[10 * i : 10 * i + 10]), tmp_path / "data" / f"train-0000{i}-of-00003.parquet")
    (tmp_path / "dev.tsv.gz").write_bytes(gzip.compress(b"text1\ttext2\tlabel\na100\tb100\t1\n"))
    data = make("sts")
    assert (first_texts(data, "train"), first_texts(data, "dev")) == (list(range(30)), [100])


def test_columns_are_renamed(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"sentence1": f"a{i}", "sentence2": f"b{i}", "gold": i} for i in range(20)])
    data = make("sts", columns={"text1": "sentence1", "text2": "sentence2", "score": "gold"}, holdout=0.0)
    found = data.examples(np.array([3]), uniform(1))
    assert (found.columns, found.labels.tolist()) == ((["a3"], ["b3"]), [3.0])


def test_bad_rows_are_skipped_if_asked(tmp_path, make):
    write(tmp_path / "train.jsonl", [*SCORED, {"text1": "", "text2": "b", "score": 1}])
    assert len(make("sts", on_bad_row="skip", max_bad_fraction=0.5, holdout=0.0)) == 30
    data = make("sts")
    for _ in range(2):  # a second call does not pass over the failure
        with pytest.raises(InputError, match="line 31: field 'text1' is empty"):
            data.open()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("sts", {"batch_size": 1}, "batch_size=1 leaves nothing to contrast: give at least 2"),
        ("sts", {"batch_size": 0}, "batch_size=0"),
        ("sts", {"holdout": 1.0}, "holdout=1.0 is no share of the rows: give 0 to 0.9"),
        ("sts", {"holdout": -0.1}, "holdout=-0.1"),
        ("sts", {"holdout": float("nan")}, "holdout=nan"),
        ("sts", {"max_train": 0}, "max_train=0 leaves no rows: give at least 1, or null for all"),
        ("sts", {"max_dev": -1}, "max_dev=-1 leaves no rows"),
        ("sts", {"splits": {"valid": "x"}}, "splits.valid is unknown: choose train, dev or test"),
        ("sts", {"prompts": {"query": "q"}}, "prompts.query is no role of a sts text: choose from ['text']"),
        (
            "retrieval",
            {"prompts": {"text": "q"}},
            "prompts.text is no role of a retrieval text: choose from ['query', 'document']",
        ),
        ("retrieval", {"negatives": -1}, "negatives=-1 must be 0 or more"),
        ("clustering", {"per_label": 1}, "per_label=1 gives a text no partner of its label: give at least 2"),
        ("classification", {"shots": 0}, "shots=0 leaves the probe nothing to learn from: give at least 1"),
        ("unlabelled", {"augment": "shuffle"}, "augment='shuffle' is unknown: choose from ['none', 'span_crop', "),
    ],
)
def test_wrong_options_are_refused_at_once(make, family, options, message):
    with pytest.raises(InputError) as caught:
        make(family, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"sentence1": "text1"}}, r"columns\.sentence1 is no field of these rows: choose from \['text1', "),
        (
            {"columns": {"text1": "sentence1"}},
            r"train\.jsonl has no column 'sentence1'",
        ),
        ({"splits": {"dev": "valid.jsonl"}}, r"splits\.dev=valid\.jsonl: there is no file .*valid\.jsonl"),
        (
            {"splits": {"train": "learn"}},
            r"has no file of a split \(learn, dev, test\), it holds train\.jsonl: name its files",
        ),
        ({"on_bad_row": "drop"}, "on_bad_row='drop' is unknown: choose from raise, skip, quarantine"),
        ({"path": "/no/such/path"}, r"/no/such/path is not there: / has no 'no'"),
    ],
)
def test_wrong_options_are_refused_with_the_files(tmp_path, make, options, message):
    write(tmp_path / "train.jsonl", SCORED)
    with pytest.raises(InputError, match=message):
        make("sts", **options).open()


# ---- pairs


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


# ---- texts with classes


@pytest.mark.parametrize("family", ["clustering", "classification"])
def test_labelled_examples(tmp_path, make, family):
    rows = [{"text": f"T{i}", "label": ["b", "a", 7][i % 3]} for i in range(20)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "z", "label": "only here"}])
    data = make(family, holdout=0.0)
    positions = np.array([19, 4, 4, 0, 2])
    found = data.examples(positions, uniform(5))
    assert found.columns == ([rows[i]["text"] for i in positions],)
    assert found.roles == ("text",)
    assert found.ids[0].tolist() == [text_id(rows[i]["text"]) for i in positions]
    words = sorted({"a", "b", "7", "only here"})
    assert found.labels.tolist() == [words.index(str(rows[i]["label"])) for i in positions]
    assert list(data.train_texts()) == [row["text"] for row in rows]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_every_text_has_a_partner_of_its_label(tmp_path_factory, labels, per_label, seed):
    folder = tmp_path_factory.mktemp("labels")
    write(folder / "train.jsonl", [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)])
    data = ClusteringDataset(folder, per_label=per_label, holdout=0.0, cache_dir=folder / "cache")
    order = epoch_order(data, seed).tolist()
    assert sorted(order) == list(range(len(labels)))
    of = [labels[i] for i in order]
    for i, label in enumerate(of):
        assert labels.count(label) == 1 or label in (of[i - 1 : i] + of[i + 1 : i + 2])
    groups = sum(max(1, min(-(-n // per_label), n // 2)) for n in Counter(labels).values())
    assert len(list(groupby(of))) <= groups


def test_labelled_groups_are_mixed_anew_each_epoch(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i // 40} for i in range(160)])
    data = make("clustering", holdout=0.0)
    first, second = (epoch_order(data, seed) for seed in (0, 1))
    partners = [{frozenset(order[i : i + 4].tolist()) for i in range(0, 160, 4)} for order in (first, second)]
    assert all(len({i // 40 for i in group}) == 1 for group in partners[0])  # groups of four of one label
    assert len(partners[0] & partners[1]) <= 2
    runs = [len(list(run)) for _, run in groupby((first // 40).tolist())]
    assert max(runs) < 40  # the groups of a label do not all follow one another


def test_clustering_evaluation(tmp_path, make):
    write(tmp_path / "train.jsonl", CLASSED)
    write(tmp_path / "dev.jsonl", [{"text": "same", "label": "b"}, {"text": "same", "label": "x"}, {"text": "c", "label": "b"}])
    found = make("clustering").evaluation("dev")
    assert texts_of(found) == ["same", "same", "c"]
    words = ["b", "x", "y", "z"]
    assert found.labels.tolist() == [[words.index("b"), 0], [words.index("x"), 0], [words.index("b"), 0]]
    assert found.roles == ((3, "text"),)


@pytest.mark.parametrize("shots", [1, 3, 8, 1000])
def test_classification_evaluation_has_shots_a_class(tmp_path, make, shots):
    train = [{"text": f"t{i}", "label": "ab"[i % 10 == 0]} for i in range(60)] + [{"text": "lonely", "label": "c"}]
    dev = [{"text": f"d{i}", "label": "abcd"[i % 4]} for i in range(9)]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "dev.jsonl", dev)
    found = make("classification", shots=shots).evaluation("dev")
    rows = list(zip(texts_of(found), *found.labels.T.tolist(), strict=True))
    learn = [("abcd"[label], text) for text, label, may in rows if may]
    assert Counter(label for label, _ in learn) == {"a": min(54, shots), "b": min(6, shots), "c": 1}
    assert len(set(learn)) == len(learn)
    assert set(learn) <= {(row["label"], row["text"]) for row in train}
    assert [("abcd"[label], text) for text, label, may in rows if not may] == [(row["label"], row["text"]) for row in dev]
    assert found.keys.tolist() == [text_id(row["text"]) for row in dev]
    again = make("classification", shots=shots).evaluation("dev")
    assert texts_of(again) == texts_of(found)


def test_shots_are_drawn_from_the_whole_file(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": "a"} for i in range(400)])
    write(tmp_path / "dev.jsonl", [{"text": "d", "label": "a"}])
    found = [int(text[1:]) for text in texts_of(make("classification").evaluation("dev"))[:-1]]
    assert len(found) == 16
    assert min(found) < 100
    assert max(found) > 300


def test_shots_come_from_the_training_part_only(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(400)])
    data = make("classification", shots=100, holdout=0.3)
    found = data.evaluation("dev")
    learn = {text for text, may in zip(texts_of(found), found.labels[:, 1].tolist(), strict=True) if may}
    assert learn <= {f"t{i}" for i in first_texts(data, "train")}
    assert not learn & {f"t{i}" for i in first_texts(data, "dev")}


def test_classification_without_training_rows(tmp_path, make):
    write(tmp_path / "test.jsonl", CLASSED)
    with pytest.raises(InputError, match="has no train split"):
        make("classification").evaluation("test")
    assert len(make("clustering").evaluation("test")) == 30  # needs none


# ---- retrieval from a corpus


def beir(folder, seed=0, queries=40, docs=60):
    """A random BEIR folder; (query texts, document texts, query -> document -> grade), by key."""
    rng = np.random.default_rng(seed)
    corpus = {f"d{i}": (f"文 {i}", ["", f"题 {i}"][i % 2]) for i in range(docs)}
    asked = {f"q{i}": f"问 {i}" for i in range(queries)}
    grades = {}
    for q in asked:
        chosen = rng.choice(docs, rng.integers(2, 9), replace=False)
        grades[q] = {f"d{d}": int(rng.integers(0, 3)) for d in chosen}
    grades["q0"] = dict.fromkeys(list(grades["q0"]), 0)  # nothing answers it
    write(folder / "corpus.jsonl", [{"_id": k, "text": text, "title": title} for k, (text, title) in corpus.items()])
    write(folder / "queries.jsonl", [{"_id": k, "text": text} for k, text in asked.items()])
    pairs = [(q, d, g) for q, found in grades.items() for d, g in found.items()]
    rng.shuffle(pairs)
    for split in ("train", "dev"):
        qrels(folder, split, pairs)
    del grades["q0"]
    return asked, {k: f"{title} {text}".strip() for k, (text, title) in corpus.items()}, grades


def qrels(folder, split, pairs):
    path = folder / "qrels" / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore\n", *(f"{q}\t{d}\t{g}\n" for q, d, g in pairs)]
    path.write_bytes("".join(lines).encode(errors="surrogatepass"))


def check_batch(found, judged, most):
    """The promises of a retrieval batch; `judged`: query text -> text -> grade."""
    queries, positives, negatives = *found.columns[:2], (found.columns[2] if len(found.columns) > 2 else [])
    assert found.roles == ("query", "document", "document")[: len(found.columns)]
    assert [ids.tolist() for ids in found.ids] == [[text_id(text) for text in column] for column in found.columns]
    assert all(judged[q][p] > 0 for q, p in zip(queries, positives, strict=True))
    assert all(any(judged[q].get(n, 1) <= 0 for q in queries) for n in negatives)
    assert len(set(negatives)) == len(negatives) <= most * len(queries)
    assert not set(negatives) & set(positives)
    told = {(q, d): g for q, d, g in found.labels.tolist()}
    for q in queries:
        for text, grade in judged[q].items():
            assert told[text_id(q), text_id(text)] == (grade > 0)
    assert {q for q, _ in told} == {text_id(q) for q in queries}
    docs = [*positives, *negatives]
    ids = np.concatenate(found.ids[1:])
    positives = positive_mask(as_tensor(found.ids[0]), as_tensor(ids), found.labels)  # what InfoNCE leaves out
    assert positives.tolist() == [[judged[q].get(d, 0) > 0 or d == q for d in docs] for q in queries]


def as_tensor(array):
    return torch.from_numpy(np.asarray(array))


@pytest.mark.parametrize("negatives", [0, 1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_beir_examples(tmp_path, make, seed, negatives):
    asked, docs, grades = beir(tmp_path, seed)
    judged = {asked[q]: {docs[d]: g for d, g in found.items()} for q, found in grades.items() if max(found.values()) > 0}
    data = make("retrieval", negatives=negatives)
    assert len(data) == len(judged)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        positions = rng.permutation(len(data))[:9]
        check_batch(data.examples(positions, rng.random(9)), judged, negatives)
    everything = data.examples(np.arange(len(data)), rng.random(len(data)))
    assert sorted(everything.columns[0]) == sorted(judged)
    assert (len(everything.columns) > 2) == (negatives > 0)


def test_draws_choose_every_positive_and_every_negative_alike(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    data = make("retrieval", negatives=1)
    query = max(grades, key=lambda q: min(sum(g > 0 for g in grades[q].values()), sum(g == 0 for g in grades[q].values())))
    position = data.examples(np.arange(len(data)), uniform(len(data))).columns[0].index(asked[query])
    both = Counter()
    for draw in uniform(1500):
        found = data.examples(np.array([position]), np.array([draw]))
        both[found.columns[1][0], found.columns[2][0]] += 1
    right = [docs[d] for d, g in grades[query].items() if g > 0]
    wrong = [docs[d] for d, g in grades[query].items() if g == 0]
    assert len(right) >= 2
    assert len(wrong) >= 2
    expected = 1500 / len(right) / len(wrong)  # every combination: the negative does not follow the positive
    assert set(both) == {(p, n) for p in right for n in wrong}
    assert all(abs(count - expected) < 5 * expected**0.5 for count in both.values())


def test_several_negatives_of_a_query_are_different_ones(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"query": "q", "positive": "p", "negative": list("abcde")}, row_for("retrieval", 1)])
    data = make("retrieval", negatives=3, holdout=0.0)
    seen = Counter()
    for draw in uniform(200):
        found = data.examples(np.array([0]), np.array([draw])).columns[2]
        assert len(set(found)) == len(found) == 3
        seen.update(found)
    assert set(seen) == set("abcde")


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1, 0)])
def test_draws_at_the_ends_stay_within_the_lists(tmp_path, make, draw):
    write(tmp_path / "train.jsonl", [{"query": "q", "positive": list("xyz"), "negative": list("abc")}, row_for("retrieval", 1)])
    found = make("retrieval", holdout=0.0).examples(np.array([0, 1]), np.array([draw, draw]))
    assert found.columns[1] == [{0.0: "x", 0.5: "y"}.get(draw, "z"), "p1"]
    assert found.columns[2][0] in "abc"


def test_texts_of_a_query_are_itself_and_its_drawn_positive(tmp_path, make):
    beir(tmp_path)
    data = make("retrieval")
    draws = uniform(len(data))
    values, row = data.texts_of(draws)
    found = data.examples(np.arange(len(data)), draws)
    assert values.reshape(-1, 2).T.tolist() == [ids.tolist() for ids in found.ids[:2]]
    assert row.tolist() == [i for i in range(len(data)) for _ in "12"]


def test_beir_evaluation(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    found = make("retrieval").evaluation("dev")
    answered = {q for q, judged in grades.items() if max(judged.values()) > 0}
    texts = texts_of(found)
    assert found.roles == ((len(answered), "query"), (len(answered) + len(docs), "document"))
    assert sorted(texts[: len(answered)]) == sorted(asked[q] for q in answered)
    assert texts[len(answered) :] == list(docs.values())  # the whole corpus
    told = {(texts[int(q)], texts[int(d)]): g for q, d, g, query, _ in found.labels.tolist() if query >= 0}
    assert told == {(asked[q], docs[d]): g for q in answered for d, g in grades[q].items()}
    lines = found.labels.tolist()
    assert sorted({d for *_, d in lines}) == list(range(len(docs)))  # those that nobody judges too
    assert len(lines) == len(told) + len(docs) - len({d for _, d in told})
    assert all(len(answered) + document == text for _, text, _, _, document in lines)
    assert all(np.isnan(grade) == (query < 0) for _, _, grade, query, _ in lines)
    assert sorted(found.keys.tolist()) == sorted(text_id(asked[q]) for q in answered)


def test_beir_holdout_and_limits(tmp_path, make):
    asked, docs, _ = beir(tmp_path, queries=300)
    (tmp_path / "qrels" / "dev.tsv").unlink()
    data = make("retrieval", holdout=0.3, max_train=50, max_dev=20)
    dev = data.evaluation("dev")
    assert len(data) == 50
    assert dev.roles == ((20, "query"), (20 + len(docs), "document"))
    trained = set(data.examples(np.arange(50), uniform(50)).columns[0])
    assert not trained & set(texts_of(dev)[:20])
    assert trained <= set(asked.values())
    named = {int(d) for d in dev.labels[:, 1].tolist()}
    assert named <= set(range(20, 20 + len(docs)))


def test_beir_training_texts_are_queries_and_corpus(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    answered = [asked[q] for q, judged in grades.items() if max(judged.values()) > 0]
    assert sorted(make("retrieval").train_texts()) == sorted([*answered, *docs.values()])


def small_beir(folder, pairs=(("1", "a", 1), ("2", "b", 1)), **names):
    write(folder / "corpus.jsonl", [{"_id": key, "text": f"doc {key}"} for key in "abc"])
    write(folder / "queries.jsonl", [{"_id": int(key), "text": f"query {key}"} for key in "12"])
    for split in ("train", "dev"):
        qrels(folder, names.get(split, split), pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("1", "a", 1), ("1", "x", 1)], "50.0% of all; max_bad_fraction allows 1.0%: mend them, or max_bad_fraction=0.5; the"),
        ([("1", "a", 1), ("1", "x", 1)], "train.tsv, line 3: 'x' is not among the documents"),
        ([("1", "a", 1), ("9", "a", 1)], "train.tsv, line 3: '9' is not among the queries"),
        ([("1", "a", 1), ("1", " ", 1)], "line 3: field 'corpus-id' is empty: give a text, or on_bad_row=skip"),
        (
            [("1", "a", 1), ("\ud800", "a", 1)],
            "line 3: field 'query-id' is not valid UTF-8: mend its encoding, or on_bad_row=skip",
        ),
        ([("1", "a", 0)], "no query has a document of a grade above 0: check the score column"),
        ([], "the file has no judgements: give lines of query-id, corpus-id, score"),
        ([("1", "a", "good")], "line 2: field 'score' is 'good', not a number: write one, such as 0.8, or on_bad_row=skip"),
        ([("1", "a", "nan")], "line 2: field 'score' is 'nan', not a finite number"),
        ([("1", "a", "inf")], "line 2: field 'score' is 'inf', not a finite number"),
        ([("1", "a", "1\textra")], "line 2: has 1 values more than the header"),
    ],
)
def test_bad_judgements(tmp_path, make, pairs, message):
    small_beir(tmp_path, pairs)
    with pytest.raises(InputError) as caught:
        make("retrieval").open()
    assert str(caught.value).startswith(str(tmp_path / "qrels" / "train.tsv"))
    assert message in str(caught.value)


def test_judgements_without_a_header_or_columns(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "qrels" / "train.tsv").write_text("1\t0\ta\t1\n2\t0\tb\t1\n")
    with pytest.raises(InputError, match=r"the header calls two columns '1': give each its own name, or add a header"):
        make("retrieval").open()
    (tmp_path / "qrels" / "train.tsv").write_text("1\t0\ta\t3\n2\t0\tb\t1\n")
    with pytest.raises(InputError, match=r"line 2: has \[.*\], not query-id, corpus-id and score: mend the header line"):
        make("retrieval").open()
    (tmp_path / "qrels" / "train.tsv").unlink()
    write(tmp_path / "qrels" / "train.jsonl", [{"query-id": "1", "corpus-id": "a", "score": [1]}])
    with pytest.raises(InputError, match=r"train\.jsonl, line 1: field 'score' is \[1\], not a number"):
        make("retrieval").open()


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_bad_judgements_are_skipped_and_counted_if_asked(tmp_path, make, caplog, policy):
    bad = [("1", "x", 1), ("9", "a", 1), ("8", "b", 1), ("2", "b", "nan"), ("2", "b", "?")]
    small_beir(tmp_path, [("1", "a", 2), *bad, ("2", "c", 1)])
    options = {"splits": {"dev": None}, "holdout": 0.0, "on_bad_row": policy}
    with pytest.raises(InputError, match=r"train\.tsv: 5 rows are bad, 71\.4% of all; max_bad_fraction allows 1\.0%"):
        make("retrieval", **options).open()
    with caplog.at_level(logging.WARNING):
        data = make("retrieval", max_bad_fraction=0.8, **options)
        found = data.examples(np.arange(len(data)), uniform(len(data)))
    assert found.columns == (["query 1", "query 2"], ["doc a", "doc c"])
    message = next(r.getMessage() for r in caplog.records if "5 bad rows skipped, 2 kept" in r.getMessage())
    assert ("they are in" in message) == (policy == "quarantine")
    if policy == "quarantine":
        notes = [json.loads(line) for line in Path(message.partition("they are in ")[2]).read_text().splitlines()]
        assert sorted(note["line"] for note in notes) == [3, 4, 5, 6, 7]
        reasons = {note["line"]: note["reason"] for note in notes}
        assert reasons[3] == "'x' is not among the documents"
        assert reasons[4] == "'9' is not among the queries"
        assert reasons[6] == "field 'score' is 'nan', not a finite number"


def published(folder, missing, spaced=2):
    """A folder as some are published: two empty documents of 300, judgements of what is not there, ids between spaces."""
    texts = {f"d{i}": "" if i in (7, 8) else f"doc {i}" for i in range(300)}
    asked = {f"q{i}": f"query {i}" for i in range(150)}
    write(folder / "corpus.jsonl", [{"_id": f" {k} " if k == "d5" else k, "text": t, "title": ""} for k, t in texts.items()])
    write(folder / "queries.jsonl", [{"_id": f"{k} " if k == "q6" else k, "text": t} for k, t in asked.items()])
    pairs = [(f"q{i}", f"d{i + j}", 1) for i in range(149) for j in (0, 1)]
    pairs += [("q149", "gone", 1)] * missing + [("nobody", "d1", 1)] * missing + [("q3 ", " d9", 2)]
    for split in ("train", "test"):
        qrels(folder, split, pairs)
    return texts, asked, {(q.strip(), d.strip()): g for q, d, g in pairs if q.strip() in asked and d.strip() in texts}


def test_a_published_beir_folder_loads_and_tells_what_is_odd(tmp_path, make, caplog):
    texts, asked, judged = published(tmp_path, missing=1)
    data = make("retrieval", splits={"dev": None}, holdout=0.0)
    found = data.evaluation("test")
    told = [record.getMessage() for record in caplog.records]
    corpus, questions, pairs = (str(tmp_path / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"))
    for message in (
        f"{corpus}: 2 texts are empty, the first in {corpus}, line 8: they are kept",
        f"{corpus}: 1 ids stand between white space, which is not part of them",
        f"{questions}: 1 ids stand between white space, which is not part of them",
        f"{pairs}, line 301: 'nobody' is not among the queries (skipped, as are further bad rows)",
        f"{pairs}: 2 bad rows skipped, 299 kept",
        f"{pairs}: {data.note('test')}",
    ):
        assert message in told
    left = "2 queries without a relevant document are left out; 2 judgements of texts that are not there are left out"
    assert data.note("test") == left
    column = texts_of(found)
    assert column[149:] == list(texts.values())  # the empty ones too, as in mteb
    of = {(column[int(q)], int(d)): g for q, _, g, _, d in found.labels.tolist() if not math.isnan(g)}
    assert of == {(asked[q], list(texts).index(d)): g for (q, d), g in judged.items()}
    assert {"d7", "d8"} < {d for _, d in judged}


def test_nothing_is_learnt_from_empty_texts(tmp_path, make, caplog):
    texts, asked, judged = published(tmp_path, missing=1)
    data = make("retrieval", splits={"dev": None}, holdout=0.0)
    assert "" not in list(data.train_texts())
    columns = data.train.read_queries(np.arange(len(data))), data.train.read_texts(np.arange(len(data.train.text_ids)))
    assert f"{tmp_path}/qrels/train.tsv: nothing is learnt from 4 judgements of empty texts" in caplog.text
    expected = {(asked[q], texts[d]) for q, d in judged if texts[d]}
    _, row = data.train.judged_texts(np.arange(len(data)))
    assert {(columns[0][i], text) for i, text in zip(row.tolist(), columns[1], strict=True)} == expected
    assert data.note("train").startswith("3 queries without a relevant document")  # q7 has but the two empty ones
    write(tmp_path / "queries.jsonl", [{"_id": k, "text": "" if k == "q0" else t} for k, t in asked.items()])
    again = make("retrieval", splits={"dev": None}, holdout=0.0)
    assert len(again) == len(data) - 1
    assert again.note("train").startswith("4 queries without")


@pytest.mark.parametrize("policy", ["raise", "skip", "quarantine"])
def test_too_much_that_is_odd_is_an_error_whose_remedy_works(tmp_path, make, policy):
    published(tmp_path, missing=3)
    options = {"splits": {"dev": None, "train": None}, "on_bad_row": policy}
    with pytest.raises(InputError, match=r"test\.tsv: 6 rows are bad, 2\.0% of all; .*, or max_bad_fraction=0\.02; the first"):
        make("retrieval", **options).open()
    assert make("retrieval", max_bad_fraction=0.02, **options).evaluation("test") is not None
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": "" if i < 12 else "doc"} for i in range(300)])
    with pytest.raises(InputError, match=r"corpus\.jsonl: 12 texts are empty, 4\.0% of all; .* max_bad_fraction=0\.04; the"):
        make("retrieval", max_bad_fraction=0.03, **options).open()
    assert make("retrieval", max_bad_fraction=0.04, **options).evaluation("test") is not None


def test_a_document_that_is_left_out_takes_its_judgements_along(tmp_path, make):
    """One bad row of the corpus, and the queries that only it answers, are both counted."""
    small_beir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "doc a"}\n{"_id": "b", "text": "\\ud800"}\n')
    data = make("retrieval", on_bad_row="skip", max_bad_fraction=0.5)
    assert len(data) == 1
    left = "1 queries without a relevant document are left out; 1 judgements of texts that are not there are left out"
    assert data.note("dev") == left


def test_the_same_id_twice_in_a_corpus_is_named(tmp_path, make):
    small_beir(tmp_path)
    write(tmp_path / "corpus.jsonl", [{"_id": key, "text": f"doc {i}"} for i, key in enumerate("abcb")])
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 4: field '_id' is 'b', as in .*corpus\.jsonl, line 2"):
        make("retrieval").open()
    data = make("retrieval", on_bad_row="skip", max_bad_fraction=0.3)
    assert texts_of(data.evaluation("dev"))[2:] == ["doc 0", "doc 1", "doc 2"]


# ---- other processes


def folder_of(family, path):
    """Rows of a family, and the family that reads them."""
    if family == "beir":
        beir(path)
        return "retrieval"
    write(
        path / "train.jsonl",
        [row_for(family, i) | {"text": f"文 {i}", "text1": f"文 {i}", "query": f"问 {i}"} for i in range(300)],
    )
    return family


@pytest.mark.parametrize("family", [*FAMILIES, "beir"])
@pytest.mark.parametrize("kind", ["Dataset", "DataModule"])
def test_a_dataset_goes_to_another_process_without_its_rows(tmp_path, family, kind):
    name = FAMILIES[folder_of(family, tmp_path / "set")].__name__.replace("Dataset", kind)
    data = getattr(acge_lightning.data, name)(tmp_path / "set", cache_dir=tmp_path / "cache", holdout=0.2)
    if kind == "DataModule":
        data.trainer = lambda: None  # cannot be pickled
        data.bind(lambda: None)
    data.open()
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    positions, draws = np.arange(20), uniform(20)
    here, there = (module.examples(positions, draws) for module in (data, again))
    assert here.columns == there.columns
    for role in data.opened_splits:
        assert texts_of(data.evaluation(role)) == texts_of(again.evaluation(role))
    assert not any(letter.encode() in sent for letter in "文问")


@pytest.mark.heavy
def test_workers_that_are_started_anew_give_the_same_batches(tmp_path, make):
    tasks = {}
    for family in [*FAMILIES, "beir"]:
        tasks[family] = make(folder_of(family, tmp_path / family), tmp_path / family, holdout=0.0)
        tasks[family].open()
    encoder = static(train_vocabulary(["abc 0123456789 文题问"], vocab_size=60), dim=8)
    steps = StepDataset(TaskBatchSampler(tasks), {name: Collate(name, data, encoder) for name, data in tasks.items()}, 0, 1)
    order = list(range(len(steps.sampler)))
    loader = DataLoader(steps, batch_size=None, sampler=order, num_workers=1, multiprocessing_context="spawn")
    for step, batch in zip(order, loader, strict=True):
        expected = steps[step]
        assert batch.task == expected.task
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(batch.columns, expected.columns, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batch.ids, expected.ids, strict=True))
    assert {steps[step].task for step in order} == set(tasks)


def test_a_corpus_without_queries_or_judgements(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"has a corpus and no queries: add queries\.jsonl"):
        make("retrieval").open()
    small_beir(tmp_path / "b")
    for split in ("train", "dev"):
        (tmp_path / "b" / "qrels" / f"{split}.tsv").unlink()
    with pytest.raises(InputError, match=r"has no file of a split \(train, dev, test\)"):
        make("retrieval", tmp_path / "b").open()


def test_beir_splits_may_have_other_names(tmp_path, make):
    small_beir(tmp_path, dev="validation")
    data = make("retrieval", splits={"dev": "validation", "test": "validation.tsv"})
    assert len(data.evaluation("dev")) == len(data.evaluation("test")) == 5
    with pytest.raises(InputError, match=r"splits\.test=none\.tsv: there is no file .*qrels/none\.tsv"):
        make("retrieval", splits={"test": "none.tsv"}).open()
    assert make("retrieval", splits={"dev": None}, holdout=0.0).evaluation("dev") is None


def test_beir_judgements_may_be_sharded(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "qrels" / "train.tsv").unlink()
    for i, pair in enumerate([("1", "a", 1), ("2", "b", 1)]):
        qrels(tmp_path, f"train-0000{i}-of-00002", [pair])
    assert len(make("retrieval")) == 2


# ---- retrieval and reranking from rows


@pytest.mark.parametrize("family", ["retrieval", "reranking"])
@pytest.mark.parametrize("seed", range(3))
def test_row_examples(tmp_path, make, family, seed):
    rng = np.random.default_rng(seed)
    rows, judged = [], {}
    for i in range(40):
        docs = [f"d{j}" for j in rng.choice(50, 8, replace=False)]
        cut = int(rng.integers(1, 5))
        rows.append({"query": f"q{i}", "positive": docs[:cut], "negative": docs[cut : cut + int(rng.integers(0, 5))]})
        judged[f"q{i}"] = {d: int(d in docs[:cut]) for d in rows[-1]["positive"] + rows[-1]["negative"]}
    write(tmp_path / "train.jsonl", rows)
    data = make(family, negatives=2, holdout=0.0)
    for _ in range(10):
        positions = rng.permutation(40)[:8]
        found = data.examples(positions, rng.random(8))
        assert found.columns[0] == [rows[i]["query"] for i in positions]
        check_batch(found, judged, 2)
    expected = [text for row in rows for text in (row["query"], *row["positive"], *row["negative"])]
    assert sorted(data.train_texts()) == sorted(expected)


def test_rows_of_one_query_share_their_judgements(tmp_path, make):
    """What any row calls an answer of a query is never its negative, whichever of its rows is in the batch."""
    rows = [
        {"query": "q", "positive": ["a"], "negative": ["n"]},
        {"query": "Q ", "positive": ["b"], "negative": []},
        {"query": "other", "positive": ["b"], "negative": ["a"]},
        {"query": "third", "positive": ["c"], "negative": []},
    ]
    write(tmp_path / "train.jsonl", rows)
    data = make("retrieval", holdout=0.0)
    judged = {"q": {"a": 1, "b": 1, "n": 0}, "other": {"b": 1, "a": 0}, "third": {"c": 1}}
    found = data.examples(np.array([0, 2, 3]), np.zeros(3))
    assert found.columns == (["q", "other", "third"], ["a", "b", "c"], ["n"])
    check_batch(found, judged, 1)


def test_a_negative_that_answers_another_query_of_the_batch_is_left_out(tmp_path, make):
    rows = [{"query": "q", "positive": ["a"], "negative": ["b"]}, {"query": "r", "positive": ["B"], "negative": ["n", "n"]}]
    write(tmp_path / "train.jsonl", rows)
    found = make("retrieval", negatives=2, holdout=0.0).examples(np.array([0, 1]), np.zeros(2))
    assert found.columns == (["q", "r"], ["a", "B"], ["n"])


def test_rows_without_negatives_give_two_columns(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"query": f"q{i}", "positive": f"p{i}"} for i in range(9)])
    for family in ("retrieval", "reranking"):
        found = make(family, holdout=0.0).examples(np.array([8, 1]), uniform(2))
        assert found.columns == (["q8", "q1"], ["p8", "p1"])


@pytest.mark.parametrize("family", ["retrieval", "reranking"])
def test_row_evaluation(tmp_path, make, family):
    rows = [
        {"query": "q", "positive": ["a", "b"], "negative": ["c"]},
        {"query": "r", "positive": ["c"], "negative": ["a", "d"]},
        {"query": "q", "positive": ["e"], "negative": []},
        {"query": "a", "positive": ["q"], "negative": ["b"]},  # a text may be a query and a document
    ]
    write(tmp_path / "dev.jsonl", rows)
    found = make(family).evaluation("dev")
    texts = texts_of(found)
    assert texts[:3] == ["q", "r", "a"]
    assert sorted(texts[3:]) == ["a", "b", "c", "d", "e", "q"]
    assert found.roles == ((3, "query"), (9, "document"))
    told = [(texts[int(q)], texts[int(d)], g, query) for q, d, g, query, _ in found.labels.tolist()]
    assert sorted(told) == sorted(
        (row["query"], d, int(d in row["positive"]), i) for i, row in enumerate(rows) for d in row["positive"] + row["negative"]
    )
    assert all(q < 3 <= d for q, d, *_ in found.labels.tolist())
    numbers = [int(d) for *_, d in found.labels.tolist()]
    assert len(set(numbers)) == (6 if family == "retrieval" else 9)  # documents are texts; candidates are listed


def test_equal_queries_and_documents_count_by_themselves_and_have_one_text(tmp_path, make):
    write(tmp_path / "corpus.jsonl", [{"_id": key, "text": text} for key, text in zip("abcd", "xyxz", strict=True)])
    write(tmp_path / "queries.jsonl", [{"_id": key, "text": "q"} for key in "12"])
    qrels(tmp_path, "dev", [("1", "c", 2), ("2", "b", 1)])
    found = make("retrieval", holdout=0.0).evaluation("dev")
    assert texts_of(found) == ["q", "x", "y", "x", "z"]
    lines = [tuple(int(n) for n in (q, d, query, document)) for q, d, g, query, document in found.labels.tolist() if g > 0]
    assert lines == [(0, 1, 0, 2), (0, 2, 1, 1)]
    assert len(found.keys) == 2
    data = make("retrieval", holdout=0.0, max_dev=1)
    assert {int(query) for *_, query, _ in data.evaluation("dev").labels.tolist()} == {-1, 0}


@pytest.mark.parametrize("limit", [None, 3])
def test_the_document_of_the_querys_own_id_is_left_out(tmp_path, make, limit):
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": f"doc {i}"} for i in range(9)])
    write(tmp_path / "queries.jsonl", [{"_id": f"d{i}" if i % 2 else f"q{i}", "text": f"query {i}"} for i in range(6)])
    qrels(tmp_path, "dev", [(f"d{i}" if i % 2 else f"q{i}", f"d{8 - i}", 1) for i in range(6)])
    data = make("retrieval", exclude_own_id=True, holdout=0.0, max_dev=limit)
    found = data.evaluation("dev")
    texts = texts_of(found)
    hidden = {(texts[int(q)], texts[int(d)]) for q, d, g, query, _ in found.labels.tolist() if np.isnan(g) and query >= 0}
    asked = texts[: found.roles[0][0]]
    assert hidden == {(f"query {i}", f"doc {i}") for i in (1, 3, 5) if f"query {i}" in asked}
    assert len(hidden) == 3 or limit
    plain = make("retrieval", holdout=0.0, max_dev=limit).evaluation("dev")
    assert not any(np.isnan(g) and query >= 0 for *_, g, query, _ in plain.labels.tolist())


def test_own_ids_where_there_are_none(tmp_path, make):
    small_beir(tmp_path)
    with pytest.raises(InputError, match="exclude_own_id=true, but no query has the _id of a document: leave it out"):
        make("retrieval", exclude_own_id=True).evaluation("dev")
    write(tmp_path / "rows" / "dev.jsonl", [{"query": "q", "positive": "p"}])
    with pytest.raises(InputError, match="exclude_own_id=true needs the ids of a BEIR folder"):
        make("retrieval", tmp_path / "rows", exclude_own_id=True).open()
    with pytest.raises(InputError, match="exclude_own_id=true is for retrieval from a corpus"):
        make("reranking", tmp_path / "rows", exclude_own_id=True)


def test_reranking_says_how_many_queries_have_candidates_of_one_kind(tmp_path, make):
    rows = [{"query": f"q{i}", "positive": ["a"], "negative": ["b"] * (i % 2)} for i in range(5)]
    write(tmp_path / "dev.jsonl", rows)
    data = make("reranking")
    data.open()
    assert data.note("dev") == "3 queries without both relevant and other candidates are left out"
    write(tmp_path / "dev.jsonl", rows[1:2])
    data = make("reranking")
    data.open()
    assert data.note("dev") is None


def test_a_perfect_ranking_scores_one_though_rows_repeat(tmp_path, make):
    write(tmp_path / "dev.jsonl", [{"query": "q", "positive": ["a", "a"], "negative": ["n"]}] * 2)
    data = make("retrieval")
    found, metric = data.evaluation("dev"), Retrieval()
    vectors = {"q": [1.0, 0.0], "a": [1.0, 0.1], "n": [0.0, 1.0]}
    metric.update(as_tensor([vectors[t] for t in texts_of(found)]), as_tensor(range(3)), found.labels)
    assert metric.compute() == {"ndcg": 1.0, "mrr": 1.0, "recall": 1.0}


# ---- unlabelled texts

SENTENCE = "今天天气很好，我们一起去公园散步，看看湖边的花开了没有。"
LONG = [SENTENCE, "The quick brown fox jumps over the lazy dog", "aabbccddee" * 5, "一二三四", "a b c d e f g h"]


def test_unlabelled_examples(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": f" T{i} "} for i in range(9)])
    data = make("unlabelled")
    found = data.examples(np.array([8, 1, 1]), uniform(3))
    assert found.columns == (["T8", "T1", "T1"], ["T8", "T1", "T1"])
    assert found.roles == ("text", "text")
    assert found.labels is None
    assert [ids.tolist() for ids in found.ids] == [[text_id(t) for t in ("T8", "T1", "T1")]] * 2
    assert len(data) == 9
    assert list(data.train_texts()) == [f"T{i}" for i in range(9)]


def test_unlabelled_evaluation_is_the_texts(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    assert make("unlabelled").evaluation("dev") is None
    write(tmp_path / "dev.jsonl", [{"text": "c"}, {"text": "d"}])
    found = make("unlabelled").evaluation("dev")
    assert (texts_of(found), found.roles) == (["c", "d"], ((2, "text"),))
    assert found.labels is found.judgements is found.classes is None


@pytest.mark.parametrize("augment", ["span_crop", "char_delete", "char_repeat"])
def test_the_second_view_of_a_batch_is_augmented(tmp_path, make, augment):
    write(tmp_path / "train.jsonl", [{"text": text} for text in LONG])
    draws = uniform(len(LONG))
    found = make("unlabelled", augment=augment).examples(np.arange(len(LONG)), draws)
    assert found.columns[0] == LONG
    assert found.columns[1] == [view(text, augment, draw) for text, draw in zip(LONG, draws, strict=True)]
    assert found.columns[1] != LONG
    assert found.ids[0].tolist() == found.ids[1].tolist()  # of the text, so that equal texts are masked


@pytest.mark.parametrize("text", LONG)
def test_span_crop_is_a_part_of_half_to_nine_tenths(text):
    sizes, starts = set(), set()
    for draw in uniform(300):
        found = view(text, "span_crop", draw)
        assert found in text
        assert found == found.strip()
        assert round(len(text) * 0.5) - 2 * (" " in text) <= len(found) <= round(len(text) * 0.9)
        sizes.add(len(found))
        starts.add(text.index(found))
    assert len(sizes) > 1
    assert len(starts) > 1 or len(text) < 5


@pytest.mark.parametrize("text", LONG)
def test_char_delete_drops_a_tenth(text):
    def is_subsequence(short, whole):
        left = iter(whole)
        return all(c in left for c in short)

    gone = max(1, len(text) // 10)
    views = {view(text, "char_delete", draw) for draw in uniform(200)}
    assert len(views) > 2
    for found in views:
        assert is_subsequence(found, text)
        assert len(text) - gone - (2 if " " in text else 0) <= len(found) <= len(text) - gone


@pytest.mark.parametrize("text", LONG)
def test_char_repeat_collapses_back_to_the_text(text):
    def doubled(found):
        """How often, if every run of `found` is the run of `text`, at most twice as long."""
        runs = [[(c, len(list(run))) for c, run in groupby(s)] for s in (found, text)]
        assert [c for c, _ in runs[0]] == [c for c, _ in runs[1]]
        assert all(n <= m <= 2 * n for (_, m), (_, n) in zip(*runs, strict=True))
        return len(found) - len(text)

    counts = {doubled(view(text, "char_repeat", draw)) for draw in uniform(300)}
    assert min(counts) == 1
    assert max(counts) <= max(2, len(text) // 3)
    assert max(counts) >= max(2, len(text) // 3 - 2)


@pytest.mark.parametrize("augment", ["none", "span_crop", "char_delete", "char_repeat"])
def test_views_are_functions_of_the_draw_and_leave_short_texts(augment):
    assert [view(text, augment, 0.3) for text in ("", "a", "ab", "abc")] == ["", "a", "ab", "abc"]
    draws = uniform(50)
    assert [view(SENTENCE, augment, d) for d in draws] == [view(SENTENCE, augment, d) for d in draws]
    assert (len({view(SENTENCE, augment, d) for d in draws}) > 20) == (augment != "none")
    for draw in (0.0, np.nextafter(1, 0)):
        assert view(SENTENCE, augment, draw)


# ---- prompts


@pytest.fixture(scope="module")
def encoder():
    characters = "问答文语句词问题类别甲乙丙丁：0123456789abcdefghijklmnopqrstuvwxyz"
    return static(
        train_vocabulary([*characters, characters] * 3, vocab_size=200), dim=8, prompts={"q": "问：", "d": "答：", "t": "文："}
    )


def decoded(encoder, tokens):
    words = encoder.tokenize.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    ends = tokens.lengths.cumsum(0).tolist()
    return ["".join(words[end - n : end]).replace("##", "") for end, n in zip(ends, tokens.lengths.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("family", "prompts", "expected"),
    [
        ("retrieval", {"query": "q", "document": "d"}, ["问：q1", "答：p1", "答：n1"]),
        ("reranking", {"document": "d"}, ["q1", "答：p1", "答：n1"]),
        ("sts", {"text": "t"}, ["文：a1", "文：b1"]),
        ("unlabelled", {"text": "t"}, ["文：t1", "文：t1"]),
        ("clustering", {"text": "q"}, ["问：t1"]),
        ("clustering", {}, ["t1"]),
    ],
)
def test_prompts_reach_the_tokens_by_role(tmp_path, make, encoder, family, prompts, expected):
    rows = [row_for(family, i) for i in range(4)]
    write(tmp_path / "train.jsonl", [{**row, "negative": [f"n{i}"]} if "query" in row else row for i, row in enumerate(rows)])
    data = make(family, prompts=prompts, holdout=0.0)
    batch = Collate("task", data, encoder).training(np.array([1, 3]), uniform(2))
    assert [decoded(encoder, column)[0] for column in batch.columns] == expected
    assert [len(ids) for ids in batch.ids] == [len(column) for column in batch.columns]


def test_a_prompt_that_the_encoder_lacks(tmp_path, make, encoder):
    with pytest.raises(InputError, match=r"task sts_zh: prompt 'x' is none of the encoder's: \['d', 'q', 't'\]"):
        Collate("sts_zh", make("sts", prompts={"text": "x"}), encoder)


# ---- real rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packaged_sample_opens(tmp_path, make, family):
    data = make(family, SAMPLE / family / "sample_zh")
    found = data.examples(np.arange(5), uniform(5))
    assert len(found.columns[0]) == 5
    assert (data.evaluation("dev") is None) == (family == "unlabelled")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize(("name", "split"), [("retrieval/nfcorpus_en", "dev"), ("retrieval/equals_law", "test")])
def test_a_real_corpus_against_its_files(tmp_path, make, name, split):
    def read(file):
        with gzip.open(DATA / name / file, "rt", encoding="utf-8") as lines:
            return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in map(json.loads, lines)}

    corpus, queries = read("corpus.jsonl.gz"), read("queries.jsonl.gz")
    lines = (DATA / name / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    expected = {(queries[q].strip(), corpus[d]): float(g) for q, d, g in (line.split("\t") for line in lines)}
    found = make("retrieval", DATA / name).evaluation(split)
    texts = texts_of(found)
    judged = [line for line in found.labels.tolist() if line[3] >= 0]
    assert {(texts[int(q)], texts[int(d)]): g for q, d, g, _, _ in judged} == expected
    assert len({int(d) for *_, d in found.labels.tolist()}) == len(corpus)
    assert len(texts) == len(corpus) + len({q for q, _ in expected})


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize("name", ["nli_zh_hardneg", "simclue"])
def test_real_triplets_keep_their_promises(tmp_path, make, name):
    judged = {}
    with gzip.open(DATA / "triplet" / name / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            known = judged.setdefault(text_id(row["query"]), {})
            for text, grade in [(t, 0) for t in row["negative"]] + [(t, 1) for t in row["positive"]]:
                known[text_id(text)] = max(grade, known.get(text_id(text), 0))
    data = make("retrieval", DATA / "triplet" / name, max_train=500, holdout=0.0)
    found = data.examples(np.arange(64), uniform(64))
    queries, positives = (ids.tolist() for ids in found.ids[:2])
    assert all(judged[q][p] == 1 for q, p in zip(queries, positives, strict=True))
    if len(found.ids) > 2:
        assert all(any(judged[q].get(n) == 0 for q in queries) for n in found.ids[2].tolist())
        assert not set(found.ids[2].tolist()) & set(positives)
