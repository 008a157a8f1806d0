"""Candidates of queries: the nearest texts by inner product (FAISS, exact), or the best by BM25; ties in the order of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from acge_lightning.data.terms import terms
from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra

_EXTRA = 16  # candidates beyond k that FAISS is asked for, so that ties at the end show
_NOISE = 1e-5  # by which products of float32 may differ with the size of a block
_DIGITS = 6  # of a score: what is below is noise
_VALUES = 2**24  # float32 values that are held at a time


class Neighbours(Protocol):
    """Where candidates come from."""

    def __len__(self) -> int:
        """Number of texts."""

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best texts of some queries.

        Args:
            queries: Int64[q] rows of queries.
            k: texts a query.

        Returns:
            Int64[q, k] rows of texts, -1 where there are fewer, and Float32[q, k] scores, falling, -inf where there is none.
        """

    def scores(self, queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """The scores of pairs: Int64[m] rows of queries, Int64[m] rows of texts -> Float32[m]."""


class DenseNeighbours:
    """The texts whose vectors have the largest inner product with that of a query, by exact search.

    Scores have six decimals. They depend neither on the order of the queries nor on how many are searched together: FAISS
    finds the candidates, and each product is then computed by itself.

    Args:
        queries: Float32[n, d].
        texts: Float32[m, d].

    Raises:
        InputError: FAISS is not installed, or a vector has NaN or infinity.

    >>> neighbours = DenseNeighbours(np.eye(2, dtype=np.float32), np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32))
    >>> neighbours.nearest(np.array([0]), 2)[0].tolist()
    [[0, 2]]
    """

    def __init__(self, queries: np.ndarray, texts: np.ndarray):
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._texts = np.ascontiguousarray(texts, dtype=np.float32)
        if not np.isfinite(self._queries.sum()) or not np.isfinite(self._texts.sum()):
            raise InputError("vectors are not finite: take another encoder, training that diverges leaves such ones")
        self._faiss = _import_faiss()

    def __len__(self) -> int:
        return len(self._texts)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Neighbours`."""
        rows, scores = _empty(len(queries), k)
        asked = min(k + _EXTRA, len(self))
        if asked < 1:
            return rows, scores
        size = max(1, _VALUES // (asked * self._texts.shape[1]))
        for start in range(0, len(queries), size):
            block = queries[start : start + size]
            noisy, near = self._faiss.knn(self._queries[block], self._texts, asked, metric=self._faiss.METRIC_INNER_PRODUCT)
            exact = self._products(block, near)
            order = np.lexsort([near, -exact])[:, :k]
            part = slice(start, start + len(block)), slice(0, order.shape[1])
            rows[part] = np.take_along_axis(near, order, 1)
            scores[part] = np.take_along_axis(exact, order, 1)
            if k < asked < len(self):
                cut = np.flatnonzero(noisy[:, -1] >= scores[start : start + len(block), k - 1] - _NOISE)
                for i in cut.tolist():  # more texts may be as near as the last one
                    rows[start + i], scores[start + i] = self._among_all(int(block[i]), k)
        return rows, scores

    def _among_all(self, query: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of all texts, none of which FAISS has left out."""
        noisy = self._texts @ self._queries[query]
        least = np.partition(noisy, len(noisy) - k)[len(noisy) - k]
        near = np.flatnonzero(noisy >= least - _NOISE)
        pieces = np.array_split(near, 1 + len(near) * self._texts.shape[1] // _VALUES)
        exact = np.concatenate([self._products(np.array([query]), piece[None])[0] for piece in pieces])
        order = np.lexsort([near, -exact])[:k]
        return near[order], exact[order]

    def _products(self, queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Products of Int64[q] queries and their texts Int64[q, k], each by itself: not by BLAS, whose sums differ by shape."""
        products = np.einsum("qd,qkd->qk", self._queries[queries], self._texts[texts])
        return np.round(products, _DIGITS)

    def scores(self, queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """As in `Neighbours`."""
        result = np.empty(len(queries), dtype=np.float32)
        size = max(1, _VALUES // max(1, self._texts.shape[1]))
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            result[part] = self._products(queries[part], texts[part, None])[:, 0]
        return result


class LexicalNeighbours:
    """The texts with the highest BM25 scores (bm25s, Lucene's variant, k1 1.5, b .75); none without a common term.

    Args:
        queries: texts that ask.
        texts: what is searched.

    Raises:
        InputError: bm25s is not installed.
    """

    def __init__(self, queries: Sequence[str], texts: Sequence[str]):
        with naming_extra("model=bm25 needs"):
            from bm25s import BM25
        number: dict[str, int] = {}
        ids = [[number.setdefault(term, len(number)) for term in terms(text)] for text in texts]
        self._length = len(texts)
        self._queries = [[number[term] for term in terms(text) if term in number] for text in queries]
        self._library = BM25(method="lucene") if number else None
        if self._library is not None:
            self._library.index((ids, number), show_progress=False)

    def __len__(self) -> int:
        return self._length

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Neighbours`."""
        rows, scores = _empty(len(queries), k)
        for i, query in enumerate(queries.tolist()):
            every = self._scores(query)
            best = np.flatnonzero(every > 0)
            if len(best) > k:
                best = best[every[best] >= np.partition(every, len(every) - k)[len(every) - k]]
            best = best[np.lexsort([best, -every[best]])][:k]
            rows[i, : len(best)], scores[i, : len(best)] = best, every[best]
        return rows, scores

    def _scores(self, query: int) -> np.ndarray:
        """The scores of all texts, with six decimals."""
        if self._library is None or not self._queries[query]:
            return np.zeros(self._length, dtype=np.float32)
        return np.round(self._library.get_scores(self._queries[query]), _DIGITS)

    def scores(self, queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """As in `Neighbours`."""
        result = np.empty(len(queries), dtype=np.float32)
        order = np.argsort(queries, kind="stable")
        for part in np.split(order, 1 + np.flatnonzero(np.diff(queries[order]))) if len(order) else ():
            result[part] = self._scores(int(queries[part[0]]))[texts[part]]
        return result


def _empty(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)


def _import_faiss() -> Any:
    with naming_extra("acge mine needs"):
        import faiss
    return faiss
