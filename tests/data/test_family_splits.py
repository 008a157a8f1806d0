"""Splits, hold-outs, limits and options, of all seven families."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from family_rows import FAMILIES, SCORED, first_texts, row_for, uniform, write

from acge_lightning.errors import InputError


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
