"""Where the rows of a data set lie: a file, the files of a pattern or a list, a folder, or a data set of the hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from acge_lightning.errors import InputError

SUFFIXES = (
    *(".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"),
    *(".xlsx", ".xls", ".ods"),
)
Source = Path | tuple[Path, ...]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_LOCAL = re.compile(r"[./~\\]|[a-zA-Z]:[\\/]")
_MOST_NAMED = 5


def has_rows(file: Path) -> bool:
    """Whether a file's name is that of a file of rows; hidden files, and what Excel leaves beside an open one, are none."""
    return file.name.lower().endswith(SUFFIXES) and not file.name.startswith((".", "~$"))


# ---- where data lies


def locate(path: str | Path) -> Path:
    """Where data lies: a file or folder, `sample:…` of the packaged sample, or a data set of the hub (`owner/name`).

    Raises:
        InputError: it is not there, or cannot be fetched.
    """
    name = str(path)
    if name.startswith("sample:"):
        path = Path(__file__).parents[1] / "sample" / name.removeprefix("sample:")
    local = Path(path).expanduser()
    if local.exists():
        return local
    if not _HUB_NAME.fullmatch(name) or _LOCAL.match(name) or has_rows(local) or local.parent.exists():
        raise InputError(f"{name} is not there: {nearest(local)}")
    from huggingface_hub import snapshot_download

    try:
        wanted = [f"*{suffix}" for suffix in SUFFIXES]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name} is not here ({nearest(local)}), and no data set of that name can be fetched from the hub ({reason})"
        ) from error


def nearest(path: Path) -> str:
    """The folder on the way to a path that is there, and what of it is called nearly as the path goes on."""
    path = Path(os.path.abspath(path))
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        return f"{parent} is a file, not a folder"
    wanted = path.relative_to(parent).parts[0]
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError as error:
        return f"{parent} cannot be read ({error.strerror})"
    lower = {name.lower(): name for name in names}
    close = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=3)]
    return f"{parent} has no {wanted!r}, but {' and '.join(map(repr, close))}" if close else f"{parent} has no {wanted!r}"


def find_source(path: str | Path | Sequence[str | Path]) -> Source:
    """Where the rows of a data set lie: as `locate`, or the files of a pattern (`data/*.jsonl`) or of a list.

    Raises:
        InputError: one of them is not there, a pattern matches no file of rows, a list names none, or a folder.
    """
    if isinstance(path, (str, Path)):
        local = Path(path).expanduser()
        return _matching(local) if has_magic(str(local)) and not local.exists() else locate(path)
    files: list[Path] = []
    for item in path:
        source = find_source(item)
        if isinstance(source, Path) and source.is_dir():
            raise InputError(f"path: {item} is a folder in a list of files: name its files, {item}/*.jsonl for example")
        files += [source] if isinstance(source, Path) else source
    if not files:
        raise InputError("path=[] names no file: give one")
    return tuple(dict.fromkeys(files))


def _matching(pattern: Path) -> tuple[Path, ...]:
    entries = [Path(name) for name in sorted(glob(str(pattern), recursive=True))]
    files = tuple(file for file in entries if has_rows(file) and file.is_file())
    if not files:
        matches = f"matches {listed(entries)}, and none is a file of rows" if entries else "matches no file"
        raise InputError(f"{pattern} {matches}: give files of {', '.join(SUFFIXES)}")
    return files


def listed(files: Sequence[Path]) -> str:
    """The names of some files, the first of them written out."""
    more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
    return ", ".join(file.name for file in files[:_MOST_NAMED]) + more


# ---- the files of a split
