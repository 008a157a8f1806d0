"""What a metric scores: numbered texts, and the judgements or classes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


@dataclass(frozen=True)
class EvaluationSet:
    """Numbered texts, and what is known of them, as a metric of `acge_lightning.metrics` takes it.

    At most one of `judgements` and `classes` is given; texts without labels have neither.

    Args:
        texts: the number of a text is its position here; may lie on disk.
        roles: (first number after, role) for runs of texts of one role.
        keys: Int64[rows] hashes by which a row is recognised in training data.
        judgements: Float64[r, 3] or Float64[r, 5]: pairs of texts, or queries and documents, by number, with a value.
        classes: Int64[texts, 2]: the class of each text, and the draws in which a probe learns from it.
    """

    texts: pa.ChunkedArray
    roles: tuple[tuple[int, str], ...]
    keys: np.ndarray
    judgements: Tensor | None = None
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.judgements is not None and self.classes is not None:
            raise ValueError("an evaluation set has judgements or classes, not both")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> Tensor | None:
        """The judgements or the classes."""
        return self.classes if self.judgements is None else self.judgements


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct texts in the order of their first occurrence, and which of them each given text is: Int64[n].

    >>> distinct_texts(["b", "a", "b"])
    (['b', 'a'], array([0, 1, 0]))
    """
    number: dict[str, int] = {}
    numbers = np.array([number.setdefault(text, len(number)) for text in texts], dtype=np.int64)
    return list(number), numbers


def text_column(texts: Sequence[str]) -> pa.ChunkedArray:
    """Texts as an Arrow column."""
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def judgement_rows(*columns: np.ndarray) -> Tensor:
    """Float64[r, columns] from columns of r numbers."""
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))
