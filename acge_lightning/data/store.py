"""Checked rows on disk: an Arrow file, written once and memory-mapped, so that inputs may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from acge_lightning.data.readers import rows
from acge_lightning.data.records import Record, RowError, text_id
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_VERSION = 1
_BLOCK_ROWS, _BLOCK_CHARACTERS = 65_536, 16_000_000
_TYPES = {
    "str": pa.large_string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "tuple[str, ...]": pa.large_list(pa.large_string()),
}
OnBadRow = Literal["raise", "skip"]


class Store:
    """Rows of one record kind, read by number.

    Args:
        file: an Arrow file that `open_store` wrote.
    """

    def __init__(self, file: Path):
        with pa.memory_map(str(file)) as source:
            reader = pa.ipc.open_file(source)
            last = reader.num_record_batches - 1
            self._blocks = [reader.get_batch(i) for i in range(last)]
            meta = reader.get_batch_with_custom_metadata(last).custom_metadata
        self.skipped, self.neutral = int(meta[b"skipped"]), int(meta[b"neutral"])
        self._ends = np.cumsum([len(block) for block in self._blocks])

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
            found = self._blocks[block].take(pa.array(numbers[where] - start)).to_pylist()
            for i, row in zip(where.tolist(), found, strict=True):
                result[i] = row
        return result

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows, still on disk."""
        return pa.chunked_array([block.column(name) for block in self._blocks])

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all texts, row after row: Int64[texts] and the offsets Int64[rows + 1] at which rows begin."""
        lists = [block.column("ids") for block in self._blocks]
        values = np.concatenate([part.flatten().to_numpy() for part in lists])
        lengths = np.concatenate([part.value_lengths().to_numpy() for part in lists])
        return values, np.concatenate([[0], np.cumsum(lengths)])


def open_store(
    files: Sequence[Path],
    record: type[Record],
    columns: Mapping[str, str],
    on_bad_row: OnBadRow,
    cache_dir: str | Path,
) -> Store:
    """The checked rows of the files; kept in `cache_dir` until a file or a setting changes.

    Args:
        files: what `readers.rows` reads.
        record: what every row must hold.
        columns: field -> name of its column in the files, where they differ.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves bad rows out, counts them and warns.
        cache_dir: folder of the Arrow files.

    Raises:
        InputError: a bad row (file, line, field, remedy), no rows at all, or an unreadable file.
    """
    unknown = set(columns) - set(record.fields)
    if unknown:
        raise InputError(f"columns.{min(unknown)} is no field of these rows: choose from {list(record.fields)}")
    if on_bad_row not in ("raise", "skip"):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose raise or skip")
    state = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = json.dumps([_VERSION, state, record.__name__, dict(columns), on_bad_row], sort_keys=True)
    target = Path(cache_dir).expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.arrow"
    if not target.is_file():
        _write(target, files, record, columns, on_bad_row)
    store = Store(target)
    if store.skipped:
        _LOG.warning("%s: %d bad rows skipped, %d kept", files[0], store.skipped, len(store))
    return store


def _write(target: Path, files: Sequence[Path], record: type[Record], columns: Mapping[str, str], on_bad_row: OnBadRow) -> None:
    counts: Counter[str] = Counter()
    names = {f.name: _TYPES[str(f.type)] for f in dataclass_fields(record)} | {"ids": pa.list_(pa.int64())}
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    blocks = _blocks(_records(files, record, columns, on_bad_row, counts), pa.schema(names))
    first = next(blocks, None)
    if first is None:
        raise InputError(_nothing(files, counts))
    try:
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for block in chain([first], blocks):
                writer.write_batch(block)
            writer.write_batch(first[:0], {word: str(counts[word]) for word in ("skipped", "neutral")})  # known only now
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _records(
    files: Iterable[Path], record: type[Record], columns: Mapping[str, str], on_bad_row: OnBadRow, counts: Counter[str]
) -> Iterator[Record]:
    for file in files:
        for line, row in rows(file):
            try:
                if isinstance(row, RowError):
                    raise row
                made = record.parse(_renamed(row, columns))
            except RowError as error:
                message = f"{file}, line {line}: {error}"
                if on_bad_row == "raise":
                    raise InputError(message) from None
                if not counts["skipped"]:
                    _LOG.warning("%s (skipped, as are further bad rows)", message)
                    counts[message] = 0
                counts["skipped"] += 1
                continue
            if made is None:
                counts["neutral"] += 1
            else:
                yield made


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


def _nothing(files: Sequence[Path], counts: Counter[str]) -> str:
    if counts["skipped"]:
        first = next(message for message in counts if message not in ("skipped", "neutral"))
        return f"{files[0]}: all {counts['skipped']} rows are bad, the first of them: {first}"
    if counts["neutral"]:
        return f"{files[0]}: all {counts['neutral']} rows are neutral: give rows of both kinds"
    return f"{files[0]}: the file has no rows: give at least one"
