"""Find the folder of an encoder by path or name, without loading it."""

from __future__ import annotations

import re
from pathlib import Path

from acge_lightning.errors import InputError
from acge_lightning.files.folder import recover
from acge_lightning.zoo.releases import RELEASES, Release

_DOWNLOADED_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]
_TORCH_FILES = "pytorch_model*.bin"  # fetched for a module without safetensors
_OF_A_MODEL = ("modules.json", "config.json")
_OF_A_RUN = ("export", "backbone")  # folders of a run, the first of which is there holds its model


def resolve(path_or_name: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder of a path, a run, a release's name or a hub id; files that the cache lacks are downloaded."""
    folder, name = check_name(path_or_name), str(path_or_name)
    if folder is not None:
        return folder
    release = find_release(name)
    repo, revision = (release.repo, revision or release.revision) if release else (name, revision)
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, allow_patterns=_DOWNLOADED_FILES))
        modules = [folder for folder in (fetched, *fetched.glob("*_Dense")) if not any(folder.glob("*.safetensors"))]
        if modules:
            patterns = [(folder.relative_to(fetched) / _TORCH_FILES).as_posix() for folder in modules]
            snapshot_download(repo, revision=revision, cache_dir=cache_dir, allow_patterns=patterns)
        return fetched
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name!r} is no folder here, and {repo!r} (revision {revision or 'main'}) cannot be fetched from the hub "
            f"({reason}): check the name and the network, or give a downloaded folder"
        ) from error


def find_release(path_or_name: str | Path) -> Release | None:
    """The release of a name or of a hub id; None for others, and for a folder of that name."""
    name = str(path_or_name)
    if Path(name).expanduser().is_dir():
        return None
    return RELEASES.get(name) or next((release for release in RELEASES.values() if release.repo == name), None)


def is_downloaded(release: Release, cache_dir: str | Path | None = None) -> bool:
    """Whether the weights of a release are in the package, or in the hub's cache on this machine, at its revision."""
    if release.packaged is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    found = (try_to_load_from_cache(release.repo, name, cache_dir=cache_dir, revision=release.revision) for name in names)
    return any(isinstance(file, str) for file in found)


def check_name(path_or_name: str | Path) -> Path | None:
    """The folder of a path or of an encoder in the package; None for other names and hub ids, of which the hub knows.

    Raises:
        InputError: it is none of them, or a folder without a model.
    """
    path = Path(path_or_name).expanduser()
    recover(path)
    if path.is_dir():
        return model_folder(path)
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that holds config.json and model.safetensors")
    name = str(path_or_name)
    release = RELEASES.get(name)
    if release is not None and release.packaged is not None:
        return release.packaged
    if release is None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(f"{name!r} is no folder, no hub id (owner/name) and none of the named models {sorted(RELEASES)}")
    return None


def model_folder(folder: Path) -> Path:
    """The folder of the model that a run has left in its own folder; any other folder is returned as it is.

    Raises:
        InputError: it holds runs, and no model of its own.
    """
    if any((folder / name).is_file() for name in _OF_A_MODEL):
        return folder
    for name in _OF_A_RUN:
        recover(folder / name)
        if (folder / name).is_dir():
            return folder / name
    runs = sorted(path for path in folder.glob("*/export") if path.is_dir())
    if runs:
        newest = max(runs, key=lambda path: path.stat().st_mtime)
        raise InputError(f"{folder} holds {len(runs)} runs: give one of them, for example {newest.parent}")
    return folder
