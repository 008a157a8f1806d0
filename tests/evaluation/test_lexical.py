"""BM25 and TF-IDF against their formulas."""

import math

import numpy as np
import pytest

from acge_lightning.data.evaluation_set import EvaluationSet, text_column
from acge_lightning.data.terms import terms
from acge_lightning.evaluation.lexical import bm25, tfidf

QUERIES = ["退货 怎么办", "deep learning"]
DOCUMENTS = ["怎么退货？请联系客服", "Deep learning is learning", "天气", "客服 客服 deep"]


def made(roles):
    return EvaluationSet(text_column([*QUERIES, *DOCUMENTS]), roles, np.empty(0, dtype=np.int64))


def test_terms_are_words_characters_and_pairs_within_a_run():
    assert terms("GPT4 怎么，退") == ["gpt4", "怎", "么", "怎么", "退"]
    assert terms("") == []


def test_products_of_queries_and_documents_are_bm25_scores():
    matrix = bm25(made(((2, "query"), (6, "document"))))
    found = (matrix[:2] @ matrix[2:].T).toarray()
    split = [terms(text) for text in DOCUMENTS]
    mean = np.mean([len(words) for words in split])
    for q, query in enumerate(QUERIES):
        for d, words in enumerate(split):
            expected = 0.0
            for term in terms(query):
                n = sum(term in other for other in split)
                idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
                tf = words.count(term)
                expected += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
            assert found[q, d] == pytest.approx(expected, rel=1e-4)


def test_texts_of_one_role_have_vectors_of_length_one():
    for kind in (bm25, tfidf):
        matrix = kind(made(((6, "text"),)))
        lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)
        assert matrix.shape[0] == 6


def test_a_text_without_terms_is_like_nothing():
    found = EvaluationSet(text_column(["？！", "天气", "天气"]), ((3, "text"),), np.empty(0, dtype=np.int64))
    for kind in (bm25, tfidf):
        cosine = (kind(found) @ kind(found).T).toarray()
        assert cosine[0].tolist() == [0, 0, 0]
        assert cosine[1, 2] == pytest.approx(1)
