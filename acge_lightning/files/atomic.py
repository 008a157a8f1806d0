"""Write files whole or not at all, lock, and remove the drafts of processes that were killed."""

from __future__ import annotations

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
from acge_lightning.files.locks import HAS_FLOCK, NO_LINKS, hold

_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.draft", re.DOTALL)
_HELD_LOCKS: set[int] = set()  # file descriptors of the locks of this process


def _close_inherited_locks() -> None:
    """Close the parent's locks in a forked process, such as a data loader, so that they are free when the parent ends."""
    while _HELD_LOCKS:
        os.close(_HELD_LOCKS.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def whole(file: str | Path) -> Iterator[Path]:
    """Write a draft beside a file: it replaces the file when the block succeeds, and is removed when it fails.

    Readers see the old file or the new one, also after a crash. A path that is no regular file, such as a pipe, is written to
    directly; a link keeps pointing to its file, which is replaced.

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
        file = Path(os.path.realpath(file))
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep(file.parent, file.name)
        with draft(file) as draft_file:
            yield draft_file
            replace_file(file, draft_file)
    except (OSError, SafetensorError) as error:
        raise write_error(file, error) from error


def write_text(file: str | Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; half a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    with whole(file) as draft_file:
        draft_file.write_bytes(text.encode(errors="replace"))


def replace_file(file: Path, draft_file: Path) -> None:
    """Replace a file by its draft, durably: the draft's bytes reach the disk before its name does."""
    to_disk(draft_file)
    os.replace(draft_file, file)
    to_disk(file.parent)


def to_disk(path: Path) -> None:
    """Flush a file, or the names of a folder's files, to the disk."""
    if not HAS_FLOCK and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if HAS_FLOCK else os.O_RDWR)  # it flushes only what may be written to
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_error(path: Path, error: Exception) -> InputError:
    """Make the error of a path that could not be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"{path} cannot be written ({reason}): what was there before is kept")


def check_replaceable(file: str | Path, marker: bytes, kind: str) -> None:
    """Refuse to replace a file of another kind.

    Args:
        file: the output; one that is absent, empty or no regular file, such as /dev/null, is fine.
        marker: bytes that each of our files of this kind has within its first 64 KiB.
        kind: the kind, in words.

    Raises:
        InputError: the file is another one.
    """
    file = Path(file).expanduser()
    if not file.is_file() or not file.stat().st_size:
        return
    with file.open("rb") as content:
        if marker not in content.read(2**16):
            raise InputError(f"{file} is there and is not {kind}: it is kept; give another name, or move it away")


# ---- drafts


@contextmanager
def draft(path: Path, folder: bool = False) -> Iterator[Path]:
    """Create an empty file or folder beside a path, under a hidden name; remove it after the block unless it was moved.

    It is locked as long as its process lives, so that `sweep` can tell the drafts of killed processes.
    """
    if not HAS_FLOCK:
        draft_path = _draft_path(path)
        with lock(_lock_beside(draft_path)):
            _create(draft_path, folder)
            try:
                yield draft_path
            finally:
                _remove(draft_path)
        return
    handle = None
    while handle is None:
        draft_path = _draft_path(path)
        handle = _create_draft(draft_path, folder)
    try:
        yield draft_path
    finally:
        _remove(draft_path)
        os.close(handle)


def _draft_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def _create(path: Path, folder: bool) -> None:
    if folder:
        path.mkdir()
    else:
        path.touch(exist_ok=False)


def _create_draft(draft_path: Path, folder: bool) -> int | None:
    """Create a file or folder and return its handle, locked; None if another process swept it before it was locked."""
    _create(draft_path, folder)
    try:
        handle = os.open(draft_path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    _hold(handle)
    if _is_same_file(handle, draft_path):
        return handle
    os.close(handle)
    return None


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts in a folder, of one name or of all, whose processes have ended."""
    with suppress(OSError):  # a folder that may not be listed has no drafts of ours
        for path in list(folder.iterdir()):
            match = _DRAFT.fullmatch(path.name)
            if match and name in (None, match[1]):
                with suppress(OSError, InputError), locked_if_unused(path):
                    _remove(path)


@contextmanager
def locked(path: Path, new_path: Path) -> Iterator[None]:
    """Lock a folder while the block runs and renames it, where the file system has locks."""
    if not HAS_FLOCK:
        with lock(_lock_beside(new_path)):
            yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        _hold(handle)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_if_unused(path: Path) -> Iterator[None]:
    """Lock a path that nobody else has locked; an OSError or InputError if somebody has, or if that cannot be known."""
    if not HAS_FLOCK:
        with lock(_lock_beside(path), wait=False):
            yield
        return
    handle = os.open(path, os.O_RDONLY | NO_LINKS)
    try:
        hold(handle, wait=False)
        yield
    finally:
        os.close(handle)


def _lock_beside(path: Path) -> Path:
    """Name the lock file of a path on Windows: what is open there cannot be renamed, and folders cannot be opened."""
    return path.with_name(f"{path.name}.lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- locks


@contextmanager
def lock(file: str | Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time run this block, by a lock file that the system frees when its owner ends, however it ends.

    Args:
        file: the lock file, made and removed here; it names its owner.
        wait: wait until the owner is done; without, a held lock is an error.

    Raises:
        InputError: another process holds it (without `wait`), or it cannot be made.
    """
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(file, wait)
    except BlockingIOError as error:
        raise InputError(f"{file.parent} is in use by {_lock_owner(file)}: wait for it, or give another output") from error
    except OSError as error:
        raise write_error(file, error) from error
    _HELD_LOCKS.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        if handle in _HELD_LOCKS:  # not in a forked process
            if HAS_FLOCK:
                file.unlink(missing_ok=True)  # a waiting process sees that, and makes another
            _HELD_LOCKS.remove(handle)
            os.close(handle)
            if not HAS_FLOCK:
                with suppress(OSError):  # Windows keeps it as long as another process waits for it
                    file.unlink(missing_ok=True)


def _lock_owner(file: Path) -> str:
    """Read the owner's name from a lock file."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


def _open_locked(file: Path, wait: bool) -> int:
    """Open and lock a lock file; return its handle."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
        try:
            _hold(handle, wait)
            if _is_same_file(handle, file):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner has removed it meanwhile


def _hold(handle: int, wait: bool = True) -> None:
    """Lock an open file for this process alone; a file system without locks is worked on without them."""
    try:
        hold(handle, wait)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
