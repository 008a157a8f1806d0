"""Find evaluated rows among the rows that an encoder was trained on, by its own record, and score it without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from acge_lightning.evaluation.datasets import Dataset

_FEWEST = 10  # units that are worth a score


def leaks(encoder: str, folder: Path, dataset: Dataset, evaluation_set: EvaluationSet) -> list[dict[str, Any]]:
    """Count the evaluated rows that an encoder was trained on.

    Args:
        encoder: its name.
        folder: of the encoder.
        dataset: whose rows are scored.
        evaluation_set: these rows.

    Returns:
        One entry of a file of results, whose `found` is null if the record is damaged; none if the encoder has no record.
    """
    entry = {"encoder": encoder, "family": dataset.family, "dataset": dataset.name, "rows": len(evaluation_set.keys)}
    try:
        seen = seen_rows(folder, evaluation_set)
    except InputError as error:
        return [entry | {"found": None, "error": str(error)}]
    return [] if seen is None else [entry | {"found": int(seen.sum())}]


def seen_rows(folder: Path, evaluation_set: EvaluationSet) -> np.ndarray | None:
    """Tell which rows an encoder was trained on: Bool[rows]; None if its folder has no record.

    Raises:
        InputError: the record is damaged, or cannot be read.
    """
    training_rows = read_training_rows(folder)
    return None if training_rows is None else np.isin(evaluation_set.keys, training_rows)


# ---- scores without the seen rows


def unseen_units(family: str, evaluation_set: EvaluationSet, units: int, seen: np.ndarray) -> Tensor | None:
    """Select what a metric measured on rows that were not seen in training.

    Args:
        family: of the data set.
        evaluation_set: the rows that were scored.
        units: how many units the metric has measured.
        seen: Bool[rows].

    Returns:
        Int64[n] numbers of units; None where a unit is not of one row (clustering), or too few are left for a score.
    """
    rows = _rows_of_units(family, evaluation_set)
    if rows is None or len(rows) != units:
        return None
    kept = np.flatnonzero(~seen[rows])
    if len(kept) < _FEWEST:
        return None
    labels = evaluation_set.judgements
    if family in ("sts", "pair") and labels is not None and len(labels[torch.from_numpy(kept), 2].unique()) < 2:
        return None
    return torch.from_numpy(kept)


def _rows_of_units(family: str, evaluation_set: EvaluationSet) -> np.ndarray | None:
    """Return the row that each unit of the family's metric is of: Int64[units]."""
    if family in ("sts", "pair", "classification"):
        return np.arange(len(evaluation_set.keys))
    if evaluation_set.judgements is None:
        return None
    grade, query = evaluation_set.judgements[:, 2].numpy(), evaluation_set.judgements[:, 3].numpy().astype(np.int64)
    right, wrong = (np.unique(query[(query >= 0) & graded]) for graded in (grade > 0, grade <= 0))
    return np.intersect1d(right, wrong) if family == "reranking" else right


# ---- records


def read_training_rows(folder: Path) -> np.ndarray | None:
    """Read the hashes of the rows that an encoder was trained on: Int64[n]; None if its folder has no record of them.

    Args:
        folder: of the encoder, or of the run that has exported it.

    Raises:
        InputError: the record is damaged, or cannot be read.
    """
    file = next((f for f in (folder / "training_rows.npy", folder / "export" / "training_rows.npy") if f.is_file()), None)
    if file is None:
        return None
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from None
    except (EOFError, ValueError, MemoryError):
        raise InputError(f"{file} is damaged (NumPy finds no numbers in it): export the encoder again") from None
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise InputError(f"{file} is damaged (it holds {rows.dtype} of {rows.ndim} dims): export the encoder again")
    return rows
