"""Files to rows: every format, every kind of damage, and where files are looked for."""

import csv
import gzip
import io
import json
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acge_lightning.data.readers import SUFFIXES, is_beir, locate, rows, split_files
from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

ROWS = [
    {"text1": "今天天气很好", "text2": 'a "quoted" word', "score": "3.5"},
    {"text1": "comma, and\ttab", "text2": "Ünïcode 🙂", "score": "0"},
    {"text1": "two\nlines", "text2": " spaces ", "score": "5"},
]
JSONL = b'{"text": "a"}\n{"text": "b"}\n'


def separated(delimiter):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ROWS[0].keys(), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


CONTENT = {
    "jsonl": b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS),
    "csv": separated(","),
    "tsv": separated("\t"),
    "parquet": parquet(pa.Table.from_pylist(ROWS)),
}


def written(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def problems(path):
    """(line, message) of each bad row."""
    return [(line, str(row)) for line, row in rows(path) if isinstance(row, RowError)]


def good(path):
    return [(line, row) for line, row in rows(path) if not isinstance(row, RowError)]


# ---- formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    kind = suffix.split(".")[1].replace("json", "jsonl").replace("jsonll", "jsonl")
    path = written(tmp_path / f"train{suffix}", CONTENT[kind])
    assert [row for _, row in rows(path)] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
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


def test_a_list_over_lines_is_no_json_lines(tmp_path):
    path = written(tmp_path / "a.json", json.dumps(ROWS, indent=1).encode())
    assert problems(path)
    assert not good(path)


def test_line_numbers_after_quoted_line_breaks(tmp_path):
    content = b'text,label\na,1\n"b\nb\r\nb",2\nc,3\n\n"d\nd",4\ne,5\n'
    assert good(written(tmp_path / "a.csv", content)) == [
        (2, {"text": "a", "label": "1"}),
        (5, {"text": "b\nb\r\nb", "label": "2"}),  # the line on which the row ends
        (6, {"text": "c", "label": "3"}),
        (9, {"text": "d\nd", "label": "4"}),
        (10, {"text": "e", "label": "5"}),
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_too_many_and_too_few_values(tmp_path, name, delimiter):
    content = "text,label\na,1,2,3\nb\nc,3\n".replace(",", delimiter).encode()
    path = written(tmp_path / name, content)
    assert problems(path) == [(2, f"has 2 values more than the header: quote values that hold {delimiter!r}")]
    assert good(path) == [(3, {"text": "b"}), (4, {"text": "c", "label": "3"})]


@pytest.mark.parametrize(("name", "kind"), [("a.csv", "csv"), ("a.tsv", "tsv")])
def test_a_quote_that_never_closes_does_not_swallow_rows_silently(tmp_path, name, kind):
    path = written(tmp_path / name, b'text\na\n"b\nc\nd\n')
    assert good(path) == [(2, {"text": "a"})]
    ((line, message),) = problems(path)
    assert line == 3  # where it opens
    assert message == f"is not {kind} (unexpected end of data): mend its quotes, or on_bad_row=skip"


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


def test_old_line_ends_in_csv_are_a_bad_row(tmp_path):
    ((line, message),) = problems(written(tmp_path / "a.csv", b"text,label\ra,1\rb,2\r"))
    assert line == 1
    assert message.startswith("is not csv (")


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
    with pytest.raises(InputError, match="utf-8"):
        list(rows(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.zip", "a", "a.gz", "jsonl"])
def test_an_unknown_suffix_lists_the_known_ones(tmp_path, name):
    path = written(tmp_path / name, b"")
    with pytest.raises(InputError, match=r"unknown kind of file: give one of \.jsonl, .*\.parquet"):
        list(rows(path))


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read"):
        list(rows(tmp_path / "a.jsonl"))


# ---- where files are looked for


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def names(files, folder):
    return [file.relative_to(folder).as_posix() for file in files]


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ([], []),
        (["train.jsonl"], ["train.jsonl"]),
        (["train.jsonl", "train-00000-of-00001.jsonl", "train.csv"], ["train.jsonl"]),
        (
            ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ),
        (["data/train.tsv.gz"], ["data/train.tsv.gz"]),
        (["train-00000-of-00001.csv", "data/train.jsonl"], ["train-00000-of-00001.csv"]),
        (["train/b.parquet", "train/a.parquet", "train/README.md"], ["train/a.parquet", "train/b.parquet"]),
        (["train.txt", "training.jsonl", "dev.jsonl", "train"], []),
        (["train.jsonl/x.txt", "train.csv"], ["train.csv"]),
    ],
)
def test_files_of_a_split(tmp_path, present, found):
    assert names(split_files(touched(tmp_path, *present), "train"), tmp_path) == found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_found(tmp_path, suffix):
    assert names(split_files(touched(tmp_path, f"dev{suffix}"), "dev"), tmp_path) == [f"dev{suffix}"]
    assert names(split_files(touched(tmp_path / "b", f"dev-0{suffix}"), "dev"), tmp_path) == [f"b/dev-0{suffix}"]


def test_a_file_has_no_splits(tmp_path):
    path = written(tmp_path / "train.jsonl", JSONL)
    assert split_files(path, "train") == []
    assert split_files(tmp_path / "none", "train") == []


def test_a_beir_folder_is_known_by_its_corpus(tmp_path):
    assert is_beir(touched(tmp_path / "a", "corpus.jsonl"))
    assert is_beir(touched(tmp_path / "b", "corpus/corpus-00000-of-00001.parquet"))
    assert not is_beir(touched(tmp_path / "c", "train.jsonl"))
    assert not is_beir(written(tmp_path / "corpus.jsonl", JSONL))


def test_a_local_path_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    folder = touched(tmp_path / "owner" / "name", "train.jsonl")
    assert locate(folder) == folder
    assert locate(str(folder / "train.jsonl")) == folder / "train.jsonl"
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name").resolve() == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner") == tmp_path / "owner"


def test_the_packaged_sample_has_a_name_of_its_own():
    folder = locate("sample:sts/sample_zh")
    assert names(split_files(folder, "dev"), folder) == ["dev.jsonl.gz"]


@pytest.mark.parametrize("path", ["nowhere", "/no/such/folder", "a/b/c", "./a/b", "a/", "../b", "sample:none"])
def test_a_path_that_is_no_hub_name_is_not_asked_for(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match=r"there is no such file or folder: check the path \(and paths\.data_dir\)"):
        locate(path)


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
def test_a_hub_name_that_cannot_be_fetched(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"^owner/name: no such folder here, and no data set of that name") as caught:
        locate("owner/name")
    assert caught.value.__cause__ is error
    assert str(caught.value).endswith("(first line)" if str(error) else "(OSError)")
