"""Files to records: which columns hold the fields, what the labels count as, and what becomes of bad rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from acge_lightning.data.columns import Columns, description, match_columns, missing_fields, typed, unmatched
from acge_lightning.data.readers import Span, rows
from acge_lightning.data.records import NEUTRAL, DocumentRecord, Record, RowError, as_label, row_weight
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.errors import InputError

_HEAD = 100  # rows by which a file's columns are recognised


@dataclass(frozen=True)
class ParsedRow:
    """A row as it stands in a file, and as it is understood.

    Args:
        file: that holds it.
        line: on which it begins, from 1.
        row: its values by the names of the file's columns.
        columns: field -> the columns that it was read from.
        record: what they say.
        weight: of the row; 1 without a column of weights.
    """

    file: Path
    line: int
    row: Mapping[str, Any]
    columns: Columns
    record: Record
    weight: float


@dataclass(frozen=True)
class Reading:
    """How rows are read and checked; arguments as of `open_store`."""

    record: type[Record]
    columns: Mapping[str, str]
    labels: Mapping[str, float | None]
    on_bad_row: str
    key: str
    weight: str | None = None
    all_columns: bool = False  # of parquet too, where else only those of the fields are read

    def records(self, files: Iterable[Path], issues: RowIssues) -> Iterator[tuple[Record, float]]:
        """The records of all files, and their weights: 1 without a column of weights."""
        for parsed in self.parsed_rows(files, issues):
            yield parsed.record, parsed.weight

    def parsed_rows(self, files: Iterable[Path], issues: RowIssues, span: Span | None = None) -> Iterator[ParsedRow]:
        """The records of all files (of a span of one, as `readers.spans` cuts it), their weights, and where each stood."""
        read: dict[str, tuple[Path, int]] = {}  # where each document was read, by its id
        for file in files:
            for line, row, columns in self._rows(file, issues, span):
                try:
                    if isinstance(row, RowError):
                        raise row
                    record = self.record.parse(renamed := self._renamed(row, columns))
                    if isinstance(record, DocumentRecord):
                        earlier, number = read.setdefault(record.key, (file, line))
                        if (earlier, number) != (file, line):
                            raise RowError("_id", f"is {record.key!r}, as in {earlier}, line {number}: give each its own")
                        issues.document(file, line, renamed, record)
                    weight = 1.0 if self.weight is None or record is None else row_weight(row, self.weight)
                except RowError as error:
                    if self.on_bad_row == "raise":
                        raise InputError(f"{file}, line {line}: {error}{self._remedy(error, columns)}") from None
                    issues.bad(file, line, row, error)
                    continue
                if record is None:
                    issues.neutral += 1
                else:
                    yield ParsedRow(file, line, row, columns, record, weight)

    def _rows(
        self, file: Path, issues: RowIssues, span: Span | None
    ) -> Iterator[tuple[int, dict[str, Any] | RowError, Columns]]:
        """(line, row, the columns of its fields) of each row of a file."""
        if file.name.endswith(".parquet"):  # of which only the columns that matter are read
            columns = self._columns(file, [row for _, row in islice(rows(file, ()), 1)], issues)
            needed = {name for names in (*columns.values(), (self.weight,)) for name in names if name is not None}
            lines = rows(file, None if self.all_columns else needed, span)
        else:
            lines = rows(file)
            head = list(islice(lines, _HEAD))
            columns = self._columns(file, [row for _, row in head], issues)
            lines = chain(head, lines) if span is None else rows(file, span=span)
        for line, row in lines:
            yield line, row, columns

    def _columns(self, file: Path, head: Sequence[dict[str, Any] | RowError], issues: RowIssues) -> Columns:
        """The columns of the fields, by the names in some rows of a file, of which a line is noted."""
        whole = [row for row in head if not isinstance(row, RowError)]
        header = list(dict.fromkeys(name for row in whole for name in row))
        header = [name for name in header if name != self.weight or name in self.columns.values()]
        try:
            columns = match_columns(header, self.record, self.columns)
            if whole and missing_fields(columns, self.record):
                raise unmatched(header, columns, self.record, whole)
        except RowError as error:
            raise InputError(f"{file} {error}{self._remedy(error, {})}") from None
        recognised = description(header, columns, self.record, self.columns)
        if recognised is not None:
            issues.recognise(file, recognised)
        needed, used = {field for fields in self.record.required for field in fields}, set(chain(*columns.values()))
        optional = [field for field in self.record.fields if field not in needed | used | set(columns)]
        return columns | {field: (field,) for field in optional}  # which rows further down may have

    def _renamed(self, row: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
        """The fields of a row, and what its label counts as."""
        fields = {field: _value(row, names) for field, names in columns.items() if any(name in row for name in names)}
        for name in ("label", "score") if self.labels else ():
            if name in fields and (label := as_label(fields[name])) in self.labels:
                fields[name] = self.labels[label]
                if fields[name] is None:
                    fields = {**fields, "label": NEUTRAL}
                    fields.pop("score", None)
        return fields

    def _remedy(self, error: RowError, columns: Columns) -> str:
        """What to type, if an error says which setting mends it."""
        if error.setting is None:
            return ""
        name, values = error.setting
        if name == "columns":
            values = {**self.columns, **{field: columns.get(column, (column,))[0] for field, column in values.items()}}
        return f": {self.key}{name}={typed(values)}"


def _value(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """A value, or what several columns list."""
    if len(names) == 1:
        return row.get(names[0])
    values = [row.get(name) for name in names]
    return [item for value in values if value not in (None, "") for item in (value if isinstance(value, list) else [value])]
