"""Encode texts without training, by BM25 and TF-IDF over characters and words, as sparse vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix, vstack

from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.terms import terms
from acge_lightning.lazy import naming_extra


def tfidf(evaluation_set: EvaluationSet) -> csr_matrix:
    """Compute TF-IDF vectors (sublinear tf, smoothed idf) of length 1, fitted on the texts of a set: Float32[texts, terms]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=terms, sublinear_tf=True, dtype=np.float32)
    return vectors.fit_transform(evaluation_set.texts.to_pylist()).tocsr()


def bm25(evaluation_set: EvaluationSet) -> csr_matrix:
    """Compute BM25 weights of a set's documents, and term counts of its queries, so that their products are BM25 scores.

    Where all texts are of one role, each has its weights, at length 1. The weights are those of the library bm25s (Lucene's
    variant, k1 1.5, b 0.75).
    """
    with naming_extra("model=bm25 needs"):
        from bm25s import BM25
    split = [terms(text) for text in evaluation_set.texts.to_pylist()]
    queries = evaluation_set.roles[0][0] if len(evaluation_set.roles) > 1 else 0
    number: dict[str, int] = {}
    ids = [[number.setdefault(term, len(number)) for term in words] for words in split]
    library = BM25(method="lucene")
    library.index((ids[queries:], number), show_progress=False)
    scores = library.scores
    shape = (len(split) - queries, len(number))
    pointers = scores["indptr"]
    columns = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    weights = csr_matrix((scores["data"], (scores["indices"], columns)), shape=shape, dtype=np.float32)
    if not queries:
        length = np.sqrt(np.asarray(weights.multiply(weights).sum(1)))
        return csr_matrix(weights.multiply(1 / np.where(length == 0, 1, length)))
    return vstack([_counts(ids[:queries], len(number)), weights]).tocsr()


def _counts(rows: Sequence[Sequence[int]], width: int) -> csr_matrix:
    row = np.repeat(np.arange(len(rows)), [len(terms) for terms in rows])
    terms_of = np.array([term for row in rows for term in row], dtype=np.int64)
    return csr_matrix((np.ones(len(row), dtype=np.float32), (row, terms_of)), shape=(len(rows), width))


LEXICAL: dict[str, Callable[[EvaluationSet], csr_matrix]] = {"bm25": bm25, "tfidf": tfidf}
