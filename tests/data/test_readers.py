"""Files to rows: every format, every kind of damage, and where files are looked for."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError
from acge_lightning.data.source import SUFFIXES
from acge_lightning.errors import InputError

ROWS = [
    {"text1": "今天天气很好", "text2": 'a "quoted" word', "score": "3.5"},
    {"text1": "comma, and\ttab", "text2": "Ünïcode 🙂", "score": "0"},
    {"text1": "two\nlines", "text2": " spaces ", "score": "5"},
]
JSONL = b'{"text": "a"}\n{"text": "b"}\n'


def quoted():
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ROWS[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


def workbook(values):
    book = openpyxl.Workbook()
    for row in values:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


CONTENT = {
    "jsonl": b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS),
    "csv": quoted(),
    "parquet": parquet(pa.Table.from_pylist(ROWS)),
    "xlsx": workbook([list(ROWS[0]), *(list(row.values()) for row in ROWS)]),
}
TSV = """text1\ttext2\tscore
"退货流程\t怎么退货\t4.0

a "b" c\t"d"\t 1
Ünïcode 🙂\tcomma, and\x00 "\t2
开发票"\t\"""\t3""".encode()
TSV_ROWS = [
    {"text1": '"退货流程', "text2": "怎么退货", "score": "4.0"},
    {"text1": 'a "b" c', "text2": '"d"', "score": " 1"},
    {"text1": "Ünïcode 🙂", "text2": 'comma, and\x00 "', "score": "2"},
    {"text1": '开发票"', "text2": '"""', "score": "3"},
]


def written(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


def problems(path):
    """(line, message) of each bad row."""
    return [(line, str(row)) for line, row in rows(path) if isinstance(row, RowError)]


def good(path):
    return [(line, row) for line, row in rows(path) if not isinstance(row, RowError)]


# ---- formats


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix[1:4] not in ("tsv", "ods") and suffix != ".xls"])
@pytest.mark.parametrize("name", ["train", "TRAIN", "公司 数据 [1]"])
def test_every_format_gives_the_same_rows(tmp_path, suffix, name):
    kind = suffix.split(".")[1].replace("json", "jsonl").replace("jsonll", "jsonl")
    path = written(tmp_path / f"{name}{suffix.upper() if name == 'TRAIN' else suffix}", CONTENT[kind])
    assert [row for _, row in rows(path)] == ROWS


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_in_tsv_a_quote_is_a_character(tmp_path, name, newline, mark):
    path = written(tmp_path / name, mark + TSV.replace(b"\n", newline))
    assert list(rows(path)) == list(zip([2, 4, 5, 6], TSV_ROWS, strict=True))


def test_quotes_of_csv_in_tsv_are_told(tmp_path, caplog):
    """As pandas writes them; a row is a line all the same."""
    path = written(tmp_path / "a.tsv", b'text\tlabel\na\t1\n"b ""c"" d"\t2\nthe "" word\t3\n"e"\t4\n')
    assert [row["text"] for _, row in good(path)] == ["a", '"b ""c"" d"', 'the "" word', '"e"']
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path}: 1 lines, first line 3, quote a value as csv does")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path, name, newline):
    content = CONTENT[name.split(".")[1]].replace(b"two\nlines", b"two lines").replace(b"\n", newline)
    path = written(tmp_path / name, b"\xef\xbb\xbf" + content)
    assert [row for _, row in rows(path)] == [*ROWS[:2], {**ROWS[2], "text1": "two\nlines" if "jsonl" in name else "two lines"}]


def test_a_byte_order_mark_in_mid_file_is_a_bad_row(tmp_path):
    path = written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + JSONL + b"\xef\xbb\xbf" + JSONL)
    ((line, message),) = problems(path)
    assert line == 3
    assert "is not JSON" in message
    assert [line for line, _ in good(path)] == [1, 2, 4]


def test_a_file_without_a_last_line_break(tmp_path):
    for name in ("jsonl", "csv"):
        path = written(tmp_path / f"a.{name}", CONTENT[name].rstrip(b"\n"))
        assert [row for _, row in rows(path)] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert list(rows(written(tmp_path / name, b""))) == []


def test_a_parquet_file_without_rows(tmp_path):
    path = written(tmp_path / "a.parquet", parquet(pa.Table.from_pylist(ROWS).slice(0, 0)))
    assert list(rows(path)) == []


def test_parquet_lists_nulls_and_row_numbers(tmp_path):
    table = pa.table({"query": ["q", None, "r"] * 2000, "positive": [["a", "b"], [], None] * 2000})
    found = list(rows(written(tmp_path / "a.parquet", parquet(table))))
    assert [line for line, _ in found] == list(range(1, 6001))  # more than one read
    assert [row for _, row in found[:3]] == table.slice(0, 3).to_pylist()
    assert found[-1][1] == {"query": "r", "positive": None}


# ---- bad lines


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    assert [line for line, _ in rows(written(tmp_path / "a.jsonl", b"\n" + b" \r\n\t\n".join(JSONL.splitlines(True))))] == [
        2,
        5,
    ]
    assert [line for line, _ in rows(written(tmp_path / "a.csv", b"text\n\na\n\n\nb\n"))] == [3, 6]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1, 2]", "holds [1, 2], not an object: write {…} a line"),
        (b'"a"', "holds 'a', not an object"),
        (b"null", "holds None, not an object"),
        (b"NaN", "holds nan, not an object"),
        (b"{'text': 'a'}", "is not JSON"),
        (b'{"text": "a"', "is not JSON"),
        (b'{"text": "a"} {"text": "b"}', "is not JSON (Extra data"),
        (b'{"text": "a\tb"}', "is not JSON (Invalid control character"),
        (b'{"text": "a", "label": 1, "text": "b"}', "is not JSON (it names 'text' twice)"),
        (b'{"text": "\xff\xfe"}', "is not valid UTF-8 (byte 11)"),
        (b'{"text": "\xe4\xbb"}', "is not valid UTF-8 (byte 11)"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_a_bad_json_line_is_named_and_the_next_is_read(tmp_path, line, reason):
    path = written(tmp_path / "a.jsonl", JSONL + line + b"\n" + JSONL)
    ((number, message),) = problems(path)
    assert number == 3
    assert message.startswith(reason)
    assert message.endswith("on_bad_row=skip")
    assert len(message) < 250
    assert good(path) == [(1, {"text": "a"}), (2, {"text": "b"}), (4, {"text": "a"}), (5, {"text": "b"})]


def test_line_numbers_after_quoted_line_breaks(tmp_path):
    content = b'text,label\na,1\n"b\nb\r\nb",2\nc,3\n\n"d\nd",4\ne,5\n'
    assert good(written(tmp_path / "a.csv", content)) == [
        (2, {"text": "a", "label": "1"}),
        (3, {"text": "b\nb\r\nb", "label": "2"}),  # the line on which the row begins
        (6, {"text": "c", "label": "3"}),
        (8, {"text": "d\nd", "label": "4"}),
        (10, {"text": "e", "label": "5"}),
    ]


@pytest.mark.parametrize(
    ("name", "delimiter", "remedy"), [("a.csv", ",", "quote those with ','"), ("a.tsv", "\t", "a value holds no tab")]
)
def test_too_many_and_too_few_values(tmp_path, name, delimiter, remedy):
    content = "text,label\na,1,,3\nb\nc,3,,\nd,4\n".replace(",", delimiter).encode()
    path = written(tmp_path / name, content)
    assert problems(path) == [(2, f"has 2 values more than the header: {remedy}")]
    assert good(path) == [(3, {"text": "b"}), (4, {"text": "c", "label": "3"}), (5, {"text": "d", "label": "4"})]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_columns_of_one_name_are_an_error_and_columns_without_one_are_not(tmp_path, name):
    delimiter = "," if name == "a.csv" else "\t"
    path = written(tmp_path / name, "text,label,text\na,1,b\n".replace(",", delimiter).encode())
    with pytest.raises(InputError, match=r"the header calls two columns 'text': give each its own name"):
        list(rows(path))
    written(path, ",text,,label,\n0,a,x,1,\n".replace(",", delimiter).encode())
    ((line, row),) = good(path)
    assert (line, row["text"], row["label"]) == (2, "a", "1")
    with pytest.raises(InputError, match="calls two columns 'a'"):
        list(rows(written(tmp_path / "a.parquet", parquet(pa.table([[1], [2]], names=["a", "a"])))))


def lines_of(count):
    return ["text1,text2,score", *(f"问题{i},怎么{i},{i % 5}.0" for i in range(2, count + 2))]


@pytest.mark.parametrize("closed", [None, 310, 702])
def test_an_open_quote_costs_its_own_line(tmp_path, closed):
    """It is named on the line on which it begins, and the lines after it are read as if it were not there."""
    lines = lines_of(1000)
    lines[301] = '"退货流程,怎么退货,4.0'
    lines[800] = '"c ""d"" e","f\ng",1'
    if closed:
        lines[closed - 1] = '开发票" ,怎么开,3.0'
    path = written(tmp_path / "a.csv", "\n".join(lines).encode())
    bad = problems(path)
    assert [line for line, _ in bad] == [302, *([closed] if closed else [])]
    assert "mend its quotes, or on_bad_row=skip" in bad[0][1]
    expected = {i: line.split(",") for i, line in enumerate(lines, 1) if i not in (1, 302, 801, closed)}
    found = {i - (i > 801): list(row.values()) for i, row in good(path)}
    assert found == expected | {801: ['c "d" e', "f\ng", "1"]}


def test_a_value_may_run_over_some_lines_and_over_no_more(tmp_path, caplog):
    long = "\n".join(f"line {i}" for i in range(300))
    path = written(tmp_path / "a.csv", f'text,label\na,1\n"{long}",2\n"b\n{long}",3\nc,4\n'.encode())
    found = good(path)
    assert found == [(2, {"text": "a", "label": "1"}), (3, {"text": long, "label": "2"}), (604, {"text": "c", "label": "4"})]
    bad = problems(path)
    assert [line for line, _ in bad] == list(range(303, 604))  # the line on which it begins, and all that it held
    assert "a quoted value runs over more than 300 lines" in bad[0][1]
    assert "is no whole row by itself" in bad[1][1]
    assert not caplog.records


def test_a_later_value_of_a_row_is_named_by_its_own_line(tmp_path):
    path = written(tmp_path / "a.csv", b'a,b\n"x\n""y""","open\n1,2\n3,"4"\n5,6"\n')
    assert [line for line, _ in problems(path)] == [3]
    assert good(path) == [(4, {"a": "1", "b": "2"}), (5, {"a": "3", "b": "4"}), (6, {"a": "5", "b": '6"'})]


def test_lines_that_look_like_rows_within_a_value_are_told(tmp_path, caplog):
    path = written(tmp_path / "a.csv", b'text,label\n"a,1\nb,2\nc,3\nd,4\ne",5\n"verse\none\ntwo\nthree\nend",6\n')
    assert [line for line, _ in good(path)] == [2, 7]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path}: 1 rows, first line 2, hold a quoted value of lines that look like rows")


def test_an_open_quote_in_one_column_gives_no_rows(tmp_path):
    path = written(tmp_path / "a.csv", b'text\na\n"b\nc\n\nd\n')
    assert good(path) == [(2, {"text": "a"})]
    assert [line for line, _ in problems(path)] == [3, 4, 6]  # one cannot tell whether c and d are rows
    assert problems(path)[0][1] == "is not csv (unexpected end of data): mend its quotes, or on_bad_row=skip"


@settings(deadline=None)
@given(st.lists(st.lists(st.text(alphabet='ab",\n \r\té', max_size=6), min_size=2, max_size=2), max_size=8))
def test_what_is_well_quoted_is_read_as_the_csv_module_reads_it(table):
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["x", "y"], *table])
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(written(Path(folder) / "a.csv", out.getvalue().encode())))
    ends = [row.count("\n") + 1 for row in ("".join(values) for values in table)]
    starts = [2 + sum(ends[:i]) for i in range(len(table))]
    expected = [(line, values) for line, values in zip(starts, table, strict=True) if "".join(values).strip()]  # not blank
    assert [(line, list(row.values())) for line, row in found] == expected


def test_the_first_row_is_on_line_2(tmp_path):
    path = written(tmp_path / "a.csv", b'text,label\n"b" c,2\na,1\n')
    assert [line for line, _ in problems(path)] == [2]
    assert good(path) == [(3, {"text": "a", "label": "1"})]


def test_a_text_after_a_closing_quote_is_a_bad_row(tmp_path):
    path = written(tmp_path / "a.csv", b'text,label\na,1\n"b" c,2\n"d"d,3\n"e ""e""",4\n')
    assert [(line, message[:11]) for line, message in problems(path)] == [(3, "is not csv "), (4, "is not csv ")]
    assert good(path) == [(2, {"text": "a", "label": "1"}), (5, {"text": 'e "e"', "label": "4"})]


def test_invalid_utf8_in_csv_stays_recognisable(tmp_path):
    found = good(written(tmp_path / "a.csv", b"text,label\n\xff\xfe,1\nb,2\n"))
    assert [line for line, _ in found] == [2, 3]
    with pytest.raises(UnicodeEncodeError):
        found[0][1]["text"].encode()
    assert found[1][1] == {"text": "b", "label": "2"}


def test_old_line_ends_are_told(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv, line 1: the header is not csv \("):
        list(rows(written(tmp_path / "a.csv", b"text,label\ra,1\rb,2\r")))
    path = written(tmp_path / "a.tsv", b"text\tlabel\na\t1\nb\rb\t2\n")
    ((line, message),) = problems(path)
    assert (line, message[:12], message[-42:]) == (3, "is not tsv (", ": mend its line breaks, or on_bad_row=skip")


def test_a_csv_value_may_be_long(tmp_path):
    text = "长" * 300_000
    assert good(written(tmp_path / "a.csv", f"text\n{text}\n".encode())) == [(2, {"text": text})]


# ---- files that cannot be read


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("damage", ["truncated", "not gzip", "flipped", "checksum"])
def test_a_damaged_gz_file_is_named(tmp_path, name, damage):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * 7919) for i in range(20_000)), mtime=0)
    data = {
        "truncated": whole[: len(whole) // 2],
        "not gzip": JSONL,
        "flipped": whole[:1000] + bytes(255 - b for b in whole[1000:1100]) + whole[1100:],
        "checksum": whole[:-8] + bytes(4) + whole[-4:],
    }[damage]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read .* it may be incomplete, copy it again") as caught:
        list(rows(path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "footer", "page"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    whole = CONTENT["parquet"]
    data = {
        "text": JSONL,
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "footer": whole[:-60] + bytes(40) + whole[-20:],
        "page": whole[:4] + b"\xff" * 60 + whole[64:],
    }[damage]
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read") as caught:
        list(rows(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_invalid_utf8_in_parquet_is_named(tmp_path):
    data, offsets = pa.py_buffer(b"a\xff\xfeb"), pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 3, 4)))
    path = written(tmp_path / "a.parquet", parquet(pa.table({"text": pa.StringArray.from_buffers(3, offsets, data)})))
    (first, bad, last) = list(rows(path))
    assert (first, last) == ((1, {"text": "a"}), (3, {"text": "b"}))
    assert bad[0] == 2
    assert "utf-8" in str(bad[1])


def test_a_date_that_is_none_matters_only_where_it_is_read(tmp_path):
    times = pa.array([0, 2**40, 0], pa.timestamp("s"))  # the second one after the year 9999
    path = written(tmp_path / "a.parquet", parquet(pa.table({"text": ["a", "b", "c"], "when": times})))
    assert [row for _, row in rows(path, {"text", "title"})] == [{"text": text, "when": None} for text in "abc"]
    read = [row for _, row in rows(path)]
    assert [row["text"] for row in read[::2]] == ["a", "c"]
    assert "cannot be read" in str(read[1])


def test_a_column_that_nobody_reads_may_be_damaged(tmp_path):
    path, table = tmp_path / "a.parquet", pa.table({"text": ["a"] * 50, "other": ["other"] * 50})
    pq.write_table(table, path, compression="NONE", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"other\x05\0\0\0", b"other\xff\xff\xff\xff"))
    assert len(list(rows(path, {"text"}))) == 50
    with pytest.raises(InputError, match="cannot be read"):
        list(rows(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.zip", "a", "a.gz", "jsonl"])
def test_an_unknown_suffix_lists_the_known_ones(tmp_path, name):
    path = written(tmp_path / name, b"")
    with pytest.raises(InputError, match=r"unknown kind of file: give one of \.jsonl, .*\.parquet"):
        list(rows(path))


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read"):
        list(rows(tmp_path / "a.jsonl"))
