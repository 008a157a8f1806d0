"""Spans of files: read one by one, they hold the rows of the whole file, with their numbers."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acge_lightning.data import readers
from acge_lightning.data.readers import rows, spans
from acge_lightning.data.records import RowError

ROWS = [{"text": f"第{i}行", "n": i} for i in range(25)]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
LINES[3:3] = ["", "kein JSON", "  "]


def write(file):
    text = "\n".join(LINES)  # the last one does not end
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=4)
    elif file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS, indent=1))
    elif file.name.startswith("utf16"):
        file.write_text(text, encoding="utf-16")
    else:
        file.write_text("text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in ROWS) if file.suffix == ".csv" else text)
    return file


def shown(numbered):
    return [(number, str(row) if isinstance(row, RowError) else row) for number, row in numbered]


@pytest.mark.parametrize(
    ("name", "count"),
    [("a.jsonl", 3), ("a.jsonl.gz", 3), ("utf16.jsonl", 3), ("a.parquet", 3), ("a.json", 1), ("a.csv", 1)],
)
def test_spans_hold_the_rows_of_the_file(name, count, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LARGE", 0)
    file = write(tmp_path / name)
    found = spans(file, 10)
    assert len(found) == count
    assert [row for span in found for row in shown(rows(file, span=span))] == shown(rows(file))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_files_that_are_small_empty_or_broken_have_one_span(name, tmp_path):
    file = tmp_path / name
    assert spans(file) == [None]
    file.touch()
    assert spans(file) == [None]
    assert len(spans(write(file))) == 1
