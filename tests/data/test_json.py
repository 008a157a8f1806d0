"""Lists of objects in a file of JSON: read piece by piece, with the lines on which they begin, and what is no list of rows."""

import gzip
import json
import random

import pytest

from acge_lightning.data import json_rows
from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

ROWS = [
    {"text": '今天 "天气" {很好}, [真的]\\', "score": -1.5e3, "tags": ["a", {"b": None}], "ok": True},
    {"text": "two\nlines\ttab 🙂", "score": 12},
    {},
    {"text": "", "nested": {"x": {"y": [[], {}]}}},
]


def written(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "A.JSON", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_list_is_its_objects(tmp_path, name, indent, is_ascii):
    path = written(tmp_path / name, json.dumps(ROWS, indent=indent, ensure_ascii=is_ascii))
    assert [row for _, row in rows(path)] == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "utf-16"])
def test_a_list_may_have_any_encoding(tmp_path, encoding):
    table = [{"问题": f"怎么退货{i}", "答案": "请看帮助"} for i in range(30)]
    path = written(tmp_path / "a.json", json.dumps(table, ensure_ascii=False, indent=1), encoding)
    assert [row for _, row in rows(path)] == table


@pytest.mark.parametrize("text", ["[]", " [\n]\n", "\n\n[ ]"])
def test_an_empty_list_has_no_rows(tmp_path, text):
    assert list(rows(written(tmp_path / "a.json", text))) == []


def test_lines_are_those_on_which_the_objects_begin(tmp_path):
    text = '\n[\n{"a": 1},\n\n  {"a":\n2}, {"a": 3}\n,\r\n{"a": 4}]\n'
    found = list(rows(written(tmp_path / "a.json", text)))
    assert found == [(3, {"a": 1}), (5, {"a": 2}), (6, {"a": 3}), (8, {"a": 4})]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_pieces_end_anywhere(tmp_path, monkeypatch, piece):
    """Also within a number, an escape and a word."""
    monkeypatch.setattr(json_rows, "_PIECE", piece)
    table = ROWS * 5
    path = written(tmp_path / "a.json", json.dumps(table, indent=1))
    assert [row for _, row in rows(path)] == table
    written(path, "[" + json.dumps(ROWS[0]) + " ,12345 , null]")
    assert next(rows(path)) == (1, ROWS[0])
    problems = [str(row) for _, row in rows(path) if isinstance(row, RowError)]
    assert [problem.partition(":")[0] for problem in problems] == ["holds 12345, not an object", "holds None, not an object"]


def test_a_long_list_on_one_line(tmp_path):
    chance = random.Random(0)
    table = [{"text": "".join(chance.choices('文本,"[]{}\\\n', k=chance.randrange(200)))} for _ in range(20_000)]
    path = written(tmp_path / "a.json", json.dumps(table, ensure_ascii=False))
    assert [row for _, row in rows(path)] == table


def test_bad_items_are_bad_rows(tmp_path):
    path = written(tmp_path / "a.json", '[{"a": 1},\n[1, 2],\n"x",\n{"a": 1, "a": 2},\n{"a": 3}]')
    found = list(rows(path))
    assert [(line, str(row)) for line, row in found if isinstance(row, RowError)] == [
        (2, "holds [1, 2], not an object: write {…} an item, or on_bad_row=skip"),
        (3, "holds 'x', not an object: write {…} an item, or on_bad_row=skip"),
        (4, "is not JSON (it names 'a' twice): mend it, or on_bad_row=skip"),
    ]
    assert found[0::4] == [(1, {"a": 1}), (5, {"a": 3})]


def test_a_damaged_byte_costs_its_item(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('[{"a": "好好好"},\n{"a": "坏'.encode() + b'\xff"},\n{"a": "c"}]')
    assert [(line, isinstance(row, RowError)) for line, row in rows(path)] == [(1, False), (2, True), (3, False)]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('[{"a": 1},\n{"a": 2}', 2, "ends before the list does: it may be incomplete"),
        ('[{"a": 1},\n{"a": "2', 2, "the item that begins there is not JSON (Unterminated string"),
        ('[{"a": 1},\n', 2, "the item that begins there is not JSON (Expecting value)"),
        ('[{"a": 1},\n{"a": 2} {"a": 3}]', 2, "has '{' after an item"),
        ("[{\"a\": 1},\n{'a': 2}]", 2, "the item that begins there is not JSON (Expecting property name"),
        ('[{"a": 1}]\n\n[{"a": 2}]', 3, "goes on after the end of the list"),
        ('[{"a": 1}\n]]', 2, "goes on after the end of the list"),
        ('[{"a": 1},\n]', 2, "the item that begins there is not JSON"),
        ("[{" + '"a": {' * 100_000, 1, "the item that begins there is not JSON"),
        ('[{"a": ' + "9" * 5000 + "}]", 1, "the item that begins there is not JSON"),
    ],
)
def test_a_list_that_breaks_off_is_named_with_its_line(tmp_path, text, line, problem):
    path = written(tmp_path / "a.json", text)
    with pytest.raises(InputError) as caught:
        list(rows(path))
    assert str(caught.value).startswith(f"{path}, line {line}: {problem}")
    assert len(str(caught.value)) < 400


def test_an_item_without_an_end_is_not_read_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "LONGEST", 10_000)
    monkeypatch.setattr(json_rows, "_PIECE", 1000)
    path = written(tmp_path / "a.json", '[{"a": 1}, {"a": "' + "b" * 100_000 + '"}]')
    with pytest.raises(InputError, match="the item that begins there is not JSON"):
        list(rows(path))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("table", [{"text": ["a", "b"], "label": [0, 1]}, {"text": {"0": "a", "1": "b"}}])
def test_columns_are_no_rows(tmp_path, name, table):
    path = written(tmp_path / name, json.dumps(table))
    with pytest.raises(InputError, match=r"line 1: it holds columns, not a row: write one object a row, in pandas df\.to_json"):
        list(rows(path))


@pytest.mark.parametrize("value", [{"data": [{"text": "a"}]}, {"text": "a", "label": 1}, {"version": "1", "data": []}])
def test_an_object_over_lines_is_told(tmp_path, value):
    path = written(tmp_path / "a.json", json.dumps(value, indent=2))
    with pytest.raises(InputError, match=r"a\.json: an object runs over several lines: write each on one line, jq -c \. FILE"):
        list(rows(path))


def test_a_first_line_that_is_cut_is_a_bad_row(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a",\n{"text": "b"}\n{"text": "c"}\n')
    assert [(line, isinstance(row, RowError)) for line, row in rows(path)] == [(1, True), (2, False), (3, False)]
