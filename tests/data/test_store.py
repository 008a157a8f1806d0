"""Checked rows on disk: what is refused or skipped, when the cache serves again, and reading by number."""

import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.data import reading
from acge_lightning.data import store as module
from acge_lightning.data.records import (
    DocumentRecord,
    LabelledRecord,
    PairRecord,
    ScoredPairRecord,
    TextRecord,
    TripletRecord,
    text_id,
)
from acge_lightning.data.store import open_store
from acge_lightning.errors import InputError

TRIPLETS = [{"query": f"q{i}", "positive": [f"p{i}", f"r{i}"][: 1 + i % 2], "negative": ["n"] * (i % 4)} for i in range(11)]


def written(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def opened(path, record=TextRecord, columns=None, on_bad_row="raise", cache=None, most=1.0):
    paths = path if isinstance(path, list) else [path]
    return open_store(paths, record, columns or {}, on_bad_row, cache or paths[0].parent / "cache", most)


def texts(store):
    return [row["text"] for row in store.take(range(len(store)))]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ROWS", 3)


# ---- reading


def test_rows_come_back_with_the_ids_of_their_texts(tmp_path):
    store = opened(written(tmp_path / "a.jsonl", TRIPLETS), TripletRecord)
    assert len(store) == len(TRIPLETS)
    for row, given_row in zip(store.take(range(len(TRIPLETS))), TRIPLETS, strict=True):
        ids = [text_id(t) for t in [given_row["query"], *given_row["positive"], *given_row["negative"]]]
        assert row == {**given_row, "ids": ids}


@pytest.mark.parametrize(
    ("record", "row", "expected"),
    [
        (TextRecord, {"text": "a"}, {"text": "a"}),
        (LabelledRecord, {"text": "a", "label": 3}, {"text": "a", "label": "3"}),
        (PairRecord, {"text1": "a", "text2": "b", "label": "entailment"}, {"text1": "a", "text2": "b", "label": 1}),
        (ScoredPairRecord, {"text1": "a", "text2": "b", "score": 0.1}, {"text1": "a", "text2": "b", "score": 0.1}),
        (DocumentRecord, {"_id": 1, "text": "a", "title": "b"}, {"key": "1", "text": "b a"}),
    ],
)
def test_every_record_is_kept_whole(tmp_path, record, row, expected):
    (found,) = opened(written(tmp_path / "a.jsonl", [row]), record).take([0])
    assert {name: found[name] for name in expected} == expected
    assert set(found) == {*expected, "ids"}


@pytest.mark.usefixtures("small_blocks")
def test_take_across_blocks_keeps_order_and_repeats(tmp_path):
    store = opened(written(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(10)]))
    assert [len(block) for block in store._blocks] == [3, 3, 3, 1]
    for numbers in ([9, 0, 9, 3, 2, 5, 5], [2, 3], [8], [], list(range(9, -1, -1))):
        assert [row["text"] for row in store.take(numbers)] == [str(i) for i in numbers]
        assert [row["text"] for row in store.take(np.array(numbers, dtype=np.int64))] == [str(i) for i in numbers]
    with pytest.raises(IndexError):
        store.take([10])


@pytest.mark.usefixtures("small_blocks")
def test_columns_and_ids_across_blocks(tmp_path):
    store = opened(written(tmp_path / "a.jsonl", TRIPLETS), TripletRecord)
    assert store.column("query").to_pylist() == [row["query"] for row in TRIPLETS]
    values, offsets = store.ids()
    assert offsets[0] == 0
    for i, row in enumerate(TRIPLETS):
        expected = [text_id(t) for t in [row["query"], *row["positive"], *row["negative"]]]
        assert values[offsets[i] : offsets[i + 1]].tolist() == expected
    assert len(offsets) == len(TRIPLETS) + 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_texts_and_any_choice(tmp_path_factory, data):
    drawn = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=9))
    folder = tmp_path_factory.mktemp("store")
    before, module._BLOCK_ROWS = module._BLOCK_ROWS, data.draw(st.integers(1, 4))
    try:
        store = opened(written(folder / "a.jsonl", [json.dumps({"text": text}) for text in drawn]))
    finally:
        module._BLOCK_ROWS = before
    numbers = data.draw(st.lists(st.integers(0, len(drawn) - 1)))
    assert [row["text"] for row in store.take(numbers)] == [drawn[i].strip() for i in numbers]


def test_a_block_also_ends_when_its_texts_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_CHARACTERS", 10)
    store = opened(written(tmp_path / "a.jsonl", [{"text": "x" * n} for n in (4, 6, 30, 1, 2)]))
    assert [len(block) for block in store._blocks] == [2, 1, 2]
    assert [len(text) for text in texts(store)] == [4, 6, 30, 1, 2]


def test_several_files_make_one_store(tmp_path):
    first = written(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    second = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": ["c"]}), second)
    assert texts(opened([first, second])) == ["a", "b", "c"]
    assert texts(opened([second, first])) == ["c", "a", "b"]


# ---- bad rows


def test_raise_names_file_line_and_field(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}, "", {"text": ""}, {"text": "b"}])
    with pytest.raises(InputError) as caught:
        opened(path)
    assert str(caught.value) == f"{path}, line 3: field 'text' is empty: give a text, or on_bad_row=skip"


def test_raise_names_a_line_that_is_no_json(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}, "oops"])
    with pytest.raises(InputError) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}, line 2: is not JSON")


def test_raise_names_the_file_among_several(tmp_path):
    first, second = (
        written(tmp_path / f"{name}.jsonl", [{"text": "a"}, {"text": row}]) for name, row in (("a", "b"), ("b", None))
    )
    with pytest.raises(InputError) as caught:
        opened([first, second])
    assert str(caught.value).startswith(f"{second}, line 2: ")


def test_skip_counts_and_warns(tmp_path, caplog):
    rows = [{"text": "a"}, "oops", {"text": ""}, {"text": "b"}, [1], {"x": 1}]
    path = written(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        store = opened(path, on_bad_row="skip")
    assert (texts(store), store.skipped, store.neutral) == (["a", "b"], 4, 0)
    first, total = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{path}, line 2: is not JSON")
    assert first.endswith("(skipped, as are further bad rows)")
    assert total == f"{path}: 4 bad rows skipped, 2 kept"
    caplog.clear()
    again = opened(path, on_bad_row="skip")
    assert (again.skipped, [r.getMessage() for r in caplog.records]) == (4, [total])  # told again, though not read again


def test_good_rows_give_no_warning(tmp_path, caplog):
    store = opened(written(tmp_path / "a.jsonl", [{"text": "a"}]), on_bad_row="skip")
    assert (store.skipped, caplog.records) == (0, [])


def test_neutral_rows_are_left_out_and_counted(tmp_path, caplog):
    rows = [
        {"text1": "a", "text2": "b", "label": label} for label in ("neutral", "entailment", "neutral", "contradiction", "bad")
    ]
    path = written(tmp_path / "a.jsonl", rows)
    store = opened(path, PairRecord, on_bad_row="skip")
    assert (len(store), store.neutral, store.skipped) == (2, 2, 1)
    assert store.column("label").to_pylist() == [1, 0]
    assert f"{path}: 2 neutral rows left out, 2 kept" in caplog.text


def test_lines_that_a_quote_swallowed_count_as_bad_rows(tmp_path):
    """Kept and skipped rows are all the lines there are, so that `max_bad_fraction` means what it says."""
    lines = ["text", *(f"text {i}" for i in range(2, 1002))]
    lines[899] = '"退货'
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    store = opened(path, on_bad_row="skip")
    assert (len(store), store.skipped) == (898, 102)
    with pytest.raises(InputError, match=r"102 rows are bad, 10\.2% of all; .* max_bad_fraction=0\.102; .*a\.csv, line 900: "):
        opened(path, on_bad_row="skip", most=0.1)
    assert len(opened(path, on_bad_row="skip", most=0.102)) == 898  # the value that the error names
    lines = [f"{line},{i}" for i, line in enumerate(lines)]
    path.write_text("\n".join(["text,label", *lines[1:]]))
    store = opened(path, LabelledRecord, on_bad_row="skip")
    assert (len(store), store.skipped) == (999, 1)
    with pytest.raises(InputError, match=r"a\.csv, line 900: is not csv"):
        opened(path, LabelledRecord)


# ---- documents


@pytest.mark.parametrize("second", ["d1", " d1 ", 1])
def test_an_id_that_comes_twice_is_an_error_that_names_both_lines(tmp_path, caplog, second):
    rows = [{"_id": "d0", "text": "a"}, {"_id": "1" if second == 1 else "d1", "text": "b"}, {"_id": second, "text": "c"}]
    path = written(tmp_path / "corpus.jsonl", rows)
    name = repr(str(second).strip())
    with pytest.raises(InputError) as caught:
        opened(path, DocumentRecord)
    assert str(caught.value) == f"{path}, line 3: field '_id' is {name}, as in {path}, line 2: give each its own"
    store = opened(path, DocumentRecord, on_bad_row="skip")
    assert (texts(store), store.skipped) == (["a", "b"], 1)
    other = written(tmp_path / "corpus-2.jsonl", rows[:1])
    with pytest.raises(InputError, match=r"corpus-2\.jsonl, line 1: field '_id' is 'd0', as in .*corpus\.jsonl, line 1"):
        opened([written(path, rows[:2]), other], DocumentRecord)


@pytest.mark.parametrize("policy", ["raise", "skip", "quarantine"])
def test_empty_documents_and_spaces_around_ids_are_counted_and_kept(tmp_path, caplog, policy):
    rows = [{"_id": f" d{i}" if i % 4 else i, "text": "" if i in (5, 8) else f"text {i}"} for i in range(20)]
    path = written(tmp_path / "corpus.jsonl", rows)
    for _ in range(2):  # told again, though not read again
        caplog.clear()
        store = opened(path, DocumentRecord, on_bad_row=policy, most=0.1)
        assert (len(store), store.skipped) == (20, 0)
        assert f"{path}: 2 texts are empty, the first in {path}, line 6: they are kept" in caplog.text
        assert f"{path}: 15 ids stand between white space, which is not part of them" in caplog.text
    assert store.column("key").to_pylist() == [str(row["_id"]).strip() for row in rows]
    assert store.column("text").to_pylist()[4:9] == ["text 4", "", "text 6", "text 7", ""]
    with pytest.raises(InputError) as caught:
        opened(path, DocumentRecord, on_bad_row=policy, most=0.05)
    assert str(caught.value) == (
        f"{path}: 2 texts are empty, 10.0% of all; max_bad_fraction allows 5.0%: mend them, or max_bad_fraction=0.1; "
        f"the first of them: {path}, line 6"
    )


# ---- other processes


def test_a_store_goes_to_another_process_as_the_name_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = opened(written(tmp_path / "a.jsonl", [{"text": "长" * 1000 + str(i)} for i in range(1000)]), cache="cache")
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(sent)
    assert texts(again) == texts(store)
    assert again.column("text").equals(store.column("text"))


@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows(tmp_path, on_bad_row, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        opened(path, on_bad_row=on_bad_row)
    assert str(caught.value) == f"{path}: the file has no rows: give at least one"


def test_a_file_of_bad_rows_only(tmp_path):
    path = written(tmp_path / "a.jsonl", ["x", "y", {"text": ""}])
    with pytest.raises(InputError) as caught:
        opened(path, on_bad_row="skip")
    assert str(caught.value).startswith(f"{path}: all 3 rows are bad, the first of them: {path}, line 1: is not JSON")


def test_a_file_of_neutral_rows_only(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "label": "neutral"}] * 3)
    with pytest.raises(InputError) as caught:
        opened(path, PairRecord)
    assert str(caught.value) == f"{path}: all 3 rows are neutral: give rows of both kinds"


@pytest.mark.parametrize("on_bad_row", ["ignore", None, True])
def test_an_unknown_choice_for_bad_rows(tmp_path, on_bad_row):
    with pytest.raises(InputError, match=r"on_bad_row=.* is unknown: choose from raise, skip, quarantine"):
        opened(written(tmp_path / "a.jsonl", [{"text": "a"}]), on_bad_row=on_bad_row)


# ---- names of columns


def test_columns_are_renamed(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"content": "a", "text": "unused"}])
    assert texts(opened(path, columns={"text": "content"})) == ["a"]
    assert texts(opened(path)) == ["unused"]


def test_two_columns_change_places(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "score": 1}])
    (row,) = opened(path, ScoredPairRecord, {"text1": "text2", "text2": "text1"}).take([0])
    assert (row["text1"], row["text2"]) == ("b", "a")


def test_one_column_may_serve_twice(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"s": "a", "score": 1}])
    (row,) = opened(path, ScoredPairRecord, {"text1": "s", "text2": "s"}).take([0])
    assert (row["text1"], row["text2"]) == ("a", "a")


def test_a_column_used_under_another_name_is_not_read_under_its_own(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"query": "q", "negative": "p"}])
    (row,) = opened(path, TripletRecord, {"positive": "negative"}).take([0])
    assert (row["positive"], row["negative"]) == (["p"], [])


def test_a_column_that_is_not_there(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a", "b": 1}])
    with pytest.raises(InputError) as caught:
        opened(path, columns={"text": "content"})
    assert str(caught.value) == f"{path} has no column 'content', which columns names for text: its columns are text, b"


def test_a_field_that_is_none_of_the_record(tmp_path):
    with pytest.raises(InputError) as caught:
        opened(written(tmp_path / "a.jsonl", [{"text": "a"}]), LabelledRecord, {"labell": "x"})
    assert str(caught.value) == "columns.labell is no field of these rows: choose from ['text', 'label']"


# ---- the cache


@pytest.fixture
def reads(monkeypatch):
    """The files that were read."""
    found = []
    original = reading.rows
    monkeypatch.setattr(reading, "rows", lambda file: found.append(file.name) or original(file))
    return found


def test_a_second_opening_does_not_read(tmp_path, reads):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}])
    assert texts(opened(path)) == texts(opened(path)) == ["a"]
    assert reads == ["a.jsonl"]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_the_cache_moves_with_home(tmp_path, reads, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    opened(written(tmp_path / "a.jsonl", [{"text": "a"}]), cache="~/kept/rows")
    assert len(list((tmp_path / "kept" / "rows").iterdir())) == 1


def test_a_changed_file_is_read_again(tmp_path, reads):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}])
    opened(path)
    written(path, [{"text": "longer"}])
    assert texts(opened(path)) == ["longer"]
    written(path, [{"text": "longes"}])  # as long
    os.utime(path, ns=(1, 10**18))
    assert texts(opened(path)) == ["longes"]
    assert len(reads) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-32],
        lambda content: content + b"x",
        lambda content: content.replace(b"second", b"secund"),
        lambda content: content.replace(b"second", b"seco\xffd"),
    ],
)
def test_a_damaged_store_is_told_and_read_again(damage, tmp_path, reads, caplog):
    path = written(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "second"}])
    kept = opened(path).file
    kept.write_bytes(damage(kept.read_bytes()))
    for _ in range(2):
        assert texts(opened(path)) == ["first", "second"]
    assert reads == ["a.jsonl"] * 2
    assert caplog.text.count(f"{kept} is damaged (") == 1


@pytest.mark.parametrize("wrong", ["offsets", "columns"])
def test_a_store_whose_digest_is_right_and_whose_rows_are_not(wrong, tmp_path, reads):
    """As one that was made to do harm: offsets beyond the texts end the interpreter where they are believed."""
    path = written(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "second"}])
    kept = opened(path).file
    content = kept.read_bytes()[:-32]
    if wrong == "offsets":
        content = content.replace((5).to_bytes(8, "little") + (11).to_bytes(8, "little"), (2**33).to_bytes(8, "little") * 2)
    else:
        content = content.replace(b"text", b"tact")
    kept.write_bytes(content + hashlib.sha256(content).digest())
    assert texts(opened(path)) == ["first", "second"]
    assert reads == ["a.jsonl"] * 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken/rows \(Not a directory\): make room there, or give another paths\.cache_dir"):
        opened(path, cache=tmp_path / "taken" / "rows")


def test_drafts_of_killed_processes_are_swept(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a"}])
    killed = "import os\nfrom pathlib import Path\nfrom acge_lightning.data import store\n"
    killed += "from acge_lightning.data.records import TextRecord\n"
    killed += "store._blocks = lambda *given: os.kill(os.getpid(), 9)\n"
    killed += f"store.open_store([Path({str(path)!r})], TextRecord, {{}}, 'quarantine', {str(tmp_path / 'cache')!r})"
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -9
    assert len(list((tmp_path / "cache").iterdir())) == 2
    opened(written(tmp_path / "b.jsonl", [{"text": "b"}]))
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_another_setting_is_read_again(tmp_path, reads):
    path = written(tmp_path / "a.jsonl", [{"text": "a", "label": "b"}])
    opened(path)
    opened(path, columns={"text": "label"})
    opened(path, on_bad_row="skip")
    opened(path, LabelledRecord)
    opened(path, cache=tmp_path / "other")
    assert len(reads) == 5
    opened(path, columns={"text": "label"})
    assert len(reads) == 5


def test_equal_files_of_another_name_are_not_mixed_up(tmp_path, reads):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, text in ((first, "a"), (second, "b")):
        written(path, [{"text": text}])
        os.utime(path, ns=(1, 10**18))
    assert texts(opened(first)) == ["a"]
    assert texts(opened(second)) == ["b"]
    assert texts(opened([first, second])) == ["a", "b"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damage", ["bad row", "truncated"])
@pytest.mark.parametrize("place", [0, 8])
def test_a_failure_leaves_nothing_behind(tmp_path, damage, place):
    rows = [{"text": str(i)} for i in range(10)]
    if damage == "bad row":
        path = written(tmp_path / "a.jsonl", [*rows[:place], {"text": ""}, *rows[place:]])
    else:
        path = tmp_path / "a.jsonl.gz"
        packed = b"".join(gzip.compress(json.dumps(row).encode() + b"\n") for row in rows[: place + 1])
        path.write_bytes(packed[:-12])
    with pytest.raises(InputError):
        opened(path)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("small_blocks")
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    path = written(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(10)])
    original = module.text_id

    def interrupted(text):
        if text == "8":
            raise KeyboardInterrupt
        return original(text)

    monkeypatch.setattr(module, "text_id", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert len(opened(path)) == 10


def _open_together(path, barrier, answers):
    original = os.replace

    def late_replace(*args):
        barrier.wait(20)  # both have written and neither has put its file in place
        original(*args)

    os.replace = late_replace
    answers.put([row["text"] for row in opened(path).take(range(500))])


def test_two_processes_may_write_at_once(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(500)])
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_open_together, args=(path, barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    found = [answers.get(timeout=30) for _ in both]
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert found == [[str(i) for i in range(500)]] * 2
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


# ---- twenty kinds of bad row, three policies

GOOD = {"query": "一", "positive": ["二"], "negative": ["三"]}
BAD = {
    "malformed JSON": b'{"query": "a", ',
    "a list": b'["a", "b"]',
    "a number": b"7",
    "null": b"null",
    "a bare text": b'"query"',
    "invalid UTF-8": b'{"query": "\xff", "positive": "b"}',
    "a lone surrogate": b'{"query": "\\ud800", "positive": "b"}',
    "a byte-order mark": b'\xef\xbb\xbf{"query": "a", "positive": "b"}',
    "a NUL byte between": b'{"query": \x00 "a"}',
    "nothing but a comma": b",",
    "an endless number": b'{"query": ' + b"9" * 5000 + b"}",
    "nesting without end": b"[" * 20_000,
    "null as a text": b'{"query": null, "positive": "b"}',
    "a number as a text": b'{"query": 3, "positive": "b"}',
    "an empty text": b'{"query": "", "positive": "b"}',
    "nothing but white space": '{"query": "\u3000 \\t", "positive": "b"}'.encode(),
    "a missing column": b'{"question": "a", "positive": "b"}',
    "no positive": b'{"query": "a", "positive": []}',
    "an empty positive": b'{"query": "a", "positive": ["b", ""]}',
    "a positive of another kind": b'{"query": "a", "positive": {"text": "b"}}',
    "a negative of another kind": b'{"query": "a", "positive": "b", "negative": [1]}',
    "two objects on a line": b'{"query": "a", "positive": "b"} {"query": "a", "positive": "b"}',
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("policy", ["raise", "skip", "quarantine"])
def test_kinds_of_bad_rows(kind, policy, tmp_path, caplog):
    good = json.dumps(GOOD, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    content = b"\n".join([good, good, BAD[kind], good, BAD[kind], good]) + b"\n"
    path.write_bytes(content)
    if policy == "raise":
        with pytest.raises(InputError, match=r"rows\.jsonl, line 3: "):
            opened(path, TripletRecord)
        assert list((tmp_path / "cache").iterdir()) == []
    else:
        store = opened(path, TripletRecord, on_bad_row=policy)
        assert (len(store), store.skipped) == (4, 2)
        assert "rows.jsonl, line 3: " in caplog.text
        assert "2 bad rows skipped, 4 kept" in caplog.text
        aside = list((tmp_path / "cache").glob("*.bad.jsonl"))
        assert len(aside) == (policy == "quarantine")
        if aside:
            notes = [json.loads(line) for line in aside[0].read_text(encoding="utf-8").splitlines()]
            assert [(note["file"], note["line"]) for note in notes] == [(str(path), 3), (str(path), 5)]
            assert all(note["reason"] for note in notes)
            assert str(aside[0]) in caplog.text
        with pytest.raises(
            InputError, match=r"2 rows are bad, 33\.3% of all; max_bad_fraction allows 10\.0%.*rows\.jsonl, line 3"
        ):
            opened(path, TripletRecord, on_bad_row=policy, most=0.1)
    assert path.read_bytes() == content


def test_what_was_set_aside_is_the_row_itself(tmp_path):
    row = {"text": "", "note": "两"}
    opened(written(tmp_path / "a.jsonl", [{"text": "a"}, row]), on_bad_row="quarantine")
    (aside,) = (tmp_path / "cache").glob("*.bad.jsonl")
    assert json.loads(aside.read_text(encoding="utf-8"))["row"] == row
