"""Texts that nearly equal a positive: edit similarity by rapidfuzz, of the pairs that cheap bounds leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acge_lightning.lazy import naming_extra

_BINS = 64  # of a histogram of characters
_LONGEST = 4096  # characters of a text that are compared
_AT_ONCE = 2**19  # pairs


class NearTexts:
    """Tells which texts are near duplicates of others.

    Similarity is 1 - Levenshtein distance / length of the longer one, of the first 4,096 characters. Two bounds on the distance
    spare most pairs: the difference of their lengths, and that of their histograms of characters.

    Args:
        texts: all of them, best as their keys, so that width, case and punctuation do not count.
        least: similarity from which on two are near duplicates.

    Raises:
        InputError: rapidfuzz is not installed.

    >>> NearTexts(["how do I return this", "how do I return it", "weather"], 0.8).pairs(np.array([0, 0]), np.array([1, 2]))
    array([ True, False])
    """

    def __init__(self, texts: Sequence[str], least: float = 0.8):
        with naming_extra("acge mine near=… needs"):
            from rapidfuzz.distance.Levenshtein import distance
        self._distance = distance
        self._texts, self._least = texts, least
        self._lengths = np.array([min(len(text), _LONGEST) for text in texts], dtype=np.int64)
        self._histograms = np.zeros((len(texts), 0), dtype=np.int16)

    def pairs(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Compare pairs: Int64[m] and Int64[m] numbers of texts -> Bool[m]."""
        result = np.zeros(len(left), dtype=bool)
        for start in range(0, len(left), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            result[part] = self._block(left[part], right[part])
        return result

    def _block(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        longer = np.maximum(self._lengths[left], self._lengths[right])
        most = np.floor(longer * (1 - self._least) + 1e-9).astype(np.int64)  # edits
        near = np.abs(self._lengths[left] - self._lengths[right]) <= most
        rows = np.flatnonzero(near)
        near[rows] = self._least_edits(left[rows], right[rows]) <= most[rows]
        rows = np.flatnonzero(near)
        pairs, back = np.unique(np.stack([left[rows], right[rows], most[rows]]), axis=1, return_inverse=True)
        alike = [
            self._distance(self._texts[a][:_LONGEST], self._texts[b][:_LONGEST], score_cutoff=edits) <= edits
            for a, b, edits in pairs.T.tolist()
        ]
        near[rows] = np.array(alike, dtype=bool)[back.reshape(-1)]
        return near

    def _least_edits(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A lower bound on the distance: characters that one has more often than the other, in bins of their code points."""
        if not self._histograms.shape[1]:
            self._histograms = np.stack([_histogram(text) for text in self._texts]) if len(self._texts) else self._histograms
        difference = self._histograms[left] - self._histograms[right]
        more = np.maximum(difference, 0).sum(1, dtype=np.int64)
        return np.maximum(more, more - difference.sum(1, dtype=np.int64))


def _histogram(text: str) -> np.ndarray:
    points = np.frombuffer(text[:_LONGEST].encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    return np.bincount(points % _BINS, minlength=_BINS).astype(np.int16)
