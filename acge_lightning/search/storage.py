"""A funnel on disk: written beside the former one, which it replaces at once, and checked when it is read.

index.json   the manifest: settings, and the bytes and SHA-256 of each file of the current version
v<hex>/      its files: arrays (npy), an index of FAISS, ids and texts (Arrow); no pickles
.lock        held by who writes (alone) or reads
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acge_lightning.errors import InputError, check_unicode
from acge_lightning.files.atomic import to_disk
from acge_lightning.search.ann import Faiss
from acge_lightning.search.funnel import FunnelIndex
from acge_lightning.search.rows import Rows
from acge_lightning.search.stages import Stage
from acge_lightning.search.vectors import BLOCK, Vectors

if TYPE_CHECKING:
    from acge_lightning.encoder.encoder import Encoder

MANIFEST = "index.json"
_FORMAT = 1
_VERSION = re.compile(r"v[0-9a-f]{16}")
_FILE = re.compile(r"\d+\.(codes\.npy|scale\.npy|faiss)|rows\.arrow")
_AGAIN = "copy the index again, or build it again"


def save(index: FunnelIndex, folder: Path) -> Path:
    """Write the index; a process that dies meanwhile leaves the former one as it was.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    folder = folder.expanduser()
    check_folder(folder)
    new = folder / f"v{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, fcntl.LOCK_EX):
            try:
                new.mkdir()
                _write_files(index, new)
                _write_manifest(index, folder, new)
            finally:
                _sweep(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}): an index that was there before is kept") from error
    return folder


def check_folder(folder: Path) -> None:
    """An error if an index cannot be saved there, as the folder holds something else."""
    check_unicode(str(folder), "the name of the index")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_ours(folder))):
        raise InputError(f"{folder} holds something else than an index: give a new or an empty folder")


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, perhaps a damaged one, and nothing else."""
    return (folder / MANIFEST).is_file() and _is_ours(folder)


def _is_ours(folder: Path) -> bool:
    """Whether all that is there is an index, perhaps a damaged one: only then is it replaced."""
    versions = [path for path in folder.iterdir() if _VERSION.fullmatch(path.name)]
    others = {path.name for path in folder.iterdir()} - {path.name for path in versions}
    if others - {MANIFEST, f".{MANIFEST}", ".lock"}:
        return False
    if any(path.is_symlink() or not all(_FILE.fullmatch(file.name) for file in path.iterdir()) for path in versions):
        return False
    return bool(versions) or MANIFEST not in others or _says_it_is_ours(folder)


def _says_it_is_ours(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def _write_files(index: FunnelIndex, new: Path) -> None:
    if len(index):
        for place, part in enumerate(index.parts):
            if isinstance(part, Faiss):
                part.write(new / f"{place}.faiss")
            else:
                for name, array in part.arrays.items():
                    np.save(new / f"{place}.{name}.npy", array, allow_pickle=False)
    if index.rows.table is not None:
        index.rows.write(new / "rows.arrow")


def _write_manifest(index: FunnelIndex, folder: Path, new: Path) -> None:
    """Files to disk, then the manifest that names them: its rename is the switch."""
    files = {}
    for file in sorted(new.iterdir()):
        to_disk(file)
        with file.open("rb") as handle:
            files[file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
    to_disk(new)
    manifest = {
        "format": _FORMAT,
        "version": new.name,
        "rows": len(index),
        "dim": index.dim,
        "matryoshka_dims": list(index.matryoshka_dims),
        "force": index.force,
        "stages": [asdict(stage) for stage in index.stages],
        "prompts": dict(index.prompts),
        "note": index.note,
        "files": files,
    }
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    to_disk(draft)
    os.replace(draft, folder / MANIFEST)
    to_disk(folder)


def _sweep(folder: Path) -> None:
    """Remove all versions but the current one; who reads an old one keeps its open files."""
    try:
        current = read_manifest(folder)["version"]
    except InputError:
        current = None
    for path in folder.iterdir():
        if _VERSION.fullmatch(path.name) and path.name != current and (current or not (folder / MANIFEST).exists()):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Holds the folder's lock, which the system frees when the process ends; a folder that is read-only has none."""
    file = folder / ".lock"
    if how == fcntl.LOCK_SH and not os.access(file, os.W_OK):
        yield
        return
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


# ---- reading


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the index says of itself, without its files.

    Raises:
        InputError: no index there, or a manifest that is damaged or of another format.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"{folder} holds no index ({MANIFEST} is missing): build one and save it there")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise InputError(f"{file} has format {found['format']!r}, and this version reads {_FORMAT}: build the index again")
        _check_manifest(found)
        return found
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): {_AGAIN}") from error


_MANIFEST = {"version": str, "rows": int, "dim": int, "matryoshka_dims": list, "force": bool, "stages": list}
_MANIFEST |= {"prompts": dict, "note": dict, "files": dict}


def _check_manifest(found: dict[str, Any]) -> None:
    """A KeyError or a ValueError if it has not the form that `_write_manifest` gives it."""
    wrong = [key for key, kind in _MANIFEST.items() if type(found[key]) is not kind]
    if not wrong:
        sizes = [found["dim"], found["rows"], *found["matryoshka_dims"]]
        good = {
            "version": _VERSION.fullmatch(found["version"]),
            "dim, rows or matryoshka_dims": all(type(size) is int and 0 <= size < 2**31 for size in sizes),
            "prompts": all(isinstance(name, str) for name in found["prompts"].values()),
            "files": all(_FILE.fullmatch(name) for name in found["files"]),
        }
        wrong = [key for key, fits in good.items() if not fits]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} has another form")
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair could not be saved again


def load(folder: Path, encoder: Encoder | None = None, verify: bool = True) -> FunnelIndex:
    """The index of a folder; see `FunnelIndex.load`."""
    folder = folder.expanduser()
    check_unicode(str(folder), "the name of the index")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one that an index was saved to")
    with _locked(folder, fcntl.LOCK_SH):
        found = read_manifest(folder)
        version, rows = folder / found["version"], found["rows"]
        for name, expected in found["files"].items():
            _check_file(version / name, expected, verify)
        try:
            stages = tuple(Stage(**stage) for stage in found["stages"])
            dims = found["dim"], stages, tuple(found["matryoshka_dims"]), found["force"]
            index = FunnelIndex(*dims, encoder, found["prompts"], found["note"])
            _check_names(found, stages)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(f"{folder / MANIFEST} is damaged ({error}): {_AGAIN}") from error
        _check_encoder(index, encoder, folder)
        if rows:
            index.parts = [_part(version, place, stage, rows, verify) for place, stage in enumerate(stages)]
        if "rows.arrow" in found["files"]:
            index.rows = Rows.read(version / "rows.arrow", rows)
    return index


def _check_names(found: dict[str, Any], stages: tuple[Stage, ...]) -> None:
    """A ValueError unless there is a digest of each file that the stages are read from, and of no other."""
    names = {name for place, stage in enumerate(stages) for name in _names(place, stage) if found["rows"]}
    wrong = names ^ (found["files"].keys() - {"rows.arrow"})
    if wrong:
        raise ValueError(f"its stages are not of its files: {', '.join(sorted(wrong))}")


def _names(place: int, stage: Stage) -> tuple[str, ...]:
    """Of the files of a stage."""
    if place == 0 and stage.index != "exact":
        return (f"{place}.faiss",)
    return (f"{place}.codes.npy", f"{place}.scale.npy")[: 2 if stage.store == "int8" else 1]


def _check_file(file: Path, expected: dict[str, Any], verify: bool) -> None:
    try:
        if not file.is_file():
            raise OSError("it is no file" if file.exists() else "there is no such file")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise InputError(f"{file} is damaged: it has {size:,} bytes, and {expected['bytes']:,} were written: {_AGAIN}")
        if verify:
            with file.open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != expected["sha256"]:
                    raise InputError(f"{file} is damaged: its SHA-256 is not that of {MANIFEST}: {_AGAIN}")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error}): {_AGAIN}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{file.parent.parent / MANIFEST} is damaged (entry of {file.name}): {_AGAIN}") from error


def _check_encoder(index: FunnelIndex, encoder: Encoder | None, folder: Path) -> None:
    if encoder is not None and (encoder.dim, tuple(encoder.matryoshka_dims)) != (index.dim, index.matryoshka_dims):
        raise InputError(
            f"{folder} was built with an encoder of {index.dim} dims, trained for {list(index.matryoshka_dims)}; this one has "
            f"{encoder.dim}, trained for {list(encoder.matryoshka_dims)}: give the same one, or build the index again"
        )


def _part(version: Path, place: int, stage: Stage, rows: int, verify: bool) -> Any:
    files = [version / name for name in _names(place, stage)]
    if files[0].suffix == ".faiss":
        return Faiss.read(stage, files[0], rows)
    empty = Vectors(stage.dim, stage.store)
    codes = _array(files[0], empty.codes.dtype, (rows, empty.codes.shape[1]), verify)
    scale = _array(files[1], torch.float32, (rows,), verify) if len(files) > 1 else None
    return Vectors(stage.dim, stage.store, codes, scale)


def _array(file: Path, dtype: torch.dtype, shape: tuple[int, ...], verify: bool) -> torch.Tensor:
    """On disk until it is read; "c" as torch warns of arrays that are read-only. With `verify`, numbers are finite."""
    try:
        array = torch.from_numpy(np.lib.format.open_memmap(file, mode="c"))
    except Exception as error:  # numpy reads the header as Python, so a damaged one raises whatever Python does
        raise InputError(f"{file} cannot be read ({str(error).splitlines()[0]}): {_AGAIN}") from error
    if array.dtype != dtype or array.shape != shape or not array.is_contiguous():
        found, wanted = (f"{kind} {list(sizes)}" for kind, sizes in ((array.dtype, array.shape), (dtype, shape)))
        raise InputError(f"{file} holds {found}, and {MANIFEST} says {wanted}: {_AGAIN}")
    if verify and dtype.is_floating_point and not all(part.isfinite().all() for part in array.split(BLOCK)):
        raise InputError(f"{file} holds a number that is NaN or infinite: {_AGAIN}")
    return array
