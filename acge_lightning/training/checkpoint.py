"""Checkpoints that are written whole or not at all, checked when read, and never run code."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft, replace_file, sweep, write_error

_LOG = logging.getLogger(__name__)
_SLACK = 4 << 20  # bytes of a checkpoint beside its tensors, and of its manifest
_BLOCK = 1 << 22
_MANIFEST = 1 << 16  # bytes that are read of one


class SafeCheckpointIO(CheckpointIO):
    """Writes and reads checkpoints so that a kill, a full disk or a flipped bit never costs more than the newest one.

    Writing: free space is checked first; a draft in the same folder is written, flushed to disk, and takes the place of the
    file at once. A manifest `<name>.sha256` beside it holds its digest, in the format of `sha256sum --check`.

    Reading: `weights_only=True` whatever the caller says, local files only, the archive stored and not compressed, the digest
    right. If the file is not good, the newest good one of its folder is read instead, and a warning names both. To read a
    checkpoint that other software wrote, write its manifest: `sha256sum x.ckpt > x.ckpt.sha256`. The digest tells damage; it
    is no signature.

    Removing: only a file `*.ckpt` and its manifest, and only in a folder that this process has written a checkpoint to. A
    checkpoint that is read names files of its own, which whoever made it chose.

    Raises:
        InputError: too little space, an address instead of a file, no good checkpoint.

    YAML::

        trainer:
          plugins: [{_target_: acge_lightning.training.SafeCheckpointIO}]
    """

    def __init__(self) -> None:
        self._swept: set[Path] = set()
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint in place of the file, if there is one."""
        path = _local(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(path.parent)
            _check_space(path.parent, size_of(checkpoint) + _SLACK)
            _write(path, checkpoint)
        except OSError as error:
            raise write_error(path, error) from error
        self._written.add(path.parent.resolve())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True, **kwargs: Any
    ) -> dict[str, Any]:
        """Read a checkpoint, or the newest good one of its folder."""
        path = _local(path)
        if path.parent.is_dir():
            self._sweep(path.parent)
        try:
            return read(path, map_location)
        except InputError as error:
            for other in _newest_first(path.parent):
                if other.name == path.name:
                    continue
                with suppress(InputError):
                    checkpoint = read(other, map_location)
                    _LOG.warning("%s; going on from %s (step %s) instead", error, other, checkpoint.get("global_step"))
                    return checkpoint
            raise InputError(f"{error}, and {path.parent} has no other good checkpoint") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its manifest; anything else is left, with a warning."""
        path = _local(path)
        if path.suffix != ".ckpt" or path.parent.resolve() not in self._written or path.is_dir():
            _LOG.warning("%s is not removed: it is no checkpoint of this run", path)
            return
        path.unlink(missing_ok=True)
        manifest = _manifest(path)
        if not manifest.is_dir():
            manifest.unlink(missing_ok=True)

    def _sweep(self, folder: Path) -> None:
        """Once a folder: remove what killed processes left behind."""
        if folder not in self._swept:
            self._swept.add(folder)
            sweep(folder)


def newest(*folders: str | Path) -> Path | None:
    """The good checkpoint with the most steps in some folders; of equals the one written last; None if none is good."""
    for path in _newest_first(*map(Path, folders)):
        try:
            with _open(path) as file:
                _verify(path, file)
            return path
        except (InputError, OSError) as error:
            _LOG.warning("%s", error)
    return None


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read and verify the content of a checkpoint, tensors and plain values.

    Raises:
        InputError: it is not there, damaged, without a manifest, or holds more than data.
    """
    try:
        with _open(path) as file:
            _verify(path, file)
            return torch.load(file, map_location=map_location, weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever a pickle may hold
        raise InputError(f"{path} cannot be read ({str(error).partition(chr(10))[0]})") from error


def read_unverified(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint without verifying it; its tensors stay on the disk until they are looked at.

    Raises:
        Exception: whatever a damaged file leads to.
    """
    with _open(path) as file:
        _check_archive(path, file)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def size_of(value: Any) -> int:
    """Bytes of the tensors in a nested value; memory that several share counts once.

    >>> weights = torch.zeros(10)
    >>> size_of({"a": weights, "b": [weights[:5], torch.zeros(2, dtype=torch.int8)]})
    42
    """
    storages = [tensor.untyped_storage() for tensor in _tensors(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


# ---- writing


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InputError(f"{path} is an address: download the checkpoint, check where it comes from, and name the file")
    return Path(path)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder} has {free:,} bytes free, a checkpoint needs {needed:,}: make room, or change dirpath")


def _write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Draft, manifest of the old and the new file, the new file, manifest of the new one.

    A process may die between any two of these. The file is then either the old or the new one, and the manifest lists it:
    the digest of the new one is added before the file changes, and that of the old one leaves after.
    """
    old = _digests(path) if path.exists() else []
    with _replacing(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save(checkpoint, cast("IO[bytes]", hashed))  # it calls write and flush only
        except RuntimeError as error:
            raise hashed.error or error from error
        new = hashed.digest.hexdigest()
        _write_manifest(path, [new, *(digest for digest in old if digest != new)])
    _write_manifest(path, [new])


def _write_manifest(path: Path, digests: list[str]) -> None:
    with _replacing(_manifest(path)) as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in digests).encode())


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the block has succeeded and it is on the disk; a link is replaced, not followed."""
    with draft(path) as new:
        with open(new, "wb") as file:
            yield file
        replace_file(path, new)


class _Hashed:
    """A file to write to; it takes the digest of its content, and keeps the error that torch hides behind another."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


# ---- reading


def _open(path: Path) -> IO[bytes]:
    """Open a regular file: a pipe would be waited for."""
    if not path.is_file():
        raise InputError(f"{path} is no file" if path.exists() else f"{path}: there is no such checkpoint")
    return open(path, "rb")


def _digests(path: Path) -> list[str]:
    with suppress(OSError, UnicodeDecodeError, InputError), _open(_manifest(path)) as file:
        return re.findall(r"^([0-9a-f]{64})\b", file.read(_MANIFEST).decode("ascii"), re.MULTILINE)
    return []


def _verify(path: Path, file: IO[bytes]) -> None:
    """Check that the file has a digest of its manifest, and is not larger in memory than on disk; then go to its beginning."""
    digests = _digests(path)
    if not digests:
        raise InputError(f"{path} has no manifest {_manifest(path).name}: it is not from here, or was not finished")
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(_BLOCK), b""):
        digest.update(block)
    if digest.hexdigest() not in digests:
        raise InputError(f"{path} is damaged: its digest is not that of {_manifest(path).name}")
    _check_archive(path, file)
    file.seek(0)


def _check_archive(path: Path, file: IO[bytes]) -> None:
    file.seek(0)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no checkpoint archive") from error
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > file.seek(0, 2):
        raise InputError(f"{path} is refused: it would be larger in memory than it is on disk")


def _newest_first(*folders: Path) -> list[Path]:
    """Checkpoints in descending order of their steps, as they state them, not verified; unreadable ones are left out."""
    steps: dict[Path, tuple[int, int]] = {}
    for path in chain.from_iterable(folder.glob("*.ckpt") for folder in folders):
        with suppress(Exception):  # whatever a damaged file may raise; verification says what is wrong
            steps[path] = int(read_unverified(path)["global_step"]), path.stat().st_mtime_ns
    return sorted(steps, key=lambda path: steps[path], reverse=True)
