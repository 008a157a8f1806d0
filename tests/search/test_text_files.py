"""Files of texts: which files of a folder are read, what of them, and what is told of files that cannot be read."""

import gzip
import os

import pytest
from conftest import NOTES

from acge_lightning.errors import InputError
from acge_lightning.search.text_files import digest, list_files, read_texts


def test_texts_of_all_kinds_of_files_with_their_places(notes):
    assert read_texts(notes, list_files(notes), "text") == [
        ("a.txt:2", NOTES[0]),
        ("a.txt:4", NOTES[1]),
        ("b.md:1", "# 退货"),
        ("b.md:3", "how do I return this"),
        ("b.md:7", "天气"),
        ("more/c.jsonl:1", NOTES[4]),
        ("more/d.csv.gz:2", "退货，公园"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"good\n\xff\xfe bad\n", r"a\.txt, line 2: is not valid UTF-8"),
        ("a.md", b"good\n\ntext\n\xff bad\n", r"a\.md, line 3: is not valid UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}', r"a\.jsonl, line 2: field 'text' is not valid UTF-8"),
        ("a.csv", b"text\nx\n\xff\n", r"a\.csv, line 3: field 'text' is not valid UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}', r"a\.jsonl, line 2: has no text in 'text'"),
        ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:-9], r"a\.txt\.gz cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2: .*JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl, line 1: .*field=….*\['body'\]"),
        ("a.csv", b"text\n1,2\n", r"a\.csv, line 2"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.doc", b"x", "unknown kind of file"),
    ],
)
def test_files_that_cannot_be_indexed_are_named(tmp_path, name, content, told):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_texts(file, list_files(file), "text")


def test_rows_without_a_text_can_be_skipped_and_are_counted(tmp_path, caplog):
    lone, text = b'{"text": "\\ud800"}\n', b'{"text": "x"}\n'
    (tmp_path / "a.jsonl").write_bytes(text + lone + b"{}\n" + text + b"{text\n" + b'{"text": " "}\n')
    (tmp_path / "b.csv").write_bytes(b'text,n\n"a,1\nb,2\n\xff,3\n')
    (tmp_path / "c.txt").write_bytes(b"good\n\xff bad\n\nlast\n")
    (tmp_path / "d.md").write_bytes(b"one\n\xff two\n\nthree\n")
    found = read_texts(tmp_path, list_files(tmp_path), "text", "skip", 0.6)
    assert found == [
        ("a.jsonl:1", "x"), ("a.jsonl:4", "x"), ("b.csv:3", "b"), ("c.txt:1", "good"), ("c.txt:4", "last"), ("d.md:4", "three")
    ]  # fmt: skip
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith(f"{tmp_path / 'a.jsonl'}, line 2: field 'text' is not valid UTF-8")
    assert f"{tmp_path / 'a.jsonl'}: 1 rows of an empty text are left out, the first in line 6" in told
    assert told[-1] == f"{tmp_path}: 7 bad rows skipped, 6 kept"
    with pytest.raises(
        InputError, match=r"7 rows are bad, 53\.8% of all; max_bad_fraction allows 50\.0%.*max_bad_fraction=0\.539"
    ):
        read_texts(tmp_path, list_files(tmp_path), "text", "skip", 0.5)
    with pytest.raises(InputError, match="on_bad_row='quarantine' is unknown: choose raise or skip"):
        read_texts(tmp_path, list_files(tmp_path), "text", "quarantine")


def test_a_source_without_files_is_told(tmp_path):
    with pytest.raises(InputError, match=r"holds no file of \.txt"):
        list_files(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        list_files(tmp_path / "nowhere")


def test_an_index_json_of_the_user_is_a_text(notes):
    (notes / "page").mkdir()
    (notes / "page" / "index.json").write_text('{"text": "mine"}\n')
    (notes / "funnel.json").write_text('{"text": "mine too"}\n')
    found = [place for place, _ in read_texts(notes, list_files(notes), "text")]
    assert "page/index.json:1" in found
    assert "funnel.json:1" in found


def test_links_and_pipes_are_told_and_not_waited_for(notes, caplog):
    (notes / "gone.txt").symlink_to("nowhere")
    (notes / "circle.txt").symlink_to("circle.txt")
    (notes / "loop").symlink_to(notes)
    os.mkfifo(notes / "pipe.txt")
    (notes / "same.txt").symlink_to("a.txt")
    assert [file.name for file in list_files(notes)] == ["a.txt", "b.md", "c.jsonl", "d.csv.gz", "same.txt"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "4 entries that are no files of their own are left out" in told
    for name in ("gone.txt", "circle.txt", "loop", "pipe.txt"):
        assert str(notes / name) in told
    with pytest.raises(InputError, match=r"pipe\.txt is no file"):
        list_files(notes / "pipe.txt")
    with pytest.raises(InputError, match=r"gone\.txt is not there"):
        list_files(notes / "gone.txt")


def test_a_file_that_vanishes_is_named(notes):
    files = list_files(notes)
    (notes / "b.md").unlink()
    for read in (lambda: digest(notes, files), lambda: read_texts(notes, files, "text")):
        with pytest.raises(InputError, match=r"b\.md cannot be read"):
            read()


def test_the_digest_is_of_names_and_contents(notes):
    before = digest(notes, list_files(notes))
    (notes / "a.txt").touch()
    (notes / ".hidden.txt").write_text("other")
    assert digest(notes, list_files(notes)) == before
    (notes / "a.txt").rename(notes / "z.txt")
    renamed = digest(notes, list_files(notes))
    (notes / "z.txt").write_text("x")
    assert len({before, renamed, digest(notes, list_files(notes))}) == 3
