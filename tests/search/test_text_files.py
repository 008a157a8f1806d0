"""Files of texts: which files of a folder are read, what is counted that is not, and what is told of bad ones."""

import gzip
import os
import re

import pytest
from conftest import NOTES

from acge_lightning.errors import InputError
from acge_lightning.search.documents import read_documents
from acge_lightning.search.text_files import digest, list_files


def read(path, *how):
    """(`file:line`, text) of the documents of a source, and the source."""
    source = list_files(path)
    return [(f"{d.file}:{d.line}", d.text.strip()) for d in read_documents(source, "text", *how)], source


def test_texts_of_all_kinds_of_files_with_their_places(notes):
    assert read(notes)[0] == [
        ("a.txt:2", NOTES[0]),
        ("a.txt:4", NOTES[1]),
        ("b.md:1", "# 退货\n\nhow do I\nreturn this\n\n\n天气"),
        ("more/c.jsonl:1", NOTES[4]),
        ("more/d.csv.gz:2", "退货，公园"),
    ]


BAD_FILES = [
    ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}', r"a\.jsonl, line 2: field 'text' is not valid UTF-8"),
    ("a.jsonl", b'{"text": "x"}\n{"text": null}', r"a\.jsonl, line 2: has no text in 'text'"),
    ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:-9], r"a\.txt\.gz.* cannot be read"),
    ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2: .*JSON"),
    ("a.jsonl", b'{"body": "x"}', r"a\.jsonl, line 1: .*field=….*\['body'\]"),
    ("a.csv", b"text\n1,2\n", r"a\.csv, line 2"),
]


@pytest.mark.parametrize(
    ("name", "content", "told"), [*BAD_FILES, ("a.txt", b" \n\n", "holds no text"), ("a.doc", b"x", "unknown kind of file")]
)
def test_a_file_that_cannot_be_indexed_is_an_error_if_it_is_all(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "content", "told"), BAD_FILES)
def test_an_odd_file_is_left_out_and_named(notes, name, content, told):
    before, _ = read(notes)
    (notes / name).write_bytes(content)
    texts, source = read(notes)
    assert texts == before
    (problem,) = source.problems
    assert re.search(told, problem)


def test_files_that_are_all_bad_are_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("{", encoding="utf-8")
    (tmp_path / "b.csv").write_text("body\nx\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: is not JSON .* \(and 1 other files\)"):
        read(tmp_path)


def test_rows_without_a_text_can_be_skipped_and_are_counted(tmp_path, caplog):
    lone, text = b'{"text": "\\ud800"}\n', b'{"text": "x"}\n'
    (tmp_path / "a.jsonl").write_bytes(text + lone + b"{}\n" + text + b"{text\n" + b'{"text": " "}\n')
    (tmp_path / "c.txt").write_bytes("一个\n好\n".encode() + b"\xff bad\n\nlast\n")
    (tmp_path / "d.md").write_bytes("一个\n".encode() + b"\n\xff two\n\nthree\n")
    (tmp_path / "e.csv").write_text("body\n" + "x\n" * 99)
    texts, source = read(tmp_path, "skip", 0.6)
    assert texts == [
        ("a.jsonl:1", "x"), ("a.jsonl:4", "x"), ("c.txt:1", "一个"), ("c.txt:2", "好"), ("c.txt:5", "last"),
        ("d.md:1", "一个\n\n\n\nthree"),
    ]  # fmt: skip
    (problem,) = source.problems
    assert problem.startswith(f"{tmp_path / 'e.csv'}, line 2: has no text in 'text'")
    told = [record.getMessage() for record in caplog.records]
    assert sum("skipped, as are further bad rows" in line for line in told) == 1
    assert any(line.startswith(f"{tmp_path / 'a.jsonl'}, line 2: field 'text' is not valid UTF-8") for line in told)
    assert f"{tmp_path / 'a.jsonl'}: 1 rows of an empty text are left out, the first in line 6" in told
    assert told[-1] == f"{tmp_path}: 5 bad rows skipped, 6 kept"
    with pytest.raises(InputError, match=r"5 rows are bad, 45\.5% of all; max_bad_fraction allows 40\.0%"):
        read(tmp_path, "skip", 0.4)
    with pytest.raises(InputError, match="on_bad_row='quarantine' is unknown: choose raise or skip"):
        read(tmp_path, "quarantine")


def test_a_source_without_files_is_told(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"holds no file of \.txt.*1 of unknown kind \(\.docx 1\)"):
        list_files(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        list_files(tmp_path / "nowhere")


def test_an_index_json_of_the_user_is_a_text(notes):
    (notes / "page").mkdir()
    (notes / "page" / "index.json").write_text('{"text": "mine"}\n')
    (notes / "funnel.json").write_text('{"text": "mine too"}\n')
    places = [place for place, _ in read(notes)[0]]
    assert "page/index.json:1" in places
    assert "funnel.json:1" in places


def test_the_case_of_an_ending_does_not_count(tmp_path):
    (tmp_path / "A.TXT").write_text("one\ntwo\n")
    (tmp_path / "B.Md").write_text("three\n\nfour\n")
    texts, source = read(tmp_path)
    assert texts == [("A.TXT:1", "one"), ("A.TXT:2", "two"), ("B.Md:1", "three\n\nfour")]
    assert source.told() is None


def test_files_in_other_encodings_are_read(tmp_path):
    lines = "怎么退货？\n发票多久能到？\n今天天气很好，我们去公园。\n"
    expected = [line.strip() for line in lines.splitlines()]
    (tmp_path / "gbk.txt").write_bytes(lines.encode("gbk"))
    (tmp_path / "utf16.txt").write_bytes(lines.encode("utf-16"))
    (tmp_path / "bom.txt").write_bytes(lines.encode("utf-8-sig"))
    (tmp_path / "gbk.csv").write_bytes(("text\n" + lines).encode("gbk"))
    (tmp_path / "gbk.txt.gz").write_bytes(gzip.compress(lines.encode("gbk")))
    (tmp_path / "utf16.MD").write_bytes(f"# 售后\r\n{lines}".encode("utf-16"))
    (tmp_path / "cut.txt").write_bytes(lines.encode("utf-16")[:-1])
    texts, source = read(tmp_path)
    for name in ("gbk.txt", "utf16.txt", "bom.txt", "gbk.csv", "gbk.txt.gz"):
        assert [text for place, text in texts if place.startswith(f"{name}:")] == expected
    assert ("utf16.MD:1", f"# 售后\n{lines.strip()}") in texts
    assert all("cut.txt" in problem for problem in source.problems)


def test_a_list_of_rows_on_one_line_has_a_place_for_each(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    assert [text for _, text in read(tmp_path)[0]] == ["one", "two"]


def test_what_is_left_out_is_counted_by_reason(notes, monkeypatch):
    monkeypatch.setattr("acge_lightning.search.text_files._LARGEST", 1000)
    for name, content in (
        ("e.txt", b""), ("f.md", b" \n"), ("g.txt", b"text\0"), ("h.csv", b"x" * 1001), ("i.DOCX", b"x"), ("j", b"x"),
        ("utf16.md", "文字".encode("utf-16")),
    ):  # fmt: skip
        (notes / name).write_bytes(content)
    (notes / ".git").mkdir()
    (notes / ".git" / "x.txt").write_text("no")
    (notes / "gone.txt").symlink_to("nowhere")
    (notes / "circle.txt").symlink_to("circle.txt")
    (notes / "more" / "loop").symlink_to(notes)
    os.mkfifo(notes / "pipe.txt")
    (notes / "same.txt").symlink_to("a.txt")
    source = list_files(notes)
    assert [file.name for file in source.files] == ["a.txt", "b.md", "c.jsonl", "d.csv.gz", "same.txt", "utf16.md"]
    assert source.left_out == {
        "hidden": [".git", ".hidden.txt"],
        "empty": ["e.txt", "f.md"],
        "binary": ["g.txt"],
        "over 0 GiB, which source=FILE reads": ["h.csv"],
        "of unknown kind": ["i.DOCX", "j", "picture.png"],
        "without a target": ["circle.txt", "gone.txt"],
        "behind a link": ["more/loop"],
        "no regular file": ["pipe.txt"],
    }
    told = source.told()
    assert "2 hidden (.git, .hidden.txt)" in told
    assert "3 of unknown kind (.docx 1, no ending 1, .png 1)" in told
    with pytest.raises(InputError, match=r"pipe\.txt is no file"):
        list_files(notes / "pipe.txt")
    with pytest.raises(InputError, match=r"gone\.txt is not there"):
        list_files(notes / "gone.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be read by root")
def test_what_may_not_be_read_is_counted(notes):
    (notes / "a.txt").chmod(0)
    (notes / "more").chmod(0)
    assert list_files(notes).left_out["unreadable"] == ["more", "a.txt"]


def test_a_file_that_vanishes_is_left_out(notes):
    source = list_files(notes)
    before = digest(source)
    (notes / "b.md").unlink()
    assert digest(source) != before
    assert {d.file for d in read_documents(source, "text")} == {"a.txt", "more/c.jsonl", "more/d.csv.gz"}
    assert "b.md" in source.problems[0]


def test_the_digest_is_of_names_and_contents(notes):
    before = digest(list_files(notes))
    (notes / "a.txt").touch()
    (notes / ".hidden.txt").write_text("other")
    assert digest(list_files(notes)) == before
    (notes / "a.txt").rename(notes / "z.txt")
    renamed = digest(list_files(notes))
    (notes / "z.txt").write_text("x")
    assert len({before, renamed, digest(list_files(notes))}) == 3
