"""Files that are written whole or not at all, locks, and what processes that were killed have left behind."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from acge_lightning.errors import InputError

_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.draft", re.DOTALL)
_HELD: set[int] = set()  # handles of locks of this process


def _let_go() -> None:
    """In a process that was forked, such as one that loads data: what its parent holds is free when the parent ends."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def whole(file: str | Path) -> Iterator[Path]:
    """A draft beside the file: it takes the file's place, from the disk, when the block succeeds, and vanishes when it fails.

    Whoever reads the file sees the old one or the new one, also after a crash. What is no regular file, such as a pipe, is
    written to directly.

    Yields:
        The path to write to.

    Raises:
        InputError: the draft cannot be written, as the disk is full or the folder read-only.
    """
    file = Path(file)
    try:
        if file.exists() and not file.is_file():
            if file.is_dir():
                raise InputError(f"{file} is a folder: give the name of a file")
            yield file
            return
        file = Path(os.path.realpath(file))  # a link stays one
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep(file.parent, file.name)
        with draft(file) as new:
            yield new
            to_disk(new)
            os.replace(new, file)
            to_disk(file.parent)
    except (OSError, SafetensorError) as error:
        raise unwritten(file, error) from error


def write_text(file: str | Path, text: str) -> None:
    """The text as UTF-8, whole or not at all; half a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    with whole(file) as new:
        new.write_bytes(text.encode(errors="replace"))


def to_disk(path: Path) -> None:
    """Put a file, or the names of a folder's files, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(path: Path, error: Exception) -> InputError:
    """The error of a path that could not be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"{path} cannot be written ({reason}): what was there before is kept")


def check_replaceable(file: str | Path, marker: bytes, what: str) -> None:
    """Refuse to replace a file that is not of the kind that takes its place.

    Args:
        file: the output; one that is absent, empty or no regular file, such as /dev/null, is fine.
        marker: what each of our files of this kind holds within its first 64 KiB.
        what: the kind, in words.

    Raises:
        InputError: the file is another one.
    """
    file = Path(file).expanduser()
    if not file.is_file() or not file.stat().st_size:
        return
    with file.open("rb") as content:
        if marker not in content.read(2**16):
            raise InputError(f"{file} is there and is not {what}: it is kept; give another name, or move it away")


# ---- drafts


@contextmanager
def draft(path: Path, folder: bool = False) -> Iterator[Path]:
    """An empty file or folder beside a path, under a hidden name: what is not moved away vanishes at the end of the block.

    It is locked as long as its process lives, so that `sweep` can tell what a killed one has left.
    """
    handle = None
    while handle is None:
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
        handle = _made(new, folder)
    try:
        yield new
    finally:
        _remove(new)
        os.close(handle)


def _made(new: Path, folder: bool) -> int | None:
    """The handle of a new file or folder, held; None if another process has swept it before it was."""
    if folder:
        new.mkdir()
    else:
        new.touch(exist_ok=False)
    try:
        handle = os.open(new, os.O_RDONLY)
    except FileNotFoundError:
        return None
    _hold(handle)
    if _is_at(handle, new):
        return handle
    os.close(handle)
    return None


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts in a folder, of one name or of all, whose processes have ended."""
    with suppress(OSError):  # one that may not be listed has no drafts of ours
        for path in list(folder.iterdir()):
            found = _DRAFT.fullmatch(path.name)
            if found and name in (None, found[1]):
                with suppress(OSError), unused(path):
                    _remove(path)


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Lock a file or folder while the block runs, where the file system has locks.

    Yields:
        The handle.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        _hold(handle)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def unused(path: Path) -> Iterator[None]:
    """Lock what nobody holds; an OSError if somebody does, or if that cannot be known."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- locks


@contextmanager
def lock(file: str | Path, wait: bool = True) -> Iterator[None]:
    """Be the only process within this block, by a file that the system frees when its owner ends, however it ends.

    Args:
        file: the lock, made and removed here; it names its owner.
        wait: until the owner is done; else that is an error.

    Raises:
        InputError: another process holds it (unless told to wait), or it cannot be made.
    """
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(file, wait)
    except BlockingIOError as error:
        raise InputError(f"{file.parent} is in use by {_owner(file)}: wait for it, or give another output") from error
    except OSError as error:
        raise unwritten(file, error) from error
    _HELD.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        if handle in _HELD:  # not in a forked process
            file.unlink(missing_ok=True)  # who waits for it sees that, and makes another
            _HELD.remove(handle)
            os.close(handle)


def _owner(file: Path) -> str:
    """What its owner has written into a lock file."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


def _locked(file: Path, wait: bool) -> int:
    """The handle of a lock file, held."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _hold(handle, wait)
            if _is_at(handle, file):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner has removed it meanwhile


def _hold(handle: int, wait: bool = True) -> None:
    """Lock an open file for this process alone; a file system without locks is worked on without them."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        pass


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
