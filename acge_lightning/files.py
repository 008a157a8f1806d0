"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(file: str | Path) -> Iterator[Path]:
    """A draft beside the file: it takes the file's place, from the disk, when the block succeeds, and vanishes when it fails.

    Whoever reads the file sees the old one or the new one, also after a crash. What is no regular file, such as a pipe, is
    written to directly.

    Yields:
        The path to write to.
    """
    file = Path(file)
    if file.exists() and not file.is_file():
        yield file
        return
    file = file.resolve()  # a link stays one
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield draft
        to_disk(draft)
        os.replace(draft, file)
        to_disk(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_text(file: str | Path, text: str) -> None:
    """The text as UTF-8, whole or not at all; half a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    with whole(file) as draft:
        draft.write_bytes(text.encode(errors="replace"))


def to_disk(path: Path) -> None:
    """Put a file, or the names of a folder's files, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
