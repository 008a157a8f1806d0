"""Neighbours against all products and all BM25 scores, ties and odd vectors among them."""

import math
import sys

import numpy as np
import pytest

from acge_lightning.data.terms import terms
from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.neighbours import DenseNeighbours, LexicalNeighbours


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def best(scores, k):
    """Numbers of the k best scores, of equal ones the first."""
    return np.lexsort([np.arange(len(scores)), -scores])[:k]


@pytest.mark.parametrize("k", [1, 7, 300, 1000])
def test_the_nearest_are_those_of_all_products(k):
    rng = np.random.default_rng(k)
    texts = unit(rng, 300, 24)
    texts[100:220] = texts[5]  # ties, also where the list ends
    queries = np.concatenate([unit(rng, 20, 24), texts[5:7], np.zeros((1, 24), dtype=np.float32)])
    neighbours = DenseNeighbours(queries, texts)
    rows, scores = neighbours.nearest(np.arange(len(queries)), k)
    products = np.round(queries.astype(np.float64) @ texts.T.astype(np.float64), 6)
    for i, expected in enumerate(products):
        some = min(k, 300)
        np.testing.assert_allclose(scores[i, :some], np.sort(expected)[::-1][:some], atol=2e-6)
        np.testing.assert_allclose(expected[rows[i, :some]], scores[i, :some], atol=2e-6)
        same = np.diff(scores[i, :some]) == 0
        assert (np.diff(rows[i, :some])[same] > 0).all(), "equal scores are in the order of the texts"
        assert (rows[i, some:] == -1).all()
        assert np.isneginf(scores[i, some:]).all()
    if k < 300:
        assert rows[20].tolist() == [5, *range(100, 220)][:k] + rows[20, 121:].tolist()
        assert rows[22].tolist() == list(range(k))
    pairs = np.repeat(np.arange(len(queries)), 3), np.tile([0, 150, 299], len(queries))
    np.testing.assert_allclose(neighbours.scores(*pairs), products[pairs], atol=2e-6)


def test_what_is_found_does_not_depend_on_what_is_searched_together(monkeypatch):
    rng = np.random.default_rng(0)
    queries, texts = unit(rng, 64, 40), unit(rng, 500, 40)
    neighbours = DenseNeighbours(queries, texts)
    rows, scores = neighbours.nearest(np.arange(64), 20)
    monkeypatch.setattr("acge_lightning.mining.negatives.neighbours._VALUES", 5000)
    order = rng.permutation(64)
    again = neighbours.nearest(order, 20)
    assert np.array_equal(again[0], rows[order])
    assert np.array_equal(again[1], scores[order])
    alone = neighbours.nearest(np.array([9]), 20)
    assert np.array_equal(alone[1][0], scores[9])


def test_vectors_that_are_not_finite_are_an_error():
    vectors = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        DenseNeighbours(vectors, np.where([[True], [False]], np.nan, vectors))


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"acge mine needs faiss: pip install 'acge-lightning\[(search|mining)\]'"):
        DenseNeighbours(np.ones((1, 2)), np.ones((1, 2)))


def bm25(query, text, texts, k1=1.5, b=0.75):
    """The formula, of Lucene's variant."""
    split = [terms(t) for t in texts]
    length = np.mean([len(words) for words in split])
    score = 0.0
    for term in terms(query):
        having = sum(term in words for words in split)
        frequency = terms(text).count(term)
        inverse = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        score += inverse * frequency / (frequency + k1 * (1 - b + b * len(terms(text)) / length))
    return score


def test_the_best_by_bm25_are_those_of_all_scores():
    texts = ["怎么退货？请联系客服", "Deep learning is learning", "天气", "客服 客服 deep", "", "天气", "!?"]
    queries = ["退货 怎么办", "deep learning", "天气", "zzz", ""]
    neighbours = LexicalNeighbours(queries, texts)
    for k in (1, 3, 7):
        rows, scores = neighbours.nearest(np.arange(len(queries)), k)
        for i, query in enumerate(queries):
            every = np.array([bm25(query, text, texts) for text in texts])
            expected = [row for row in best(every, k) if every[row] > 0]
            assert rows[i, : len(expected)].tolist() == expected, query
            np.testing.assert_allclose(scores[i, : len(expected)], every[expected], atol=1e-5)
            assert (rows[i, len(expected) :] == -1).all()
            np.testing.assert_allclose(neighbours.scores(np.full(7, i), np.arange(7)), every, atol=1e-5)
    assert neighbours.nearest(np.array([2]), 2)[0].tolist() == [[2, 5]]


def test_texts_without_terms_have_no_neighbours_by_bm25():
    rows, _ = LexicalNeighbours(["a"], ["!", "?"]).nearest(np.array([0]), 2)
    assert rows.tolist() == [[-1, -1]]
    assert LexicalNeighbours(["a"], ["!", "?"]).scores(np.array([0]), np.array([1])).tolist() == [0]
