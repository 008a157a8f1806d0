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

from acge_lightning.adaptive.first import Faiss
from acge_lightning.adaptive.funnel import FunnelIndex
from acge_lightning.adaptive.rows import Rows
from acge_lightning.adaptive.stages import Stage
from acge_lightning.adaptive.vectors import Vectors
from acge_lightning.errors import InputError
from acge_lightning.files import to_disk

if TYPE_CHECKING:
    from acge_lightning.encoder import Encoder

MANIFEST = "index.json"
_FORMAT = 1
_VERSION = re.compile(r"v[0-9a-f]{16}")
_AGAIN = "copy the index again, or build it again"


def save(index: FunnelIndex, folder: Path) -> Path:
    """Write the index; a process that dies meanwhile leaves the former one as it was.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_ours(folder))):
        raise InputError(f"{folder} holds something else than an index: give a new or an empty folder")
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


def _is_ours(folder: Path) -> bool:
    return all(path.name in (MANIFEST, f".{MANIFEST}", ".lock") or _VERSION.fullmatch(path.name) for path in folder.iterdir())


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
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
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
        known = {"version": str, "rows": int, "dim": int, "matryoshka_dims": list, "stages": list, "files": dict, "note": dict}
        wrong = [key for key, kind in known.items() if not isinstance(found[key], kind)]
        if wrong or not _VERSION.fullmatch(found["version"]):
            raise ValueError(f"{', '.join(wrong) or 'version'} has another form")
        return found
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): {_AGAIN}") from error


def load(folder: Path, encoder: Encoder | None = None, verify: bool = True) -> FunnelIndex:
    """The index of a folder; see `FunnelIndex.load`."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one that an index was saved to")
    with _locked(folder, fcntl.LOCK_SH):
        found = read_manifest(folder)
        version = folder / found["version"]
        for name, expected in found["files"].items():
            _check_file(version / Path(name).name, expected, verify)
        try:
            stages = tuple(Stage(**stage) for stage in found["stages"])
            dims = found["dim"], stages, tuple(found["matryoshka_dims"]), bool(found["force"])
            index = FunnelIndex(*dims, encoder, dict(found["prompts"]), found["note"])
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{folder / MANIFEST} is damaged ({error}): {_AGAIN}") from error
        _check_encoder(index, encoder, folder)
        if found["rows"]:
            index.parts = [_part(version, place, stage, found["rows"]) for place, stage in enumerate(stages)]
        if "rows.arrow" in found["files"]:
            index.rows = Rows.read(version / "rows.arrow")
    return index


def _check_file(file: Path, expected: dict[str, Any], verify: bool) -> None:
    try:
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


def _part(version: Path, place: int, stage: Stage, rows: int) -> Any:
    if place == 0 and stage.index != "exact":
        part = Faiss.read(stage, version / f"{place}.faiss")
    else:
        codes = _array(version / f"{place}.codes.npy")
        scale = _array(version / f"{place}.scale.npy") if stage.store == "int8" else None
        part = Vectors(stage.dim, stage.store, codes, scale)
        empty = Vectors(stage.dim, stage.store)
        fits = codes.dtype == empty.codes.dtype and codes.shape[1:] == empty.codes.shape[1:]
        if not fits or (scale is not None and (scale.dtype != torch.float32 or scale.shape != (len(codes),))):
            raise InputError(f"{version / f'{place}.codes.npy'} is not what its stage says ({stage.label}): {_AGAIN}")
    if len(part) != rows:
        raise InputError(f"{version}: stage {stage.label} has {len(part):,} rows, and {MANIFEST} says {rows:,}: {_AGAIN}")
    return part


def _array(file: Path) -> torch.Tensor:
    """On disk until it is read; "c" as torch warns of arrays that are read-only."""
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}): {_AGAIN}") from error
