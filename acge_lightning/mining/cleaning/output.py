"""Write a cleaned pile: rows that are kept, evaluation files as they are, rows that are left out with their reasons."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from acge_lightning.data.judgements import JudgementFiles
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.data.splits import files_called
from acge_lightning.errors import InputError
from acge_lightning.files.digest import file_sha256
from acge_lightning.files.gzipped import gzipped_text
from acge_lightning.mining.cleaning.pile import Pile, Reason
from acge_lightning.mining.cleaning.training_rows import DataFiles, Rows

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"


def digests(datasets: Sequence[DataFiles]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of all files of data sets: name -> file -> digest."""
    digest_of: dict[str, dict[str, str]] = {}
    for data in datasets:  # of several folders, which may have one name
        digest_of.setdefault(data.name, {}).update({str(file): file_sha256(file) for file in _all_files(data)})
    return digest_of


def write(
    pile: Pile,
    folder: Path,
    sources: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, Any],
    evaluated_only: Sequence[DataFiles] = (),
    quality: str | None = None,
) -> dict[str, Any]:
    """Write all files of a cleaned pile but its report.

    Args:
        pile: the rows.
        folder: empty; a data set's files come to `<family>/<name>/` in it, or to itself where there is only one, of files.
        sources: of `digests`, taken before the rows were read.
        settings: of the command, for the manifest.
        evaluated_only: data sets without training rows, whose files are copied.
        quality: name of a column that rows get, with four decimals; None: they get none. Sets with a corpus have no rows of
            their own, and get none.

    Returns:
        The manifest.

    Raises:
        InputError: an input has changed since, or rows have a column of that name already.
    """
    for data in [*evaluated_only, *(rows.data for rows in pile.rows)]:
        _copy_files(data, _target(folder, data))
    for number, rows in enumerate(pile.rows):
        _write_rows(rows, pile.kept[number], _target(folder, rows.data), _scored(rows, quality, pile.quality[number]))
        name = re.sub(r"[^\w.-]+", "-", rows.data.name)
        _write_quarantine(pile, number, folder / QUARANTINE / f"{name}.jsonl")
    _check_unchanged(sources)
    manifest = {
        "made_by": f"acge clean, acge-lightning {version('acge-lightning')}",
        "settings": dict(settings),
        "sources": {name: dict(files) for name, files in sources.items()},
        "counts": {rows.data.name: counts(pile, number) for number, rows in enumerate(pile.rows)},
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1, default=str)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def counts(pile: Pile, number: int) -> dict[str, Any]:
    """Count the rows of a data set: read, kept, left out and reported by reason, not readable, neutral."""
    rows = pile.rows[number]
    return {
        "read": len(rows) + len(rows.unread) + rows.neutral,
        "kept": int(pile.kept[number].sum()),
        "unreadable": len(rows.unread),
        "neutral": rows.neutral,
        "left_out": pile.counts()[number],
        "reported": pile.counts(reported=True)[number],
    }


def clash_of(pile: Pile, reason: Reason) -> dict[str, Any] | None:
    """Describe the row that a row clashes with: its data set, file, line and fields."""
    clash = pile.clash(reason)
    return None if clash is None else clash[0].where(clash[1]) | {"row": clash[0].record(clash[1])}


# ---- files


def _target(folder: Path, data: DataFiles) -> Path:
    """Where the files of a data set come to."""
    return folder / data.name if "/" in data.name else folder


def _copy_files(data: DataFiles, target: Path) -> None:
    """Copy the files that cleaning does not write anew."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _files_that_stay(data):
        is_inside = isinstance(data.source, Path) and data.source.is_dir()
        copy = target / (file.relative_to(cast(Path, data.source)) if is_inside else Path(file.name))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _scored(rows: Rows, quality: str | None, scores: np.ndarray) -> Callable[[int], dict[str, Any]]:
    """What gives a row its fields, with a score among them if they are asked for."""
    if quality is None:
        return rows.record

    def record(row: int) -> dict[str, Any]:
        fields = rows.record(row)
        if quality in fields:
            where = rows.where(row)
            raise InputError(
                f"{where['file']}, line {where['line']} has a column {quality!r} already: give quality another name"
            )
        return fields | {quality: round(float(scores[row]), 4)}

    return record


def _write_rows(rows: Rows, kept: np.ndarray, target: Path, record: Callable[[int], dict[str, Any]]) -> None:
    """Write the kept rows as `train.jsonl.gz`, or as `qrels/train.tsv`."""
    if rows.data.corpus is None:
        with gzipped_text(target / "train.jsonl.gz", errors="backslashreplace") as lines:
            _write_lines(lines, map(record, np.flatnonzero(kept).tolist()))
    else:
        left_out = {rows.record(row)["_id"] for row in np.flatnonzero(~kept).tolist()}
        issues = RowIssues(None)
        with (target / "qrels" / "train.tsv").open("w", encoding="utf-8", newline="") as lines:
            lines.write("query-id\tcorpus-id\tscore\n")
            for _, query, document, grade in JudgementFiles(rows.data.train, "skip", issues, 1.0).lines():
                if query not in left_out:
                    lines.write(f"{query}\t{document}\t{grade:g}\n")


def _write_quarantine(pile: Pile, number: int, file: Path) -> None:
    """Write the rows that are left out, with reason, value and the row that each clashes with; no file if there are none."""
    rows, dropped = pile.rows[number], pile.dropped[number]
    if not dropped and not rows.unread:
        return
    file.parent.mkdir(exist_ok=True)
    with file.open(
        "w", encoding="utf-8", errors="backslashreplace", newline=""
    ) as lines:  # half surrogate pairs, as JSON has them
        _write_lines(lines, rows.unread)
        for row, reason in sorted(dropped.items()):
            value = None if np.isnan(reason.value) else round(reason.value, 6)
            note = rows.where(row) | {"reason": reason.reason, "value": value, "row": rows.record(row)}
            _write_lines(lines, [note | {"clashes_with": clash_of(pile, reason)}])


def _write_lines(lines: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _files_that_stay(data: DataFiles) -> list[Path]:
    if data.corpus is None:
        return list(data.evaluation)
    return [*files_called(data.corpus, "corpus"), *files_called(data.corpus, "queries"), *data.evaluation]


def _all_files(data: DataFiles) -> list[Path]:
    return [*data.train, *_files_that_stay(data)]


def _check_unchanged(sources: Mapping[str, Mapping[str, str]]) -> None:
    for files in sources.values():
        for file, digest in files.items():
            if not Path(file).is_file() or file_sha256(Path(file)) != digest:
                raise InputError(f"{file} has changed while it was read: nothing is written, clean it again")
