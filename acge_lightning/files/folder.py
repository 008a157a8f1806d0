"""Folders that are replaced at once, and only where all that is in them is ours.

`acge.json` lists the files of a folder with their SHA-256: whatever is not listed, or was changed since, is somebody else's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft, held, lock, sweep, to_disk, unused, unwritten

MANIFEST = "acge.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_TRIES = 100
T = TypeVar("T")


@contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """A new folder beside the target, which takes the target's place when the block succeeds and vanishes when it fails.

    Where the system can (Linux), the two are exchanged in one step, so that the target is there at any moment; elsewhere the
    former one is moved aside first, and `recover` moves it back if the process dies between the two steps.

    Args:
        target: a path that is free, an empty folder, or a folder that was written here and holds nothing else.

    Yields:
        The folder to write to. At the end `acge.json`, written if the block did not, gets `files`: name -> SHA-256.

    Raises:
        InputError: the target holds something that is not ours, or cannot be written.
    """
    target = Path(os.path.realpath(Path(target).expanduser()))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        turn = target.with_name(f".{target.name}.lock")  # of writers; readers do without
        with lock(turn):
            recover(target)
            _check_ours(target, target)
            sweep(target.parent, target.name)
        with draft(target, folder=True) as new:
            yield new
            _list_files(new)
            with lock(turn):
                _put(new, target)
    except (OSError, SafetensorError) as error:
        raise unwritten(target, error) from error


def check_target(target: str | Path) -> None:
    """Refuse at once, rather than after hours of work, what `whole_folder` would refuse.

    Raises:
        InputError: the target holds something that is not ours.
    """
    target = Path(os.path.realpath(Path(target).expanduser()))
    recover(target)
    _check_ours(target, target)


def recover(target: Path) -> None:
    """Move a folder back that a process, which has died since, had moved aside to put another one in its place."""
    for old in target.parent.glob(".*.old"):
        if re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.old", old.name):
            with suppress(OSError, InputError), unused(old):
                if target.exists():
                    _check_ours(old, old)
                    shutil.rmtree(old)
                else:
                    old.rename(target)


def read_steady(folder: Path, read: Callable[[], T]) -> T:
    """What `read` gives of a folder, read again whenever the folder was replaced meanwhile.

    Args:
        folder: may be replaced by `whole_folder` at any time.
        read: reads it; whatever it raises is raised if the folder is still the same.
    """
    for attempt in range(_TRIES):
        recover(folder)
        before = _identity(folder)
        try:
            result = read()
        except Exception:
            if attempt == _TRIES - 1 or before == _identity(folder):
                raise
            continue
        if before == _identity(folder):
            return result
    raise InputError(f"{folder} is replaced all the time: wait until whoever writes it is done")


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Differs for two folders that have had the same path."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


# ---- whose it is


def _check_ours(folder: Path, target: Path) -> None:
    """The folder, which is or was at the target, is absent, or holds nothing but what is listed in its manifest, unchanged."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{target} is a file: give a folder")
    there = {str(path.relative_to(folder)): path for path in _entries(folder)}
    listed = _listed(folder)
    if there and MANIFEST not in there:
        raise InputError(f"{target} holds {_some(there)}, and no {MANIFEST} of ours: it is kept; give a new or an empty folder")
    others = [name for name in there if name not in listed and name != MANIFEST]
    changed = [name for name in there if name in listed and _sha256(there[name]) != listed[name]]
    for names, what in ((others, "holds"), (changed, "has changed")):
        if names:
            raise InputError(f"{target} {what} {_some(names)}, not written here: it is kept; move it, or give another folder")


def _some(names: Any) -> str:
    first = sorted(names)
    return first[0] + (f" and {len(first) - 1} more" if len(first) > 1 else "")


def _entries(folder: Path) -> Iterator[Path]:
    """All files and links, and folders with nothing in them."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from _entries(path)
        else:
            yield path


def _listed(folder: Path) -> dict[str, str]:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return files if isinstance(files, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _list_files(folder: Path) -> None:
    file = folder / MANIFEST
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    about["files"] = {str(p.relative_to(folder)): _sha256(p) for p in sorted(_entries(folder)) if p != file}
    file.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str | None:
    if file.is_symlink() or not file.is_file():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# ---- in its place


def _put(new: Path, target: Path) -> None:
    """Put the new folder in the target's place, and whatever was there in the place of the new one."""
    for path in [*new.rglob("*"), new]:
        to_disk(path)
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        try:
            _check_ours(new, target)  # once more: somebody may have put a file there meanwhile
        except BaseException:
            _exchange(new, target)
            raise
    else:
        _check_ours(target, target)
        _put_aside(new, target)
    to_disk(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system has no such step."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _put_aside(new: Path, target: Path) -> None:
    """In two steps, between which nothing is at the target."""
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    with held(target):  # `recover` of another process leaves it alone
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
