"""Rankings fused by reciprocal rank, against a loop over queries and documents."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from acge_lightning.metrics.ranking import ranked_documents
from acge_lightning.metrics.task_metrics import Retrieval

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import study_fusion


@pytest.mark.parametrize("depth", [3, 1000])
def test_fused_scores_are_sums_of_reciprocal_ranks(monkeypatch, depth):
    monkeypatch.setattr(study_fusion, "DEPTH", depth)
    torch.manual_seed(0)
    queries, documents = 5, 12
    first, second = torch.randn(queries + documents, 4), torch.randn(queries + documents, 6)
    pairs = [(q, queries + (3 * q + j) % documents, float(j)) for q in range(queries) for j in range(3)]
    labels = torch.tensor(pairs, dtype=torch.double)
    fused, numbered = study_fusion.fuse([first, second], labels)
    asking = queries + documents + torch.arange(queries)
    assert torch.equal(numbered[: len(labels), 0].long(), asking.repeat_interleave(3))
    order = ranked_documents(fused, asking, torch.arange(queries, queries + documents), documents)
    for q in range(queries):
        score = np.zeros(documents)
        for vectors in (first, second):
            ranking = np.argsort(-(vectors[queries:] @ vectors[q]).numpy())[:depth]
            score[ranking] += 1 / (61 + np.arange(len(ranking)))
        found = score[order[q].numpy()]
        assert (np.diff(found) <= 1e-12).all()
    assert 0 <= Retrieval().values(Retrieval().units(fused, numbered))["ndcg"] <= 1


def test_a_query_that_is_a_document_too():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([[0, 1, 1.0, 0, 0], [0, 2, 0.0, 0, 1], [1, 0, 1.0, 1, 2], [1, 2, 0.0, 1, 1]], dtype=torch.double)
    alone = Retrieval().values(Retrieval().units(vectors, labels))["ndcg"]
    assert Retrieval().values(Retrieval().units(*study_fusion.fuse([vectors, vectors], labels)))["ndcg"] == alone
