"""The manifest of an index, `index.json`: its settings, and the bytes and SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import replace_file, to_disk
from acge_lightning.search.stages import Stage

MANIFEST = "index.json"
VERSION = re.compile(r"v[0-9a-f]{16}")  # the folder of the files
FILE = re.compile(r"\d+\.(codes\.npy|scale\.npy|faiss)|rows\.arrow")
REMEDY = "copy the index again, or build it again"
_FORMAT = 1
_TYPES = {"version": str, "rows": int, "dim": int, "matryoshka_dims": list, "force": bool, "stages": list}
_TYPES |= {"prompts": dict, "note": dict, "files": dict}


def write_manifest(folder: Path, version: Path, settings: dict[str, Any]) -> None:
    """Put the files of a version on the disk, then the manifest that names them: its rename is the switch."""
    files = {}
    for file in sorted(version.iterdir()):
        to_disk(file)
        with file.open("rb") as handle:
            files[file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
    to_disk(version)
    manifest = {"format": _FORMAT, "version": version.name, **settings, "files": files}
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    replace_file(folder / MANIFEST, draft)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the index says of itself, without its files.

    Raises:
        InputError: no index there, or a manifest that is damaged or of another format.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"{folder} holds no index ({MANIFEST} is missing): build one and save it there")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise InputError(
                f"{file} has format {manifest['format']!r}, and this version reads {_FORMAT}: build the index again"
            )
        _check_manifest(manifest)
        return manifest
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error


def _check_manifest(manifest: dict[str, Any]) -> None:
    """A KeyError or a ValueError if it has not the form that `write_manifest` gives it."""
    wrong = [key for key, kind in _TYPES.items() if type(manifest[key]) is not kind]
    if not wrong:
        sizes = [manifest["dim"], manifest["rows"], *manifest["matryoshka_dims"]]
        good = {
            "version": VERSION.fullmatch(manifest["version"]),
            "dim, rows or matryoshka_dims": all(type(size) is int and 0 <= size < 2**31 for size in sizes),
            "prompts": all(isinstance(name, str) for name in manifest["prompts"].values()),
            "files": all(FILE.fullmatch(name) for name in manifest["files"]),
        }
        wrong = [key for key, fits in good.items() if not fits]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} has another form")
    json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate pair could not be saved again


def check_names(manifest: dict[str, Any], stages: Sequence[Stage]) -> None:
    """A ValueError unless there is a digest of each file that the stages are read from, and of no other."""
    names = {name for number, stage in enumerate(stages) for name in file_names(number, stage) if manifest["rows"]}
    wrong = names ^ (manifest["files"].keys() - {"rows.arrow"})
    if wrong:
        raise ValueError(f"its stages are not of its files: {', '.join(sorted(wrong))}")


def file_names(number: int, stage: Stage) -> tuple[str, ...]:
    """The files of a stage."""
    if number == 0 and stage.index != "exact":
        return (f"{number}.faiss",)
    return (f"{number}.codes.npy", f"{number}.scale.npy")[: 2 if stage.store == "int8" else 1]


def check_file(file: Path, entry: dict[str, Any], verify: bool) -> None:
    """Check that a file has the bytes, and with `verify` the digest, of its entry in the manifest.

    Raises:
        InputError: it has not, or is no file.
    """
    try:
        if not file.is_file():
            raise OSError("it is no file" if file.exists() else "there is no such file")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise InputError(f"{file} is damaged: it has {size:,} bytes, and {entry['bytes']:,} were written: {REMEDY}")
        if verify:
            with file.open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != entry["sha256"]:
                    raise InputError(f"{file} is damaged: its SHA-256 is not that of {MANIFEST}: {REMEDY}")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error}): {REMEDY}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{file.parent.parent / MANIFEST} is damaged (entry of {file.name}): {REMEDY}") from error
