"""Which files of a folder, of a pattern or of a list are those of a split: by their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from acge_lightning.data.source import SUFFIXES, Source, has_rows, listed
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "eval", "development"),
    "test": ("test", "testing"),
}
_NO_ROWS = re.compile(
    r"(readme|licen[cs]e|dataset_infos?|dataset_dict|state|metadata|manifest|acge\.json)\b", re.IGNORECASE
)  # names of files
_FOLDER, _ENDS = 10, 20  # a folder `train`, and a name like `company_train`, count after all files `train` and `train-1`
_KEY = "task.NAME.data."


def split_files(source: Source, role: str, splits: Mapping[str, str | None], key: str = "") -> list[Path]:
    """The files of a split; [] if there are none.

    A folder's are those that `splits` names, else those that are called so (`train.csv`, `validation-00000-of-00002.parquet`,
    `company_test.xlsx`; in it, in its `data/`, or in a folder `train`). Where nothing in it has the name of a split, all its
    files are training rows, which a warning says. So are the files of a pattern or a list that have no such name, and a single
    file whatever its name.

    Args:
        source: of `find_source`.
        role: `train`, `dev` or `test`.
        splits: role -> another name, a file, or None for no such split.
        key: of the data set's settings, with a dot at its end, for messages.

    Raises:
        InputError: a file of `splits` is not there, or the names leave open which files are meant.
    """
    if role in splits:
        name = splits[role]
        return [] if name is None else _named(source, role, str(name))
    if isinstance(source, Path) and source.is_file():
        return [source] if role == "train" else []
    elsewhere = [file for other in splits for file in split_files(source, other, splits, key)]
    if isinstance(source, tuple):
        files = [file for file in source if file not in elsewhere and (_split_of(_stem(file)) or "train") == role]
        if files and role != "train":
            _LOG.warning("%s: read as %s rows, as the name says, not as training rows", listed(files), role)
        return files
    files = _chosen(source, _of_role(source, role), f"or name one, +{key or _KEY}splits.{role}={{}}")
    return files or (_nameless(source, elsewhere) if role == "train" else [])


def _named(source: Source, role: str, name: str) -> list[Path]:
    """The files of a split that is called otherwise, or its one file."""
    if name.lower().endswith(SUFFIXES):
        inside = [file for file in source if file.name == name] if isinstance(source, tuple) else []
        folder = source[0].parent if isinstance(source, tuple) else source if source.is_dir() else source.parent
        file = inside[0] if inside else folder / name
        if not file.is_file():
            raise InputError(f"splits.{role}={name}: there is no file {file}")
        return [file]
    if isinstance(source, tuple):
        return [file for file in source if _rank(_stem(file), name.lower()) is not None]
    if source.is_file():
        return [source] if role == "train" else []
    return files_called(source, name)


def files_called(folder: Path, name: str) -> list[Path]:
    """The files of a name: `corpus.jsonl.gz`, `corpus-00000-of-00002.parquet`, in a folder, in its `data/` or its `corpus/`.

    Raises:
        InputError: several may be meant.
    """
    if not folder.is_dir():
        return []
    named = [entry for entry in _called(folder, (name.lower(),)) if entry[0] < _ENDS]
    return _chosen(folder, named, "and leave {}")


def is_beir(source: Source) -> TypeGuard[Path]:
    """Whether a folder has the BEIR layout: a corpus, queries and judgements."""
    return isinstance(source, Path) and bool(files_called(source, "corpus"))


def warn_of_left_files(source: Source, taken: Iterable[Path], splits: Mapping[str, str | None], key: str = "") -> None:
    """Name the files of rows in a folder that no split takes, but those of splits that `splits` speaks of."""
    if isinstance(source, tuple) or not source.is_dir():
        return
    folder, taken = source / "qrels" if is_beir(source) else source, set(taken)
    left = [file for file, split in _all_files(folder) if file not in taken and split not in splits]
    if left:
        example = f"+{key or _KEY}splits.test={left[0].relative_to(folder).as_posix()}"
        _LOG.warning("%s: no split takes %s; to use a file, say of which split it is: %s", folder, listed(left), example)


def no_files(source: Source, names: Sequence[str]) -> InputError:
    """The error that a source has no file of any split, which names what it has."""
    no_file = f"no file of a split ({', '.join(names)})"
    if isinstance(source, tuple):
        return InputError(f"{listed(source)}: {no_file} is among them: name one with `splits`")
    if not source.is_dir():
        return InputError(f"{source} is one file, which is of train, and so there is {no_file}: name its folder")
    folder = source / "qrels" if is_beir(source) and (source / "qrels").is_dir() else source
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    holds = f"it holds {listed(entries)}" if entries else "it is empty"
    kinds = "" if any(map(has_rows, entries)) else f", of {', '.join(SUFFIXES)}"
    return InputError(f"{folder} has {no_file}, {holds}: name its files with `splits`{kinds}")


# ---- by their names


def _stem(entry: Path) -> str:
    """The name of a file or folder in small letters, without the suffixes of files of rows."""
    name = entry.name.lower()
    return name.removesuffix(".gz").rpartition(".")[0] if name.endswith(SUFFIXES) else name


def _rank(stem: str, name: str) -> int | None:
    """How a file is called after a name: 0 `train`, 1 `train-00001`, 2 `company_train`; None for not at all."""
    if stem == name:
        return 0
    if re.match(rf"{re.escape(name)}[-_. \d]", stem):
        return 1
    return 2 if re.search(rf"[-_. ]{re.escape(name)}([-_. ]?\d+)?([-_. ]of[-_. ]\d+)?$", stem) else None


def _split_of(stem: str) -> str | None:
    """The split after which a file is called."""
    ranks = [(rank, role) for role, names in SPLIT_NAMES.items() for name in names if (rank := _rank(stem, name)) is not None]
    return min(ranks)[1] if ranks else None


def _homes(folder: Path) -> list[Path]:
    return [home for home in (folder, folder / "data") if home.is_dir()]


def _files_in(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if has_rows(file) and not _NO_ROWS.match(file.name) and file.is_file()]


def _all_files(folder: Path) -> list[tuple[Path, str | None]]:
    """The files of rows in a folder, in its `data/`, and in folders with the name of a split; and the split of each."""
    homes = _homes(folder)
    folders = [entry for home in homes for entry in sorted(home.iterdir()) if entry.is_dir() and _split_of(_stem(entry))]
    files = [(file, _split_of(_stem(file))) for home in homes for file in _files_in(home)]
    return files + [(file, _split_of(_stem(folder))) for folder in folders for file in _files_in(folder)]


Named = tuple[int, str, list[Path]]  # how plainly, 0 first; after which name; and files


def _called(folder: Path, names: Sequence[str]) -> Iterator[Named]:
    """What of a folder is called after one of some names."""
    for depth, home in enumerate(_homes(folder)):
        for entry in sorted(home.iterdir()):
            ranks = [(rank, name) for name in names if (rank := _rank(_stem(entry), name)) is not None]
            if not ranks:
                continue
            rank, name = min(ranks)
            if entry.is_dir() and rank == 0:
                yield _FOLDER + depth, name, _files_in(entry)
            elif has_rows(entry) and entry.is_file():
                yield (_ENDS + depth if rank == 2 else 2 * depth + rank), name, [entry]


def _of_role(folder: Path, role: str) -> list[Named]:
    named = _called(folder, SPLIT_NAMES[role])
    return [entry for entry in named if entry[0] in (_FOLDER, _FOLDER + 1) or _split_of(_stem(entry[2][0])) == role]


def _chosen(folder: Path, named: Iterable[Named], remedy: str) -> list[Path]:
    """The files that are called so most plainly."""
    with_files = [entry for entry in named if entry[2]]
    best = [entry for entry in with_files if entry[0] == min(with_files)[0]]
    for _, name, files in best:
        if name != best[0][1]:
            raise _ambiguous(folder, best[0][2][0], files[0], remedy)
    chosen = [file for _, _, files in best for file in files]
    _check_distinct(folder, chosen, remedy)
    return chosen


def _check_distinct(folder: Path, files: Sequence[Path], remedy: str) -> None:
    seen: dict[tuple[Path, str], Path] = {}
    for file in files:
        twin = seen.setdefault((file.parent, _stem(file)), file)
        if twin != file:
            raise _ambiguous(folder, twin, file, remedy)


def _ambiguous(folder: Path, one: Path, other: Path, remedy: str) -> InputError:
    names = [file.relative_to(folder).as_posix() for file in (one, other)]
    return InputError(f"{folder}: {names[0]} and {names[1]} may both be meant: move one away, {remedy.format(names[1])}")


def _nameless(folder: Path, elsewhere: Sequence[Path]) -> list[Path]:
    """All files of a folder of which none is called after a split, but those that are named elsewhere."""
    candidates = [(file, split) for file, split in _all_files(folder) if file not in elsewhere]
    files = [file for file, split in candidates if split is None]
    if not files or len(files) < len(candidates):
        return []
    _check_distinct(folder, files, "and leave {}")
    _LOG.warning("%s: no name says a split: %s are training rows", folder, listed(files))
    return files
