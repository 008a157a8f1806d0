"""How alike two keys are: edited a little, or the same clauses in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from acge_lightning.lazy import naming_extra
from acge_lightning.mining.cleaning.signatures import code_points, grams
from acge_lightning.mining.normalise import SIDE

NEAR = 0.8  # Levenshtein similarity
REORDERED = 0.97  # of the sorted characters
SHORT = 16  # characters below which one word changes the meaning, so that near texts are reported only
_SHARED = 0.6  # of the 2-grams of two texts whose clauses are in another order; where words changed places, it is less
_CAP = 8_000  # characters that are compared one by one, half of them from the beginning and half from the end


class Alike(NamedTuple):
    """What is known of m pairs of rows.

    Args:
        similarity: Float64[m] of the sides, the lower one; 0 where some side is neither near nor re-ordered.
        reordered: Bool[m] some side is re-ordered, and none is merely near.
        short: Bool[m] some side is merely near, and short.
    """

    similarity: np.ndarray
    reordered: np.ndarray
    short: np.ndarray


def compare(keys: Sequence[str], others: Sequence[str], unordered: bool = False) -> Alike:
    """Compare keys pair by pair, each side with its like.

    A side is near if the Levenshtein similarity, 1 − distance / length of the longer one, is .8 or more; it is re-ordered if
    that of the sorted characters is .97 or more and the texts share .6 of their 2-grams. Of more than 8,000 characters the
    first and last 4,000 are compared, and the whole texts must share .8 of their 2-grams.

    Args:
        keys: m of `row_keys`.
        others: m of them.
        unordered: whether the sides of a pair may be in the other order.

    Raises:
        InputError: rapidfuzz is not installed.
    """
    a, b = _sides(keys), _sides(others)
    straight = _compared(a, b)
    if not unordered or len(a) < 2:
        return straight
    swapped = _compared(a[::-1], b)
    better = (swapped.similarity > straight.similarity) & ((straight.similarity == 0) | (straight.short & ~swapped.short))
    return Alike(*(np.where(better, two, one) for one, two in zip(straight, swapped, strict=True)))


def _sides(keys: Sequence[str]) -> list[list[str]]:
    """The sides of keys, first ones and second ones; each key has as many as the first."""
    if not keys or SIDE not in keys[0]:
        return [list(keys)]
    parted = [key.partition(SIDE) for key in keys]
    return [[head for head, _, _ in parted], [tail for _, _, tail in parted]]


def _compared(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> Alike:
    sides = [_side(one, two) for one, two in zip(a, b, strict=True)]
    similarity = np.min([side.similarity for side in sides], axis=0)
    short = np.any([side.short for side in sides], axis=0) & (similarity > 0)
    near = np.any([(side.similarity < 1) & ~side.reordered for side in sides], axis=0)
    reordered = np.any([side.reordered for side in sides], axis=0) & ~near & (similarity > 0)
    return Alike(similarity, reordered, short)


def _side(a: Sequence[str], b: Sequence[str]) -> Alike:
    lengths = np.array([list(map(len, a)), list(map(len, b))], np.int64).reshape(2, -1)
    shorter, longer = lengths.min(0), np.maximum(lengths.max(0), 1)
    similarity = np.where(shorter >= NEAR * longer, _levenshtein(_capped(a), _capped(b), NEAR), 0.0)
    for row in np.flatnonzero((longer > _CAP) & (similarity > 0)).tolist():
        similarity[row] *= _shared(a[row], b[row]) >= NEAR
    short = (longer < SHORT) & (similarity > 0) & (similarity < 1)
    tried = np.flatnonzero(((similarity == 0) | short) & (shorter >= REORDERED * longer)).tolist()
    tried = [i for i in tried if longer[i] <= _CAP or _shared(a[i], b[i]) >= NEAR]  # sorting takes longer than this
    ordered = _levenshtein(_capped([_sorted(a[i]) for i in tried]), _capped([_sorted(b[i]) for i in tried]), REORDERED)
    reordered = np.zeros(len(a), bool)
    for row, value in zip(tried, ordered.tolist(), strict=True):
        if value and (longer[row] > _CAP or _shared(a[row], b[row]) >= _SHARED):
            similarity[row], reordered[row], short[row] = value, True, False
    return Alike(similarity, reordered, short)


def _levenshtein(a: Sequence[str], b: Sequence[str], cutoff: float) -> np.ndarray:
    """Float64[m] similarities; 0 below the cutoff."""
    with naming_extra("near duplicates need"):
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cpdist
    if not a:
        return np.empty(0)
    return cpdist(a, b, scorer=Levenshtein.normalized_similarity, score_cutoff=cutoff, dtype=np.float64)


def _capped(texts: Sequence[str]) -> list[str]:
    return [text if len(text) <= _CAP else text[: _CAP // 2] + text[-_CAP // 2 :] for text in texts]


def _sorted(text: str) -> str:
    return "".join(sorted(text))


def _shared(a: str, b: str) -> float:
    """The share of 2-grams that two texts have in common, by the count of the longer one."""
    codes, lengths = code_points(pa.array([a, b], pa.large_string()))
    hashes, _, text = grams(codes, lengths, 2)
    (one, one_counts), (two, two_counts) = (np.unique(hashes[text == i], return_counts=True) for i in (0, 1))
    _, in_one, in_two = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    return np.minimum(one_counts[in_one], two_counts[in_two]).sum() / max(len(a) - 1, len(b) - 1, 1)
