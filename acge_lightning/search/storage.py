"""An index on disk: written beside the former one, which it replaces at once, and checked when it is read.

index.json   the manifest: settings, and the bytes and SHA-256 of each file of the current version
v<hex>/      its files: arrays (npy), an index of FAISS, ids and texts (Arrow); no pickles
.lock        held by who writes (alone) or reads
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acge_lightning.errors import InputError, check_unicode
from acge_lightning.files.locks import NO_LINKS, hold
from acge_lightning.search.ann import Faiss
from acge_lightning.search.manifest import (
    FILE,
    MANIFEST,
    REMEDY,
    VERSION,
    check_file,
    check_names,
    file_names,
    read_manifest,
    write_manifest,
)
from acge_lightning.search.rows import Rows
from acge_lightning.search.staged import StagedVectors
from acge_lightning.search.stages import Stage, check_stages
from acge_lightning.search.vectors import BLOCK, Vectors


@dataclass
class SavedIndex:
    """What is kept of an index: all but its encoder.

    Args:
        dim: D, of the vectors that it takes.
        matryoshka_dims: the prefix sizes that the encoder was trained for.
        force: whether it may have stages of other prefix sizes.
        prompts: role (query, document) -> name of one of the encoder's prompts.
        note: plain data.
        vectors: its stages and their stores.
        rows: its ids and texts.
    """

    dim: int
    matryoshka_dims: tuple[int, ...]
    force: bool
    prompts: Mapping[str, str]
    note: dict[str, Any]
    vectors: StagedVectors
    rows: Rows


# ---- writing


def write_index(folder: Path, index: SavedIndex) -> Path:
    """Write an index; a process that dies meanwhile leaves the former one as it was.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    folder = folder.expanduser()
    check_folder(folder)
    version = folder / f"v{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                version.mkdir()
                _write_files(index, version)
                write_manifest(folder, version, _settings(index))
            finally:
                _sweep(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}): an index that was there before is kept") from error
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a folder in which an index cannot be saved, as it holds something else.

    Raises:
        InputError: it does.
    """
    check_unicode(str(folder), "the name of the index")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _holds_only_an_index(folder))):
        raise InputError(f"{folder} holds something else than an index: give a new or an empty folder")


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, perhaps a damaged one, and nothing else."""
    return (folder / MANIFEST).is_file() and _holds_only_an_index(folder)


def _holds_only_an_index(folder: Path) -> bool:
    """Whether all that is there is an index, perhaps a damaged one: only then is it replaced."""
    versions = [path for path in folder.iterdir() if VERSION.fullmatch(path.name)]
    other_names = {path.name for path in folder.iterdir()} - {path.name for path in versions}
    if other_names - {MANIFEST, f".{MANIFEST}", ".lock"}:
        return False
    if any(path.is_symlink() or not all(FILE.fullmatch(file.name) for file in path.iterdir()) for path in versions):
        return False
    return bool(versions) or MANIFEST not in other_names or _has_a_manifest(folder)


def _has_a_manifest(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def _write_files(index: SavedIndex, version: Path) -> None:
    if len(index.vectors):
        for number, store in enumerate(index.vectors.stores):
            if isinstance(store, Faiss):
                store.write(version / f"{number}.faiss")
            else:
                for name, array in store.arrays.items():
                    np.save(version / f"{number}.{name}.npy", array, allow_pickle=False)
    if index.rows.table is not None:
        index.rows.write(version / "rows.arrow")


def _settings(index: SavedIndex) -> dict[str, Any]:
    """What stands in the manifest beside its format, its version and its files."""
    return {
        "rows": len(index.vectors),
        "dim": index.dim,
        "matryoshka_dims": list(index.matryoshka_dims),
        "force": index.force,
        "stages": [asdict(stage) for stage in index.vectors.stages],
        "prompts": dict(index.prompts),
        "note": index.note,
    }


def _sweep(folder: Path) -> None:
    """Remove all versions but the current one; who reads an old one keeps its open files."""
    try:
        current = read_manifest(folder)["version"]
    except InputError:
        current = None
    for path in folder.iterdir():
        if VERSION.fullmatch(path.name) and path.name != current and (current or not (folder / MANIFEST).exists()):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which the system frees when the process ends; a folder that is read-only has none."""
    file = folder / ".lock"
    if shared and not os.access(file, os.W_OK):
        yield
        return
    handle = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
    try:
        hold(handle, shared=shared)
        yield
    finally:
        os.close(handle)


# ---- reading


def read_index(folder: Path, verify: bool = True) -> SavedIndex:
    """Read what `write_index` wrote; the vectors stay on disk until they are compared.

    Args:
        folder: of the index.
        verify: compare the digests of all files, not only their sizes, and look for numbers that are not finite.

    Raises:
        InputError: no index there, or a file that is cut or damaged.
    """
    folder = folder.expanduser()
    check_unicode(str(folder), "the name of the index")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one that an index was saved to")
    with _locked(folder, shared=True):
        manifest = read_manifest(folder)
        version, row_count, dims = folder / manifest["version"], manifest["rows"], tuple(manifest["matryoshka_dims"])
        for name, entry in manifest["files"].items():
            check_file(version / name, entry, verify)
        try:
            stages = tuple(Stage(**stage) for stage in manifest["stages"])
            stages = check_stages(stages, manifest["dim"], dims, manifest["force"])
            check_names(manifest, stages)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(f"{folder / MANIFEST} is damaged ({error}): {REMEDY}") from error
        stores = [_read_store(version, i, stage, row_count, verify) for i, stage in enumerate(stages)] if row_count else None
        rows = Rows.read(version / "rows.arrow", row_count) if "rows.arrow" in manifest["files"] else Rows()
        vectors = StagedVectors(stages, stores)
    return SavedIndex(manifest["dim"], dims, manifest["force"], manifest["prompts"], manifest["note"], vectors, rows)


def _read_store(version: Path, number: int, stage: Stage, row_count: int, verify: bool) -> Vectors | Faiss:
    files = [version / name for name in file_names(number, stage)]
    if files[0].suffix == ".faiss":
        return Faiss.read(stage, files[0], row_count)
    empty = Vectors(stage.dim, stage.store)
    codes = _read_array(files[0], empty.codes.dtype, (row_count, empty.codes.shape[1]), verify)
    scale = _read_array(files[1], torch.float32, (row_count,), verify) if len(files) > 1 else None
    return Vectors(stage.dim, stage.store, codes, scale)


def _read_array(file: Path, dtype: torch.dtype, shape: tuple[int, ...], verify: bool) -> torch.Tensor:
    """An array that is on disk until it is read; mode "c", as torch warns of arrays that are read-only."""
    try:
        array = torch.from_numpy(np.lib.format.open_memmap(file, mode="c"))
    except Exception as error:  # numpy reads the header as Python, so a damaged one raises whatever Python does
        raise InputError(f"{file} cannot be read ({str(error).splitlines()[0]}): {REMEDY}") from error
    if array.dtype != dtype or array.shape != shape or not array.is_contiguous():
        actual, expected = (f"{kind} {list(sizes)}" for kind, sizes in ((array.dtype, array.shape), (dtype, shape)))
        raise InputError(f"{file} holds {actual}, and {MANIFEST} says {expected}: {REMEDY}")
    if verify and dtype.is_floating_point and not all(block.isfinite().all() for block in array.split(BLOCK)):
        raise InputError(f"{file} holds a number that is NaN or infinite: {REMEDY}")
    return array
