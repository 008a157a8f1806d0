"""Where rows lie: local paths before the hub, patterns, lists, and what an error says of a path that is not there."""

from pathlib import Path

import huggingface_hub
import pytest
from empty_files import touched

from acge_lightning.data.source import SUFFIXES, find_source, locate
from acge_lightning.errors import InputError


@pytest.fixture
def without_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))


def test_a_local_path_wins(tmp_path, monkeypatch, without_hub):
    folder = touched(tmp_path / "owner" / "name", "train.jsonl")
    assert locate(folder) == folder
    assert locate(str(folder / "train.jsonl")) == folder / "train.jsonl"
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name").resolve() == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner") == tmp_path / "owner"


def test_the_packaged_sample_has_a_name_of_its_own():
    assert (locate("sample:sts/sample_zh") / "dev.jsonl.gz").is_file()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "{here} has no 'nowhere'"),
        ("/no/such/folder", "/ has no 'no'"),
        ("a/b/c", "{here} has no 'a'"),
        ("./a/b", "{here} has no 'a'"),
        ("a/", "{here} has no 'a'"),
        ("C:\\\\data", "{here} has no 'C:\\\\\\\\data'"),
        ("company/trian.jsonl", "{here}/company has no 'trian.jsonl', but 'train.jsonl' and 'train.csv'"),
        ("company/TRAIN.csv", "{here}/company has no 'TRAIN.csv', but 'train.csv' and 'train.jsonl'"),
        ("company/data", "{here}/company has no 'data'"),
        ("compnay/train.csv", "{here} has no 'compnay', but 'company'"),
        ("owner/rows.csv", "{here} has no 'owner'"),
        ("公司/数据", "{here} has no '公司'"),
        ("公司 数据.csv", "{here} has no '公司 数据.csv', but '公司数据.csv'"),
        ("company/train.csv/x", "{here}/company/train.csv is a file, not a folder"),
        ("sample:sts/none", "{sample}/sts has no 'none'"),
    ],
)
def test_a_typo_is_told_and_the_hub_is_not_asked(tmp_path, monkeypatch, without_hub, path, reason):
    touched(tmp_path, "company/train.jsonl", "company/train.csv", "公司数据.csv")
    monkeypatch.chdir(tmp_path)
    sample = Path(locate("sample:sts/sample_zh")).parents[1]
    with pytest.raises(InputError) as caught:
        locate(path)
    assert str(caught.value) == f"{path} is not there: {reason.format(here=tmp_path, sample=sample)}"


def test_a_hub_name_is_downloaded_as_a_data_set(tmp_path, monkeypatch):
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("C-MTEB/STS.B_zh-1") == Path(tmp_path)
    (((name,), options),) = asked
    assert name == "C-MTEB/STS.B_zh-1"
    assert options["repo_type"] == "dataset"
    assert set(options["allow_patterns"]) == {f"*{suffix}" for suffix in SUFFIXES}  # no code, no weights


@pytest.mark.parametrize(
    "error", [OSError("first line\nsecond"), ValueError("first line"), FileNotFoundError("first line"), OSError()]
)
def test_a_hub_name_that_cannot_be_fetched_is_missed_here_too(tmp_path, monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(touched(tmp_path, "owners/name/train.csv"))
    with pytest.raises(InputError) as caught:
        locate("owner/name")
    here = f"owner/name is not here ({tmp_path} has no 'owner', but 'owners'), and no data set of that name can be fetched from"
    reason = "first line" if str(error) else "OSError"
    assert str(caught.value) == f"{here} the hub ({reason})"
    assert caught.value.__cause__ is error


def test_a_pattern_is_its_files_of_rows(tmp_path, monkeypatch, without_hub):
    touched(tmp_path, "data/b.jsonl", "data/a.csv", "data/README.md", "data/.c.csv", "data/~$a.xlsx", "data/more/d.CSV")
    assert find_source(f"{tmp_path}/data/*") == (tmp_path / "data/a.csv", tmp_path / "data/b.jsonl")
    assert find_source(f"{tmp_path}/data/**/*") == tuple(tmp_path / "data" / n for n in ("a.csv", "b.jsonl", "more/d.CSV"))
    monkeypatch.chdir(tmp_path)
    assert find_source("data/?.csv") == (Path("data/a.csv"),)
    with pytest.raises(InputError, match=r"^data/\*\.parquet matches no file: give files of \.jsonl, "):
        find_source("data/*.parquet")
    with pytest.raises(InputError, match=r"^data/\*\.md matches README\.md, and none is a file of rows: give files of "):
        find_source("data/*.md")


def test_a_file_with_brackets_is_no_pattern(tmp_path):
    touched(tmp_path, "[a] b?.csv")
    assert find_source(f"{tmp_path}/[a] b?.csv") == tmp_path / "[a] b?.csv"


def test_a_list_is_its_files_once(tmp_path):
    touched(tmp_path, "a.csv", "b 公司.csv", "c/d.jsonl")
    given = [f"{tmp_path}/b 公司.csv", tmp_path / "a.csv", f"{tmp_path}/?.csv", str(tmp_path / "c/d.jsonl")]
    assert find_source(given) == tuple(tmp_path / name for name in ("b 公司.csv", "a.csv", "c/d.jsonl"))
    with pytest.raises(InputError, match=r"e\.csv is not there: .* has no 'e\.csv'"):
        find_source([*given, f"{tmp_path}/e.csv"])
    with pytest.raises(InputError, match=r"path: .*/c is a folder in a list of files: name its files, .*/c/\*\.jsonl"):
        find_source([*given, f"{tmp_path}/c"])
    with pytest.raises(InputError, match=r"path=\[\] names no file: give one"):
        find_source([])
