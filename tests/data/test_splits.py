"""Which files are those of a split, which may be meant and are asked about, and which are named because none takes them."""

import json

import pytest
from empty_files import touched

from acge_lightning.data import STSDataset
from acge_lightning.data.source import SUFFIXES
from acge_lightning.data.splits import files_called, is_beir, split_files
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import find


def said(caplog):
    """What was said of the files of splits."""
    return [record.getMessage() for record in caplog.records if record.name == "acge_lightning.data.splits"]


def names(files, folder):
    return [file.relative_to(folder).as_posix() for file in files]


def of_splits(source, folder, **splits):
    """Split -> names of its files, of those that have some."""
    found = {role: names(split_files(source, role, splits), folder) for role in ("train", "dev", "test")}
    return {role: files for role, files in found.items() if files}


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], {}),
        (["train.jsonl"], {"train": ["train.jsonl"]}),
        (
            ["train.jsonl", "validation.jsonl", "test.jsonl"],
            {"train": ["train.jsonl"], "dev": ["validation.jsonl"], "test": ["test.jsonl"]},
        ),
        (
            ["training.csv", "valid.tsv", "testing.parquet"],
            {"train": ["training.csv"], "dev": ["valid.tsv"], "test": ["testing.parquet"]},
        ),
        (["TRAIN.CSV", "Val.JSONL.GZ"], {"train": ["TRAIN.CSV"], "dev": ["Val.JSONL.GZ"]}),
        (["train.xlsx", "eval.xlsx", "~$train.xlsx"], {"train": ["train.xlsx"], "dev": ["eval.xlsx"]}),
        (["train.json", "development.json"], {"train": ["train.json"], "dev": ["development.json"]}),
        (
            [f"data/{name}-0000{i}-of-00002.parquet" for name in ("train", "validation") for i in (1, 0)],
            {
                name: [f"data/{of}-0000{i}-of-00002.parquet" for i in (0, 1)]
                for name, of in (("train", "train"), ("dev", "validation"))
            },
        ),
        (["train_b.csv", "train-a.jsonl", "dev_1.csv"], {"train": ["train-a.jsonl", "train_b.csv"], "dev": ["dev_1.csv"]}),
        (["train.jsonl", "train-more.jsonl", "test.csv", "test_results.csv"], {"train": ["train.jsonl"], "test": ["test.csv"]}),
        (["公司_train.csv", "公司_test.csv"], {"train": ["公司_train.csv"], "test": ["公司_test.csv"]}),
        (["sts-train-00000-of-00001.csv", "sts.dev.csv"], {"train": ["sts-train-00000-of-00001.csv"], "dev": ["sts.dev.csv"]}),
        (["train_test.csv", "a_test.csv"], {"train": ["train_test.csv"], "test": ["a_test.csv"]}),
        (["train.csv", "old_train.csv", "data/dev.csv"], {"train": ["train.csv"], "dev": ["data/dev.csv"]}),
        (["data/train.tsv.gz"], {"train": ["data/train.tsv.gz"]}),
        (["train-00000-of-00001.csv", "data/train.jsonl"], {"train": ["train-00000-of-00001.csv"]}),
        (["train/b.parquet", "train/a.csv", "train/README.md"], {"train": ["train/a.csv", "train/b.parquet"]}),
        (
            ["train/a.csv", "validation/a.csv", "Test/a.csv"],
            {"train": ["train/a.csv"], "dev": ["validation/a.csv"], "test": ["Test/a.csv"]},
        ),
        (["train.jsonl/x.txt", "train.csv"], {"train": ["train.csv"]}),
        (["train.txt", "train"], {}),
        (["pretrain.csv"], {"train": ["pretrain.csv"]}),  # it has no name of a split, and is the only one
        # without names of splits
        (["公司数据 (1).csv"], {"train": ["公司数据 (1).csv"]}),
        (
            ["part-001.csv", "part-000.jsonl", "README.md", "dataset_infos.json", ".x.csv"],
            {"train": ["part-000.jsonl", "part-001.csv"]},
        ),
        (["data/a.csv", "data/b.csv"], {"train": ["data/a.csv", "data/b.csv"]}),
        (["a.csv", "test.csv"], {"test": ["test.csv"]}),
        (["a.csv", "test/b.csv"], {"test": ["test/b.csv"]}),
    ],
)
def test_files_of_a_folder(tmp_path, present, expected):
    assert of_splits(touched(tmp_path, *present), tmp_path) == expected


@pytest.mark.parametrize(
    ("present", "role", "one", "other"),
    [
        (["train.csv", "dev.jsonl", "validation.jsonl"], "dev", "dev.jsonl", "validation.jsonl"),
        (["train.csv", "train.jsonl"], "train", "train.csv", "train.jsonl"),
        (["train.jsonl", "train.jsonl.gz"], "train", "train.jsonl", "train.jsonl.gz"),
        (["data/val-0.csv", "data/valid-0.csv"], "dev", "data/val-0.csv", "data/valid-0.csv"),
        (["train-0.csv", "train-0.parquet"], "train", "train-0.csv", "train-0.parquet"),
        (["val/a.csv", "valid/a.csv"], "dev", "val/a.csv", "valid/a.csv"),
        (["TRAIN.csv", "train.json"], "train", "TRAIN.csv", "train.json"),
    ],
)
def test_two_files_for_one_split_are_an_error(tmp_path, present, role, one, other):
    with pytest.raises(InputError) as caught:
        split_files(touched(tmp_path, *present), role, {})
    remedy = f"move one away, or name one, +task.NAME.data.splits.{role}={other}"
    assert str(caught.value) == f"{tmp_path}: {one} and {other} may both be meant: {remedy}"
    assert names(split_files(tmp_path, role, {role: other}), tmp_path) == [other]


def test_the_same_rows_in_two_forms_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv and a\.jsonl may both be meant: move one away, and leave a\.jsonl"):
        split_files(touched(tmp_path, "a.csv", "a.jsonl", "b.csv"), "train", {})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_found(tmp_path, suffix):
    assert of_splits(touched(tmp_path, f"dev{suffix}"), tmp_path) == {"dev": [f"dev{suffix}"]}
    assert of_splits(touched(tmp_path / "b", f"dev-0{suffix}"), tmp_path) == {"dev": [f"b/dev-0{suffix}"]}


def test_a_file_is_training_rows_whatever_its_name(tmp_path):
    touched(tmp_path, "dev.jsonl", "train.jsonl")
    assert of_splits(tmp_path / "dev.jsonl", tmp_path) == {"train": ["dev.jsonl"]}
    assert of_splits(tmp_path / "dev.jsonl", tmp_path, train=None) == {}
    assert of_splits(tmp_path / "dev.jsonl", tmp_path, test="train.jsonl") == {"train": ["dev.jsonl"], "test": ["train.jsonl"]}


def test_files_of_a_list_are_training_rows_unless_their_names_say_else(tmp_path):
    present = ["b.csv", "a.csv", "dev.csv", "x/validation.csv", "公司_test.csv", "train.csv", "train-more.csv"]
    source = tuple(touched(tmp_path, *present) / name for name in present)
    expected = {"train": ["b.csv", "a.csv", "train.csv", "train-more.csv"], "dev": ["dev.csv", "x/validation.csv"]}
    assert of_splits(source, tmp_path) == expected | {"test": ["公司_test.csv"]}
    chosen = {"train": ["b.csv", "train.csv", "train-more.csv"], "dev": ["a.csv"]}
    assert of_splits(source, tmp_path, dev="a.csv", test=None) == chosen


def test_names_of_ones_own(tmp_path):
    touched(tmp_path, "learn.csv", "Held_Out.csv", "test.csv", "data/learn-1.csv")
    assert of_splits(tmp_path, tmp_path, train="learn", dev="held_out") == {
        "train": ["learn.csv"],
        "dev": ["Held_Out.csv"],
        "test": ["test.csv"],
    }
    assert of_splits(tmp_path, tmp_path, train="data/learn-1.csv", test=None) == {"train": ["data/learn-1.csv"]}
    with pytest.raises(InputError, match=r"splits\.dev=none\.csv: there is no file .*none\.csv"):
        split_files(tmp_path, "dev", {"dev": "none.csv"})


def test_what_splits_names_is_no_training_file(tmp_path):
    touched(tmp_path, "公司.csv", "held out.csv")
    assert of_splits(tmp_path, tmp_path, dev="held out.csv") == {"train": ["公司.csv"], "dev": ["held out.csv"]}
    assert of_splits(tmp_path, tmp_path, train="公司.csv", dev="held out.csv") == {
        "train": ["公司.csv"],
        "dev": ["held out.csv"],
    }


def test_a_beir_folder_is_known_by_its_corpus(tmp_path):
    assert is_beir(touched(tmp_path / "a", "corpus.jsonl"))
    assert is_beir(touched(tmp_path / "b", "corpus/corpus-00000-of-00001.parquet"))
    assert not is_beir(touched(tmp_path / "c", "train.jsonl", "my_corpus.jsonl"))
    assert not is_beir(touched(tmp_path, "corpus.jsonl") / "corpus.jsonl")
    assert not is_beir((tmp_path / "corpus.jsonl",))
    assert files_called(tmp_path / "none", "corpus") == []


# ---- what a data set says of its files


def rows(path, start, count=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text1": f"a{i}", "text2": f"b{i}", "score": i % 5}) for i in range(start, start + count)]
    path.write_text("\n".join(lines))


def opened(path, tmp_path, **options):
    data = STSDataset(path, cache_dir=tmp_path / "cache", **options)
    data.open()
    return {role: [row["text1"] for row in split.all()] for role, split in data.opened_splits.items()}


def test_validation_is_no_part_of_train(tmp_path, caplog):
    for start, name in ((0, "train"), (100, "validation"), (200, "test")):
        rows(tmp_path / "rows" / f"{name}.jsonl", start)
    found = opened(tmp_path / "rows", tmp_path)
    assert {role: (texts[0], len(texts)) for role, texts in found.items()} == {
        "train": ("a0", 20),
        "dev": ("a100", 20),
        "test": ("a200", 20),
    }
    assert not said(caplog)


def test_files_that_no_split_takes_are_named(tmp_path, caplog):
    folder = tmp_path / "rows"
    for name in ("train.jsonl", "统计.jsonl", "data/odd.jsonl", "train-more.jsonl", "LICENSE.json", "dataset_info.json"):
        rows(folder / name, 0)
    assert len(opened(folder, tmp_path, holdout=0.0)["train"]) == 20
    (message,) = said(caplog)
    assert message == (
        f"{folder}: no split takes train-more.jsonl, 统计.jsonl, odd.jsonl; to use a file, say of which split it is: "
        "+task.NAME.data.splits.test=train-more.jsonl"
    )


def test_files_of_splits_that_are_set_are_not_named(tmp_path, caplog):
    folder = tmp_path / "rows"
    for start, name in enumerate(("train", "dev", "validation", "test")):
        rows(folder / f"{name}.jsonl", 100 * start)
    found = opened(folder, tmp_path, splits={"dev": "validation", "test": None})
    assert {role: texts[0] for role, texts in found.items()} == {"train": "a0", "dev": "a200"}
    assert not said(caplog)


def test_a_folder_of_parts_is_training_rows_and_says_so(tmp_path, caplog):
    for i in range(7):
        rows(tmp_path / "rows" / f"part-{i}.jsonl", 100 * i)
    found = opened(tmp_path / "rows", tmp_path, holdout=0.0)
    assert found == {"train": [f"a{100 * i + j}" for i in range(7) for j in range(20)]}
    (message,) = said(caplog)
    listed = "part-0.jsonl, part-1.jsonl, part-2.jsonl, part-3.jsonl, part-4.jsonl and 2 more"
    assert message == f"{tmp_path / 'rows'}: no name says a split: {listed} are training rows"


def test_an_evaluation_finds_splits_by_all_their_names(tmp_path):
    rows(tmp_path / "sts" / "a" / "validation.jsonl", 0)
    rows(tmp_path / "sts" / "b" / "testing.jsonl", 0)
    rows(tmp_path / "sts" / "b" / "train.jsonl", 0)
    rows(tmp_path / "triplet" / "c" / "parts.jsonl", 0)
    found = find(tmp_path)
    assert [(data.name, data.split) for data in found] == [("a", "dev"), ("b", "test")]
    assert [len(data.open(tmp_path / "cache")[1].keys) for data in found] == [20, 20]


def test_a_list_and_a_pattern_are_read(tmp_path, caplog):
    for i, name in enumerate(("a.jsonl", "b 公司.jsonl", "c_test.jsonl")):
        rows(tmp_path / "rows" / name, 100 * i)
    expected = {"train": [f"a{100 * i + j}" for i in range(2) for j in range(20)], "test": [f"a{i}" for i in range(200, 220)]}
    assert opened(sorted((tmp_path / "rows").iterdir()), tmp_path, holdout=0.0) == expected
    assert set(said(caplog)) == {"c_test.jsonl: read as test rows, as the name says, not as training rows"}
    assert opened(f"{tmp_path}/rows/*.jsonl", tmp_path, holdout=0.0) == expected


@pytest.mark.parametrize(("present", "holds"), [([], "it is empty"), (["x.txt", "sub/train.csv"], "it holds sub, x.txt")])
def test_a_folder_without_rows_says_what_it_holds(tmp_path, present, holds):
    folder = touched(tmp_path / "rows", *present)
    folder.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=rf"rows has no file of a split \(train, dev, test\), {holds}: name its files"):
        opened(folder, tmp_path)
