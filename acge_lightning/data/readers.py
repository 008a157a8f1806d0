"""Files to rows: JSON, csv, tsv (each also gzip'd), parquet and Excel."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acge_lightning.data.delimited import Csv, Lines, take_delimiter, tsv_values
from acge_lightning.data.encoding import open_bytes, open_text
from acge_lightning.data.excel import excel_values
from acge_lightning.data.json_rows import is_lines, json_rows
from acge_lightning.data.records import RowError
from acge_lightning.data.source import SUFFIXES
from acge_lightning.data.table import Form, NumberedRow, distinct, table_rows
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


_LARGE = 2_000_000  # bytes of a file of JSON from which on it is cut
Span = tuple[int, int | None]  # from which number on, and before which one; None: to the end


def rows(file: Path, fields: Collection[str] | None = None, span: Span | None = None) -> Iterator[NumberedRow]:
    """(line on which it begins, from 1, row) for every row; a row that cannot be read comes as the error that says why.

    JSON is one object a line, or one list of objects. In `.tsv` a quote is a character like any other, and a row is a line. In
    `.csv` values stand between commas, semicolons or tabs, and a quoted value may run over up to 300 lines. One that does not
    end is a bad row, of the line on which it begins; the lines after it are then read as rows, and are bad rows where they are
    no whole ones (in a file of one column: always). Of a workbook the first sheet is read that is not empty; its rows have the
    numbers that Excel shows, and its values are texts, as in `.csv`.

    Args:
        file: of one of the kinds; text is UTF-8, GB18030 (and so GBK), or UTF-16 with a byte order mark.
        fields: the columns that matter: of parquet no others are read, and they stand in the rows as None. None: all.
        span: one of `spans(file)`: the rows that are read. None: all.

    Raises:
        InputError: a file that cannot be read at all, or two columns of one name.
    """
    name = file.name.lower().removesuffix(".gz")
    if not file.is_file():
        reason = "it is no file, but a folder, a pipe or a device" if file.exists() else "it is not there"
        raise InputError(f"{file}: cannot be read ({reason}): give a file")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(file, fields, span)
        elif name.endswith((".xlsx", ".xls", ".ods")):
            yield from table_rows(excel_values(file), file, Form("a table", "row", "name its columns"))
        elif name.endswith(".tsv"):
            with open_text(file) as lines:
                yield from table_rows(tsv_values(lines, file), file, Form("tsv", "line breaks", "a value holds no tab"))
        elif name.endswith(".csv"):
            with open_text(file) as text:
                yield from _csv(Lines(text), file)
        elif name.endswith((".jsonl", ".json")):
            yield from json_rows(file, span)
        else:
            raise InputError(f"{file}: unknown kind of file: give one of {', '.join(SUFFIXES)}")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: cannot be read ({_first_line(error)}): save it as UTF-8") from error
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read ({_first_line(error)}): it may be incomplete, copy it again") from error


def spans(file: Path, size: int = 100_000) -> list[Span | None]:
    """Cut a file into spans that `rows` can read by themselves: row groups of parquet, lines of JSON lines; others have one.

    Args:
        file: of one of the kinds; of one that cannot be read `rows` says what is wrong.
        size: rows of a span, at least: row groups are not cut.
    """
    name = file.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            starts = _starts_of_groups(file, size)
        elif name.endswith((".jsonl", ".json")) and file.stat().st_size > _LARGE and is_lines(file):
            with open_bytes(file) as content:
                lines = sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))
            starts = list(range(0, max(lines, 1), size))
        else:
            return [None]
    except (EOFError, OSError, ValueError, zlib.error):
        return [None]
    return [*pairwise(starts), (starts[-1], None)]


def _starts_of_groups(file: Path, size: int) -> list[int]:
    """Numbers of row groups, from one to the next of which there are as many rows, or more."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    starts, count = [0], 0
    for number in range(metadata.num_row_groups):
        if count >= size:
            starts.append(number)
            count = 0
        count += metadata.row_group(number).num_rows
    return starts


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _csv(lines: Lines, file: Path) -> Iterator[NumberedRow]:
    delimiter = take_delimiter(lines, file)
    character = {"\t": "tabs"}.get(delimiter, f"'{delimiter}'")
    return table_rows(iter(Csv(lines, delimiter, file)), file, Form("csv", "quotes", f"quote those with {character}"))


def _parquet(file: Path, fields: Collection[str] | None, span: Span | None) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file, memory_map=True)
        first, last = span or (0, None)
        groups = range(parquet.num_row_groups)
        number = sum(parquet.metadata.row_group(i).num_rows for i in groups[:first])
        names = distinct(parquet.schema_arrow.names, file)
        unread = dict.fromkeys(name for name in names if fields is not None and name not in fields)
        for batch in parquet.iter_batches(4096, groups[first:last], [name for name in names if name not in unread]):
            for row in _converted(batch):
                number += 1
                yield number, row if isinstance(row, RowError) else row | unread
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as parquet ({_first_line(error)}): copy it again") from error


def _converted(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    """The rows of a batch as Python values; one that Python has no value for is a bad row."""
    try:
        converted = batch.to_pylist()
    except (ValueError, OverflowError):  # a date after the year 9999, bytes that are no text
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield RowError(None, f"cannot be read ({_first_line(error)}): mend it, or on_bad_row=skip")
    else:
        yield from converted
