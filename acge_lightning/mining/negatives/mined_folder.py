"""Write mined rows as a data set of triplets, with a manifest of what they were made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np

from acge_lightning.errors import InputError
from acge_lightning.files.folder import whole_folder
from acge_lightning.files.gzipped import gzipped_text
from acge_lightning.mining.negatives.hard_negatives import HardNegatives
from acge_lightning.mining.negatives.judged_texts import JudgedTexts
from acge_lightning.mining.negatives.rules import Reason

FILES = ("train.jsonl", "train.jsonl.gz")


def mined_rows(
    judged: JudgedTexts, mined: HardNegatives, listed_scores: np.ndarray | None = None, least: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set of triplets, one a query, in the order of the queries.

    Negatives that the data sets list stand before the mined ones.

    Args:
        judged: queries and texts.
        mined: their negatives.
        listed_scores: Float32[l] of the listed negatives; None leaves out all scores.
        least: mined negatives that a query needs to have a row.
    """
    order = np.argsort(judged.listed[:, 0], kind="stable")
    listed_offsets = np.searchsorted(judged.listed[order, 0], np.arange(len(judged.queries) + 1))
    for row in np.flatnonzero(mined.counts >= least).tolist():
        positives = slice(*judged.positives.offsets[row : row + 2].tolist())
        listed = order[listed_offsets[row] : listed_offsets[row + 1]]
        count = int(mined.counts[row])
        negatives = [*judged.listed[listed, 1].tolist(), *mined.texts[row, :count].tolist()]
        content: dict[str, Any] = {
            "query": judged.queries[row],
            "positive": [judged.texts[text] for text in judged.positives.texts[positives].tolist()],
            "negative": [judged.texts[text] for text in negatives],
        }
        if listed_scores is not None:
            content["positive_scores"] = _rounded(mined.positive_scores[positives])
            content["negative_scores"] = _rounded(np.append(listed_scores[listed], mined.scores[row, :count]))
        yield content


def _rounded(scores: np.ndarray) -> list[float]:
    return [round(score, 6) for score in scores.tolist()]


def write_mined(folder: str | Path, file: str, rows: Iterator[dict[str, Any]], manifest: Mapping[str, Any]) -> Path:
    """Write rows and `manifest.json` to a folder, whole or not at all; equal rows make equal bytes.

    Args:
        folder: free, empty, or written here before.
        file: `train.jsonl` or `train.jsonl.gz`.
        rows: of `mined_rows`.
        manifest: plain data.

    Raises:
        InputError: the folder holds something else, cannot be written, or there is no row.
    """
    folder = Path(folder).expanduser()
    with whole_folder(folder) as draft:
        count = 0
        with _opened(draft / file) as lines:
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        if not count:
            raise InputError("no query has enough negatives: short=keep keeps them, or widen the rules")
        text = json.dumps({**manifest, "rows": count}, ensure_ascii=False, indent=2)
        (draft / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return folder


def _opened(file: Path) -> AbstractContextManager[IO[str]]:
    """A text file to write to."""
    return gzipped_text(file) if file.suffix == ".gz" else file.open("w", encoding="utf-8", newline="\n")


def counts(judged: JudgedTexts, mined: HardNegatives, wanted: int, least: int) -> dict[str, Any]:
    """Count what a manifest and a table say: queries, negatives, what each rule took, queries that are short."""
    removed = mined.removed.sum(0)
    return {
        "queries": len(judged.queries),
        "texts": judged.candidate_count,
        "positives": len(judged.positives.texts),
        "negatives": int(mined.counts.sum()),
        "listed negatives": len(judged.listed),
        "left out": judged.left_out,
        "removed": {reason.words: int(removed[reason]) for reason in Reason if removed[reason]},
        "queries with fewer than wanted": int((mined.counts < wanted).sum()),
        "queries without negatives": int((mined.counts == 0).sum()),
        "queries without a row": int((mined.counts < least).sum()),
    }
