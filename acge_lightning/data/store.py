"""Checked rows on disk: an Arrow file, written once and memory-mapped, so that inputs may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from acge_lightning.data.reading import Reading
from acge_lightning.data.records import Record, as_label, text_id
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft, replace_file, sweep

_LOG = logging.getLogger(__name__)
VERSION = 6  # of what reading a file means
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
    labels: Mapping[Any, float | None] | None = None,
    key: str = "",
    weight: str | None = None,
) -> Store:
    """The checked rows of the files; kept in `cache_dir` until a file or a setting changes.

    Args:
        files: what `readers.rows` reads.
        record: what every row must hold.
        columns: field -> name of its column in the files; of other fields `columns.match_columns` finds it in each file.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves bad rows out, counts them and warns; `quarantine` also
            writes them, with file, line and reason, to a file beside the Arrow file, which the warning names.
        cache_dir: folder of the Arrow files.
        max_bad_fraction: most bad rows, as a share of all, that are left out; more are an error.
        labels: what a word of the label (or score) column counts as, before all that is understood anyway; None: left out.
        key: of the settings in the config, with a dot at its end, for messages.
        weight: name of a column of numbers of 0 or more, which the store then has as `weight`.

    Raises:
        InputError: a bad row (file, line, field, remedy), too many of them, no rows at all, or an unreadable file.
    """
    unknown = set(columns) - set(record.fields)
    if unknown:
        raise InputError(f"columns.{min(unknown)} is no field of these rows: choose from {list(record.fields)}")
    if on_bad_row not in get_args(OnBadRow):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose from {', '.join(get_args(OnBadRow))}")
    state = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    meanings = {as_label(word): value for word, value in (labels or {}).items()}
    identity = [VERSION, _FORM, state, record.__name__, dict(columns), on_bad_row, *([meanings] if meanings else [])]
    identity += [] if weight is None else [{"weight": weight}]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    target = Path(cache_dir).expanduser() / f"{digest[:24]}.arrow"
    schema = _schema(record, weight is not None)
    store = _kept(target, record, schema)
    if store is None:
        try:
            _write(target, files, Reading(record, columns, meanings, on_bad_row, key, weight), schema)
        except OSError as error:
            reason = f"checked rows cannot be kept in {target.parent} ({error.strerror or error})"
            raise InputError(f"{reason}: make room there, or give another paths.cache_dir") from error
        store = Store(target)
    issues = RowIssues(quarantine_file(target) if on_bad_row == "quarantine" else None, **store.left_out)
    issues.report(files[0], len(store), max_bad_fraction)
    return store


def _kept(target: Path, record: type[Record], schema: pa.Schema) -> Store | None:
    """The store of a file, if it is there and whole."""
    try:
        store = Store(target)
        if store.schema != schema:
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


def _schema(record: type[Record], weighted: bool) -> pa.Schema:
    columns = {f.name: _TYPES[str(f.type)] for f in dataclass_fields(record)} | {"ids": pa.list_(pa.int64())}
    return pa.schema(columns | ({"weight": pa.float64()} if weighted else {}))


def _write(target: Path, files: Sequence[Path], reading: Reading, schema: pa.Schema) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with draft(target) as new, draft(quarantine_file(target)) as bad:
        issues = RowIssues(bad if reading.on_bad_row == "quarantine" else None)
        blocks = _blocks(reading.records(files, issues), schema)
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


def _blocks(records: Iterator[tuple[Record, float]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    block: dict[str, list] = {name: [] for name in schema.names}
    characters = 0
    for record, weight in records:
        more = {"ids": [text_id(t) for t in record.texts], "weight": weight}
        for name, values in block.items():
            values.append(more[name] if name in more else getattr(record, name))
        characters += sum(map(len, record.texts))
        if len(block["ids"]) >= _BLOCK_ROWS or characters >= _BLOCK_CHARACTERS:
            yield pa.RecordBatch.from_pydict(block, schema)
            block, characters = {name: [] for name in schema.names}, 0
    if block["ids"]:
        yield pa.RecordBatch.from_pydict(block, schema)
