"""Files of texts as `acge search` finds them: which files of a source are read, and what is left out, and why."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from acge_lightning.data.source import SUFFIXES
from acge_lightning.errors import InputError
from acge_lightning.search.storage import is_index

PLAIN = (".txt", ".txt.gz", ".md", ".md.gz", ".markdown")
KINDS = (*PLAIN, *SUFFIXES)
_LARGEST = 2**30  # bytes of a file of a folder
_MOST_NAMED = 5  # entries, or kinds, that a line names
_HEAD = 4096  # bytes that tell whether a file is one of texts
_BOMS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 has zeros, as binary files have
_PACKED = (".gz", ".parquet", ".xlsx", ".xls", ".ods")


@dataclass
class Source:
    """A file or folder of texts.

    Args:
        path: of the file or folder.
        files: that are read, sorted.
        left_out: reason -> names within the folder of what is not.
        problems: of files that could not be read, a message each.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def name(self, file: Path) -> str:
        """The file's name within the source; bytes that are not UTF-8 are written out."""
        name = file.relative_to(self.path) if self.path.is_dir() else file.name
        return os.fsencode(name).decode(errors="backslashreplace")

    def leave_out(self, file: Path, reason: str) -> None:
        """Take note of an entry that is not read."""
        self.left_out.setdefault(reason, []).append(self.name(file))

    def told(self) -> str | None:
        """A line that counts what is left out by reason, and names some of it; None if that is nothing."""
        counts = [f"{len(names)} {reason} ({_examples(reason, names)})" for reason, names in sorted(self.left_out.items())]
        return f"Left out of {self.path}: {'; '.join(counts)}" if counts else None


def _examples(reason: str, names: list[str]) -> str:
    """Names, or for files of unknown kind their endings with their counts."""
    if reason == "of unknown kind":
        endings = Counter(Path(name).suffix.lower() or "no ending" for name in names)
        named, more = [f"{ending} {count}" for ending, count in endings.most_common(_MOST_NAMED)], len(endings) > _MOST_NAMED
    else:
        named, more = sorted(names)[:_MOST_NAMED], len(names) > _MOST_NAMED
    return ", ".join(named) + (" …" if more else "")


def list_files(path: Path) -> Source:
    """The files of texts of a source: itself, or those in the folder and its folders; the case of an ending does not count.

    Left out are hidden files, files of other kinds, empty, binary, unreadable and very large ones, pipes, links to folders and
    to nowhere, and what earlier calls have written there: indexes, and what tuning has tried.

    Raises:
        InputError: no such file or folder, or no file of texts in it.
    """
    source = Source(path)
    kinds = ", ".join(KINDS)
    if path.is_dir():
        _walk(source)
        if not source.files:
            told = source.told()
            raise InputError(f"{path} holds no file of {kinds}: name a file or a folder of texts{f' ({told})' if told else ''}")
    elif path.is_file():
        if not path.name.lower().endswith(KINDS):
            raise InputError(f"{path}: unknown kind of file: give one of {kinds}")
        source.files = [path]
    else:
        raise InputError(f"{path} is {'no file' if path.exists() else 'not there'}: name a file or a folder of texts")
    return source


def _walk(source: Source) -> None:
    """Go through a folder, and not through links, so that none is gone through twice."""
    for name, folder_names, file_names in os.walk(source.path, onerror=lambda error: _unreadable(source, error)):
        folder = Path(name)
        entered = []
        for child in sorted(folder_names):
            reason = "hidden" if child.startswith(".") else "behind a link" if (folder / child).is_symlink() else None
            if reason is not None:
                source.leave_out(folder / child, reason)
            elif not is_index(folder / child):
                entered.append(child)
        folder_names[:] = entered
        for child in file_names:
            reason = _reason(folder / child)
            if reason is None:
                source.files.append(folder / child)
            elif reason:
                source.leave_out(folder / child, reason)
    source.files.sort()


def _unreadable(source: Source, error: OSError) -> None:
    source.leave_out(Path(error.filename), "unreadable")


def _reason(file: Path) -> str | None:
    """Why a file of a folder is not read: None if it is, empty if that goes without saying."""
    if file.name.startswith((".", "~$")):  # the latter is beside a file that Excel has open
        return "hidden"
    if not file.name.lower().endswith(KINDS):
        return "of unknown kind"
    if not file.is_file():
        return "without a target" if file.is_symlink() else "no regular file"
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            head = content.read(_HEAD)
    except OSError:
        return "unreadable"
    if file.name == "funnel.json" and head.split()[:3] == [b"{", b'"points":', b"["]:
        return ""  # what `Tuned.write` has written
    if not head.strip() and size <= _HEAD:
        return "empty"
    if size > _LARGEST:
        return f"over {_LARGEST >> 30} GiB, which source=FILE reads"
    is_binary = b"\0" in head and not head.startswith(_BOMS) and not file.name.lower().endswith(_PACKED)
    return "binary" if is_binary else None


def digest(source: Source) -> str:
    """SHA-256 of the names and contents of the files of a source; one that cannot be read counts by its name."""
    names_and_contents = hashlib.sha256()
    for file in source.files:
        try:
            with file.open("rb") as content:
                content_digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            content_digest = ""
        names_and_contents.update(f"{source.name(file)}\0{content_digest}\n".encode())
    return names_and_contents.hexdigest()


def check_apart(queries: Source, texts: Source) -> None:
    """Refuse queries to tune with that are indexed too: each would find itself.

    Raises:
        InputError: a file of the queries is one of the texts.
    """
    shared = {file.resolve() for file in queries.files} & {file.resolve() for file in texts.files}
    if shared:
        raise InputError(
            f"tune={queries.path}: {min(shared)} is one of the texts that are indexed: keep the queries apart from them"
        )
