"""What travels from the data side to the model side: one step's training texts, and some texts of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acge_lightning.encoder.tokens import Tokens


@dataclass(frozen=True)
class TextBatch:
    """One training step's texts of one task.

    Args:
        task: name of the task; it selects the loss.
        columns: one `Tokens` a column, for example queries, positives, negatives.
        labels: what the task's loss expects beside the embeddings (see `losses`), or None.
        ids: Int64[n_i] a column: 64-bit hashes of the normalised texts.
    """

    task: str
    columns: tuple[Tokens, ...]
    labels: Tensor | None
    ids: tuple[Tensor, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TextBatch:
        """The same batch on another device (Lightning calls this)."""
        return replace(
            self,
            columns=tuple(c.to(device, non_blocking) for c in self.columns),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=non_blocking),
            ids=tuple(i.to(device, non_blocking=non_blocking) for i in self.ids),
        )

    def pin_memory(self) -> TextBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return replace(self, columns=tuple(c.pin_memory() for c in self.columns))

    def __len__(self) -> int:
        return len(self.columns[0])


@dataclass(frozen=True)
class EvaluationBatch:
    """Some texts of a task's evaluation split.

    Args:
        task: name of the task; it selects the metric.
        tokens: of n texts.
        rows: Int64[n]: the numbers of the texts in their `EvaluationSet`.
        labels: classes Int64[n, 2] of these texts, or judgements Float64[r, 3] or Float64[r, 5] of any texts of the split
            (see `metrics`); None if there are no labels.
    """

    task: str
    tokens: Tokens
    rows: Tensor
    labels: Tensor | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """The same batch on another device (Lightning calls this)."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking),
            rows=self.rows.to(device, non_blocking=non_blocking),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.tokens)
