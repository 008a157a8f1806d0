"""Hard negatives as a pure function over arrays: candidates and what is known of them in, negatives and reasons out.

Against `mine_hard_negatives` of sentence-transformers 6.2: the query's own text and variants of positives are never negatives,
ranks are counted before margins, draws can be repeated, and a second scorer counts with or without a margin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from acge_lightning.mining.negatives.rules import Reason, Rules
from acge_lightning.mining.negatives.shortlist import Exclusions, Positives, Shortlist, count_reasons

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows of queries and of texts -> a value a pair
_REDUCE = {"lowest": np.minimum.reduceat, "highest": np.maximum.reduceat, "mean": np.add.reduceat}


@dataclass(frozen=True)
class HardNegatives:
    """Negatives of some queries.

    Args:
        texts: Int64[q, n] rows of texts, the highest score first; -1 where there are fewer.
        scores: Float32[q, n] of the second scorer if there is one; -inf where there is none.
        positive_scores: Float32[p] in the order of the positives, of the same scorer.
        removed: Int64[q, reasons] how many candidates of each query fell to each `Reason`.
    """

    texts: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    removed: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Int64[q]: negatives of each query."""
        return (self.texts >= 0).sum(1)


def choose_negatives(
    queries: np.ndarray,
    listed: Shortlist,
    positives: Positives,
    positive_scores: np.ndarray,
    exclusions: Exclusions,
    rules: Rules,
    is_near: Judge | None = None,
    second_scores: Judge | None = None,
) -> HardNegatives:
    """Choose the hard negatives of queries among their shortlists.

    Args:
        queries: Int64[q] rows.
        listed: their shortlists.
        positives: theirs.
        positive_scores: Float32[p], by what scored the shortlists.
        exclusions: what is known of queries and texts.
        rules: what makes a negative.
        is_near: whether texts are near duplicates of positives of the queries: Int64[m], Int64[m] -> Bool[m].
        second_scores: scores of pairs by a second scorer, which take the place of the first one's in all rules but the ranks.
            It is asked for the positives, and for candidates in the order in which they are taken: for as many as are wanted,
            then for more of the queries that are short; with `rules.rank_by="scorer"` for all at once.

    Returns:
        At most `rules.negatives` of each query.
    """
    candidates, scores = listed.candidates, listed.scores.copy()
    reason = np.where(candidates < 0, Reason.ABSENT, Reason.KEPT).astype(np.int8)
    reason[:, : rules.range_min][reason[:, : rules.range_min] == Reason.KEPT] = Reason.BELOW_RANGE_MIN
    row, column = np.nonzero(reason == Reason.KEPT)
    if is_near is not None:
        near = is_near(queries[row], candidates[row, column])
        reason[row[near], column[near]] = Reason.NEAR_DUPLICATE
    if second_scores is not None:
        positive_scores = np.asarray(second_scores(queries[positives.owners], positives.texts), dtype=np.float32)
    reference = _reference(positives, positive_scores, rules)
    order = _order(queries, candidates, reason == Reason.KEPT, exclusions, rules)
    is_taken, start = np.zeros(candidates.shape, dtype=bool), 0
    width = candidates.shape[1] if second_scores is None or rules.rank_by == "scorer" else rules.negatives
    while start < candidates.shape[1]:  # the second scorer sees no more than it takes
        short = np.flatnonzero(is_taken.sum(1) < rules.negatives)
        columns = order[short, start : start + width]
        row, column = np.repeat(short, columns.shape[1]), columns.reshape(-1)
        is_left = reason[row, column] == Reason.KEPT
        row, column = row[is_left], column[is_left]
        if second_scores is not None and len(row):
            scores[row, column] = second_scores(queries[row], candidates[row, column])
        reason[row, column] = rules.by_score(scores[row, column], reference[row], second_scores is not None)
        is_taken[row, column] = reason[row, column] == Reason.KEPT
        start, width = start + width, 2 * width
    if rules.rank_by == "scorer" and rules.sampling == "top":
        order = np.argsort(-scores, axis=1, kind="stable")
    chosen = _best(order, is_taken, scores, rules.negatives)
    is_there = np.take_along_axis(is_taken, chosen, 1)
    texts = np.where(is_there, np.take_along_axis(candidates, chosen, 1), -1)
    chosen_scores = np.where(is_there, np.take_along_axis(scores, chosen, 1), np.float32(-np.inf))
    return HardNegatives(texts, chosen_scores, positive_scores, count_reasons(reason) + listed.removed)


def _reference(positives: Positives, scores: np.ndarray, rules: Rules) -> np.ndarray:
    """Float32[q]: the score that candidates of each query are compared with."""
    if not len(scores):
        return np.empty(0, dtype=np.float32)
    value = _REDUCE[rules.reference](scores.astype(np.float64), positives.offsets[:-1])
    count = np.diff(positives.offsets) if rules.reference == "mean" else 1
    return (value / count).astype(np.float32)


def _order(
    queries: np.ndarray, candidates: np.ndarray, is_left: np.ndarray, exclusions: Exclusions, rules: Rules
) -> np.ndarray:
    """Int64[q, k]: columns in the order in which they are taken: by rank, or by draw; those that are left before all others."""
    if rules.sampling == "top":
        return np.argsort(~is_left, axis=1, kind="stable")
    draws = _draws(rules.seed, exclusions.query_ids[queries, None], exclusions.text_ids[candidates])
    return np.argsort(np.where(is_left, draws >> np.uint64(1), np.iinfo(np.uint64).max), axis=1, kind="stable")


def _best(order: np.ndarray, is_taken: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Int64[q, n]: columns of the n that come first in an order among those that are taken, the highest score first."""
    taken = np.take_along_axis(is_taken, order, 1)
    chosen = np.take_along_axis(order, np.argsort(~taken, axis=1, kind="stable")[:, :count], 1)
    value = np.where(np.take_along_axis(is_taken, chosen, 1), -np.take_along_axis(scores, chosen, 1), np.inf)
    return np.take_along_axis(chosen, np.lexsort([chosen, value]), 1)


def _draws(seed: int, queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """UInt64 of each pair, evenly spread: splitmix64 (Steele et al. 2014) of the seed, the query's hash and the text's."""
    state = np.full(1, seed % 2**64, dtype=np.uint64)
    for values in (queries, texts):
        state = _mixed(state ^ _mixed(values.astype(np.int64).view(np.uint64)))
    return state


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
