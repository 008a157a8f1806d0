"""Pairs that do not belong together: their positive ranks far down among the positives of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.equal_keys import Keys, numbered
from acge_lightning.mining.cleaning.findings import Findings

_FEATURES = 2**20
_FITTED = 20_000  # texts from which document frequencies are taken
_LONGEST = 20_000  # characters of a text that are read
_SCORES = 2**21  # in memory together
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Ranks:
    """Where each row's own positive ranks in a pool of other rows' positives.

    Args:
        ranks: Float64[n], from 1; of equal scores the mean rank.
        best: Int64[n] the row whose positive scores best in the pool for a row's query; -1 where the pool has only the query's.
        pool: how many positives are ranked.
    """

    ranks: np.ndarray
    best: np.ndarray
    pool: int


def positive_ranks(
    queries: Sequence[str] | np.ndarray,
    positives: Sequence[str] | np.ndarray,
    positive_keys: Keys,
    query_keys: Keys | None = None,
    pool_size: int = 1000,
    seed: int = 0,
) -> Ranks:
    """Rank the positive of each row in a pool of distinct positives, by TF-IDF or by vectors.

    rank = 1 + positives of the pool that score higher + half of those that score the same. Scores are cosines. Positives whose
    key is that of the row's own do not count, nor do those that the query has in other rows.

    An encoder that was trained on these rows has learnt the wrong ones too, and hides them: give vectors that are **out of
    fold**. Divide the rows into two or more folds, equal keys in one of them; for each fold train an encoder on the others, and
    take its vectors of this one. (medical_qa, 3 % of the pairs shuffled: best F1 .94 by an encoder trained on the right pairs,
    .18 to .25 by one trained on these pairs, .30 out of fold.) An encoder that has never seen the rows needs no folds.

    Args:
        queries: texts, or Float[n, d] vectors of them. A query with several positives has a row for each.
        positives: texts, or Float[n, d] vectors of them.
        positive_keys: str or Int64[n]; equal keys are the same text.
        query_keys: the same of the queries; None: each row has a query of its own.
        pool_size: most positives of the pool, evenly drawn from the distinct ones.
        seed: of the pool.

    Texts are compared by characters, pairs and triples of them within words, hashed, with sublinear tf and smoothed idf; of the
    first 20,000 characters of each. Memory is bounded: the pool's vectors, and scores of a block of rows.

    Raises:
        InputError: numbers of rows differ, vectors are not finite, or a pool of less than one.

    >>> texts = ["a b", "c d", "e f"]
    >>> positive_ranks(texts, ["a b x", "c d x", "a b y"], texts).ranks.tolist()
    [1.0, 1.0, 2.0]
    """
    if len({len(queries), len(positives), len(positive_keys), len(positive_keys if query_keys is None else query_keys)}) > 1:
        raise InputError(f"there are {len(queries)} queries, {len(positives)} positives and {len(positive_keys)} keys: as many")
    if pool_size < 1:
        raise InputError(f"pool_size={pool_size} must be at least 1")
    positive = numbered(positive_keys)
    query = np.arange(len(positive)) if query_keys is None else numbered(query_keys)
    distinct = np.unique(positive, return_index=True)[1]
    pool = np.sort(np.random.default_rng(seed).permutation(distinct)[:pool_size])
    own = _own_positives(query, positive, pool)
    ranks, best = np.ones(len(positive)), np.full(len(positive), -1)
    for rows, scores, own_score in _scores(queries, positives, pool, seed):
        excluded = own[query[rows]].toarray()
        higher = (scores > own_score[:, None] + _ROUNDING) & ~excluded
        equal = (np.abs(scores - own_score[:, None]) <= _ROUNDING) & ~excluded
        ranks[rows] = 1 + higher.sum(1) + equal.sum(1) / 2
        best[rows] = np.where(excluded.all(1), -1, pool[np.where(excluded, -np.inf, scores).argmax(1)])
    return Ranks(ranks, best, len(pool))


def inconsistent_pairs(*ranks: Ranks, share: float = 0.02) -> Findings:
    """Find rows whose positive ranks below the best `share` of the pool by each of the rankings that are given.

    A row stays if one of them has its positive within k = max(1, share * pool). Shares of .01 to .03 did best on sets with 3 %
    of the pairs shuffled: more finds less, and is surer of it.

    Args:
        *ranks: of the same rows: by TF-IDF, by an encoder's vectors, or both.
        share: of the pool; 1 finds none.

    Returns:
        The rows to drop, each with its best rank, and the row whose positive is first in that ranking.

    Raises:
        InputError: no ranking, rankings of different rows, or a share that is none.

    >>> by_text = Ranks(np.array([1.0, 90.0]), np.array([1, 0]), 100)
    >>> inconsistent_pairs(by_text, share=0.02).rows.tolist()
    [1]
    """
    if not ranks or len({len(one.ranks) for one in ranks}) > 1:
        raise InputError(f"{len(ranks)} rankings of {[len(one.ranks) for one in ranks]} rows: give at least one, of equal rows")
    if not 0 < share <= 1:
        raise InputError(f"share={share} is no share of the pool: give .01 to .03")
    all_ranks = np.stack([one.ranks for one in ranks])
    limits = np.array([max(1.0, share * one.pool) for one in ranks])
    rows = np.flatnonzero((all_ranks > limits[:, None]).all(0))
    highest = all_ranks[:, rows].argmin(0)
    others = np.stack([one.best for one in ranks])[highest, rows]
    return Findings("inconsistent pair", rows, others, all_ranks[highest, rows])


def _own_positives(query: np.ndarray, positive: np.ndarray, pool: np.ndarray) -> csr_matrix:
    """Bool[queries, pool]: whether a positive of the pool is one of the query's own."""
    column_of = np.full(positive.max(initial=0) + 1, -1)
    column_of[positive[pool]] = np.arange(len(pool))
    column = column_of[positive]
    rows = np.flatnonzero(column >= 0)
    cells = np.ones(len(rows), dtype=bool), (query[rows], column[rows])
    return csr_matrix(cells, shape=(query.max(initial=-1) + 1, len(pool)), dtype=bool)


def _scores(queries: Any, positives: Any, pool: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, their scores with the pool Float[m, pool], their scores with their own positives Float[m]), block after block."""
    if not len(positives):
        return
    are_vectors = isinstance(positives, np.ndarray) and positives.ndim == 2
    as_vectors = _unit_vectors if are_vectors else _tfidf(queries, positives, seed)
    pooled = as_vectors(positives, pool).T
    step = max(1, _SCORES // len(pool))
    for start in range(0, len(positives), step):
        block = np.arange(start, min(start + step, len(positives)))
        left, right = as_vectors(queries, block), as_vectors(positives, block)
        if isinstance(left, np.ndarray):
            yield block, left @ pooled, (left * right).sum(1)
        else:
            yield block, (left @ pooled).toarray(), np.asarray(left.multiply(right).sum(1)).ravel()


def _unit_vectors(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    chosen = np.asarray(vectors[rows], dtype=np.float64)
    if not np.isfinite(chosen).all():
        row = rows[~np.isfinite(chosen).all(1)][0]
        raise InputError(f"the vector of row {row} is not finite: encode it again, or leave the row out")
    return chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)


def _tfidf(queries: Sequence[str], positives: Sequence[str], seed: int) -> Callable[[Sequence[str], np.ndarray], csr_matrix]:
    """What makes TF-IDF vectors of some of the texts, Float64[m, features] of length 1 (0 of texts without a term)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), n_features=_FEATURES, norm=None, alternate_sign=False, dtype=np.float64
    )

    def counts(texts: Sequence[str], rows: np.ndarray) -> csr_matrix:
        chosen = [texts[row][:_LONGEST].encode(errors="replace").decode() for row in rows.tolist()]  # hashing minds surrogates
        matrix = hashing.transform(chosen).tocsr()
        matrix.sum_duplicates()
        return matrix

    fitted = np.sort(np.random.default_rng(seed).permutation(len(positives))[: _FITTED // 2])
    frequency = np.zeros(_FEATURES)
    for texts in (queries, positives):
        frequency += np.bincount(counts(texts, fitted).indices, minlength=_FEATURES)
    weight = np.log((1 + 2 * len(fitted)) / (1 + frequency)) + 1

    def vectors(texts: Sequence[str], rows: np.ndarray) -> csr_matrix:
        matrix = counts(texts, rows)
        matrix.data = (1 + np.log(matrix.data)) * weight[matrix.indices]
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
        return csr_matrix(diags(1 / np.where(length == 0, 1, length)) @ matrix)

    return vectors
