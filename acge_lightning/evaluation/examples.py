"""Show what an encoder does with single texts of a data set: a projection, nearest neighbours, worst errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.evaluation.datasets import labels_of

_POINTS, _QUERIES, _HITS, _ERRORS = 300, 5, 3, 5
Example = dict[str, list[Any]]


def examples(family: str, vectors: Tensor, evaluation_set: EvaluationSet, classes: Sequence[str] = ()) -> Example:
    """Collect examples of a data set at full size.

    Args:
        family: of the data set.
        vectors: Float32[texts, D] of length 1.
        evaluation_set: the texts and their labels.
        classes: words of the class numbers, for labelled texts.

    Returns:
        `points` ([x, y, class] on the two main axes; for labelled texts), `neighbours` (queries, or texts, and their nearest
        texts; for labelled texts and retrieval) and `errors` (pairs scored most wrongly, queries whose right text ranks
        lowest, texts whose neighbour is of another class).
    """
    result: Example = {"points": [], "neighbours": [], "errors": []}
    if family in ("classification", "clustering"):
        return result | _labelled(vectors, evaluation_set, classes)
    if family in ("sts", "pair"):
        return result | {"errors": _pairs(vectors, evaluation_set)}
    return result | (_searches(vectors, evaluation_set) if family in ("retrieval", "triplet") else {})


def _text(evaluation_set: EvaluationSet, number: int | Tensor) -> str:
    return evaluation_set.texts[int(number)].as_py()


def _labelled(vectors: Tensor, evaluation_set: EvaluationSet, classes: Sequence[str]) -> Example:
    class_numbers, draws = labels_of(evaluation_set).unbind(1)
    rows = (draws == 0).nonzero().flatten()
    rows = rows[torch.linspace(0, len(rows) - 1, min(_POINTS, len(rows))).round().long()]
    row_vectors, labels = vectors[rows], [classes[c] for c in class_numbers[rows].tolist()]
    axes = torch.linalg.svd(row_vectors - row_vectors.mean(0), full_matrices=False)[2][:2]
    points = ((row_vectors - row_vectors.mean(0)) @ axes.T).tolist()
    nearest = (row_vectors @ row_vectors.T).fill_diagonal_(-2).topk(min(_HITS, len(rows) - 1))
    neighbours, errors = [], []
    for i in range(len(rows)):
        hits = [
            {"text": _text(evaluation_set, rows[j]), "score": round(value, 4), "right": labels[j] == labels[i]}
            for value, j in zip(nearest.values[i].tolist(), nearest.indices[i].tolist(), strict=True)
        ]
        neighbours.append({"query": _text(evaluation_set, rows[i]), "hits": hits})
        if hits and not hits[0]["right"]:
            expected, other = (labels[j] for j in (i, int(nearest.indices[i, 0])))
            errors.append((hits[0]["score"], {"text": _text(evaluation_set, rows[i]), "expected": expected, "found": other}))
    worst = [error for _, error in sorted(errors, key=lambda pair: -pair[0])[:_ERRORS]]
    sampled = neighbours[:: max(1, len(neighbours) // _QUERIES)][:_QUERIES]
    return {"points": [[*map(_short, p), c] for p, c in zip(points, labels, strict=True)]} | {
        "neighbours": sampled,
        "errors": worst,
    }


def _short(value: float) -> float:
    return round(value, 4)


def _pairs(vectors: Tensor, evaluation_set: EvaluationSet) -> list[dict[str, str]]:
    """List the pairs whose rank by cosine and by score are furthest apart."""
    judgements = labels_of(evaluation_set)
    first_texts, second_texts = judgements[:, :2].long().unbind(1)
    cosine, truth = (vectors[first_texts] * vectors[second_texts]).sum(1), judgements[:, 2]
    ranks = [values.double().argsort().argsort().double() / max(1, len(truth) - 1) for values in (cosine, truth)]
    result = []
    for i in (ranks[0] - ranks[1]).abs().argsort(descending=True)[:_ERRORS].tolist():
        texts = {"text": _text(evaluation_set, first_texts[i]), "text2": _text(evaluation_set, second_texts[i])}
        result.append(texts | {"expected": f"{truth[i]:g}", "found": f"{cosine[i]:.4f}"})
    return result


def _searches(vectors: Tensor, evaluation_set: EvaluationSet) -> Example:
    queries = evaluation_set.roles[0][0]
    documents = vectors[queries:]
    relevant: dict[int, set[int]] = {}
    hidden: dict[int, set[int]] = {}
    for query, _, grade, _, document in labels_of(evaluation_set).tolist():
        if not grade <= 0:
            (hidden if math.isnan(grade) else relevant).setdefault(int(query), set()).add(int(document))
    judged_queries = np.array(sorted(relevant))
    positions = np.linspace(0, len(judged_queries) - 1, min(_POINTS, len(judged_queries))).round().astype(int)
    neighbours, errors = [], []
    for number, q in enumerate(judged_queries[positions].tolist()):
        scores, answers, hidden_documents = documents @ vectors[q], sorted(relevant[q]), sorted(hidden.get(q, ()))
        scores[hidden_documents] = -torch.inf
        best = scores.topk(min(_HITS, len(scores) - len(hidden_documents)))
        hits = [
            {"text": _text(evaluation_set, queries + d), "score": round(value, 4), "right": d in answers}
            for value, d in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if number < _QUERIES:
            neighbours.append({"query": _text(evaluation_set, q), "hits": hits})
        rank = int((scores > scores[answers].max()).sum()) + 1
        if rank > 1 and hits:
            nearest = answers[int(scores[answers].argmax())]
            expected = f"{_text(evaluation_set, queries + nearest)} (rank {rank})"
            errors.append((rank, {"text": _text(evaluation_set, q), "expected": expected, "found": hits[0]["text"]}))
    return {"neighbours": neighbours, "errors": [error for _, error in sorted(errors, key=lambda e: -e[0])[:_ERRORS]]}
