"""Files to rows: JSON lines, csv, tsv (each also gzip'd) and parquet; local folders and data sets of the hub."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
LONGEST = 300  # lines of a row of csv
_LOG = logging.getLogger(__name__)
_VALUE = r'(?:"[^"\r\n]*(?:""[^"\r\n]*)*"|[^",\r\n]*)'
_ALONE = re.compile(rf"{_VALUE}(?:,{_VALUE})*\r?\n?")  # a line of csv that is a row
_OPENS = re.compile(rf'(?:{_VALUE},)*"[^"]*(?:""[^"]*)*')  # one whose last value goes on
_QUOTED = re.compile(r'(?:^|(?<=,))"[^"]*(?:""[^"]*)*"?')
_QUOTED_TAB = re.compile(r'(?:^|(?<=\t))"[^"\t]*(?:""[^"\t]*)+"\s*(?:\t|$)')
Values = tuple[int, list[str] | csv.Error]
csv.field_size_limit(2**31 - 1)


def locate(path: str | Path) -> Path:
    """Where data lies: a file or folder, `sample:…` of the packaged sample, or a data set of the hub (`owner/name`)."""
    if str(path).startswith("sample:"):
        path = Path(__file__).parents[1] / "sample" / str(path).removeprefix("sample:")
    local = Path(path).expanduser()
    if local.exists():
        return local
    name = str(path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(f"{name}: there is no such file or folder: check the path (and paths.data_dir)")
    from huggingface_hub import snapshot_download

    try:
        wanted = [f"*{suffix}" for suffix in SUFFIXES]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        raise InputError(
            f"{name}: no such folder here, and no data set of that name can be fetched from the hub ({reason})"
        ) from error


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split (`train.jsonl.gz`, `train.parquet`, `data/train-00000-of-00002.parquet` …); [] if there are none."""
    if not folder.is_dir():
        return []
    for home in (folder, folder / "data"):
        for suffix in SUFFIXES:
            whole = home / f"{split}{suffix}"
            files = [whole] if whole.is_file() else sorted(home.glob(f"{split}-*{suffix}"))
            if files:
                return files
    return sorted(p for p in (folder / split).glob("*") if p.name.endswith(SUFFIXES))  # a folder a split, as BEIR on the hub


def is_beir(folder: Path) -> bool:
    """Whether a folder has the BEIR layout: a corpus, queries and judgements."""
    return folder.is_dir() and bool(split_files(folder, "corpus"))


def rows(file: Path, fields: Collection[str] | None = None) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(line on which it begins, from 1, row) for every row; a row that cannot be read comes as the error that says why.

    In `.tsv` a quote is a character like any other, and a row is a line. In `.csv` a quoted value may run over up to 300 lines.
    One that does not end is a bad row, of the line on which it begins; the lines after it are then read as rows, and are bad
    rows where they are no whole ones (in a file of one column: always).

    Args:
        file: of one of the kinds.
        fields: the columns that matter: of parquet no others are read, and they stand in the rows as None. None: all.

    Raises:
        InputError: a file that cannot be read at all, or two columns of one name.
    """
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(file, fields)
        elif name.endswith((".csv", ".tsv")):
            with _open(file) as lines:
                read = _tsv if name.endswith(".tsv") else _csv
                yield from _table(read(_decoded(lines), file), file)
        elif name.endswith((".jsonl", ".json")):
            with _open(file) as lines:
                yield from _jsonl(lines)
        else:
            raise InputError(f"{file}: unknown kind of file: give one of {', '.join(SUFFIXES)}")
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read ({_first_line(error)}): it may be incomplete, copy it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _jsonl(lines: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = _JSON.decode(text)
        except UnicodeDecodeError as error:
            yield number, RowError(None, f"is not valid UTF-8 (byte {error.start + 1}): mend its encoding, or on_bad_row=skip")
        except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
            yield number, RowError(None, f"is not JSON ({error}): write one object a line, or on_bad_row=skip")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, RowError(None, f"holds {row!r:.40}, not an object: write {{…}} a line, or on_bad_row=skip")


def _decoded(lines: IO[bytes]) -> Iterator[str]:
    """Bytes that are not UTF-8 become lone surrogates, which a record refuses by the name of their field."""
    for i, line in enumerate(lines):
        yield line.decode("utf-8-sig" if i == 0 else "utf-8", "surrogateescape")


def _tsv(lines: Iterable[str], file: Path) -> Iterator[Values]:
    """(line, values) of each line; a quote is a character like any other."""
    quoted: list[int] = []
    for number, line in enumerate(lines, 1):
        if '""' in line and _QUOTED_TAB.search(line):
            quoted.append(number)
        try:
            yield number, next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE))
        except csv.Error as error:
            yield number, error
    if quoted:
        message = "%s: %d lines, first line %d, quote a value as csv does; in .tsv a quote is a character: save it as .csv"
        _LOG.warning(message, file, len(quoted), quoted[0])


class _Lines:
    """Lines of a file that can be put back, and the number of the last one taken."""

    def __init__(self, lines: Iterable[str]):
        self.number, self._lines, self._again = 0, iter(lines), deque[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        """Give these again, the first one first."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


def _csv(text: Iterable[str], file: Path) -> Iterator[Values]:
    """(line on which it begins, values) of each row.

    A quoted value that does not end as it should is an error of the line on which it begins. The lines that it swallowed are
    rows where each is a whole one by itself, and errors where not.
    """
    lines, width = _Lines(text), 0
    doubtful: list[int] = []
    while True:
        taken: list[str] = []
        start = lines.number + 1
        try:
            values = next(csv.reader(_taken(lines, taken), strict=True), None)
        except csv.Error as error:
            swallowed = taken[_opened(taken) + 1 :]
            lines.put_back(swallowed)
            yield lines.number, error
            yield from _swallowed(lines, len(swallowed), len(taken) == LONGEST, width)
            continue
        if values is None:
            break
        yield start, values
        width = width or len(values)
        if len(taken) > 3 and width > 1 and all(line.count(",") == width - 1 for line in taken):
            doubtful.append(start)
    if doubtful:
        message = "%s: %d rows, first line %d, hold a quoted value of lines that look like rows themselves: check their quotes"
        _LOG.warning(message, file, len(doubtful), doubtful[0])


def _taken(lines: _Lines, taken: list[str]) -> Iterator[str]:
    """The lines of a row, each put into `taken`."""
    for line in islice(lines, LONGEST):
        taken.append(line)
        yield line
    if len(taken) == LONGEST:
        raise csv.Error(f"a quoted value runs over more than {LONGEST} lines")


def _swallowed(lines: _Lines, count: int, more: bool, width: int) -> Iterator[Values]:
    """So many lines after an open quote; with `more`, on to the line that closes it, or that opens another."""
    for line in islice(lines, count):
        yield lines.number, _alone(line, width)
    for line in lines if more else ():
        if _OPENS.fullmatch(line):
            lines.put_back([line])
            return
        yield lines.number, _alone(line, width)
        if line.count('"') % 2:
            return


def _alone(line: str, width: int) -> list[str] | csv.Error:
    """The values of a line that is a whole row; in one column that cannot be told."""
    values = next(csv.reader([line])) if _ALONE.fullmatch(line) else [""]
    fits = not values or len(values) == width > 1
    return values if fits else csv.Error("it follows an open quote, and is no whole row by itself")


def _opened(taken: list[str]) -> int:
    """The number, from 0, of the line on which the last quoted value of some lines begins."""
    text = "".join(taken)
    starts = [value.start() for value in _QUOTED.finditer(text)]
    return text.count("\n", 0, starts[-1]) if starts else 0


def _table(read: Iterator[Values], file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(line, row) of all rows but the first, which names the columns."""
    tabs = file.name.removesuffix(".gz").endswith(".tsv")
    kind, mend, remedy = ("tsv", "line breaks", "a value holds no tab") if tabs else ("csv", "quotes", "quote those with ','")
    header: list[str] | None = None
    for number, values in read:
        if isinstance(values, csv.Error):
            if header is None:
                raise InputError(f"{file}, line {number}: the header is not {kind} ({values}): mend it")
            yield number, RowError(None, f"is not {kind} ({values}): mend its {mend}, or on_bad_row=skip")
        elif header is None:
            header = _distinct(values, file) or None
        elif any(extra := values[len(header) :]):
            yield number, RowError(None, f"has {len(extra)} values more than the header: {remedy}")
        elif values:
            yield number, dict(zip(header, values, strict=False))


def _distinct(names: list[str], file: Path) -> list[str]:
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{file}: the header calls two columns {twice[0]!r}: give each its own name, or add a header")
    return names


def _parquet(file: Path, fields: Collection[str] | None) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        parquet = pq.ParquetFile(file, memory_map=True)
        names = _distinct(parquet.schema_arrow.names, file)
        unread = dict.fromkeys(name for name in names if fields is not None and name not in fields)
        for batch in parquet.iter_batches(batch_size=4096, columns=[name for name in names if name not in unread]):
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
