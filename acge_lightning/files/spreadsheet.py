"""Write tables for spreadsheets, in which no cell is taken for a formula and computed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.files.atomic import write_text

_FORMULA = re.compile(r"[\s\x00\u200b\ufeff]*[=+\-@＝＋－＠]")  # also full-width signs, which some programs take too
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet might compute; other values stay as they are, also numbers as text.

    >>> [cell(value) for value in ("=cmd()", " +1+1", "-0.5", -0.5, "a=b")]
    ["'=cmd()", "' +1+1", '-0.5', -0.5, 'a=b']
    """
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def write_csv(file: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a head and rows as CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text).writerows([cell(value) for value in row] for row in (columns, *rows))
    write_text(file, text.getvalue())
