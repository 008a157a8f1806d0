"""Checked rows on disk: an Arrow file, written once and memory-mapped, so that inputs may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from acge_lightning.data.readers import rows
from acge_lightning.data.records import DocumentRecord, Record, RowError, text_id
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft, replace_file, sweep

_LOG = logging.getLogger(__name__)
VERSION = 3  # of what reading a file means
_FORM = 2  # of how its rows are kept
_DIGEST = 32  # bytes
_BLOCK_ROWS, _BLOCK_CHARACTERS = 65_536, 16_000_000
_TYPES = {
    "str": pa.large_string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "tuple[str, ...]": pa.large_list(pa.large_string()),
}
OnBadRow = Literal["raise", "skip", "quarantine"]
MAX_BAD = 0.01


class Store:
    """Rows of one record kind, read by number. Goes to another process as the name of its file.

    Args:
        file: what `open_store` wrote: an Arrow file, and the SHA-256 of it.
        check: whether that is compared, and each value looked at.

    Raises:
        OSError, pyarrow.ArrowException, KeyError or ValueError: the file is damaged.
    """

    def __init__(self, file: Path, check: bool = True):
        self.file = Path(file).resolve()
        with pa.memory_map(str(self.file)) as source:
            content = source.read_buffer()
            arrow, digest = content.slice(0, max(0, content.size - _DIGEST)), content.slice(max(0, content.size - _DIGEST))
            if check and hashlib.sha256(arrow).digest() != digest.to_pybytes():
                raise ValueError("its digest is not that of its rows")
            reader = pa.ipc.open_file(arrow)
            last = reader.num_record_batches - 1
            self._blocks = [reader.get_batch(i) for i in range(last)]
            meta = reader.get_batch_with_custom_metadata(last).custom_metadata
        self.schema = reader.schema
        for block in self._blocks if check else ():
            block.validate(full=True)
        self.left_out = json.loads(meta[b"left"])
        self.skipped, self.neutral = self.left_out["skipped"], self.left_out["neutral"]
        self._ends = np.cumsum([len(block) for block in self._blocks])

    def __reduce__(self) -> tuple[type[Store], tuple[Path, bool]]:
        return Store, (self.file, False)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows of these numbers, in their order."""
        numbers = np.asarray(numbers, dtype=np.int64)
        block_of = np.searchsorted(self._ends, numbers, side="right")
        result: list[dict[str, Any]] = [{}] * len(numbers)
        for block in np.unique(block_of):
            where = np.flatnonzero(block_of == block)
            start = self._ends[block] - len(self._blocks[block])
            rows = self._blocks[block].take(pa.array(numbers[where] - start)).to_pylist()
            for i, row in zip(where.tolist(), rows, strict=True):
                result[i] = row
        return result

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows, still on disk."""
        return pa.chunked_array([block.column(name) for block in self._blocks])

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all texts, row after row: Int64[texts] and the offsets Int64[rows + 1] at which rows begin."""
        lists = [block.column("ids") for block in self._blocks]
        values = np.concatenate([column.flatten().to_numpy() for column in lists])
        lengths = np.concatenate([column.value_lengths().to_numpy() for column in lists])
        return values, np.concatenate([[0], np.cumsum(lengths)])


def open_store(
    files: Sequence[Path],
    record: type[Record],
    columns: Mapping[str, str],
    on_bad_row: OnBadRow,
    cache_dir: str | Path,
    max_bad_fraction: float = MAX_BAD,
) -> Store:
    """The checked rows of the files; kept in `cache_dir` until a file or a setting changes.

    Args:
        files: what `readers.rows` reads.
        record: what every row must hold.
        columns: field -> name of its column in the files, where they differ.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves bad rows out, counts them and warns; `quarantine` also
            writes them, with file, line and reason, to a file beside the Arrow file, which the warning names.
        cache_dir: folder of the Arrow files.
        max_bad_fraction: most bad rows, as a share of all, that are left out; more are an error.

    Raises:
        InputError: a bad row (file, line, field, remedy), too many of them, no rows at all, or an unreadable file.
    """
    unknown = set(columns) - set(record.fields)
    if unknown:
        raise InputError(f"columns.{min(unknown)} is no field of these rows: choose from {list(record.fields)}")
    if on_bad_row not in get_args(OnBadRow):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose from {', '.join(get_args(OnBadRow))}")
    state = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = json.dumps([VERSION, _FORM, state, record.__name__, dict(columns), on_bad_row], sort_keys=True)
    target = Path(cache_dir).expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.arrow"
    store = _kept(target, record)
    if store is None:
        try:
            _write(target, files, record, columns, on_bad_row)
        except OSError as error:
            reason = f"checked rows cannot be kept in {target.parent} ({error.strerror or error})"
            raise InputError(f"{reason}: make room there, or give another paths.cache_dir") from error
        store = Store(target)
    issues = RowIssues(quarantine_file(target) if on_bad_row == "quarantine" else None, **store.left_out)
    issues.report(files[0], len(store), max_bad_fraction)
    return store


def _kept(target: Path, record: type[Record]) -> Store | None:
    """The store of a file, if it is there and whole."""
    try:
        store = Store(target)
        if store.schema != _schema(record):
            raise ValueError(f"its columns are not those of a {record.__name__}")
        return store
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        _LOG.warning("%s is damaged (%s): its rows are read and checked again", target, " ".join(str(error).split()))
        return None


def quarantine_file(target: Path) -> Path:
    """Where the bad rows of a store are written."""
    return target.with_suffix(".bad.jsonl")


@dataclass
class RowIssues:
    """What is wrong with some files, and not an error at once: counts, the first of each kind, and a file of bad rows if any.

    Args:
        quarantine: file to which bad rows are written; None for no file.
        skipped: bad rows, which are left out.
        neutral: rows of a neutral label, which are left out.
        empty: empty queries and documents, which are kept.
        spaced: ids that stand between white space, which are kept without it.
    """

    quarantine: Path | None
    skipped: int = 0
    neutral: int = 0
    empty: int = 0
    spaced: int = 0
    first: str = ""
    first_empty: str = ""

    def bad(self, file: Path, line: int, row: Any, error: Exception) -> None:
        """Take note of a bad row."""
        if not self.skipped:
            self.first = f"{file}, line {line}: {error}"
            _LOG.warning("%s (skipped, as are further bad rows)", self.first)
        self.skipped += 1
        if self.quarantine is not None:
            kept = None if isinstance(row, RowError) else row
            note = {"file": str(file), "line": line, "reason": str(error), "row": kept}
            with self.quarantine.open("a", encoding="utf-8", errors="backslashreplace") as handle:
                handle.write(json.dumps(note, ensure_ascii=False, default=str) + "\n")

    def document(self, file: Path, line: int, row: Mapping[str, Any], parsed: DocumentRecord) -> None:
        """Take note of what is odd in a query or a document that is kept."""
        self.spaced += isinstance(row["_id"], str) and parsed.key != row["_id"]
        if not parsed.text:
            self.first_empty = self.first_empty or f"{file}, line {line}"
            self.empty += 1

    def report(self, file: Path, kept: int, max_bad_fraction: float) -> None:
        """A warning of what is wrong, an error if it is too much."""
        rows = max(1, self.skipped + self.neutral + kept)
        share = (self.skipped + self.empty) / rows
        if share > max_bad_fraction:
            counts = ((self.skipped, "rows are bad"), (self.empty, "texts are empty"))
            what = " and ".join(f"{count} {what}" for count, what in counts if count)
            raise InputError(
                f"{file}: {what}, {share:.1%} of all; max_bad_fraction allows {max_bad_fraction:.1%}: mend them, or "
                f"max_bad_fraction={math.ceil(share * 1000) / 1000:g}; the first of them: {self.first or self.first_empty}"
            )
        if self.skipped:
            where = f"; they are in {self.quarantine}" if self.quarantine else ""
            _LOG.warning("%s: %d bad rows skipped, %d kept%s", file, self.skipped, kept, where)
        if self.neutral:
            _LOG.warning("%s: %d neutral rows left out, %d kept", file, self.neutral, kept)
        if self.empty:
            _LOG.warning("%s: %d texts are empty, the first in %s: they are kept", file, self.empty, self.first_empty)
        if self.spaced:
            _LOG.warning("%s: %d ids stand between white space, which is not part of them", file, self.spaced)

    def reason(self, file: Path) -> str:
        """Why a store would be empty."""
        if self.skipped:
            return f"{file}: all {self.skipped} rows are bad, the first of them: {self.first}"
        if self.neutral:
            return f"{file}: all {self.neutral} rows are neutral: give rows of both kinds"
        return f"{file}: the file has no rows: give at least one"


def _schema(record: type[Record]) -> pa.Schema:
    return pa.schema({f.name: _TYPES[str(f.type)] for f in dataclass_fields(record)} | {"ids": pa.list_(pa.int64())})


def _write(target: Path, files: Sequence[Path], record: type[Record], columns: Mapping[str, str], on_bad_row: OnBadRow) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with draft(target) as new, draft(quarantine_file(target)) as bad:
        issues = RowIssues(bad if on_bad_row == "quarantine" else None)
        blocks = _blocks(_records(files, record, columns, on_bad_row, issues), _schema(record))
        first_block = next(blocks, None)
        if first_block is None:
            raise InputError(issues.reason(files[0]))
        with pa.OSFile(str(new), "wb") as sink, pa.ipc.new_file(sink, first_block.schema) as writer:
            for block in chain([first_block], blocks):
                writer.write_batch(block)
            counted = {name: value for name, value in vars(issues).items() if name != "quarantine"}
            writer.write_batch(first_block[:0], {"left": json.dumps(counted)})  # counted only now
        with new.open("rb+") as content:
            content.write(hashlib.file_digest(content, "sha256").digest())  # at its end, where the reading has come
        if issues.quarantine is not None and issues.skipped:
            replace_file(quarantine_file(target), issues.quarantine)
        replace_file(target, new)


def _records(
    files: Iterable[Path], record: type[Record], columns: Mapping[str, str], on_bad_row: OnBadRow, issues: RowIssues
) -> Iterator[Record]:
    read: dict[str, tuple[Path, int]] = {}  # where each document was read, by its id
    fields = {columns.get(name, name) for name in record.fields}
    for file in files:
        for line, row in rows(file, fields):
            try:
                if isinstance(row, RowError):
                    raise row
                parsed = record.parse(renamed := _renamed(row, columns))
                if isinstance(parsed, DocumentRecord):
                    earlier, number = read.setdefault(parsed.key, (file, line))
                    if (earlier, number) != (file, line):
                        raise RowError("_id", f"is {parsed.key!r}, as in {earlier}, line {number}: give each its own")
                    issues.document(file, line, renamed, parsed)
            except RowError as error:
                if on_bad_row == "raise":
                    raise InputError(f"{file}, line {line}: {error}") from None
                issues.bad(file, line, row, error)
                continue
            if parsed is None:
                issues.neutral += 1
            else:
                yield parsed


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not columns:
        return row
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in columns and name not in taken}
    for field, name in columns.items():
        if name not in row:
            raise RowError(field, f"is missing: columns says {field}: {name}, and the row has {sorted(row)}")
        kept[field] = row[name]
    return kept


def _blocks(records: Iterator[Record], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    block: dict[str, list] = {name: [] for name in schema.names}
    characters = 0
    for record in records:
        for name, values in block.items():
            values.append([text_id(t) for t in record.texts] if name == "ids" else getattr(record, name))
        characters += sum(map(len, record.texts))
        if len(block["ids"]) >= _BLOCK_ROWS or characters >= _BLOCK_CHARACTERS:
            yield pa.RecordBatch.from_pydict(block, schema)
            block, characters = {name: [] for name in schema.names}, 0
    if block["ids"]:
        yield pa.RecordBatch.from_pydict(block, schema)
