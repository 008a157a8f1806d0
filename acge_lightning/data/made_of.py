"""What a data set was made of, where `acge clean` or `acge mine` wrote it: their manifest, which goes with what it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acge_lightning.data.source import Source
from acge_lightning.files.digest import file_sha256
from acge_lightning.files.folder import listed_digests

MANIFEST = "manifest.json"
_PARENTS = 3  # a set lies in <family>/<name>/ of what was cleaned, a file in the folder of its set


def made_of(source: Source) -> dict[str, Any] | None:
    """Read what the manifest above a data set says of it.

    Args:
        source: of `find_source`: the folder or the files of the data set.

    Returns:
        None where nothing of ours wrote it. Else `made_by`, the `sha256` of the manifest, what it says of this data set
        (`settings`, `sources` with their SHA-256, `counts`; of mined rows `model`, `scorer`, `rules`, `made_of` the sources),
        and `changed`, the files that are no longer as they were written.
    """
    folder = (source if isinstance(source, Path) else source[0]).resolve()
    for above in [folder, *folder.parents][: _PARENTS + 1]:
        manifest = _manifest(above / MANIFEST)
        if manifest is not None:
            return _of_dataset(manifest, above, folder)
    return None


def _manifest(file: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(manifest, dict) and str(manifest.get("made_by", "")).startswith("acge ")
    return manifest | {"sha256": file_sha256(file)} if is_ours else None


def _of_dataset(manifest: dict[str, Any], above: Path, folder: Path) -> dict[str, Any]:
    """What a manifest says of one of its data sets; of a mined folder all."""
    digests = listed_digests(above)
    inside = [name for name in digests if (above / name).is_relative_to(folder)]
    changed = sorted(name for name in inside if not (above / name).is_file() or file_sha256(above / name) != digests[name])
    names = [name for name in _keys(manifest, "counts") if folder.is_relative_to(above / name)]
    for key in ("sources", "counts"):
        if names and isinstance(manifest.get(key), dict):
            manifest[key] = {name: manifest[key].get(name) for name in names}
    return manifest | {"changed": changed}


def _keys(manifest: dict[str, Any], key: str) -> list[str]:
    return [str(name) for name in manifest[key]] if isinstance(manifest.get(key), dict) else []
