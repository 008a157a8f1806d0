"""Asks whether an encoder and BM25 find more together: nDCG@10 of both, and of their rankings fused by reciprocal rank.

    python tools/study_fusion.py --model FOLDER_OR_NAME --data DIR [--tasks cmrc2018 doc_qa …] [--split test]

Of every query, both rank the documents; a document's fused score is the sum of 1 / (60 + rank) over both rankings, of the first
1,000 (Cormack et al. 2009, doi 10.1145/1571941.1572114). Scores are those of `acge evaluate`. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_matrix

from acge_lightning.data.dataset import CACHE
from acge_lightning.embed.cache import Embeddings
from acge_lightning.evaluation.datasets import Dataset, find, labels_of
from acge_lightning.evaluation.lexical import bm25
from acge_lightning.metrics.ranking import Vectors, as_lines, ranked_documents, renumbered
from acge_lightning.metrics.task_metrics import Retrieval
from acge_lightning.terminal import track
from acge_lightning.zoo.pretrained import load

DEPTH, CONSTANT = 1000, 60


def fuse(rankings: list[Vectors], labels: torch.Tensor) -> tuple[csr_matrix, torch.Tensor]:
    """Vectors whose products of a query and a document are their fused scores, and judgements with their numbers.

    Args:
        rankings: embeddings of the same texts, each by another model.
        labels: Float64[r, 3] or Float64[r, 5] of the evaluation set.

    Returns:
        Float64[texts + queries, queries]; Float64[r, 5], in which each query is a text of its own, after all others.
    """
    texts = rankings[0].shape[0]
    lines = as_lines(labels, texts).clone()
    _, documents = renumbered(lines[:, 4], lines[:, 1])
    asks = lines[:, 3] >= 0
    query, asking = renumbered(lines[asks, 3], lines[asks, 0])
    lines[asks, 0] = (texts + query).double()
    numbers = np.arange(len(asking))
    fused = csr_matrix((np.ones(len(asking)), (texts + numbers, numbers)), shape=(texts + len(asking), len(asking)))
    for vectors in rankings:
        ranked = ranked_documents(vectors, asking, documents, DEPTH)
        score = np.tile(1 / (CONSTANT + 1 + np.arange(ranked.shape[1])), len(asking))
        place = documents[ranked].numpy().ravel(), np.repeat(numbers, ranked.shape[1])
        fused += csr_matrix((score, place), shape=fused.shape)
    return fused.tocsr(), lines


def score(dataset: Dataset, embeddings: Embeddings, cache: Path) -> list[float]:
    """NDCG@10 of BM25, of the encoder and of both."""
    _, evaluation_set = dataset.open(cache)
    labels, metric = labels_of(evaluation_set), Retrieval()
    both: list[Vectors] = [bm25(evaluation_set), embeddings.encode_set(evaluation_set)]
    judged = [(vectors, labels) for vectors in both] + [fuse(both, labels)]
    return [metric.values(metric.units(*one))["ndcg"] for one in judged]


def main() -> None:
    """Score the data sets, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tasks", nargs="*", default=["retrieval"])
    parser.add_argument("--split", choices=("test", "dev"), default="test")
    options = parser.parse_args()
    cache = Path(CACHE).expanduser()
    embeddings = Embeddings(load(options.model), cache / "embeddings")
    datasets = [data for data in find(options.data, options.tasks, options.split) if data.family == "retrieval"]
    table = Table("data set", "BM25", "encoder", "fused", title=f"nDCG@10, {options.split}")
    scores = {data.name: score(data, embeddings, cache) for data in track(datasets, "fusion", "data sets")}
    mean = np.mean(list(scores.values()), axis=0).tolist()
    for name, values in [*scores.items(), ("mean", mean)]:
        table.add_row(name, *(f"{value:.4f}" for value in values))
    Console(stderr=True).print(table)
    print(json.dumps({"mean": dict(zip(("bm25", "encoder", "fused"), mean, strict=True)), "scores": scores}))


if __name__ == "__main__":
    main()
