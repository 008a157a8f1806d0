"""The rows of data sets that are cleaned, with the file and line of each, and the evaluation rows that they may not repeat."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from acge_lightning.data.judgements import JudgementFiles
from acge_lightning.data.readers import Span
from acge_lightning.data.reading import ParsedRow, Reading
from acge_lightning.data.records import (
    DocumentRecord,
    LabelledRecord,
    PairRecord,
    Record,
    ScoredPairRecord,
    TextRecord,
    TripletRecord,
)
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.data.source import Source, find_source
from acge_lightning.data.splits import files_called, is_beir, no_files, split_files
from acge_lightning.errors import InputError

RECORDS: dict[str, type[Record]] = {
    "classification": LabelledRecord,
    "clustering": LabelledRecord,
    "pair": PairRecord,
    "reranking": TripletRecord,
    "retrieval": TripletRecord,
    "sts": ScoredPairRecord,
    "triplet": TripletRecord,
    "unlabelled": TextRecord,
}
_FOLDERS = {family: family for family in RECORDS} | {"pairs": "retrieval"}  # of data sets, and the family of their rows
_EVALUATION_ROLES = ("dev", "test")
_SAY_FAMILY = f"say what its rows are: family=sts, or another of {', '.join(RECORDS)}"


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set.

    Args:
        family: a key of `RECORDS`.
        name: `sts/atec` of a data set among others, else that of its file or folder.
        source: where it lies.
        train: files of training rows; of a BEIR folder judgements.
        evaluation: files of dev and test rows, or judgements.
    """

    family: str
    name: str
    source: Source
    train: tuple[Path, ...]
    evaluation: tuple[Path, ...]

    @property
    def corpus(self) -> Path | None:
        """The folder of corpus and queries, of a set in the BEIR layout."""
        return self.source if is_beir(self.source) else None


@dataclass(frozen=True)
class ReadingSettings:
    """How files are read: `columns`, `labels` and `on_bad_row` as in `TaskDataset`."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[Any, float | None] = field(default_factory=dict)
    on_bad_row: str = "quarantine"


@dataclass
class Rows:
    """Rows of a data set, in their order.

    Args:
        data: whose rows.
        columns: field -> n values: `text`; `text1`, `text2`; `query`, `positive`, `negative` (tuples); `label` or `score`.
        file: Int32[n] the file of each row, a number of `files`.
        line: Int64[n] on which it begins, from 1.
        files: in the order in which they were read.
        other: n texts, the JSON of a row's further columns; None where it has none.
        unread: bad rows, as `RowIssues` writes them: file, line, reason, row.
        neutral: pairs of a neutral label, which no task trains on.
    """

    data: DataFiles
    columns: dict[str, list[Any]]
    file: np.ndarray
    line: np.ndarray
    files: tuple[Path, ...]
    other: list[str | None]
    unread: list[dict[str, Any]] = field(default_factory=list)
    neutral: int = 0

    def __len__(self) -> int:
        return len(self.line)

    def where(self, row: int) -> dict[str, Any]:
        """The data set, file and line of a row."""
        file = self.files[self.file[row]]
        return {"dataset": self.data.name, "file": str(file), "line": int(self.line[row])}

    def record(self, row: int) -> dict[str, Any]:
        """The fields of a row, and its further columns after them."""
        record = {name: values[row] for name, values in self.columns.items()}
        other = self.other[row]
        return record | (json.loads(other) if other else {})


def find_datasets(source: str | Path | Sequence[str], family: str | None, tasks: Collection[str] | None) -> list[DataFiles]:
    """List the data sets of a folder that holds `<family>/<name>/`, or the one of files whose family is given.

    Args:
        source: a folder of data sets; what lies under `pairs/` there are training pairs, of the family retrieval. With
            `family`, whatever a task's `path` may be.
        family: a key of `RECORDS`; None for a folder of data sets.
        tasks: names of data sets, or of the folders that they lie in; None: all.

    Raises:
        InputError: nothing is there, or a name is not among them.
    """
    if family is not None:
        if family not in RECORDS:
            raise InputError(f"family={family} is unknown: choose from {', '.join(RECORDS)}")
        return [_dataset(family, _name_of(source), find_source(source))]
    folder = find_source(source)
    if not isinstance(folder, Path) or not folder.is_dir():
        raise InputError(f"source={source} is no folder of data sets: {_SAY_FAMILY}")
    paths = [(kind, path) for kind in _FOLDERS for path in sorted((folder / kind).glob("*")) if path.is_dir()]
    if not paths:
        raise InputError(f"{folder} holds no data set: give a folder with <family>/<name>/, or {_SAY_FAMILY}")
    unknown = set(tasks or ()) - {name for kind, path in paths for name in (kind, path.name, f"{kind}/{path.name}")}
    if unknown:
        names = ", ".join(sorted({path.name for _, path in paths}))
        raise InputError(f"tasks: {min(unknown)!r} is not under {folder}: it has {names}")
    chosen = [(kind, p) for kind, p in paths if tasks is None or {kind, p.name, f"{kind}/{p.name}"} & set(tasks)]
    return [_dataset(_FOLDERS[kind], f"{kind}/{path.name}", path) for kind, path in chosen]


def _name_of(source: str | Path | Sequence[str]) -> str:
    return Path(str(source)).name if isinstance(source, (str, Path)) else Path(source[0]).name


def _dataset(family: str, name: str, source: Source) -> DataFiles:
    folder = source / "qrels" if is_beir(source) else source
    train = split_files(folder, "train", {})
    evaluation = [file for role in _EVALUATION_ROLES for file in split_files(folder, role, {})]
    if not train and not evaluation:
        raise no_files(source, ("train", *_EVALUATION_ROLES))
    return DataFiles(family, name, source, tuple(train), tuple(evaluation))


def read_rows(
    data: DataFiles, files: Sequence[Path], settings: ReadingSettings, quarantine: Path, span: Span | None = None
) -> Rows:
    """Read rows of some of a data set's files.

    Args:
        data: the data set.
        files: `data.train` or `data.evaluation`.
        settings: how they are read.
        quarantine: a file that bad rows may be written to, for a moment.
        span: of a single file, one of those into which `readers.spans` cuts it; not of a BEIR folder.

    Raises:
        InputError: a file cannot be read, or has columns that are not recognised; with on_bad_row=raise, a bad row.
    """
    issues = RowIssues(quarantine if settings.on_bad_row == "quarantine" else None)
    if data.corpus is None:
        rows = _plain_rows(data, files, issues, settings, span)
    else:
        rows = _judged_rows(data, files, issues, settings)
    if quarantine.exists():
        with quarantine.open(encoding="utf-8") as lines:
            rows.unread = [json.loads(line) for line in lines]
        quarantine.unlink()
    rows.neutral = issues.neutral
    return rows


def _plain_rows(
    data: DataFiles, files: Sequence[Path], issues: RowIssues, settings: ReadingSettings, span: Span | None
) -> Rows:
    record = RECORDS[data.family]
    reading = Reading(record, settings.columns, settings.labels, settings.on_bad_row, "", all_columns=True)
    names = [item.name for item in fields(record)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    numbers = {file: number for number, file in enumerate(files)}
    file, line, other = [], [], []
    for parsed in reading.parsed_rows(files, issues, span):
        for name, values in columns.items():
            values.append(getattr(parsed.record, name))
        file.append(numbers[parsed.file])
        line.append(parsed.line)
        other.append(_further_columns(parsed, names))
    return Rows(data, columns, np.array(file, np.int32), np.array(line, np.int64), tuple(files), other)


def _further_columns(parsed: ParsedRow, fields: Collection[str]) -> str | None:
    taken = {name for names in parsed.columns.values() for name in names} | set(fields)
    further = {name: value for name, value in parsed.row.items() if name not in taken}
    return json.dumps(further, ensure_ascii=False, default=str) if further else None


def _judged_rows(data: DataFiles, files: Sequence[Path], issues: RowIssues, settings: ReadingSettings) -> Rows:
    """The judged queries of a BEIR folder, a row each, with its texts."""
    folder = data.corpus or Path()
    documents = _documents(files_called(folder, "corpus"), issues, settings)
    query_files = files_called(folder, "queries")
    queries = _documents(query_files, issues, settings)
    judged: dict[str, tuple[list[str], list[str]]] = {}
    for (file, line), query, document, grade in JudgementFiles(files, settings.on_bad_row, issues, 1.0).lines():
        if query in queries and document in documents:
            judged.setdefault(query, ([], []))[grade <= 0].append(documents[document].record.texts[0])
        else:
            where = {"query-id": query, "corpus-id": document, "score": grade}
            issues.bad(file, line, where, ValueError(f"{query!r} or {document!r} is not there"))
    ids = [name for name in queries if name in judged]
    columns: dict[str, list[Any]] = {
        "query": [queries[name].record.texts[0] for name in ids],
        "positive": [tuple(judged[name][0]) for name in ids],
        "negative": [tuple(judged[name][1]) for name in ids],
    }
    numbers = {file: number for number, file in enumerate(query_files)}
    file_of = np.array([numbers[queries[name].file] for name in ids], np.int32)
    lines = np.array([queries[name].line for name in ids], np.int64)
    other: list[str | None] = [json.dumps({"_id": name}, ensure_ascii=False) for name in ids]
    return Rows(data, columns, file_of, lines, tuple(query_files), other)


def _documents(files: Sequence[Path], issues: RowIssues, settings: ReadingSettings) -> dict[str, ParsedRow]:
    reading = Reading(DocumentRecord, {}, {}, settings.on_bad_row, "")
    return {cast(DocumentRecord, parsed.record).key: parsed for parsed in reading.parsed_rows(files, issues)}
