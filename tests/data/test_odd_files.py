"""Tiny and odd files: what is wrong is said with its numbers and what to do, and held-out queries search all documents."""

import json

import numpy as np
import pytest
import torch

from acge_lightning.data import (
    ClassificationDataset,
    ClusteringDataset,
    MixtureDataModule,
    PairDataset,
    RerankingDataset,
    RetrievalDataset,
    STSDataset,
    UnlabelledDataset,
)
from acge_lightning.data.records import text_id
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset
from acge_lightning.metrics.task_metrics import Retrieval


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixture(tmp_path):
    def made(kind, rows, **options):
        data = kind(write(tmp_path / "行.jsonl", rows), cache_dir=tmp_path / "cache", batch_size=8, **options)
        data.key = "task.mine.data."
        return MixtureDataModule({"mine": data})

    return made


def checked(mixture):
    mixture.setup()
    mixture.check_scorable("dev")


TEXTS = [f"第{i}个句子" for i in range(5)]
FIVE = [{"text1": TEXTS[i % 5], "text2": TEXTS[i * i % 5], "score": i % 3} for i in range(600)]


def share_of(text):
    """Where a text stands among those that a hold-out takes, from 0 to 9999."""
    return text_id(text) % 2**64 % 10_000


def test_five_distinct_texts_in_600_rows_are_named(mixture, caplog):
    shares = sorted(map(share_of, TEXTS))
    assert shares[0] > 100
    with pytest.raises(InputError) as caught:
        checked(mixture(STSDataset, FIVE, holdout=0.01))
    assert "task mine is not scored: " in str(caught.value)
    remedy = f"task.mine.data.holdout={(shares[0] + 1) / 10_000:g}"
    assert "行.jsonl: 600 rows, 5 distinct texts in text1: task.mine.data.holdout=0.01 takes none of them" in str(caught.value)
    assert str(caught.value).endswith(f"give more rows, or a folder with a train and a dev file, or {remedy}")
    again = mixture(STSDataset, FIVE, holdout=(shares[0] + 1) / 10_000)  # the remedy works
    checked(again)
    assert len(again.tasks["mine"].opened_splits["dev"]) == 120
    assert "行.jsonl: its 600 training rows have 5 distinct texts: check its columns" in caplog.text


def test_a_hold_out_that_takes_all_rows(mixture):
    shares = sorted(map(share_of, TEXTS))
    with pytest.raises(InputError, match=r"600 rows, 5 distinct texts in text1: .*holdout=0\.9999 takes all of them") as caught:
        checked(mixture(STSDataset, FIVE, holdout=0.9999))
    assert str(caught.value).endswith(f"task.mine.data.holdout={shares[-1] / 10_000:g}")
    again = mixture(STSDataset, FIVE, holdout=shares[-1] / 10_000)
    checked(again)
    assert len(again.tasks["mine"]) == 120


def test_one_distinct_text_cannot_be_divided(mixture):
    rows = [{"text1": "一", "text2": f"{i}", "score": i} for i in range(9)]
    with pytest.raises(InputError, match=r"9 rows, 1 distinct texts in text1: .*; give more rows, .*dev file$"):
        checked(mixture(STSDataset, rows))


ONE = [
    (STSDataset, {"text1": "a", "text2": "b", "score": 1}),
    (PairDataset, {"text1": "a", "text2": "b", "label": 1}),
    (ClassificationDataset, {"text": "a", "label": "x"}),
    (RetrievalDataset, {"query": "a", "positive": "b", "negative": "c"}),
    (UnlabelledDataset, {"text": "a"}),
]


@pytest.mark.parametrize(("kind", "row"), ONE)
def test_a_file_of_one_row(mixture, kind, row):
    with pytest.raises(InputError, match="task mine has 1 training row: give some hundreds, or two to try it"):
        checked(mixture(kind, [row]))


def test_one_class_only(mixture):
    rows = [{"text": f"文本{i}", "label": "售后"} for i in range(60)]
    with pytest.raises(InputError, match=r"training rows all have the label 售后: .* of 60 rows are held out\)$"):
        checked(mixture(ClassificationDataset, rows))


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            STSDataset,
            lambda i, is_dev: {"text1": f"{i}", "text2": "b", "score": 1 if is_dev else i},
            r"its {dev} dev rows all have the score 1\.0: give rows with others too",
        ),
        (
            PairDataset,
            lambda i, is_dev: {"text1": f"{i}", "text2": "b", "label": 1 if is_dev else i % 2},
            "its {dev} dev rows all have the label 1: give rows with others too",
        ),
        (
            ClusteringDataset,
            lambda i, is_dev: {"text": f"{i}", "label": "x" if is_dev else i % 2},
            "its {dev} dev rows all have the label x: give rows with others too",
        ),
        (
            RerankingDataset,
            lambda i, is_dev: {"query": f"{i}", "positive": f"p{i}", "negative": [] if is_dev else ["n"]},
            "none of its {dev} dev rows has both a positive and a negative: check their columns",
        ),
    ],
)
def test_held_out_rows_whose_score_says_nothing(mixture, kind, rows, message):
    is_dev = [share_of(str(i)) < 1000 for i in range(40)]
    assert 1 < sum(is_dev) < 20
    with pytest.raises(InputError, match=f"^task mine cannot be scored: {message.format(dev=sum(is_dev))} ") as caught:
        checked(mixture(kind, [rows(i, is_dev[i]) for i in range(40)]))
    assert str(caught.value).endswith(f"({sum(is_dev)} of 40 rows are held out)")


def test_classes_that_only_held_out_rows_have(mixture, caplog):
    held_out = [i for i in range(60) if share_of(str(i)) < 1000]
    assert len(held_out) > 2
    rows = [{"text": str(i), "label": "新" if i in held_out[:2] else i % 2} for i in range(60)]
    checked(mixture(ClassificationDataset, rows))
    assert f"行.jsonl: 2 of {len(held_out)} dev rows have a label that no training row has" in caplog.text


def test_a_task_without_a_hold_out_is_told_where_others_are_scored(mixture, tmp_path, caplog):
    several = mixture(STSDataset, FIVE, holdout=0.01)
    rows = [{"text1": f"{i}", "text2": f"{i + 1}", "score": i} for i in range(60)]
    several.tasks["other"] = STSDataset(write(tmp_path / "b.jsonl", rows), cache_dir=tmp_path / "cache")
    assert several.check_scorable("dev") == ["other"]
    assert "task mine is not scored: " in caplog.text


def test_texts_without_labels_need_no_dev_split(mixture):
    texts = mixture(UnlabelledDataset, [{"text": f"{i}"} for i in range(20)])
    texts.setup()
    assert texts.check_scorable("dev") == []


# ---- what held-out queries search

TRIPLES = [{"query": f"q{i}", "positive": [f"p{i}"], "negative": [f"n{i}", "shared", "P0"]} for i in range(100)]
ALL = {*(f"p{i}" for i in range(100)), *(f"n{i}" for i in range(100)), "shared"}


def searched(evaluation_set):
    query_count = evaluation_set.roles[0][0]
    return evaluation_set.texts.slice(query_count).to_pylist()


def test_held_out_queries_search_all_documents_of_the_file(mixture):
    data = mixture(RetrievalDataset, TRIPLES).tasks["mine"]
    found = data.evaluation("dev")
    documents, held_out = searched(found), [i for i in range(100) if share_of(f"q{i}") < 1000]
    assert 1 < len(held_out) < 30
    assert len(documents) == len(set(documents))
    assert {text_id(text) for text in documents} == {text_id(text) for text in ALL}  # P0 and p0 are one text
    assert data.document_count("dev") == len(documents)
    assert data.note("dev") == f"of {len(documents)} documents"
    texts = found.texts.to_pylist()
    judged = {(texts[int(q)], texts[int(d)]): g for q, d, g, query, _ in found.judgements.tolist() if query >= 0}
    assert judged == {
        (f"q{i}", text): grade for i in held_out for text, grade in [(f"p{i}", 1), (f"n{i}", 0), ("shared", 0), ("P0", 0)]
    }


def test_the_documents_of_a_large_file_are_drawn(mixture):
    own = len(searched(mixture(RetrievalDataset, TRIPLES, max_documents=0).evaluation("mine", "dev")))
    drawn = [searched(mixture(RetrievalDataset, TRIPLES, max_documents=20).evaluation("mine", "dev")) for _ in range(2)]
    assert len(drawn[0]) == own + 20
    assert drawn[0] == drawn[1]


def test_a_dev_file_is_searched_alone(tmp_path):
    write(tmp_path / "set" / "train.jsonl", TRIPLES[:80])
    write(tmp_path / "set" / "dev.jsonl", TRIPLES[80:])
    data = RetrievalDataset(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert set(searched(data.evaluation("dev"))) == {text for row in TRIPLES[80:] for text in row["positive"] + row["negative"]}
    evaluated = Dataset("triplet", tmp_path / "set", "dev").open(tmp_path / "cache")[1]
    assert searched(evaluated) == searched(data.evaluation("dev"))


def test_one_document_is_no_search(mixture):
    rows = [{"query": f"q{i}", "positive": "p"} for i in range(40)]
    several = mixture(RetrievalDataset, rows)
    with pytest.raises(InputError, match="task mine cannot be scored: its dev rows have one document, which is always ranked"):
        several.check_scorable("dev")


def test_an_untrained_model_scores_less_among_more_documents(mixture):
    """Of one answer among n documents in random order, nDCG@10 is in the mean 1 / log2(rank + 1) over 10 ranks, by n."""
    rows = [{"query": f"q{i}", "positive": [f"p{i}"]} for i in range(800)]
    counts = []
    for limit in (0, None):
        evaluation_set = mixture(RetrievalDataset, rows, max_documents=limit).evaluation("mine", "dev")
        counts.append(len(searched(evaluation_set)))
        vectors = torch.randn(len(evaluation_set.texts), 64, generator=torch.Generator().manual_seed(0))
        score = Retrieval().score(torch.nn.functional.normalize(vectors, dim=1), evaluation_set.judgements)["ndcg"]
        assert score == pytest.approx(sum(1 / np.log2(rank + 2) for rank in range(10)) / counts[-1], abs=0.03)
    assert counts[0] < 120
    assert counts[1] == 800
