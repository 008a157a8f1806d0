"""Metrics against scipy, scikit-learn and plain loops; batches, order and processes do not matter."""

import socket

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, ndcg_score, v_measure_score
from threadpoolctl import threadpool_info, threadpool_limits

from acge_lightning.errors import InputError
from acge_lightning.metrics import ranking
from acge_lightning.metrics import task_metrics as metrics
from acge_lightning.metrics.task_metrics import (
    AveragePrecision,
    EmbeddingMetric,
    LinearProbe,
    Reranking,
    Retrieval,
    Spearman,
    VMeasure,
)


def texts(n, dim=8, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def unit(embeddings):
    return (embeddings / embeddings.norm(dim=1, keepdim=True)).double().numpy()


def random_judgements(queries, docs, most, grades, seed=0):
    """Up to `most` distinct documents a query, at least one; documents are numbered after the queries."""
    rng = np.random.default_rng(seed)
    rows = []
    for q in range(queries):
        chosen = rng.choice(docs, size=rng.integers(1, most + 1), replace=False)
        rows += [(q, queries + d, rng.integers(0, grades)) for d in chosen]
    return torch.tensor(rows, dtype=torch.double)


def scored(metric, embeddings, labels, ids=None):
    metric.update(embeddings, torch.arange(len(embeddings)) if ids is None else ids, labels)
    return metric.compute()


def pair_cosines(embeddings, judged):
    vectors = unit(embeddings)
    return np.array([vectors[int(a)] @ vectors[int(b)] for a, b, _ in judged])


# ---- Spearman


@pytest.mark.parametrize("pairs", [2, 3, 10, 300])
@pytest.mark.parametrize("levels", [2, 6, None])
def test_spearman_equals_scipy(pairs, levels):
    rng = np.random.default_rng(pairs)
    scores = rng.random(pairs) if levels is None else np.append(rng.integers(0, levels, pairs - 1), levels)
    labels = torch.cat([torch.arange(2 * pairs).view(-1, 2), torch.tensor(scores)[:, None]], dim=1)
    embeddings = texts(2 * pairs)
    expected = spearmanr(pair_cosines(embeddings, labels), scores).statistic
    if np.isfinite(expected):
        assert scored(Spearman(), embeddings, labels)["spearman"] == pytest.approx(expected, abs=1e-9)


def test_spearman_shares_ranks_among_equal_cosines():
    angles = torch.tensor([0.0, 0.5, 0.5, 1.0, 1.5, 1.5])
    embeddings = torch.cat([torch.tensor([[1.0, 0.0]]), torch.stack([angles.cos(), angles.sin()], dim=1)])
    labels = torch.tensor([[0, i + 1, s] for i, s in enumerate([5, 3, 4, 4, 1, 0])], dtype=torch.double)
    result = scored(Spearman(), embeddings, labels)["spearman"]
    assert result == pytest.approx(spearmanr(-angles.numpy(), labels[:, 2]).statistic, abs=1e-12)


def test_spearman_of_very_many_equal_scores_equals_scipy():
    pairs = 150_000  # the ranks of the equal ones add up to more than 32 bits hold
    labels = torch.stack([torch.zeros(pairs), 1 + torch.arange(pairs) % 500, torch.arange(pairs) % 500 == 0], dim=1).double()
    embeddings = texts(501)
    vectors = unit(embeddings)
    expected = spearmanr((vectors @ vectors[0])[labels[:, 1].long()], labels[:, 2]).statistic
    assert scored(Spearman(), embeddings, labels)["spearman"] == pytest.approx(expected, abs=1e-9)


def test_spearman_is_one_for_the_right_order_minus_one_for_the_reverse_and_zero_for_equal_cosines():
    angles = torch.linspace(0, 3, 5)
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    results = []
    for vectors, scores in ((embeddings, [4, 3, 2, 1]), (embeddings, [1, 2, 3, 4]), (torch.ones(5, 2), [1, 2, 3, 4])):
        labels = torch.tensor([[0, i + 1, s] for i, s in enumerate(scores)], dtype=torch.double)
        results.append(scored(Spearman(), vectors, labels)["spearman"])
    assert results == pytest.approx([1, -1, 0], abs=1e-12)


@pytest.mark.parametrize(("kind", "message"), [(Spearman, "have the score 1"), (AveragePrecision, "have the label 1")])
def test_pairs_of_one_score_or_label_are_refused(kind, message):
    """scipy gives NaN for them, scikit-learn 1."""
    labels = torch.tensor([[0, i, 1] for i in range(1, 5)], dtype=torch.double)
    with pytest.raises(InputError, match=message):
        scored(kind(), texts(5), labels)


# ---- AveragePrecision


@pytest.mark.parametrize("pairs", [4, 30, 500])
def test_average_precision_equals_scikit_learn(pairs):
    embeddings = texts(60)
    rng = np.random.default_rng(pairs)
    pairs_of_texts = np.stack([rng.choice(60, 2, replace=False) for _ in range(pairs)])  # some of them twice
    labels = torch.tensor(np.c_[pairs_of_texts, np.arange(pairs) % 3 == 0], dtype=torch.double)
    expected = average_precision_score(labels[:, 2].numpy(), pair_cosines(embeddings, labels).astype(np.float32))
    assert scored(AveragePrecision(), embeddings, labels)["ap"] == pytest.approx(expected, abs=1e-6)


def test_average_precision_of_equal_and_of_negative_cosines_equals_scikit_learn():
    embeddings = torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0], [0, 1.0], [-0.6, 0.8]])
    labels = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 2, 0], [0, 2, 1], [0, 3, 1], [0, 4, 0], [2, 1, 1]], dtype=torch.double)
    expected = average_precision_score(labels[:, 2], [1, 1, -1, -1, 0, -0.6, -1])
    assert scored(AveragePrecision(), embeddings, labels)["ap"] == pytest.approx(expected, abs=1e-6)


# ---- Retrieval


def retrieval_loop(embeddings, judged, k):
    vectors = unit(embeddings)
    grades = {}
    for q, d, g in judged.tolist():
        grades.setdefault(int(q), {})[int(d)] = max(g, 0)
    named = {d for row in grades.values() for d in row}
    corpus = [i for i in range(len(vectors)) if i not in grades or i in named]
    ndcg, mrr, recall = [], [], []
    for q, row in grades.items():
        if not any(row.values()):
            continue
        ranking = sorted(corpus, key=lambda d: -(vectors[q] @ vectors[d]))[:k]
        gains = [row.get(d, 0) for d in ranking]
        best = sorted(row.values(), reverse=True)[:k]
        ndcg.append(sum(g / np.log2(i + 2) for i, g in enumerate(gains)) / sum(g / np.log2(i + 2) for i, g in enumerate(best)))
        mrr.append(next((1 / (i + 1) for i, g in enumerate(gains) if g > 0), 0))
        recall.append(sum(g > 0 for g in gains) / sum(g > 0 for g in row.values()))
    return {"ndcg": np.mean(ndcg), "mrr": np.mean(mrr), "recall": np.mean(recall)}


@pytest.mark.parametrize(
    ("queries", "docs", "most", "grades", "k"),
    [
        (20, 60, 5, 4, 10),
        (20, 60, 30, 4, 10),  # more relevant documents than ranks
        (20, 60, 5, 2, 3),
        (300, 40, 3, 2, 10),  # more queries than are searched at once
        (5, 7, 3, 3, 10),  # a corpus smaller than k
        (3, 1, 1, 3, 10),
    ],
)
def test_retrieval_equals_the_loop(queries, docs, most, grades, k):
    embeddings, judged = texts(queries + docs), random_judgements(queries, docs, most, grades, seed=docs)
    assert (judged[:, 2] > 0).any()
    assert scored(Retrieval(k), embeddings, judged) == pytest.approx(retrieval_loop(embeddings, judged, k), abs=1e-9)


def test_retrieval_ndcg_equals_scikit_learn():
    queries, docs = 12, 40
    embeddings, judged = texts(queries + docs), random_judgements(queries, docs, 8, 4)
    judged = torch.cat([judged, torch.tensor([[q, queries + q, 5] for q in range(queries)], dtype=torch.double)])
    gains = np.zeros((queries, docs))
    judged = torch.tensor(list({(int(q), int(d)): (q, d, g) for q, d, g in judged.tolist()}.values()))
    gains[judged[:, 0].long(), judged[:, 1].long() - queries] = judged[:, 2]
    vectors = unit(embeddings)
    expected = ndcg_score(gains, vectors[:queries] @ vectors[queries:].T, k=10)
    assert scored(Retrieval(), embeddings, judged)["ndcg"] == pytest.approx(expected, abs=1e-9)


def test_retrieval_leaves_out_queries_without_a_relevant_document():
    embeddings, judged = texts(30), random_judgements(10, 20, 4, 3)
    judged[judged[:, 0] < 4, 2] = 0
    rest = scored(Retrieval(), embeddings, judged)
    assert rest == pytest.approx(retrieval_loop(embeddings, judged, 10), abs=1e-9)
    with pytest.raises(InputError, match="no query"):
        scored(Retrieval(), embeddings, judged * torch.tensor([1, 1, 0]))


def test_retrieval_takes_a_query_as_document_only_if_it_is_judged_as_one():
    embeddings = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [0.1, 0.9]])
    apart = torch.tensor([[0, 2, 1], [1, 3, 1]], dtype=torch.double)  # corpus: texts 2 and 3
    assert scored(Retrieval(1), embeddings, apart) == {"ndcg": 0.5, "mrr": 0.5, "recall": 0.5}
    shared = torch.tensor([[0, 1, 1], [1, 3, 1]], dtype=torch.double)  # text 1 is query and document
    assert scored(Retrieval(1), embeddings, shared) == {"ndcg": 0.5, "mrr": 0.5, "recall": 0.5}


def test_retrieval_equals_the_loop_where_queries_are_documents_of_other_queries():
    embeddings, judged = texts(30), random_judgements(10, 20, 4, 3)
    judged = torch.cat([judged, torch.tensor([[q, (q + 3) % 10, 2] for q in range(0, 10, 2)], dtype=torch.double)])
    assert scored(Retrieval(), embeddings, judged) == pytest.approx(retrieval_loop(embeddings, judged, 10), abs=1e-9)


def test_retrieval_takes_a_grade_below_zero_for_zero():
    embeddings, judged = texts(30), random_judgements(10, 20, 8, 3)
    below = judged.clone()
    below[below[:, 2] == 0, 2] = -2
    assert (below[:, 2] < 0).any()
    assert scored(Retrieval(), embeddings, below) == scored(Retrieval(), embeddings, judged)


# ---- Reranking


def test_reranking_equals_the_loop_and_scikit_learn():
    embeddings, judged = texts(70), random_judgements(20, 50, 25, 2)
    vectors = unit(embeddings)
    precisions, reciprocal = [], []
    for q in range(20):
        rows = judged[judged[:, 0] == q]
        scores, relevant = vectors[rows[:, 1].long()] @ vectors[q], (rows[:, 2] > 0).numpy()
        if relevant.all() or not relevant.any():
            continue
        ranking = relevant[np.argsort(-scores)]
        hits = [i + 1 for i in range(len(ranking)) if ranking[i]]
        loop = np.mean([(n + 1) / rank for n, rank in enumerate(hits)])
        assert loop == pytest.approx(average_precision_score(relevant, scores), abs=1e-12)
        precisions.append(loop)
        reciprocal.append(1 / hits[0] if hits[0] <= 10 else 0)
    assert 5 < len(precisions) < 20
    expected = {"map": np.mean(precisions), "mrr": np.mean(reciprocal)}
    assert scored(Reranking(), embeddings, judged) == pytest.approx(expected, abs=1e-9)


def test_reranking_counts_a_first_hit_after_rank_ten_as_zero():
    angles = torch.linspace(0, 1.5, 13)
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    judged = torch.tensor([[0, i, i == 12] for i in range(1, 13)], dtype=torch.double)
    assert scored(Reranking(), embeddings, judged) == pytest.approx({"map": 1 / 12, "mrr": 0})


@pytest.mark.parametrize("grade", [0, 1])
def test_reranking_without_both_kinds_of_candidates_is_refused(grade):
    judged = torch.tensor([[0, 1, grade], [0, 2, grade]], dtype=torch.double)
    with pytest.raises(InputError, match="both relevant and other"):
        scored(Reranking(), texts(3), judged)


# ---- rankings as trec_eval has them


def trec_eval(vectors, lines, measures, ranked):
    """Float64[queries, measures]; scores are products of 64 bits of the normalised vectors of 32."""
    vectors = torch.nn.functional.normalize(vectors, dim=1).double().numpy()
    text, relevant, listed, hidden = {}, {}, {}, set()
    for query_text, document_text, grade, query, document in lines:
        text[document] = document_text
        if query >= 0:
            text["q", query] = query_text
            if np.isnan(grade):
                hidden.add((query, document))
            else:
                listed.setdefault(query, []).append(document)
                known = relevant.setdefault(f"q{query:03d}", {})
                known[f"d{document:03d}"] = int(grade)
    run = {}
    for query, own in listed.items():
        pool = own if ranked == "listed" else [number for number in text if not isinstance(number, tuple)]
        scores = {d: float(vectors[text["q", query]] @ vectors[text[d]]) for d in pool if (query, d) not in hidden}
        run[f"q{query:03d}"] = {f"d{d:03d}": value for d, value in scores.items()}
    found = pytrec_eval.RelevanceEvaluator(relevant, set(measures)).evaluate(run)
    names = [measure.replace(".", "_") for measure in measures]
    return {query: [found[query][name] for name in names] for query in sorted(relevant)}, relevant


@st.composite
def lines_of(draw, listed):
    """Vectors of few directions, and lines: texts that several queries or documents have, several grades, hidden documents."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, documents = draw(st.integers(1, 6)), draw(st.integers(1, 25))
    vectors = torch.tensor(rng.integers(-1, 2, (8, 3)) + rng.choice([0.0, 0.5]), dtype=torch.float32)
    if draw(st.booleans()):
        vectors = torch.tensor(rng.normal(size=(8, 3)), dtype=torch.float32)
    asking, text = rng.integers(0, 2, queries), rng.integers(0, 8, documents)
    found = []
    for query in range(queries):
        chosen = rng.choice(documents, rng.integers(1, documents + 1), replace=False)
        grades = rng.integers(0, 2, len(chosen)) if listed else rng.integers(-1, 4, len(chosen))
        found += [(asking[query], text[d], g, query, d) for d, g in zip(chosen, grades, strict=True)]
        if not listed and rng.random() < 0.5:
            own = rng.integers(0, documents)
            found.append((asking[query], text[own], np.nan, query, own))
    if not listed:
        found += [(text[d], text[d], np.nan, -1, d) for d in range(documents)]
    rng.shuffle(found)
    return vectors, [(int(a), int(b), g, int(q), int(d)) for a, b, g, q, d in found]


def needs_other_queries(relevant, both):
    kinds = [{grade > 0 for grade in known.values()} for known in relevant.values()]
    return [query for query, kind in zip(relevant, kinds, strict=True) if (len(kind) == 2 if both else True in kind)]


@given(lines_of(listed=False), st.sampled_from([1, 3, 10]))
@settings(max_examples=300, deadline=None)
def test_retrieval_equals_trec_eval(case, k):
    vectors, lines = case
    expected, relevant = trec_eval(vectors, lines, [f"ndcg_cut.{k}", f"recall.{k}"], "all")
    kept = needs_other_queries(relevant, both=False)
    labels = torch.tensor(lines, dtype=torch.double)
    normalised = torch.nn.functional.normalize(vectors, dim=1)
    if not kept:
        with pytest.raises(InputError, match="no query"):
            Retrieval(k).units(normalised, labels)
        return
    units = Retrieval(k).units(normalised, labels)
    np.testing.assert_allclose(units[:, [0, 2]], [expected[query] for query in sorted(kept)], atol=1e-12)
    assert scored(Retrieval(k), vectors, labels)["ndcg"] == pytest.approx(float(units[:, 0].mean()), abs=1e-12)


@given(lines_of(listed=True))
@settings(max_examples=300, deadline=None)
def test_reranking_equals_trec_eval(case):
    vectors, lines = case
    expected, relevant = trec_eval(vectors, lines, ["map_cut.1000"], "listed")
    kept = needs_other_queries(relevant, both=True)
    labels = torch.tensor(lines, dtype=torch.double)
    if not kept:
        with pytest.raises(InputError, match="both relevant and other"):
            Reranking().units(vectors, labels)
        return
    units = Reranking().units(torch.nn.functional.normalize(vectors, dim=1), labels)
    np.testing.assert_allclose(units[:, 0], [expected[query][0] for query in sorted(kept)], atol=1e-12)


@given(lines_of(listed=False))
@settings(max_examples=50, deadline=None)
def test_sparse_vectors_rank_as_dense_ones(case):
    vectors, lines = case
    vectors, labels = (8 * vectors).round(), torch.tensor(lines, dtype=torch.double)  # whole numbers: no rounding
    for metric in (Retrieval(), Reranking()):
        try:
            expected = metric.units(vectors, labels)
        except InputError:
            continue
        assert torch.equal(metric.units(csr_matrix(vectors.numpy()), labels), expected)


def test_a_candidate_below_rank_1000_counts_for_nothing():
    angles = torch.linspace(0, 1.5, 1203)
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    lines = [(0, d, int(d in (1, 1200)), 0, d) for d in range(1, 1203)]
    expected, _ = trec_eval(vectors, [(a, b, g, q, d) for a, b, g, q, d in lines], ["map_cut.1000"], "listed")
    assert expected["q000"] == [0.5]
    assert scored(Reranking(), vectors, torch.tensor(lines, dtype=torch.double))["map"] == pytest.approx(0.5)


@pytest.mark.parametrize("sizes", [(7, 3), (8192, 256)])
def test_blocks_of_documents_and_queries_do_not_matter_and_the_corpus_is_copied_once(monkeypatch, sizes):
    vectors, judged = texts(900), random_judgements(600, 300, 5, 3)
    judged[:, 1] = 600 + judged[:, 1] % 40  # many documents that nobody judges
    expected = retrieval_loop(vectors, torch.tensor(list({(q, d): (q, d, g) for q, d, g in judged.tolist()}.values())), 10)
    taken, rows = [], ranking._rows
    monkeypatch.setattr(ranking, "_rows", lambda embeddings, numbers: taken.append(numbers) or rows(embeddings, numbers))
    monkeypatch.setattr(ranking, "_DOCUMENTS", sizes[0])
    monkeypatch.setattr(ranking, "_QUERIES", sizes[1])
    judged = torch.tensor(list({(q, d): (q, d, g) for q, d, g in judged.tolist()}.values()))
    assert scored(Retrieval(), vectors, judged) == pytest.approx(expected, abs=1e-9)
    copied = torch.cat(taken)
    assert copied[copied >= 600].tolist() == list(range(600, 900))


def test_equal_documents_have_equal_scores_wherever_they_stand():
    """Products of 32 bits differ in the last ones with the place of a column."""
    vectors = torch.nn.functional.normalize(texts(41, dim=384), dim=1)
    documents = vectors[torch.arange(1000) % 41]
    scores = ranking.similarities(vectors[:7], documents)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, scores[:, torch.arange(1000) % 41])
    assert torch.equal(scores[:, :41], torch.tensor(vectors[:7].double().numpy() @ vectors.double().numpy().T).float())


# ---- classification


def classes(n, share=0.6, kinds=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = torch.tensor(np.c_[rng.integers(0, kinds, n), rng.random(n) < share])
    return texts(n) + 0.7 * texts(kinds, seed=9)[labels[:, 0]], labels


@pytest.mark.parametrize("max_iter", [1, 100])
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_linear_probe_equals_scikit_learn(max_iter):
    embeddings, labels = classes(200)
    vectors, known = torch.nn.functional.normalize(embeddings, dim=1).numpy(), labels[:, 1].numpy() == 1
    model = LogisticRegression(max_iter=max_iter).fit(vectors[known], labels[known, 0])
    expected = model.score(vectors[~known], labels[~known, 0])
    assert 0.4 < expected < 1
    assert scored(LinearProbe(max_iter), embeddings, labels)["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("learn", [0, 1])
def test_classification_needs_texts_to_learn_from_and_texts_to_test(learn):
    with pytest.raises(InputError, match="one kind is missing"):
        scored(LinearProbe(), texts(6), torch.tensor([[i % 2, learn] for i in range(6)]))


def test_linear_probe_needs_two_classes():
    with pytest.raises(InputError, match="at least two classes"):
        scored(LinearProbe(), texts(6), torch.tensor([[3, i % 2] for i in range(6)]))


# ---- clustering


@pytest.mark.parametrize("swapped", [0, 15])
def test_v_measure_of_clear_clusters_equals_scikit_learn(swapped):
    true = torch.arange(60) % 4
    embeddings = torch.eye(4)[true] + 0.05 * texts(60, dim=4)
    given = true.clone()
    given[:swapped] = given[:swapped].flip(0)
    expected = v_measure_score(given, KMeans(4, n_init=5, random_state=1).fit_predict(unit(embeddings)))
    assert (expected < 0.95) == (swapped > 0)
    result = scored(VMeasure(), embeddings, torch.stack([given, torch.zeros(60, dtype=torch.long)], dim=1))
    assert result["v_measure"] == pytest.approx(expected, abs=1e-9)


def test_v_measure_of_many_clusters_starts_from_texts_drawn_at_random(monkeypatch):
    labels = torch.arange(40).repeat_interleave(5)
    embeddings = torch.eye(40)[labels] + 0.01 * texts(200, dim=40)
    given = torch.stack([labels, torch.zeros(200, dtype=torch.long)], dim=1)
    spread = VMeasure().score(embeddings, given)["v_measure"]
    monkeypatch.setattr("acge_lightning.metrics.task_metrics._SPREAD", 39)
    assert 0.8 < VMeasure().score(embeddings, given)["v_measure"] != spread


def test_v_measure_needs_two_labels():
    with pytest.raises(InputError, match="at least two labels"):
        scored(VMeasure(), texts(6), torch.tensor([[3, 0]] * 6))


def test_v_measure_needs_a_text_a_label_in_each_draw():
    labels = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)], dim=1)
    with pytest.raises(InputError, match="draws 8 texts, too few for 9 labels"):
        VMeasure(draws=2, size=8).units(texts(9), labels)
    assert VMeasure(draws=2, size=9).units(texts(9), labels).shape == (2, 1)


def test_each_draw_has_one_thread(monkeypatch):
    """OpenMP's limit counts for the thread that sets it alone, BLAS's for all."""
    threads = {"openmp": set(), "blas": set()}

    class Watched(MiniBatchKMeans):
        def fit_predict(self, x):
            for library in threadpool_info():
                threads[library["user_api"]].add(library["num_threads"])
            return super().fit_predict(x)

    monkeypatch.setattr("sklearn.cluster.MiniBatchKMeans", Watched)
    with threadpool_limits(2):
        VMeasure(draws=4, size=50).units(texts(60), torch.stack([torch.arange(60) % 4, torch.zeros(60)], dim=1))
        after = {library["num_threads"] for library in threadpool_info()}
    assert threads == {"openmp": {1}, "blas": {1}}
    assert after == {2}


# ---- batches, order, numbers

JUDGED = random_judgements(12, 30, 12, 2)
RATED = torch.cat([JUDGED[:, :2], torch.arange(len(JUDGED)).double()[:, None] % 7], dim=1)
CLASSES = torch.stack([torch.arange(42) % 3, torch.arange(42) % 2], dim=1)
METRICS = {
    Spearman: RATED,
    AveragePrecision: JUDGED,
    Retrieval: RATED,
    Reranking: JUDGED,
    LinearProbe: CLASSES,
    VMeasure: CLASSES,
}


def fed_in_batches(metric, embeddings, ids, labels, size, seed):
    """Texts shuffled and cut into batches; judgements shuffled on their own and spread over the batches."""
    rng = np.random.default_rng(seed)
    order = torch.tensor(rng.permutation(len(ids)))
    parts = order.split(size)
    rows = torch.tensor(rng.permutation(len(labels))).tensor_split(len(parts))
    for part, judged in zip(parts, rows, strict=True):
        metric.update(embeddings[part], ids[part], labels[part if labels.shape[1] == 2 else judged])
    return metric.compute()


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("size", [1, 5, 41, 42])
def test_batches_of_any_size_in_any_order_give_the_same(kind, size):
    embeddings, labels = texts(42), METRICS[kind]
    expected = scored(kind(), embeddings, labels)
    assert 0 < abs(expected[kind.main]) < 1
    assert fed_in_batches(kind(), embeddings, torch.arange(42), labels, size, seed=size) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", METRICS)
def test_numbers_with_gaps_give_the_same(kind):
    embeddings, labels = texts(42), METRICS[kind]
    ids = 5 + 7 * torch.arange(42)
    numbered = labels if labels.shape[1] == 2 else torch.cat([ids[labels[:, :2].long()], labels[:, 2:]], dim=1)
    expected = scored(kind(), embeddings, labels)
    assert fed_in_batches(kind(), embeddings, ids, numbered, 9, seed=1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", METRICS)
def test_reset_forgets_and_dtype_and_length_of_the_vectors_do_not_matter(kind):
    embeddings, labels = texts(42), METRICS[kind]
    metric = kind()
    expected = scored(metric, embeddings, labels)
    metric.reset()
    scaled = embeddings.double() * 2.0 ** (torch.arange(42) % 9 - 4)[:, None]
    assert scored(metric, scaled, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(kind, value):
    embeddings = texts(42)
    embeddings[17, 3] = value
    with pytest.raises(InputError, match="not finite"):
        scored(kind(), embeddings, METRICS[kind])


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_an_empty_split_is_refused(kind):
    with pytest.raises(InputError, match="empty"):
        kind().compute()


@pytest.mark.parametrize("kind", [Spearman, AveragePrecision, Retrieval, Reranking])
@pytest.mark.parametrize("number", [3, 99])
def test_a_judgement_of_a_text_that_was_not_encoded_is_refused(kind, number):
    """Text 3 is missing among the texts given, 99 lies beyond them."""
    seen = torch.tensor([i for i in range(42) if i != 3])
    labels = METRICS[kind][(METRICS[kind][:, 0] != 3)]
    labels = torch.cat([labels, torch.tensor([[0.0, number, 1]])])
    with pytest.raises(InputError, match=f"text {number}"):
        scored(kind(), texts(42)[seen], labels, seen)


# ---- two processes


def one_of_two(rank, port, results):
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        for kind in (Retrieval, LinearProbe):
            nothing = kind()
            if rank:  # the other has seen no text
                nothing.update(texts(42), torch.arange(42), METRICS[kind])
            results.put((kind.__name__, nothing.compute()))
            ids = torch.arange(42).split([10, 32])[rank]
            labels = METRICS[kind][ids] if kind is LinearProbe else METRICS[kind][rank::2]
            value = fed_in_batches(kind(), texts(42)[ids], ids, labels, 8, seed=rank)
            results.put((kind.__name__, value))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_processes_give_the_same_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(one_of_two, args=(port, results), nprocs=2)
    for _ in range(8):
        name, value = results.get()
        kind = {"Retrieval": Retrieval, "LinearProbe": LinearProbe}[name]
        assert value == pytest.approx(scored(kind(), texts(42), METRICS[kind]), abs=1e-9)


@pytest.mark.parametrize("kind", METRICS)
def test_states_travel_by_the_device_of_the_metric(kind, monkeypatch):
    """NCCL refuses tensors of a CPU, where states wait; here "meta" is the device, and the transport gives the tensor back."""
    sent = []

    def gather(tensor, group):
        if tensor.device.type == "cpu":
            raise RuntimeError("No backend type associated with device type cpu")
        return [sent.pop()] * 2

    def to(self, *args, **kwargs):
        sent.append(self)
        return moved(self, *args, **kwargs)

    moved = torch.Tensor.to
    metric = kind().to("meta")
    metric.distributed_available_fn = lambda: True
    metric.update(texts(42), torch.arange(42), METRICS[kind])
    monkeypatch.setattr(metrics, "gather_all_tensors", gather)
    monkeypatch.setattr(metrics, "_GATHERED", 5)
    monkeypatch.setattr(torch.Tensor, "to", to)
    metric.sync(metric.dist_sync_fn)
    monkeypatch.undo()
    assert metric.embeddings.device.type == "cpu"
    assert metric.ids.tolist() == [*range(42), *range(42)]
    metric.unsync()


@pytest.mark.parametrize("kind", [Spearman, LinearProbe, Retrieval])
def test_texts_that_come_twice_count_once(kind):
    embeddings, labels = texts(42), METRICS[kind]
    metric = kind()
    again = torch.tensor([3, 41, 3])
    metric.update(embeddings[again], again, labels[again] if labels.shape[1] == 2 else labels[:0])
    metric.update(embeddings, torch.arange(42), labels)
    assert metric.compute() == pytest.approx(scored(kind(), embeddings, labels), abs=1e-9)


def test_a_metric_of_ones_own_needs_units_and_values():
    class Half(EmbeddingMetric):
        def units(self, embeddings, labels):
            return labels

    with pytest.raises(TypeError, match=r"abstract method.*values"):
        Half()
