"""One score a row, of what the steps of cleaning measured: the weight that training can draw rows by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.consistency import Ranks
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.label_noise import LabelConfidence

LOWEST = 0.001


def quality(
    rows: int, confidence: LabelConfidence | None = None, ranks: Iterable[Ranks] = (), reported: Iterable[Findings] = ()
) -> np.ndarray:
    """Score the quality of rows.

    quality = max(.001, label · consistency · ½^reports), where

    - label = p(given label) / p(most likely label), out of fold; 1 if the label is the most likely one, or was not judged
    - consistency = 1 - (r - 1) / m of a positive that ranks r in a pool of m; of several rankings the best; 1 without one
    - reports = how many of the findings that were reported and not dropped (near duplicates of short texts) list the row

    Args:
        rows: how many there are.
        confidence: of their labels.
        ranks: of their positives.
        reported: what was found and not dropped.

    Returns:
        Float64[rows] in (0, 1], 1 for rows that nothing speaks against.

    Raises:
        InputError: something is of other rows.

    YAML, of a file to which it was written as the column `quality`::

        data: {weight_column: quality}

    >>> quality(3, ranks=[Ranks(np.array([1.0, 6.0, 10.0]), np.array([0, 0, 0]), 10)]).round(3).tolist()
    [1.0, 0.5, 0.1]
    """
    score = np.ones(rows)
    if confidence is not None:
        judged = confidence.judged
        _check(rows, len(judged), "label confidences")
        score[judged] *= confidence.given[judged] / confidence.largest[judged]
    consistencies = [1 - (one.ranks - 1) / max(1, one.pool) for one in ranks]
    for consistency in consistencies:
        _check(rows, len(consistency), "ranks")
    if consistencies:
        score *= np.max(consistencies, axis=0)
    for findings in reported:
        if len(findings) and findings.rows[-1] >= rows:
            raise InputError(f"{findings.reason}: row {findings.rows[-1]} is not among the {rows} rows")
        score[findings.rows] /= 2
    return np.maximum(score, LOWEST)


def _check(rows: int, others: int, what: str) -> None:
    if rows != others:
        raise InputError(f"there are {rows} rows and {others} {what}: give each row its own")
