"""What a step of cleaning says of rows: which ones, why, and the row that each one clashes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Findings:
    """Rows that a step would drop, or reports.

    Args:
        reason: in the words of a report: `exact duplicate`, `near duplicate`, `leak`, `contradiction`.
        rows: Int64[n] numbers of rows, ascending, each once.
        others: Int64[n] the row that each one clashes with, among the same rows or the evaluation rows of a leak; -1: none.
        values: Float64[n] what was measured: a similarity, a rank, a probability; NaN for nothing.

    >>> Findings("exact duplicate", np.array([3]), np.array([0]), np.array([1.0]))
    Findings(reason='exact duplicate', rows=array([3]), others=array([0]), values=array([1.]))
    """

    reason: str
    rows: np.ndarray
    others: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.others) == len(self.values):
            lengths = len(self.rows), len(self.others), len(self.values)
            raise ValueError(f"{self.reason}: rows, others and values must be as many, but are {lengths}")
        if np.any(np.diff(self.rows) <= 0):
            raise ValueError(f"{self.reason}: rows must ascend, each once")

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, chosen: np.ndarray, reason: str | None = None) -> Findings:
        """Take some of them.

        Args:
            chosen: Bool[n].
            reason: another one; None: the same.
        """
        rows = np.flatnonzero(chosen)
        return Findings(reason or self.reason, self.rows[rows], self.others[rows], self.values[rows])
