"""Retrieval and reranking from rows: training examples, batches and evaluation sets."""

import gzip
import json

import numpy as np
import pytest
from family_rows import DATA, as_tensor, check_batch, qrels, small_beir, texts_of, uniform, write

from acge_lightning.data.records import text_id
from acge_lightning.errors import InputError
from acge_lightning.metrics.task_metrics import Retrieval


@pytest.mark.parametrize("family", ["retrieval", "reranking"])
@pytest.mark.parametrize("seed", range(3))
def test_row_examples(tmp_path, make, family, seed):
    rng = np.random.default_rng(seed)
    rows, judged = [], {}
    for i in range(40):
        docs = [f"d{j}" for j in rng.choice(50, 8, replace=False)]
        cut = int(rng.integers(1, 5))
        rows.append({"query": f"q{i}", "positive": docs[:cut], "negative": docs[cut : cut + int(rng.integers(0, 5))]})
        judged[f"q{i}"] = {d: int(d in docs[:cut]) for d in rows[-1]["positive"] + rows[-1]["negative"]}
    write(tmp_path / "train.jsonl", rows)
    data = make(family, negatives=2, holdout=0.0)
    for _ in range(10):
        positions = rng.permutation(40)[:8]
        found = data.examples(positions, rng.random(8))
        assert found.columns[0] == [rows[i]["query"] for i in positions]
        check_batch(found, judged, 2)
    expected = [text for row in rows for text in (row["query"], *row["positive"], *row["negative"])]
    assert sorted(data.train_texts()) == sorted(expected)


def test_rows_of_one_query_share_their_judgements(tmp_path, make):
    """What any row calls an answer of a query is never its negative, whichever of its rows is in the batch."""
    rows = [
        {"query": "q", "positive": ["a"], "negative": ["n"]},
        {"query": "Q ", "positive": ["b"], "negative": []},
        {"query": "other", "positive": ["b"], "negative": ["a"]},
        {"query": "third", "positive": ["c"], "negative": []},
    ]
    write(tmp_path / "train.jsonl", rows)
    data = make("retrieval", holdout=0.0)
    judged = {"q": {"a": 1, "b": 1, "n": 0}, "other": {"b": 1, "a": 0}, "third": {"c": 1}}
    found = data.examples(np.array([0, 2, 3]), np.zeros(3))
    assert found.columns == (["q", "other", "third"], ["a", "b", "c"], ["n"])
    check_batch(found, judged, 1)


def test_a_negative_that_answers_another_query_of_the_batch_is_left_out(tmp_path, make):
    rows = [{"query": "q", "positive": ["a"], "negative": ["b"]}, {"query": "r", "positive": ["B"], "negative": ["n", "n"]}]
    write(tmp_path / "train.jsonl", rows)
    found = make("retrieval", negatives=2, holdout=0.0).examples(np.array([0, 1]), np.zeros(2))
    assert found.columns == (["q", "r"], ["a", "B"], ["n"])


def test_rows_without_negatives_give_two_columns(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"query": f"q{i}", "positive": f"p{i}"} for i in range(9)])
    for family in ("retrieval", "reranking"):
        found = make(family, holdout=0.0).examples(np.array([8, 1]), uniform(2))
        assert found.columns == (["q8", "q1"], ["p8", "p1"])


@pytest.mark.parametrize("family", ["retrieval", "reranking"])
def test_row_evaluation(tmp_path, make, family):
    rows = [
        {"query": "q", "positive": ["a", "b"], "negative": ["c"]},
        {"query": "r", "positive": ["c"], "negative": ["a", "d"]},
        {"query": "q", "positive": ["e"], "negative": []},
        {"query": "a", "positive": ["q"], "negative": ["b"]},  # a text may be a query and a document
    ]
    write(tmp_path / "dev.jsonl", rows)
    found = make(family).evaluation("dev")
    texts = texts_of(found)
    assert texts[:3] == ["q", "r", "a"]
    assert sorted(texts[3:]) == ["a", "b", "c", "d", "e", "q"]
    assert found.roles == ((3, "query"), (9, "document"))
    told = [(texts[int(q)], texts[int(d)], g, query) for q, d, g, query, _ in found.labels.tolist()]
    assert sorted(told) == sorted(
        (row["query"], d, int(d in row["positive"]), i) for i, row in enumerate(rows) for d in row["positive"] + row["negative"]
    )
    assert all(q < 3 <= d for q, d, *_ in found.labels.tolist())
    numbers = [int(d) for *_, d in found.labels.tolist()]
    assert len(set(numbers)) == (6 if family == "retrieval" else 9)  # documents are texts; candidates are listed


def test_equal_queries_and_documents_count_by_themselves_and_have_one_text(tmp_path, make):
    write(tmp_path / "corpus.jsonl", [{"_id": key, "text": text} for key, text in zip("abcd", "xyxz", strict=True)])
    write(tmp_path / "queries.jsonl", [{"_id": key, "text": "q"} for key in "12"])
    qrels(tmp_path, "dev", [("1", "c", 2), ("2", "b", 1)])
    found = make("retrieval", holdout=0.0).evaluation("dev")
    assert texts_of(found) == ["q", "x", "y", "x", "z"]
    lines = [tuple(int(n) for n in (q, d, query, document)) for q, d, g, query, document in found.labels.tolist() if g > 0]
    assert lines == [(0, 1, 0, 2), (0, 2, 1, 1)]
    assert len(found.keys) == 2
    data = make("retrieval", holdout=0.0, max_dev=1)
    assert {int(query) for *_, query, _ in data.evaluation("dev").labels.tolist()} == {-1, 0}


@pytest.mark.parametrize("limit", [None, 3])
def test_the_document_of_the_querys_own_id_is_left_out(tmp_path, make, limit):
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": f"doc {i}"} for i in range(9)])
    write(tmp_path / "queries.jsonl", [{"_id": f"d{i}" if i % 2 else f"q{i}", "text": f"query {i}"} for i in range(6)])
    qrels(tmp_path, "dev", [(f"d{i}" if i % 2 else f"q{i}", f"d{8 - i}", 1) for i in range(6)])
    data = make("retrieval", exclude_own_id=True, holdout=0.0, max_dev=limit)
    found = data.evaluation("dev")
    texts = texts_of(found)
    hidden = {(texts[int(q)], texts[int(d)]) for q, d, g, query, _ in found.labels.tolist() if np.isnan(g) and query >= 0}
    asked = texts[: found.roles[0][0]]
    assert hidden == {(f"query {i}", f"doc {i}") for i in (1, 3, 5) if f"query {i}" in asked}
    assert len(hidden) == 3 or limit
    plain = make("retrieval", holdout=0.0, max_dev=limit).evaluation("dev")
    assert not any(np.isnan(g) and query >= 0 for *_, g, query, _ in plain.labels.tolist())


def test_own_ids_where_there_are_none(tmp_path, make):
    small_beir(tmp_path)
    with pytest.raises(InputError, match="exclude_own_id=true, but no query has the _id of a document: leave it out"):
        make("retrieval", exclude_own_id=True).evaluation("dev")
    write(tmp_path / "rows" / "dev.jsonl", [{"query": "q", "positive": "p"}])
    with pytest.raises(InputError, match="exclude_own_id=true needs the ids of a BEIR folder"):
        make("retrieval", tmp_path / "rows", exclude_own_id=True).open()
    with pytest.raises(InputError, match="exclude_own_id=true is for retrieval from a corpus"):
        make("reranking", tmp_path / "rows", exclude_own_id=True)


def test_reranking_says_how_many_queries_have_candidates_of_one_kind(tmp_path, make):
    rows = [{"query": f"q{i}", "positive": ["a"], "negative": ["b"] * (i % 2)} for i in range(5)]
    write(tmp_path / "dev.jsonl", rows)
    data = make("reranking")
    data.open()
    assert data.note("dev") == "3 queries without both relevant and other candidates are left out"
    write(tmp_path / "dev.jsonl", rows[1:2])
    data = make("reranking")
    data.open()
    assert data.note("dev") is None


def test_a_perfect_ranking_scores_one_though_rows_repeat(tmp_path, make):
    write(tmp_path / "dev.jsonl", [{"query": "q", "positive": ["a", "a"], "negative": ["n"]}] * 2)
    data = make("retrieval")
    found, metric = data.evaluation("dev"), Retrieval()
    vectors = {"q": [1.0, 0.0], "a": [1.0, 0.1], "n": [0.0, 1.0]}
    metric.update(as_tensor([vectors[t] for t in texts_of(found)]), as_tensor(range(3)), found.labels)
    assert metric.compute() == {"ndcg": 1.0, "mrr": 1.0, "recall": 1.0}


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize("name", ["nli_zh_hardneg", "simclue"])
def test_real_triplets_keep_their_promises(tmp_path, make, name):
    judged = {}
    with gzip.open(DATA / "triplet" / name / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            known = judged.setdefault(text_id(row["query"]), {})
            for text, grade in [(t, 0) for t in row["negative"]] + [(t, 1) for t in row["positive"]]:
                known[text_id(text)] = max(grade, known.get(text_id(text), 0))
    data = make("retrieval", DATA / "triplet" / name, max_train=500, holdout=0.0)
    found = data.examples(np.arange(64), uniform(64))
    queries, positives = (ids.tolist() for ids in found.ids[:2])
    assert all(judged[q][p] == 1 for q, p in zip(queries, positives, strict=True))
    if len(found.ids) > 2:
        assert all(any(judged[q].get(n) == 0 for q in queries) for n in found.ids[2].tolist())
        assert not set(found.ids[2].tolist()) & set(positives)
