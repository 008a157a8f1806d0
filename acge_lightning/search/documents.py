"""Files to documents: a line of a text file, a Markdown file, a row of a table, each with its file and line."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acge_lightning.data.encoding import open_text
from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError, valid
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.data.store import MAX_BAD
from acge_lightning.errors import InputError
from acge_lightning.search.text_files import PLAIN, Source

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text and where it stands.

    Args:
        file: its name within the source.
        line: on which it begins, from 1.
        text: as it stands there, without a lone surrogate.
        kind: `text` (a line), `markdown` (a whole file), `row` (a value of a table, whose line breaks may not be the file's).
    """

    file: str
    line: int
    text: str
    kind: str = "text"


Entry = tuple[int, str | RowError]  # the line on which it begins, and what it holds


def read_documents(source: Source, field: str, on_bad_row: str = "raise", max_bad_fraction: float = MAX_BAD) -> list[Document]:
    """Read all documents that are not blank.

    A file that cannot be read, or holds a bad row, is left out, and `source.problems` says why; where no other is left that is
    an error.

    Args:
        source: from `list_files`; takes note of the files that are left out.
        field: the column of the texts, in files of rows.
        on_bad_row: `raise`, or `skip`: rows that cannot be read, or have no text, are left out and counted, and their file only
            if it has no others.
        max_bad_fraction: of the texts, at most; more are an error.

    Raises:
        InputError: no text at all, too many bad rows, an unknown `on_bad_row`.
    """
    if on_bad_row not in ("raise", "skip"):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose raise or skip")
    documents: list[Document] = []
    issues = RowIssues(None)
    for file in source.files:
        try:
            of_file = _of_file(source, file, field, issues if on_bad_row == "skip" else None)
        except InputError as error:
            source.problems.append(str(error))
            continue
        if not of_file and source.path.is_dir():
            source.leave_out(file, "empty")
        documents += of_file
    if not documents and source.problems:
        others = f" (and {len(source.problems) - 1} other files)" if len(source.problems) > 1 else ""
        raise InputError(f"{source.problems[0]}{others}")
    issues.report(source.path, len(documents), max_bad_fraction)
    if not documents:
        raise InputError(f"{source.path} holds no text: its files are empty")
    return documents


def _of_file(source: Source, file: Path, field: str, issues: RowIssues | None) -> list[Document]:
    """The documents of a file; bad rows are an error, unless there are issues to take note of them."""
    name, lower = source.name(file), file.name.lower()
    is_plain = lower.endswith(PLAIN)
    kind = "row" if not is_plain else "text" if lower.removesuffix(".gz").endswith(".txt") else "markdown"
    entries: list[tuple[int, str]] = []
    bad: list[tuple[int, RowError]] = []
    for line, text in _lines(file) if is_plain else _fields(file, field):
        entries.append((line, "" if isinstance(text, RowError) else text))
        bad += [(line, text)] if isinstance(text, RowError) else []
        if bad and issues is None:
            break
    if bad and (issues is None or not any(text.strip() for _, text in entries)):
        raise InputError(f"{file}, line {bad[0][0]}: {bad[0][1]}")
    if issues is not None:
        for line, error in bad:
            issues.bad(file, line, error, error)
    if kind == "markdown":
        entries = [(1, "\n".join(text for _, text in entries))]
    return [Document(name, line, text, kind) for line, text in entries if text.strip()]


def _lines(file: Path) -> Iterator[Entry]:
    """Every line of a file of text, in whatever encoding it is, with its number."""
    try:
        with open_text(file) as lines:
            for number, line in enumerate(lines, 1):
                yield number, _valid(line.rstrip("\r\n"))
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error}): it may be incomplete, copy it again") from error


def _fields(file: Path, field: str) -> Iterator[Entry]:
    """The texts of a column; a warning counts the empty ones."""
    empty = []
    for line, row in rows(file, {field}):
        if isinstance(row, RowError):
            yield line, row
        elif isinstance(text := row.get(field), str):
            yield line, _valid(text, field)
            empty += [] if text.strip() else [line]
        else:
            columns = sorted(key for key, value in row.items() if isinstance(value, str))
            yield line, RowError(None, f"has no text in {field!r}: choose another, field=…, of {columns}, or on_bad_row=skip")
    if empty:
        _LOG.warning("%s: %d rows of an empty %s are left out, the first in line %d", file, len(empty), field, empty[0])


def _valid(text: str, field: str | None = None) -> str | RowError:
    try:
        return valid(text, field)
    except RowError as error:
        return error
