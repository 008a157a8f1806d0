"""The ids, texts and notes of the rows of an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from acge_lightning.errors import InputError, check_unicode

Key = str | int


class Rows:
    """Ids, texts and notes of the rows, each there for all rows or for none.

    Args:
        table: columns `id` (whole numbers or words), `text` and `note` (a text too), all optional; may lie on disk.
    """

    def __init__(self, table: pa.Table | None = None):
        self.table = table
        self._ids: set[Key] = set()  # of all rows, and perhaps of more; empty until rows are added to an index that has some

    def extended(
        self,
        row_count: int,
        new_count: int,
        ids: Sequence[Key] | None,
        texts: Sequence[str] | None,
        notes: Sequence[str] | None = None,
    ) -> Rows:
        """These rows and, after them, new ones.

        Args:
            row_count: of the index; it may have neither ids nor texts.
            new_count: of the new rows.
            ids: of the new rows.
            texts: of the new rows.
            notes: of the new rows.

        Raises:
            InputError: other numbers of ids or texts, only some rows with them, ids that are not distinct or of another kind.
        """
        columns = {}
        for name, values in (("id", ids), ("text", texts), ("note", notes)):
            has_column = row_count > 0 and self.table is not None and name in self.table.column_names
            if row_count and new_count and has_column != (values is not None):
                state, remedy = ("has", "give them for") if has_column else ("has no", "leave them out of")
                raise InputError(f"the index {state} {name}s: {remedy} the new rows too")
            if values is not None:
                if len(values) != new_count:
                    raise InputError(f"{len(values)} {name}s for {new_count} rows: give one a row")
                columns[name] = _column(name, values)
        if not new_count or not columns:
            return self
        table = self.table if row_count else None
        if table is not None and any(columns[name].type != table.column(name).type for name in columns):
            raise InputError("the ids of an index are all words or all whole numbers, and the new ones are of the other kind")
        new = pa.table(columns)
        if "id" not in columns:
            return Rows(new if table is None else pa.concat_tables([table, new]))
        _check_distinct(new.column("id"))
        if table is None:
            return Rows(new)
        extended = Rows(pa.concat_tables([table, new]))
        extended._ids = self._ids_and(table.column("id"), new.column("id").to_pylist())
        return extended

    def _ids_and(self, old: pa.ChunkedArray, ids: list[Key]) -> set[Key]:
        """The ids of all rows, which are `old`, and these.

        Raises:
            InputError: one of these is that of a row.
        """
        if len(self._ids) != len(old):  # not made yet, or rows were added to these before, and not kept
            self._ids = set(old.to_pylist())
        duplicates = self._ids.intersection(ids)
        if duplicates:
            raise _duplicate_ids(len(duplicates), min(duplicates))
        self._ids.update(ids)
        return self._ids

    def ids_of(self, rows: np.ndarray) -> list[list[Key]]:
        """The ids of row indices Int64[q, h], or else the indices; those of -1 are left out."""
        if self.table is None or "id" not in self.table.column_names:
            return [[row for row in of_query if row >= 0] for of_query in rows.tolist()]
        return [self.table.column("id").take(pa.array(of_query[of_query >= 0])).to_pylist() for of_query in rows]

    def texts_of(self, rows: np.ndarray) -> list[str]:
        """The texts of row indices Int64[h].

        Raises:
            InputError: the index has no texts.
        """
        return self.column("text", rows)

    def column(self, name: str, rows: np.ndarray | None = None) -> list[str]:
        """The texts or the notes of row indices Int64[h], or of all rows.

        Raises:
            InputError: the index has none.
        """
        if self.table is None or name not in self.table.column_names:
            raise InputError(f"the index has no {name}s: give them when it is built")
        column = self.table.column(name)
        return (column if rows is None else column.take(pa.array(rows))).to_pylist()

    def write(self, file: Path) -> None:
        """Write the columns, of which there must be some, as an Arrow file."""
        if self.table is None:
            raise ValueError("the rows have no columns to write")
        with pa.ipc.new_file(str(file), self.table.schema) as writer:
            writer.write_table(self.table)

    @classmethod
    def read(cls, file: Path, count: int) -> Rows:
        """Read an Arrow file, which stays on disk.

        All of it is checked, as nothing else checks it: an offset of a stranger may point anywhere in memory.

        Raises:
            InputError: another number of rows than `count`, other columns, or a damaged file.
        """
        try:
            with pa.memory_map(str(file)) as source:
                return cls(_read_table(pa.ipc.open_file(source), count, source.size()))
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{file} cannot be read ({reason}): copy the index again, or build it again") from error


_COLUMN_TYPES = {"id": (pa.large_string(), pa.int64()), "text": (pa.large_string(),), "note": (pa.large_string(),)}


def _read_table(reader: pa.RecordBatchFileReader, count: int, file_size: int) -> pa.Table:
    """The table of an Arrow file of so many bytes; a ValueError if it is not what `Rows.write` writes."""
    names = reader.schema.names
    if not names or len(set(names)) < len(names) or any(f.type not in _COLUMN_TYPES.get(f.name, ()) for f in reader.schema):
        raise ValueError(f"its columns are {', '.join(f'{f.name} {f.type}'[:60] for f in reader.schema) or 'none'}")
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        batch.validate(full=True)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows > count or size > file_size or any(column.null_count for column in batch.columns):
            break
        batches.append(batch)
    else:
        if rows == count:
            return pa.Table.from_batches(batches, reader.schema)
    raise ValueError(f"it does not hold {count:,} ids or texts")


def _column(name: str, values: Sequence[Key]) -> pa.Array:
    kinds = (str, int) if name == "id" else (str,)
    if isinstance(values, np.ndarray):
        values = values.tolist()
    for i, value in enumerate(values):
        if type(value) not in kinds or type(value) is not type(values[0]):
            expected = "a text" if name == "text" else "a word or a whole number, as the first"
            raise InputError(f"{name}s[{i}] is {value!r:.60}, not {expected}")
        if isinstance(value, str):
            check_unicode(value, f"{name}s[{i}]")
    try:
        return pa.array(values, pa.int64() if values and isinstance(values[0], int) else pa.large_string())
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"{name}s cannot be stored ({error}): whole numbers have 64 bits") from error


def _check_distinct(column: pa.ChunkedArray) -> None:
    counts = column.value_counts()
    duplicates = counts.filter(pa.compute.greater(counts.field("counts"), 1))
    if len(duplicates):
        raise _duplicate_ids(len(duplicates), duplicates[0]["values"].as_py())


def _duplicate_ids(count: int, example: Key) -> InputError:
    return InputError(f"{count} ids are given more than once, {example!r} first: ids are distinct")
