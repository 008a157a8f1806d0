"""Replace folders at once, and only those that hold nothing but files of ours.

`acge.json` lists the files of a folder with their SHA-256: a file that is not listed, or was changed since, is not ours.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft, lock, locked, locked_if_unused, sweep, to_disk, write_error
from acge_lightning.files.digest import file_sha256
from acge_lightning.files.locks import HAS_FLOCK

MANIFEST = "acge.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_TRIES = 100
T = TypeVar("T")


@contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Write a new folder beside the target: it replaces the target when the block succeeds, and is removed when it fails.

    Where the system can (Linux), the two are exchanged in one step, so that the target exists at any moment; elsewhere the
    old folder is moved aside first, and `recover` moves it back if the process dies between the two steps.

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
        writer_lock = target.with_name(f".{target.name}.lock")  # of writers only
        with lock(writer_lock):
            recover(target)
            _check_manifest(target, target)
            sweep(target.parent, target.name)
        with draft(target, folder=True) as draft_folder:
            yield draft_folder
            _write_manifest(draft_folder)
            with lock(writer_lock):
                _replace(draft_folder, target)
    except (OSError, SafetensorError) as error:
        raise write_error(target, error) from error


def check_target(target: str | Path) -> None:
    """Refuse a target that `whole_folder` would refuse, before hours of work.

    Raises:
        InputError: the target holds something that is not ours.
    """
    target = Path(os.path.realpath(Path(target).expanduser()))
    recover(target)
    _check_manifest(target, target)


def recover(target: Path) -> None:
    """Move a folder back that a process moved aside to replace it, and then died."""
    for moved_aside in target.parent.glob(".*.old"):
        if re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.old", moved_aside.name):
            with suppress(OSError, InputError), locked_if_unused(moved_aside):
                if target.exists():
                    _check_manifest(moved_aside, moved_aside)
                    shutil.rmtree(moved_aside)
                else:
                    moved_aside.rename(target)


def read_steady(folder: Path, read: Callable[[], T]) -> T:
    """Call `read` on a folder, again whenever the folder was replaced meanwhile, and return its result.

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
            is_same = before == _identity(folder) and not (before is None and _is_being_replaced(folder))
            if attempt == _TRIES - 1 or is_same:
                raise
            continue
        if before == _identity(folder):
            return result
    raise InputError(f"{folder} is replaced all the time: wait until whoever writes it is done")


def _is_being_replaced(folder: Path) -> bool:
    """Tell whether a folder that was not there is between the two steps of a replacement, or is there by now."""
    return any(folder.parent.glob(f".{glob.escape(folder.name)}.*.old")) or folder.exists()


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Identify a folder: two folders that have had the same path differ in it."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


# ---- the manifest


def _check_manifest(folder: Path, target: Path) -> None:
    """Raise an InputError unless a folder is absent, or holds only files of its manifest, unchanged.

    Args:
        folder: what is checked; the target, or what was moved away from there.
        target: named in the error.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{target} is a file: give a folder")
    paths = {str(path.relative_to(folder)): path for path in _leaf_paths(folder)}
    digests = listed_digests(folder)
    if paths and MANIFEST not in paths:
        raise InputError(
            f"{target} holds {_first_name(paths)}, and no {MANIFEST} of ours: it is kept; give a new or an empty folder"
        )
    unlisted = [name for name in paths if name not in digests and name != MANIFEST]
    changed = [name for name in paths if name in digests and _sha256(paths[name]) != digests[name]]
    for names, problem in ((unlisted, "holds"), (changed, "has changed")):
        if names:
            raise InputError(
                f"{target} {problem} {_first_name(names)}, not written here: it is kept; move it, or give another folder"
            )


def _first_name(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ordered[0] + (f" and {len(ordered) - 1} more" if len(ordered) > 1 else "")


def _leaf_paths(folder: Path) -> Iterator[Path]:
    """Yield all files and links, and the folders that are empty."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from _leaf_paths(path)
        else:
            yield path


def listed_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that were written to a folder, by name; {} where nothing is listed."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return files if isinstance(files, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write_manifest(folder: Path) -> None:
    file = folder / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    manifest["files"] = {str(p.relative_to(folder)): _sha256(p) for p in sorted(_leaf_paths(folder)) if p != file}
    file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str | None:
    if file.is_symlink() or not file.is_file():
        return None
    return file_sha256(file)


# ---- replacing


def _replace(draft_folder: Path, target: Path) -> None:
    """Move the draft to the target; a folder that was there is then at the draft's path."""
    for path in [*draft_folder.rglob("*"), draft_folder]:
        to_disk(path)
    if not target.exists():
        draft_folder.rename(target)
    elif _exchange_paths(draft_folder, target):
        try:
            _check_manifest(draft_folder, target)  # once more: somebody may have put a file there meanwhile
        except BaseException:
            _exchange_paths(draft_folder, target)
            raise
    else:
        _check_manifest(target, target)
        _replace_in_two_steps(draft_folder, target)
    to_disk(target.parent)


def _exchange_paths(path: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if HAS_FLOCK else None  # CDLL(None) fails on Windows
    return rename is not None and not rename(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _replace_in_two_steps(draft_folder: Path, target: Path) -> None:
    """Replace the target in two steps, between which nothing is there."""
    moved_aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    with locked(target, moved_aside):  # `recover` of another process leaves it alone
        target.rename(moved_aside)
        try:
            draft_folder.rename(target)
        except BaseException:
            moved_aside.rename(target)
            raise
        shutil.rmtree(moved_aside)
