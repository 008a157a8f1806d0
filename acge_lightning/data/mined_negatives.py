"""Hard negatives that were mined for training rows, as numbers of texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MinedNegatives:
    """Hard negatives of some training rows of a data set of queries.

    Args:
        rows: Int64[m] training rows, ascending.
        texts: Int64[m, n] numbers of candidates (see `JudgedQueries.candidate_ids`), -1 where a row has fewer.

    >>> mined = MinedNegatives(np.array([2, 5]), np.array([[7, 8], [9, -1]]))
    >>> mined.of(np.array([5, 3, 2]))
    (array([9, 7, 8]), array([0, 2, 2]))
    """

    rows: np.ndarray
    texts: np.ndarray

    def of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up the negatives of some rows: Int64[k], and Int64[k] which of the rows each is of; rows may have none."""
        texts = np.full((len(positions), self.texts.shape[1]), -1, dtype=np.int64)
        where = np.searchsorted(self.rows, positions)
        has_some = np.append(self.rows, -1)[where] == positions
        texts[has_some] = self.texts[where[has_some]]
        owner, column = np.nonzero(texts >= 0)
        return texts[owner, column], owner

    def new_since(self, earlier: MinedNegatives) -> tuple[int, int]:
        """Count the negatives of rows that had some looked for earlier: those that they did not have then, and all of them."""
        _, here, there = np.intersect1d(self.rows, earlier.rows, assume_unique=True, return_indices=True)
        texts = self.texts[here]
        is_old = (texts[:, :, None] == earlier.texts[there][:, None, :]).any(2)
        return int(((texts >= 0) & ~is_old).sum()), int((texts >= 0).sum())
