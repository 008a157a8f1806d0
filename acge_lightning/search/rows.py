"""What stands behind the rows of an index: ids and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from acge_lightning.errors import InputError, check_unicode

Key = str | int


class Rows:
    """Ids and texts of the rows, each there for all rows or for none.

    Args:
        table: columns `id` (whole numbers or words) and `text`, both optional; may lie on disk.
    """

    def __init__(self, table: pa.Table | None = None):
        self.table = table
        self._ids: set[Key] = set()  # of all rows, and perhaps of more; empty until rows are added to others

    def extended(self, before: int, more: int, ids: Sequence[Key] | None, texts: Sequence[str] | None) -> Rows:
        """With `more` rows after the `before` that are there.

        Raises:
            InputError: other numbers of ids or texts, only some rows with them, ids that are not distinct or of another kind.
        """
        columns = {}
        for name, values in (("id", ids), ("text", texts)):
            there = before > 0 and self.table is not None and name in self.table.column_names
            if before and more and there != (values is not None):
                state = f"has {name}s" if there else f"has no {name}s"
                raise InputError(f"the index {state}: {'give them for' if there else 'leave them out of'} the new rows too")
            if values is not None:
                if len(values) != more:
                    raise InputError(f"{len(values)} {name}s for {more} rows: give one a row")
                columns[name] = _column(name, values)
        if not more or not columns:
            return self
        if before and any(columns[name].type != self.table.column(name).type for name in columns):
            raise InputError("the ids of an index are all words or all whole numbers, and the new ones are of the other kind")
        new = pa.table(columns)
        if "id" not in columns:
            return Rows(new if not before else pa.concat_tables([self.table, new]))
        _check_distinct(new.column("id"))
        if not before:
            return Rows(new)
        longer = Rows(pa.concat_tables([self.table, new]))
        longer._ids = self._with(new.column("id").to_pylist())
        return longer

    def _with(self, ids: list[Key]) -> set[Key]:
        """The ids of all rows and these.

        Raises:
            InputError: one of these is that of a row.
        """
        old = self.table.column("id")
        if len(self._ids) != len(old):  # not made yet, or rows were added to these before, and not kept
            self._ids = set(old.to_pylist())
        both = self._ids.intersection(ids)
        if both:
            _raise_twice(len(both), min(both))
        self._ids.update(ids)
        return self._ids

    def ids_of(self, rows: np.ndarray) -> list[list[Key]]:
        """The ids of Int64[q, h] rows, or else their numbers; rows of -1 are left out."""
        if self.table is None or "id" not in self.table.column_names:
            return [[row for row in line if row >= 0] for line in rows.tolist()]
        return [self.table.column("id").take(pa.array(line[line >= 0])).to_pylist() for line in rows]

    def texts_of(self, rows: np.ndarray) -> list[str]:
        """The texts of Int64[h] rows."""
        if self.table is None or "text" not in self.table.column_names:
            raise InputError("the index has no texts: give them when it is built")
        return self.table.column("text").take(pa.array(rows)).to_pylist()

    def write(self, file: Path) -> None:
        """As an Arrow file."""
        with pa.ipc.new_file(str(file), self.table.schema) as writer:
            writer.write_table(self.table)

    @classmethod
    def read(cls, file: Path, count: int) -> Rows:
        """From an Arrow file, which stays on disk.

        All of it is checked, as nothing else does: an offset of a stranger may point anywhere in memory.

        Raises:
            InputError: another number of rows than `count`, other columns, or a damaged file.
        """
        try:
            with pa.memory_map(str(file)) as source:
                return cls(_checked(pa.ipc.open_file(source), count, source.size()))
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{file} cannot be read ({reason}): copy the index again, or build it again") from error


_KINDS = {"id": (pa.large_string(), pa.int64()), "text": (pa.large_string(),)}


def _checked(reader: pa.RecordBatchFileReader, count: int, size: int) -> pa.Table:
    """The rows of an Arrow file of so many bytes; a ValueError if they are not what `Rows.write` writes."""
    names = reader.schema.names
    if not names or len(set(names)) < len(names) or any(f.type not in _KINDS.get(f.name, ()) for f in reader.schema):
        raise ValueError(f"its columns are {', '.join(f'{f.name} {f.type}'[:60] for f in reader.schema) or 'none'}")
    batches: list[pa.RecordBatch] = []
    rows = used = 0
    for place in range(reader.num_record_batches):
        batch = reader.get_batch(place)
        batch.validate(full=True)
        rows, used = rows + len(batch), used + batch.nbytes
        if rows > count or used > size or any(column.null_count for column in batch.columns):
            break
        batches.append(batch)
    else:
        if rows == count:
            return pa.Table.from_batches(batches, reader.schema)
    raise ValueError(f"it does not hold {count:,} ids or texts")


def _column(name: str, values: Sequence[Key]) -> pa.Array:
    kinds = (str,) if name == "text" else (str, int)
    if isinstance(values, np.ndarray):
        values = values.tolist()
    for place, value in enumerate(values):
        if type(value) not in kinds or type(value) is not type(values[0]):
            wanted = "a text" if name == "text" else "a word or a whole number, as the first"
            raise InputError(f"{name}s[{place}] is {value!r:.60}, not {wanted}")
        if isinstance(value, str):
            check_unicode(value, f"{name}s[{place}]")
    try:
        return pa.array(values, pa.int64() if values and isinstance(values[0], int) else pa.large_string())
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"{name}s cannot be stored ({error}): whole numbers have 64 bits") from error


def _check_distinct(column: pa.ChunkedArray) -> None:
    counts = column.value_counts()
    often = counts.filter(pa.compute.greater(counts.field("counts"), 1))
    if len(often):
        _raise_twice(len(often), often[0]["values"].as_py())


def _raise_twice(count: int, first: Key) -> None:
    raise InputError(f"{count} ids are given more than once, {first!r} first: ids are distinct")
