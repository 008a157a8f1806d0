"""What is wrong, or odd, with the rows of some files: counted, told, and an error where it is too much."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from acge_lightning.data.records import DocumentRecord, RowError
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)


@cache
def warn_once(line: str) -> None:
    """Log a warning, unless this process has logged the same one."""
    _LOG.warning("%s", line)


@dataclass
class RowIssues:
    """What is wrong with some files, and not an error at once: counts, the first of each kind, and a file of bad rows if any.

    Args:
        quarantine: file to which bad rows are written; None for no file.
        skipped: bad rows, which are left out.
        neutral: rows of a neutral label, which are left out.
        empty: empty queries and documents, which are kept.
        spaced: ids that stand between white space, which are kept without it.
        recognised: which columns were taken for which fields, a line for each file where that is not plain.
    """

    quarantine: Path | None
    skipped: int = 0
    neutral: int = 0
    empty: int = 0
    spaced: int = 0
    first: str = ""
    first_empty: str = ""
    recognised: list[str] = field(default_factory=list)

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

    def recognise(self, file: Path, columns: str) -> None:
        """Take note of what the columns of a file were taken for, and say it; once for files that have the same ones."""
        if not any(line.endswith(f": {columns}") for line in self.recognised):
            self.recognised.append(f"{file.name}: {columns}")
            warn_once(self.recognised[-1])

    def document(self, file: Path, line: int, row: Mapping[str, Any], parsed: DocumentRecord) -> None:
        """Take note of what is odd in a query or a document that is kept."""
        self.spaced += isinstance(row["_id"], str) and parsed.key != row["_id"]
        if not parsed.text:
            self.first_empty = self.first_empty or f"{file}, line {line}"
            self.empty += 1

    def report(self, file: Path, kept: int, max_bad_fraction: float) -> None:
        """What was recognised, a warning of what is wrong, an error if it is too much."""
        for line in self.recognised:
            warn_once(line)
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
