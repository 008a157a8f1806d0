"""Files of texts as `acge search` reads them: which files of a folder, and each text with its file and line."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from acge_lightning.data.readers import SUFFIXES, rows
from acge_lightning.data.records import RowError, valid
from acge_lightning.data.store import MAX_BAD, RowIssues
from acge_lightning.errors import InputError
from acge_lightning.search.storage import is_index

_LOG = logging.getLogger(__name__)
_PLAIN = (".txt", ".txt.gz", ".md", ".md.gz")
_KINDS = (*_PLAIN, *SUFFIXES)
_MOST_NAMED = 10  # entries that a warning names


# ---- which files


def list_files(source: Path) -> list[Path]:
    """The files of texts of a source, sorted: itself, or those in the folder and its folders.

    Left out are hidden files, and what earlier calls have written there: indexes, and what tuning has tried. A warning names
    pipes, links to nowhere, and links to folders.

    Raises:
        InputError: no such file or folder, no file of texts in it, or one that cannot be read.
    """
    if source.is_dir():
        files, unreadable = _within(source)
        if unreadable:
            examples = ", ".join(map(str, unreadable[:_MOST_NAMED])) + (" …" if len(unreadable) > _MOST_NAMED else "")
            _LOG.warning("%s: %d entries that are no files of their own are left out: %s", source, len(unreadable), examples)
    else:
        files = [source] if source.is_file() else []
        if files and not source.name.endswith(_KINDS):
            raise InputError(f"{source}: unknown kind of file: give one of {', '.join(_KINDS)}")
    if not files:
        problem = (
            f"holds no file of {', '.join(_KINDS)}" if source.is_dir() else "is no file" if source.exists() else "is not there"
        )
        raise InputError(f"{source} {problem}: name a file or a folder of texts")
    return files


def _within(source: Path) -> tuple[list[Path], list[Path]]:
    """Files of texts, and what has such a name, or leads to a folder, and cannot be read as one: pipes, links to nowhere."""
    files: list[Path] = []
    unreadable: list[Path] = []
    for name, folder_names, file_names in os.walk(source, onerror=_raise):
        folder = Path(name)
        unreadable += [folder / name for name in folder_names if (folder / name).is_symlink() and not name.startswith(".")]
        folder_names[:] = [name for name in folder_names if not name.startswith(".") and not is_index(folder / name)]
        for name in file_names:
            if name.endswith(_KINDS) and not name.startswith(".") and not _is_tuned(folder / name):
                (files if (folder / name).is_file() else unreadable).append(folder / name)
    return sorted(files), sorted(unreadable)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): give it rights, or move it away") from error


def _is_tuned(file: Path) -> bool:
    """Whether a file is a `funnel.json` that `Tuned.write` has written."""
    if file.name != "funnel.json" or not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(64).split()[:3] == [b"{", b'"points":', b"["]


def digest(source: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of the files of a source.

    Raises:
        InputError: one cannot be read.
    """
    names_and_contents = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as content:
                content_digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}): give it rights, or move it away") from error
        names_and_contents.update(f"{_name_within(source, file)}\0{content_digest}\n".encode())
    return names_and_contents.hexdigest()


def _name_within(source: Path, file: Path) -> str:
    """The file's name within the source; bytes that are not UTF-8 are written out."""
    name = file.relative_to(source) if source.is_dir() else file.name
    return os.fsencode(name).decode(errors="backslashreplace")


# ---- their texts


def read_texts(
    source: Path, files: Iterable[Path], field: str, on_bad_row: str = "raise", max_bad_fraction: float = MAX_BAD
) -> list[tuple[str, str]]:
    """Read all texts that are not blank.

    Args:
        source: the file or folder that was asked for.
        files: from `list_files`.
        field: the column of the texts, in files of rows.
        on_bad_row: `raise`, or `skip`: rows that cannot be read, or have no text, are left out and counted.
        max_bad_fraction: of the texts, at most; more are an error.

    Returns:
        (`file:line`, text) of each.

    Raises:
        InputError: a row that cannot be read or has no text, too many of them, no text at all, a file that cannot be read.
    """
    if on_bad_row not in ("raise", "skip"):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose raise or skip")
    texts, issues = [], RowIssues(None)
    for file in files:
        for line, text in _plain(file) if file.name.endswith(_PLAIN) else _fields(file, field):
            if not isinstance(text, RowError):
                texts += [(f"{_name_within(source, file)}:{line}", text.strip())] if text.strip() else []
            elif on_bad_row == "raise":
                raise InputError(f"{file}, line {line}: {text}")
            else:
                issues.bad(file, line, text, text)
    issues.report(source, len(texts), max_bad_fraction)
    if not texts:
        raise InputError(f"{source} holds no text: its files are empty")
    return texts


def _plain(file: Path) -> Iterator[tuple[int, str | RowError]]:
    """Lines of a txt, paragraphs of a md, each with the number of its first line."""
    paragraphs = ".md" in file.suffixes
    block: list[str] = []
    block_start = 0
    open_file = gzip.open if file.suffix == ".gz" else open
    try:
        with open_file(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not paragraphs:
                    yield number, _valid(line)
                elif line.strip():
                    block_start = block_start if block else number
                    block.append(line.strip())
                elif block:
                    yield block_start, _valid(" ".join(block))
                    block = []
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error}): it may be incomplete, copy it again") from error
    if block:
        yield block_start, _valid(" ".join(block))


def _fields(file: Path, field: str) -> Iterator[tuple[int, str | RowError]]:
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
