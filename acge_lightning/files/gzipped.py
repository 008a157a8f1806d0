"""Compressed text whose bytes depend on the text alone."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def gzipped_text(file: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a gzip file to write UTF-8 to, with neither a time nor a name in it.

    Args:
        file: is replaced.
        errors: of half surrogate pairs, as in `open`; JSON takes `backslashreplace`.
    """
    with (
        file.open("wb") as content,
        gzip.GzipFile("", "wb", 6, content, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", errors=errors, newline="\n") as lines,
    ):
        yield lines
