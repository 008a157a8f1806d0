"""Lock open files on every system: by `flock`, or on Windows, which has none, by one byte behind the end of the file."""

from __future__ import annotations

import errno
import os
import time
from importlib import import_module
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:
    HAS_FLOCK = False
    msvcrt: Any = import_module("msvcrt")
else:
    HAS_FLOCK = True

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # for `os.open`: Windows makes links for administrators only
_BYTE = 2**30  # its place: what is locked cannot be read by others there, and the file's text should be
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_PAUSE = 0.05  # seconds between two attempts


def hold(handle: int, wait: bool = True, shared: bool = False) -> None:
    """Lock an open file until it is closed, however that happens.

    Args:
        handle: file descriptor.
        wait: wait until nobody else holds it.
        shared: let others hold it too who share it; where that is not possible they wait.

    Raises:
        BlockingIOError: somebody else holds it, without `wait`.
        OSError: the file system has no locks.
    """
    if HAS_FLOCK:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return
    while True:
        os.lseek(handle, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "somebody else holds the lock") from error
            time.sleep(_PAUSE)
        else:
            os.lseek(handle, 0, os.SEEK_SET)
            return
