"""Tables to rows: the first line that is not blank names the columns."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
NumberedRow = tuple[int, dict[str, Any] | RowError]
Values = tuple[int, list[str] | csv.Error]


@dataclass(frozen=True)
class Form:
    """How errors call a form of table.

    Args:
        name: of the form.
        mend: what of a line to mend that is not of it.
        excess: what to do with more values than columns.
    """

    name: str
    mend: str
    excess: str


def table_rows(read: Iterator[Values], file: Path, form: Form) -> Iterator[NumberedRow]:
    """(line, row) of all lines but the header; blank ones, as spreadsheets leave them, are counted in a warning.

    Raises:
        InputError: the header cannot be read, or calls two columns the same.
    """
    header: list[str] | None = None
    blank = 0
    for number, values in read:
        if isinstance(values, csv.Error):
            if header is None:
                raise InputError(f"{file}, line {number}: the header is not {form.name} ({values}): mend it")
            yield number, RowError(None, f"is not {form.name} ({values}): mend its {form.mend}, or on_bad_row=skip")
        elif not any(value and not value.isspace() for value in values):
            blank += bool(values)  # a line without any value is none
        elif header is None:
            header = distinct(values, file)
        elif any(extra := values[len(header) :]):
            yield number, RowError(None, f"has {len(extra)} values more than the header: {form.excess}")
        else:
            yield number, dict(zip(header, values, strict=False))
    if blank:
        _LOG.warning("%s: %d blank rows are skipped", file, blank)


def distinct(names: list[str], file: Path) -> list[str]:
    """The names of columns themselves.

    Raises:
        InputError: one comes twice.
    """
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{file}: the header calls two columns {twice[0]!r}: give each its own name, or add a header")
    return names
