"""Make up for what a program may lack: a home folder, a terminal with all characters, a reader of its output."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from acge_lightning.terminal import show


def ensure_home() -> None:
    """Give a process without a home folder one, and a user's name, for the caches of libraries; it is removed at the end."""
    if os.path.expanduser("~") == "~":  # no HOME, and a user that the system does not know
        folder = tempfile.mkdtemp(prefix="acge-home-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["HOME"] = os.environ["USERPROFILE"] = folder  # the latter counts on Windows
        os.environ.setdefault("USER", str(os.getuid()) if hasattr(os, "getuid") else "user")
        message = f"there is no home folder: caches are kept in {folder} until the end; set HOME to keep them"
        show(message, stderr=True)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let printing never fail in the block: characters that the terminal lacks become `?`, output without a reader is lost.

    Raises:
        SystemExit: after the block, if output was lost to anything but a closed pipe, such as a full disk.
    """
    _fill_standard_handles()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = outputs = _Output(sys.stdout), _Output(sys.stderr)
    try:
        yield
    finally:
        for output in outputs:
            output.flush()
        sys.stdout, sys.stderr = before
    if outputs[0].lost not in (None, errno.EPIPE):
        sys.exit(f"error: what was printed could not be written ({os.strerror(outputs[0].lost)}): its end is lost")


def _fill_standard_handles() -> None:
    """Open /dev/null for closed standard streams, or the next file would get their numbers and whatever is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


class _Output:
    """A text stream that continues to /dev/null once it cannot be written to."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.lost: int | None = None  # number of the error by which output was lost
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error.errno
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            with suppress(OSError):
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
