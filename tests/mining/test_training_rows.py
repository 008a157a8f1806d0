"""Rows that are cleaned: which data sets a source has, what is read of them, and what is written back."""

import gzip
import json
import math

import numpy as np
import pytest

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.output import digests, write
from acge_lightning.mining.cleaning.pile import Pile
from acge_lightning.mining.cleaning.training_rows import ReadingSettings, find_datasets, read_rows


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def unpacked(file):
    with gzip.open(file, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


@pytest.fixture
def folder(tmp_path):
    pairs = "问题,答案,相似度,部门\n甲问,甲答,1,客服\n乙问,乙答,5,\n,丙答,2,售后\n丁问,丁答,3,售后\n"
    put(tmp_path / "data/sts/faq/train.csv", pairs)
    put(tmp_path / "data/sts/faq/test.csv", "text1,text2,score\n考题,考答,4\n")
    put(
        tmp_path / "data/retrieval/kb/corpus.jsonl",
        lines(*({"_id": f"d{i}", "text": f"文{i}", "title": "题"} for i in range(4))),
    )
    put(tmp_path / "data/retrieval/kb/queries.jsonl", lines(*({"_id": f"q{i}", "text": f"问{i}"} for i in range(3))))
    judged = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t0\nq1\td2\t2\nq9\td2\t1\n"
    put(tmp_path / "data/retrieval/kb/qrels/train.tsv", judged)
    put(tmp_path / "data/retrieval/kb/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq2\td3\t1\n")
    return tmp_path / "data"


def read(folder, tmp_path, **options):
    found = find_datasets(folder, None, None)
    settings = ReadingSettings(**options)
    return found, Pile([read_rows(data, data.train, settings, tmp_path / "bad") for data in found], [])


def drop(pile, dataset, rows, reason="leak", other=-1):
    group = pile.group([dataset])
    pile.apply(Findings(reason, np.array(rows), np.full(len(rows), other), np.full(len(rows), math.nan)), group)


def test_rows_have_their_file_line_and_further_columns(folder, tmp_path):
    found, pile = read(folder, tmp_path)
    assert [data.name for data in found] == ["retrieval/kb", "sts/faq"]
    corpus, pairs = pile.rows
    assert corpus.columns == {"query": ["问0", "问1"], "positive": [("题 文0",), ("题 文2",)], "negative": [("题 文1",), ()]}
    assert pairs.columns == {"text1": ["甲问", "乙问", "丁问"], "text2": ["甲答", "乙答", "丁答"], "score": [1.0, 5.0, 3.0]}
    assert pairs.line.tolist() == [2, 3, 5]
    assert pairs.record(2) == {"text1": "丁问", "text2": "丁答", "score": 3.0, "部门": "售后"}
    assert [(note["line"], note["row"]["答案"]) for note in pairs.unread] == [(4, "丙答")]
    assert corpus.unread[0]["line"] == 5
    assert "'q9'" in corpus.unread[0]["reason"]


def test_what_is_written_is_what_is_kept_and_the_rest_says_why(folder, tmp_path):
    found, pile = read(folder, tmp_path)
    drop(pile, 0, [1])
    drop(pile, 1, [2], "near duplicate", other=0)
    (tmp_path / "out").mkdir()
    manifest = write(pile, tmp_path / "out", digests(found), {"steps": {}})
    kept = unpacked(tmp_path / "out/sts/faq/train.jsonl.gz")
    assert [row["text1"] for row in kept] == ["甲问", "乙问"]
    assert kept[0]["部门"] == "客服"
    assert (tmp_path / "out/sts/faq/test.csv").read_bytes() == (folder / "sts/faq/test.csv").read_bytes()
    qrels = (tmp_path / "out/retrieval/kb/qrels/train.tsv").read_text(encoding="utf-8")
    assert qrels == "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t0\nq9\td2\t1\n"
    notes = [json.loads(line) for line in (tmp_path / "out/quarantine/sts-faq.jsonl").read_text(encoding="utf-8").splitlines()]
    assert notes[0]["reason"].startswith("field 'text1' is empty")
    assert notes[1]["reason"] == "near duplicate"
    assert notes[1]["clashes_with"]["row"]["text1"] == "甲问"
    assert notes[1]["clashes_with"]["line"] == 2
    counts = manifest["counts"]["sts/faq"]
    assert counts == {
        "read": 4, "kept": 2, "unreadable": 1, "neutral": 0, "left_out": {"near duplicate": 1}, "reported": {}
    }  # fmt: skip
    assert counts["read"] == counts["kept"] + counts["unreadable"] + sum(counts["left_out"].values())


def test_the_same_rows_give_the_same_bytes(folder, tmp_path):
    written = []
    for name in ("one", "two"):
        found, pile = read(folder, tmp_path)
        (tmp_path / name).mkdir()
        write(pile, tmp_path / name, digests(found), {})
        written.append(
            {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        )
    assert written[0] == written[1]


def test_an_input_that_changes_meanwhile_is_named(folder, tmp_path):
    found, pile = read(folder, tmp_path)
    sources = digests(found)
    with (folder / "sts/faq/train.csv").open("a", encoding="utf-8") as file:
        file.write("戊问,戊答,1,\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"train\.csv has changed while it was read"):
        write(pile, tmp_path / "out", sources, {})


@pytest.mark.parametrize(
    ("source", "family", "tasks", "message"),
    [
        ("", "bm25", None, "family=bm25 is unknown: choose from classification"),
        ("sts", None, None, "holds no data set: give a folder with <family>/<name>/, or say what its rows are: family=sts"),
        ("sts/faq/train.csv", None, None, "is no folder of data sets: say what its rows are: family=sts"),
        ("", None, ["faqs"], "tasks: 'faqs' is not under .*: it has faq, kb"),
        ("nowhere", None, None, "is not there"),
    ],
)
def test_a_source_that_cannot_be_cleaned_is_named(folder, source, family, tasks, message):
    with pytest.raises(InputError, match=message):
        find_datasets(folder / source, family, tasks)


def test_a_file_with_a_family_is_a_data_set(folder):
    [data] = find_datasets(folder / "sts/faq/train.csv", "sts", None)
    assert (data.name, len(data.train), data.evaluation) == ("train.csv", 1, ())
    assert [d.name for d in find_datasets(folder, None, ["sts"])] == ["sts/faq"]
    assert [d.name for d in find_datasets(folder, None, ["retrieval/kb"])] == ["retrieval/kb"]


def test_a_row_has_the_reason_of_the_step_that_came_before(folder, tmp_path):
    _, pile = read(folder, tmp_path)
    drop(pile, 1, [0, 1])
    drop(pile, 1, [0], "near duplicate")  # of what is left, row 2
    assert {row: reason.reason for row, reason in pile.dropped[1].items()} == {0: "leak", 1: "leak", 2: "near duplicate"}
    assert [g.family for g in pile.groups((("sts", "pair"),))] == ["retrieval"]


def test_rows_of_families_with_the_same_fields_are_looked_at_together(folder, tmp_path):
    put(folder / "pair/other/train.jsonl", lines({"text1": "子", "text2": "丑", "label": 1}))
    _, pile = read(folder, tmp_path)
    [pairs] = [g for g in pile.groups((("sts", "pair"),)) if "text1" in g.columns]
    assert set(pairs.columns) == {"text1", "text2"}
    assert pairs.columns["text1"] == ["子", "甲问", "乙问", "丁问"]
    assert pairs.row.tolist() == [0, 0, 1, 2]
    assert [pile.rows[i].data.name for i in pairs.dataset] == ["pair/other", *["sts/faq"] * 3]
