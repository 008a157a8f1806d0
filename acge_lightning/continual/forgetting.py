"""Measures of what training on one task after another did to all of them, from a matrix of scores.

`matrix` is Float[T, T]: row i, column j holds the score of task j after training on task i; what has not been measured is NaN.
`start` is Float[T]: the scores before the first.

References: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840) for both transfers, Chaudhry et al. 2018 (arXiv 1801.10112) for
forgetting. Differs: their `start` is a network at random; ours is whatever training began with.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from acge_lightning.metrics.task_metrics import Retrieval


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean over all tasks but the last of R[T-1, j] - R[j, j]: what later training did to a task; below 0 it was forgotten.

    >>> backward_transfer([[0.8, 0.1], [0.5, 0.9]])
    -0.30000000000000004
    """
    r = _square(matrix)
    return _mean((r[-1] - r.diagonal())[:-1])


def forward_transfer(matrix: ArrayLike, start: ArrayLike) -> float:
    """Mean over all tasks but the first of R[j-1, j] - start[j]: what earlier training did for a task before its own."""
    r, b = _square(matrix), np.asarray(start, dtype=float)
    return _mean(r.diagonal(1) - b[1:])


def forgetting(matrix: ArrayLike) -> float:
    """Mean over all tasks but the last of max_i R[i, j] - R[T-1, j], i from j to T-2: the best score less the one at the end.

    >>> round(forgetting([[0.8, 0.1, 0.1], [0.9, 0.7, 0.2], [0.6, 0.6, 0.9]]), 6)
    0.2
    """
    r = _square(matrix)
    return _mean([np.max(r[j:-1, j]) - r[-1, j] for j in range(len(r) - 1)])


def gain(matrix: ArrayLike, start: ArrayLike) -> float:
    """Mean over all tasks but the first of R[j, j] - R[j-1, j]: what training on a task gave it; of one, R[0, 0] - start[0]."""
    r, b = _square(matrix), np.asarray(start, dtype=float)
    return _mean(r.diagonal()[1:] - r.diagonal(1)) if len(r) > 1 else float(r[0, 0] - b[0])


def measures(matrix: ArrayLike, start: ArrayLike) -> dict[str, float]:
    """All measures of this file, and `mean`: the mean score of all tasks at the end."""
    return {
        "mean": _mean(_square(matrix)[-1]),
        "gain": gain(matrix, start),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix, start),
    }


def stage_means(scores: Mapping[str, Mapping[str, float]], stages: Mapping[str, list[str]]) -> np.ndarray:
    """Float[encoders, stages]: the mean score of each stage's data sets, from encoder -> data set -> score.

    Data sets that no encoder has a score for, as those without a dev split, are left out; what only some have makes NaN.

    >>> stage_means({"a": {"x": 0.5, "y": 0.7}, "b": {"x": 0.6}}, {"first": ["x", "no dev split"], "second": ["y"]}).tolist()
    [[0.5, 0.7], [0.6, nan]]
    """
    scored = {name for by_name in scores.values() for name in by_name}
    stage_names = [[name for name in names if name in scored] for names in stages.values()]
    rows = [[_mean([by_name.get(name, np.nan) for name in names]) for names in stage_names] for by_name in scores.values()]
    return np.array(rows, dtype=float).reshape(len(scores), len(stages))


def old_index_recall(queries: Tensor, documents: Tensor, labels: Tensor, k: int = 10) -> float:
    """Recall of queries embedded by a new encoder among documents embedded by the old one: what the old index is still worth.

    Args:
        queries: Float[n, D], the new encoder's vectors of all numbered texts.
        documents: Float[n, D], the old one's.
        labels: Float64[r, 5] or Float64[r, 3] judgements, as in `metrics`.
        k: length of the ranking.
    """
    is_query = torch.zeros(len(queries), dtype=torch.bool)
    is_query[labels[labels[:, -2] >= 0, 0].long()] = True  # without the documents that no query judges
    metric = Retrieval(k)
    return metric.values(metric.units(torch.where(is_query[:, None], queries, documents), labels))["recall"]


def _square(matrix: ArrayLike) -> np.ndarray:
    r = np.asarray(matrix, dtype=float)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not r.size:
        raise ValueError(f"a matrix of tasks is square, not {r.shape}")
    return r


def _mean(values: ArrayLike) -> float:
    """NaN where there is nothing, or something not measured."""
    values = np.asarray(values, dtype=float)
    return float(values.mean()) if values.size else float("nan")
