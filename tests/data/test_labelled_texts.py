"""Classification and clustering: training examples, batches and evaluation sets."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from family_rows import CLASSED, epoch_order, first_texts, texts_of, uniform, write
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.data import (
    ClusteringDataset,
)
from acge_lightning.data.records import text_id
from acge_lightning.errors import InputError


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
