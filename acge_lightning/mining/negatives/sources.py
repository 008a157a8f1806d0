"""Read what negatives are mined for: retrieval folders and files of `query, positive[, negative]` rows, and further texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acge_lightning.data.dataset import CACHE, ROLES
from acge_lightning.data.judgements import JudgedQueries
from acge_lightning.data.made_of import made_of
from acge_lightning.data.records import TextRecord
from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.data.source import Source, find_source
from acge_lightning.data.splits import files_called, is_beir, split_files
from acge_lightning.data.store import MAX_BAD, OnBadRow, open_store
from acge_lightning.errors import InputError
from acge_lightning.files.digest import file_sha256


@dataclass(frozen=True)
class Sources:
    """Opened data sets.

    Args:
        train: judged queries that are mined for.
        others: judged queries of dev and test splits; their positives are known, and nothing is mined for them.
        texts: further candidates.
        digests: `file`, its name after that of its folder, and `sha256` of each that was read.
        made_of: what each of the paths was made of, of those that `acge clean` or `acge mine` wrote.
    """

    train: list[JudgedQueries]
    others: list[JudgedQueries]
    texts: list[str]
    digests: list[dict[str, str]]
    made_of: list[dict[str, Any]]


def read_sources(
    paths: str | Path | Sequence[str | Path],
    corpus: str | Path | Sequence[str | Path] = (),
    columns: Mapping[str, str] | None = None,
    splits: Mapping[str, str | None] | None = None,
    on_bad_row: OnBadRow = "raise",
    max_bad_fraction: float = MAX_BAD,
    cache_dir: str | Path = CACHE,
) -> Sources:
    """Open data sets, and check their rows.

    Args:
        paths: of one or several data sets, each as `TaskDataset` takes it: a folder, a file, or a pattern.
        corpus: files or patterns of files with a text a row, which are candidates too.
        columns: field -> column, as in `TaskDataset`, of all data sets.
        splits: other names of splits, as in `TaskDataset`, of all data sets.
        on_bad_row: as in `TaskDataset`.
        max_bad_fraction: as in `TaskDataset`.
        cache_dir: of checked rows.

    Raises:
        InputError: nothing there, no training rows in one of them, or rows that do not fit.
    """
    paths, corpus = (([given] if isinstance(given, (str, Path)) else given) for given in (paths, corpus))
    if not paths:
        raise InputError("source=[] names nothing: give a retrieval folder, or files of query, positive rows")
    reading: dict[str, Any] = {"on_bad_row": on_bad_row, "max_bad_fraction": max_bad_fraction, "cache_dir": cache_dir}
    train, others = [], []
    files: list[Path] = []
    for path in paths:
        files += _files(find_source(path), splits or {})
        dataset = RetrievalDataset(path, columns=columns, splits=splits, holdout=0, **reading)  # type: ignore[arg-type]
        train.append(dataset.train)
        others += [split for role, split in dataset.opened_splits.items() if role != "train"]
    texts: list[str] = []
    for path in corpus:
        source = find_source(path)
        corpus_files = [source] if isinstance(source, Path) else list(source)
        files += corpus_files
        store = open_store(corpus_files, TextRecord, {}, on_bad_row, cache_dir, max_bad_fraction)
        texts += store.column("text").to_pylist()
    digests = [{"file": f"{file.resolve().parent.name}/{file.name}", "sha256": file_sha256(file)} for file in files]
    made_before = [record for path in paths if (record := made_of(find_source(path))) is not None]
    return Sources(train, others, texts, digests, made_before)


def _files(source: Source, splits: Mapping[str, str | None]) -> Iterator[Path]:
    """The files that a data set is read from."""
    if is_beir(source):
        yield from files_called(source, "corpus")
        yield from files_called(source, "queries")
        source = source / "qrels"
    for role in ROLES:
        yield from split_files(source, role, splits)
