"""Rows and folders of each family, and what tests of the families ask of a data set."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from acge_lightning.data import (
    ClassificationDataset,
    ClusteringDataset,
    PairDataset,
    RerankingDataset,
    RetrievalDataset,
    STSDataset,
    UnlabelledDataset,
)
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.records import text_id
from acge_lightning.losses.contrastive import positive_mask

DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLE = Path(__file__).parents[2] / "acge_lightning" / "sample"
FAMILIES = {
    "sts": STSDataset,
    "pair": PairDataset,
    "clustering": ClusteringDataset,
    "classification": ClassificationDataset,
    "retrieval": RetrievalDataset,
    "reranking": RerankingDataset,
    "unlabelled": UnlabelledDataset,
}
SCORED = [{"text1": f"a{i}", "text2": f"b{i}", "score": i / 10} for i in range(30)]
CLASSED = [{"text": f"t{i}", "label": "xyz"[i % 3]} for i in range(30)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row_for(family, i):
    """A row whose texts are its own."""
    if family in ("sts", "pair"):
        return {"text1": f"a{i}", "text2": f"b{i}", "label": i % 2}
    if family in ("retrieval", "reranking"):
        return {"query": f"q{i}", "positive": [f"p{i}"], "negative": [f"n{i}", f"m{i}"]}
    return {"text": f"t{i}", "label": i % 3}


def first_texts(data, role):
    """The first text of each row of a split, found by its hash."""
    known = {text_id(f"{letter}{i}"): i for i in range(3000) for letter in "aqt"}
    data.open()
    return [known[i] for i in data.opened_splits[role].first_ids.tolist()]


def uniform(n, seed=0):
    return np.random.default_rng(seed).random(n)


def epoch_order(data, seed):
    data.open()
    return data.order(np.random.default_rng(seed), uniform(len(data)), batch_sizes(len(data), data.batch_size))


def texts_of(found):
    return found.texts.to_pylist()


def beir(folder, seed=0, queries=40, docs=60):
    """A random BEIR folder; (query texts, document texts, query -> document -> grade), by key."""
    rng = np.random.default_rng(seed)
    corpus = {f"d{i}": (f"文 {i}", ["", f"题 {i}"][i % 2]) for i in range(docs)}
    asked = {f"q{i}": f"问 {i}" for i in range(queries)}
    grades = {}
    for q in asked:
        chosen = rng.choice(docs, rng.integers(2, 9), replace=False)
        grades[q] = {f"d{d}": int(rng.integers(0, 3)) for d in chosen}
    grades["q0"] = dict.fromkeys(list(grades["q0"]), 0)  # nothing answers it
    write(folder / "corpus.jsonl", [{"_id": k, "text": text, "title": title} for k, (text, title) in corpus.items()])
    write(folder / "queries.jsonl", [{"_id": k, "text": text} for k, text in asked.items()])
    pairs = [(q, d, g) for q, found in grades.items() for d, g in found.items()]
    rng.shuffle(pairs)
    for split in ("train", "dev"):
        qrels(folder, split, pairs)
    del grades["q0"]
    return asked, {k: f"{title} {text}".strip() for k, (text, title) in corpus.items()}, grades


def qrels(folder, split, pairs):
    path = folder / "qrels" / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore\n", *(f"{q}\t{d}\t{g}\n" for q, d, g in pairs)]
    path.write_bytes("".join(lines).encode(errors="surrogatepass"))


def check_batch(found, judged, most):
    """The promises of a retrieval batch; `judged`: query text -> text -> grade."""
    queries, positives, negatives = *found.columns[:2], (found.columns[2] if len(found.columns) > 2 else [])
    assert found.roles == ("query", "document", "document")[: len(found.columns)]
    assert [ids.tolist() for ids in found.ids] == [[text_id(text) for text in column] for column in found.columns]
    assert all(judged[q][p] > 0 for q, p in zip(queries, positives, strict=True))
    assert all(any(judged[q].get(n, 1) <= 0 for q in queries) for n in negatives)
    assert len(set(negatives)) == len(negatives) <= most * len(queries)
    assert not set(negatives) & set(positives)
    told = {(q, d): g for q, d, g in found.labels.tolist()}
    for q in queries:
        for text, grade in judged[q].items():
            assert told[text_id(q), text_id(text)] == (grade > 0)
    assert {q for q, _ in told} == {text_id(q) for q in queries}
    docs = [*positives, *negatives]
    ids = np.concatenate(found.ids[1:])
    positives = positive_mask(as_tensor(found.ids[0]), as_tensor(ids), found.labels)  # what InfoNCE leaves out
    assert positives.tolist() == [[judged[q].get(d, 0) > 0 or d == q for d in docs] for q in queries]


def as_tensor(array):
    return torch.from_numpy(np.asarray(array))


def small_beir(folder, pairs=(("1", "a", 1), ("2", "b", 1)), **names):
    write(folder / "corpus.jsonl", [{"_id": key, "text": f"doc {key}"} for key in "abc"])
    write(folder / "queries.jsonl", [{"_id": int(key), "text": f"query {key}"} for key in "12"])
    for split in ("train", "dev"):
        qrels(folder, names.get(split, split), pairs)
