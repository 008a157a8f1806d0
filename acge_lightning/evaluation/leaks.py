"""Find evaluated rows among the rows that an encoder was trained on, by its own record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset


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
        training_rows = read_training_rows(folder)
    except InputError as error:
        return [entry | {"found": None, "error": str(error)}]
    return [] if training_rows is None else [entry | {"found": int(np.isin(evaluation_set.keys, training_rows).sum())}]


def read_training_rows(folder: Path) -> np.ndarray | None:
    """Read the hashes of the rows that an encoder was trained on: Int64[n]; None if its folder has no record of them.

    Raises:
        InputError: the record is damaged, or cannot be read.
    """
    file = folder / "training_rows.npy"
    if not file.is_file():
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
