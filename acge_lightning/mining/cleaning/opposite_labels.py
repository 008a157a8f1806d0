"""Rows that contradict each other: the same pair with two labels, the same text with two labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acge_lightning.data.records import as_label
from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.equal_keys import Keys, numbered, numbered_pairs
from acge_lightning.mining.cleaning.findings import Findings

REASON = "contradiction"


def contradictions(keys1: Keys, keys2: Keys | None, labels: Sequence | np.ndarray, margin: float | None = None) -> Findings:
    """Find rows whose label differs from that of other rows of the same pair, or of the same text.

    The label that more than half of the rows of a key have is right, and the others contradict it. Where no label has more than
    half of them, nobody knows, and all rows of the key are listed. So copies are votes: look for contradictions before exact
    duplicates are removed.

    Args:
        keys1: str or Int64[n], a key of each row's (first) text; equal keys are the same text.
        keys2: those of the second texts; a pair is the same in either order. None: rows have one text.
        labels: Any[n]; words are equal that differ in case, width, blanks or in the `.0` of a whole number.
        margin: labels are scores, and two of them contradict each other if they differ by more. The majority is then the most
            scores within one margin, the lowest of equally many; without one, rows are listed that contradict any other.

    Returns:
        The rows to drop, each with the row of the other label that comes first (of scores: whose score is farthest among those
        that are right, or among all). Values: the share of the key's rows that have the row's label; of scores the difference.

    Raises:
        InputError: numbers of keys and labels differ, a label is missing, a score is not finite, or a negative margin.

    >>> findings = contradictions(["a", "b", "a"], ["b", "a", "b"], [1, 0, 1])
    >>> findings.rows.tolist(), findings.others.tolist()
    ([1], [0])
    """
    key = numbered(keys1) if keys2 is None else numbered_pairs(*_as_many(keys1, keys2))
    _as_many(key, labels)
    if margin is not None:
        return _differing_scores(key, _scores(labels), margin)
    words: dict[object, str] = {}
    for row, label in enumerate(labels):
        if label is None or label != label:  # NaN, which pandas has for nothing
            raise InputError(f"row {row} has no label: leave out rows without one")
        if label not in words:
            words[label] = as_label(label)
    return _differing_labels(key, numbered([words[label] for label in labels]))


def _as_many(one: Keys, other: Sequence | np.ndarray) -> tuple[Keys, Keys]:
    if len(one) != len(other):
        raise InputError(f"there are {len(one)} and {len(other)} keys or labels: give each row its own")
    return one, other


def _scores(labels: Sequence | np.ndarray) -> np.ndarray:
    try:
        scores = np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"with a margin, labels must be numbers: {error}") from None
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(f"the score of row {row} is {scores[row]}, not a finite number: leave out rows without one")
    return scores


def _differing_labels(key: np.ndarray, label: np.ndarray) -> Findings:
    """Of numbers of keys and labels."""
    cells, cell, count = np.unique(key * (len(key) + 1) + label, return_inverse=True, return_counts=True)
    key_of_cell = cells // (len(key) + 1)
    rows_of_key = np.bincount(key, minlength=1)
    share = count[cell] / rows_of_key[key]
    largest = np.zeros(len(rows_of_key))
    np.maximum.at(largest, key_of_cell, count)
    settled = largest[key] * 2 > rows_of_key[key]
    rows = np.flatnonzero((share < 1) & ~(settled & (share > 0.5)))
    return Findings(REASON, rows, _earliest_of_another_label(key, label, rows, settled & (share > 0.5)), share[rows])


def _earliest_of_another_label(key: np.ndarray, label: np.ndarray, rows: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Int64[m]: for each of `rows` the earliest row of its key that is right, or, if none is, that has another label."""
    order = np.lexsort([~right, key])
    earliest = order[np.unique(key[order], return_index=True)[1]]  # by key
    differing = order[label[order] != label[earliest[key[order]]]]
    keys, at = np.unique(key[differing], return_index=True)
    of_another_label = np.full(len(earliest), -1)
    of_another_label[keys] = differing[at]
    others = earliest[key[rows]]
    return np.where(label[others] == label[rows], of_another_label[key[rows]], others)


def _differing_scores(key: np.ndarray, scores: np.ndarray, margin: float) -> Findings:
    if not margin >= 0:
        raise InputError(f"margin={margin} must be 0 or more")
    order = np.lexsort([scores, key])
    starts = np.unique(key[order], return_index=True)[1]
    ends = np.append(starts, len(key))[1:]
    listed, other_of = [order[:0]], [order[:0]]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        members = order[start:end]
        if scores[members[-1]] - scores[members[0]] > margin:
            rows, others = _outliers(members, scores[members], margin)
            listed.append(rows)
            other_of.append(others)
    rows, others = np.concatenate(listed), np.concatenate(other_of)
    turn = np.argsort(rows)
    rows, others = rows[turn], others[turn]
    return Findings(REASON, rows, others, np.abs(scores[rows] - scores[others]))


def _outliers(members: np.ndarray, ascending: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one key that contradict the majority, or any other row, and the row that each of them contradicts most."""
    ends = np.searchsorted(ascending, ascending + margin, side="right")
    counts = ends - np.arange(len(members))
    best = int(np.argmax(counts))
    settled = counts[best] * 2 > len(members)
    low, high = (best, ends[best] - 1) if settled else (0, len(members) - 1)
    others = np.where(ascending[high] - ascending >= ascending - ascending[low], high, low)
    outside = np.abs(ascending[others] - ascending) > margin
    outside[low : high + 1] &= not settled
    return members[outside], members[others[outside]]
