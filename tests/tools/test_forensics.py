"""The study of public data sets: planted rows are listed, the page is made of the files, and no text is in them."""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE
from scipy.stats import binomtest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ACGE_DATA", ROOT.parent / "shared" / "data"))
PAGE, FOLDER = ROOT / "docs" / "forensics.md", ROOT / "docs" / "forensics"
sys.path.insert(0, str(ROOT / "tools"))  # where tools import each other from


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


forensics, page, sample = (tool(name) for name in ("forensics", "forensics_page", "forensics_sample"))


def read(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def digest(*texts):
    return hashlib.sha256("\n".join(re.sub(r"\s", "", text) for text in texts).encode()).hexdigest()[:8]


# ---- what is planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder of sample sets with planted rows, what they are (data set, file, row -> reason), and the files made of it."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    shutil.copytree(SAMPLE / "retrieval" / "sample_zh", data / "retrieval" / "sample_zh")
    texts = read(SAMPLE / "classification" / "sample_zh" / "train.jsonl.gz")[:300]
    tested = [{"text": "考试里才有的一整个句子，训练时千万不要看到它", "label": texts[0]["label"]}]
    other = next(row["label"] for row in texts if row["label"] != texts[0]["label"])
    long = "这一行是新写的，和示例数据里别的句子没有什么相同的地方"
    texts += [{"text": long, "label": other}, {"text": long.replace("，", " "), "label": other}]  # 301, 302
    texts += [{"text": f"请问：{tested[0]['text']}，对不对啊？谢谢各位老师的解答，祝工作顺利", "label": other}]  # 303
    texts += [{"text": "两个标签的句子，谁也不知道对错", "label": label} for label in (other, texts[0]["label"])]  # 304, 305
    write(data / "classification" / "own" / "train.jsonl.gz", texts)
    write(data / "classification" / "own" / "dev.jsonl.gz", tested)
    pair = {"text1": "一个从来没有过的句子", "text2": "另一个同样没有过的句子", "score": 1.0}
    write(data / "sts" / "own" / "train.jsonl.gz", [{**pair, "text1": pair["text2"], "text2": pair["text1"]}])
    write(data / "sts" / "own" / "test.jsonl.gz", [pair])
    write(data / "sts" / "copy" / "test.jsonl.gz", [pair, {**pair, "text2": "第三个句子"}])
    rows = [{"query": f"菜谱{i}怎么做", "positive": [f"菜谱{i}的做法"]} for i in range(3)]
    write(data / "pairs" / "cooking" / "train.jsonl.gz", [*rows, rows[1]])
    (data / "README.md").write_text("| data set | source (repo) |\n| --- | --- |\n| sts/own | someone/something |\n")
    sys.argv = ["forensics.py", str(data), "--out", str(out), "--sharing", "retrieval/sample_zh"]
    forensics.main()
    expected = {
        ("classification/own", "train", 302): "exact duplicate",
        ("classification/own", "train", 303): "leak, embedded",
        ("classification/own", "train", 304): "contradiction",
        ("classification/own", "train", 305): "contradiction",
        ("sts/own", "train", 1): "leak, exact",
        ("pairs/cooking", "train", 4): "exact duplicate",
    }
    return data, out, expected


def test_planted_rows_are_listed_by_their_lines(planted):
    _, out, expected = planted
    listed = {(r["dataset"], r["file"], int(r["row"])): r for r in forensics.table(out / "findings.tsv.gz")}
    assert {key: listed[key]["reason"] for key in expected} == expected
    copy, leak = listed["classification/own", "train", 302], listed["sts/own", "train", 1]
    assert (copy["other_file"], copy["other_row"], copy["value"]) == ("train", "301", "1")
    assert (leak["other_dataset"], leak["other_file"], leak["other_row"]) == ("sts/copy", "test", "1")  # the first that has it


def test_rows_and_digests_are_those_of_the_files(planted):
    data, out, _ = planted
    listed = forensics.table(out / "findings.tsv.gz")
    assert {row["file"] for row in listed} == {"train", "queries"}
    for row in listed:
        record = read(data / row["dataset"] / f"{row['file']}.jsonl.gz")[int(row["row"]) - 1]
        names = [["text"], ["text1", "text2"], ["query"]]
        texts = [record[name] for name in next((n for n in names if set(n) <= set(record)), ["text"])]
        assert row["digest"] == digest(*texts)


def test_sets_and_shared_evaluation_rows_are_counted(planted):
    _, out, _ = planted
    sets = {row["dataset"]: row for row in forensics.table(out / "sets.tsv")}
    assert {name: row["rows"] for name, row in sets.items()} == {
        "classification/own": "305",
        "pairs/cooking": "4",
        "retrieval/sample_zh": sets["retrieval/sample_zh"]["rows"],
        "sts/own": "1",
    }
    assert sets["sts/own"]["source"] == "someone/something"
    [shared] = [row for row in forensics.table(out / "evaluation.tsv") if row["kind"] == "pair"]
    assert list(shared.values()) == ["pair", "sts/copy", "test", "2", "sts/own", "test", "1", "1"]


def test_the_pages_own_lines_leave_rows_out(planted, tmp_path, monkeypatch):
    data, out, expected = planted
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "classification/tnews" in snippet
    shutil.copy(out / "findings.tsv.gz", tmp_path)
    shutil.copy(data / "classification" / "own" / "train.jsonl.gz", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet.replace("classification/tnews", "classification/own"), names)
    rows = (data / "classification" / "own" / "train.jsonl.gz", 305)
    listed = [r for r in forensics.table(out / "findings.tsv.gz") if r["dataset"] == "classification/own"]
    left_out = {int(r["row"]) for r in listed if r["reason"] not in page.REPORTED}
    assert {row for name, _, row in expected if name == "classification/own"} <= left_out
    assert [json.loads(line) for line in names["kept"]] == [r for i, r in enumerate(read(rows[0]), 1) if i not in left_out]


# ---- the page


def test_the_page_is_made_of_the_files():
    text = PAGE.read_text(encoding="utf-8")
    assert page.rendered(text, FOLDER) == text
    rows = Counter(row["reason"] for row in forensics.table(FOLDER / "findings.tsv.gz"))
    assert f"| near duplicate | {rows['near duplicate']:,} |" in text


def test_no_text_of_a_row_is_in_the_files():
    shape = re.compile(r"[a-z_]+/\w+|[\w-]+|[\d.e+-]*|[a-z ,-]+", re.ASCII)
    for name in ("findings.tsv.gz", "evaluation.tsv"):
        cells = {cell for row in forensics.table(FOLDER / name) for cell in row.values()}
        assert [cell for cell in cells if not shape.fullmatch(cell) or len(cell) > 40] == []
    for row in forensics.table(FOLDER / "verdicts.tsv"):
        assert row["why"].isascii()
        assert len(row["why"]) < 90
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(sizes) == {"findings.tsv.gz", "sets.tsv", "evaluation.tsv", "verdicts.tsv"}
    assert sum(sizes.values()) < 700_000


def test_what_was_read_is_listed_and_judged():
    findings = forensics.table(FOLDER / "findings.tsv.gz")
    listed = {(r["reason"], r["dataset"], r["file"], r["row"]) for r in findings}
    verdicts = forensics.table(FOLDER / "verdicts.tsv")
    read_rows = [(r["reason"], r["dataset"], r["file"], r["row"]) for r in verdicts]
    assert len(set(read_rows)) == len(read_rows)
    assert Counter(row["draw"] for row in verdicts) == {"in turn": 200, "largest": 50}
    assert {row["verdict"] for row in verdicts} <= {"right", "arguable", "wrong"}
    unlisted = Counter(row[0] for row in read_rows if row not in listed)
    assert set(unlisted) == {"near duplicate"}, "near copies with other queries are kept since they were read"
    assert f"{unlisted['near duplicate']} of the 40 rows that were read" in " ".join(PAGE.read_text(encoding="utf-8").split())
    drawn = [(r["reason"], r["dataset"], r["file"], r["row"]) for r in sample.drawn(findings)]
    assert len(set(drawn)) == len(drawn) == 250
    assert set(drawn) <= listed
    assert [row for row in verdicts if row["verdict"] != "right" and not row["why"]] == []


@pytest.mark.parametrize(("right", "total"), [(0, 5), (7, 9), (40, 40)])
def test_intervals_are_those_of_scipy(right, total):
    interval = binomtest(right, total).proportion_ci(method="wilson")
    np.testing.assert_allclose(page.wilson(right, total), [interval.low, interval.high], atol=1e-12)


def test_rows_are_drawn_from_all_sets_in_turn():
    rows = [
        {"reason": "contradiction", "dataset": f"set{s}", "row": str(r)} for s, n in enumerate((2, 100, 1000)) for r in range(n)
    ]
    chosen = list(sample.drawn(rows, seed=1))
    assert Counter(row["dataset"] for row in chosen) in (
        {"set0": 2, "set1": 12, "set2": 11},
        {"set0": 2, "set1": 11, "set2": 12},
    )
    assert chosen == list(sample.drawn(rows, seed=1)) != list(sample.drawn(rows, seed=2))


# ---- real data


@pytest.mark.data
@pytest.mark.heavy
@pytest.mark.skipif(not DATA.is_dir(), reason="no data")
def test_the_files_are_what_the_command_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["forensics.py", str(DATA), "--out", str(tmp_path)])
    forensics.main()
    for name in ("findings.tsv.gz", "sets.tsv", "evaluation.tsv"):
        assert forensics.table(tmp_path / name) == forensics.table(FOLDER / name), name


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no data")
def test_rows_of_real_data_have_the_digests(tmp_path):
    listed = [r for r in forensics.table(FOLDER / "findings.tsv.gz") if r["dataset"] == "classification/tnews"]
    rows = read(DATA / "classification" / "tnews" / "train.jsonl.gz")
    assert len(listed) > 100
    assert [row["digest"] for row in listed] == [digest(rows[int(row["row"]) - 1]["text"]) for row in listed]
    texts = {"".join(row["text"].split()) for row in rows}
    files = [
        PAGE.read_text(encoding="utf-8"),
        *((FOLDER / n).read_text(encoding="utf-8") for n in ("verdicts.tsv", "sets.tsv")),
    ]
    assert [text for text in texts if len(text) > 5 and any(text in file for file in files)] == []
