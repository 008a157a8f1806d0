"""What is known of queries and texts before anything is scored: which candidates can never be negatives, the others' ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from acge_lightning.mining.negatives.rules import Reason


@dataclass(frozen=True)
class Positives:
    """The positives of some queries.

    Args:
        offsets: Int64[q + 1]: the positives of query i are numbers offsets[i] … offsets[i + 1] - 1.
        texts: Int64[p] rows of texts.
    """

    offsets: np.ndarray
    texts: np.ndarray

    def select(self, rows: np.ndarray) -> Positives:
        """Those of some queries."""
        lengths = np.diff(self.offsets)[rows]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return Positives(np.append(0, ends), self.texts[np.repeat(self.offsets[rows], lengths) + within])

    @property
    def owners(self) -> np.ndarray:
        """Int64[p]: which query each is of."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Exclusions:
    """What is known of queries and texts before any of them is embedded, as numbers.

    Args:
        query_keys: Int64[q] numbers of the queries' keys; texts of one key differ in case, width or punctuation only.
        text_keys: Int64[t] of the texts', in the same numbering.
        own_texts: Int64[q] the text that equals each query, -1 for none.
        positives: Int64[p, 2] pairs of a query's key and a text that is a positive of a query of that key, in any data set.
        listed: Int64[l, 2] pairs of a query and a text that its rows list as a negative.
        query_ids: Int64[q] hashes of the queries, for the draws.
        text_ids: Int64[t] hashes of the texts.
    """

    query_keys: np.ndarray
    text_keys: np.ndarray
    own_texts: np.ndarray
    positives: np.ndarray
    listed: np.ndarray
    query_ids: np.ndarray
    text_ids: np.ndarray

    @cached_property
    def _key_count(self) -> int:
        return 1 + max(int(keys.max(initial=0)) for keys in (self.query_keys, self.text_keys))

    @cached_property
    def _positive_texts(self) -> np.ndarray:
        """Ascending codes of a query's key and a text that is its positive."""
        key, text = self.positives.T
        return np.unique(key * len(self.text_keys) + text)

    @cached_property
    def _positive_keys(self) -> np.ndarray:
        """Ascending codes of a query's key and the key of a text that is its positive."""
        key, text = self.positives.T
        return np.unique(key * self._key_count + self.text_keys[text])

    @cached_property
    def _listed_texts(self) -> np.ndarray:
        query, text = self.listed.T
        return np.unique(query * len(self.text_keys) + text)

    @cached_property
    def _positives_by_key(self) -> Positives:
        key, text = self.positives[np.argsort(self.positives[:, 0], kind="stable")].T
        return Positives(np.append(0, np.cumsum(np.bincount(key, minlength=self._key_count))), text)

    def positives_of(self, queries: np.ndarray) -> Positives:
        """All positives that are known of some queries."""
        return self._positives_by_key.select(self.query_keys[queries])

    def reasons(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Say why candidates can never be negatives, whatever their scores.

        Args:
            queries: Int64[q] rows.
            candidates: Int64[q, k] rows of texts, best first; -1 for none.

        Returns:
            Int8[q, k] numbers of `Reason`.
        """
        own, keys = self.own_texts[queries, None], self.query_keys[queries, None]
        candidate_keys = self.text_keys[candidates]
        is_variant = _contains(self._positive_keys, keys * self._key_count + candidate_keys) | (candidate_keys == keys)
        reason_of = {
            Reason.ABSENT: candidates < 0,
            Reason.OWN_TEXT: candidates == own,
            Reason.KNOWN_POSITIVE: _contains(self._positive_texts, keys * len(self.text_keys) + candidates),
            Reason.KEY_VARIANT: is_variant,
            Reason.LISTED: _contains(self._listed_texts, queries[:, None] * len(self.text_keys) + candidates),
            Reason.REPEATED: _repeated(candidate_keys),
        }
        return np.select(list(reason_of.values()), list(reason_of), Reason.KEPT).astype(np.int8)


def _contains(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each of `wanted` is among ascending codes."""
    if not len(codes):
        return np.zeros(wanted.shape, dtype=bool)
    return codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Whether each value has come in its row before."""
    order = np.argsort(keys, axis=1, kind="stable")
    ranked = np.take_along_axis(keys, order, 1)
    again = np.zeros(keys.shape, dtype=bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    result = np.empty_like(again)
    np.put_along_axis(result, order, again, 1)
    return result


@dataclass(frozen=True)
class Shortlist:
    """The candidates of some queries that have a rank below `range_max`, and what was passed over on the way to them.

    Args:
        candidates: Int64[q, range_max] rows of texts, best first; -1 at the end of rows that are shorter.
        scores: Float32[q, range_max].
        removed: Int64[q, reasons] how many candidates before the end of its ranks can never be negatives, by `Reason`.
        complete: Bool[q] whether there are `range_max`.
    """

    candidates: np.ndarray
    scores: np.ndarray
    removed: np.ndarray
    complete: np.ndarray


def rank_candidates(
    queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray, exclusions: Exclusions, range_max: int
) -> Shortlist:
    """Give ranks to the candidates that may be negatives, and leave out those from `range_max` on.

    Args:
        queries: Int64[q] rows.
        candidates: Int64[q, k] rows of texts, best first; -1 for none.
        scores: Float32[q, k].
        exclusions: what is known of them.
        range_max: ranks.
    """
    reason = exclusions.reasons(queries, candidates)
    may_be = reason == Reason.KEPT
    rank = np.cumsum(may_be, axis=1) - 1
    counts = np.minimum(rank[:, -1] + 1, range_max) if candidates.shape[1] else np.zeros(len(queries), dtype=np.int64)
    shape = len(queries), range_max
    chosen, chosen_scores = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
    row, column = np.nonzero(may_be & (rank < range_max))
    chosen[row, rank[row, column]], chosen_scores[row, rank[row, column]] = candidates[row, column], scores[row, column]
    complete = counts == range_max
    before_end = (rank < range_max - 1) | (~may_be & ~complete[:, None])
    return Shortlist(chosen, chosen_scores, count_reasons(reason, before_end), complete)


def count_reasons(reason: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Count the reasons of each row but `KEPT` and `ABSENT`: Int8[q, k], where Bool[q, k] says so -> Int64[q, reasons]."""
    counts = np.zeros((len(reason), len(Reason)), dtype=np.int64)
    for value in set(Reason) - {Reason.KEPT, Reason.ABSENT}:
        counts[:, value] = ((reason == value) if counted is None else (reason == value) & counted).sum(1)
    return counts
