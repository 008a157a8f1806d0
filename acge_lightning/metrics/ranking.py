"""Which documents come first for a query, as trec_eval ranks them: scores of 32 bits, and of equal ones the later document."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Vectors = Any  # Float[n, d] tensor, or a SciPy sparse matrix of n rows
_DOCUMENTS, _QUERIES = 8192, 256  # whose scores are in memory together


def similarities(queries: Vectors, documents: Vectors) -> Tensor:
    """Float32[q, d]: products of rows, equal for equal rows wherever they stand.

    Products of 32 bits differ in the last ones with the place of a row in a matrix; these are made in 64 and rounded.
    """
    if isinstance(queries, Tensor):
        return (queries.double() @ documents.double().T).float()
    return torch.from_numpy((queries @ documents.T).toarray())


def pair_products(embeddings: Vectors, left: Tensor, right: Tensor) -> Tensor:
    """Float[r]: the same for a row and its partner."""
    if not isinstance(embeddings, Tensor):
        return torch.from_numpy(np.asarray(embeddings[left.numpy()].multiply(embeddings[right.numpy()]).sum(1)).ravel())
    halves = zip(left.split(_DOCUMENTS), right.split(_DOCUMENTS), strict=True)
    return torch.cat([(embeddings[i].double() * embeddings[j].double()).sum(-1).float() for i, j in halves])


def _rows(embeddings: Vectors, numbers: Tensor) -> Vectors:
    return embeddings[numbers].double() if isinstance(embeddings, Tensor) else embeddings[numbers.numpy()]


def ndcg(gains: Tensor, ideal: Tensor) -> Tensor:
    """Normalised discounted cumulative gain of rankings.

    DCG = sum over ranks i from 1 of gain_i / log2(i + 1); nDCG = DCG of the ranking / DCG of the best one. The gain is the
    grade, as in trec_eval.

    Args:
        gains: Float[..., k], in the order of the ranking.
        ideal: Float[..., m], the best gains, in descending order; for nDCG@k the first k of them.

    Returns:
        Float64[...] in [0, 1]; NaN where all ideal gains are 0.

    Reference: Järvelin and Kekäläinen 2002 (doi 10.1145/582415.582418). Differs: log2(i + 1) at all ranks, as in trec_eval.

    >>> ndcg(torch.tensor([0.0, 1.0]), torch.tensor([1.0])).item()
    0.6309297535714575
    """
    return _dcg(gains) / _dcg(ideal)


def _dcg(gains: Tensor) -> Tensor:
    ranks = torch.arange(1, gains.shape[-1] + 1, dtype=torch.double, device=gains.device)
    return (gains / torch.log2(ranks + 1)).sum(-1)


def lexsort(*keys: Tensor) -> Tensor:
    """Int64[n]: the order by the last key, equal ones by the one before it, and so on, as in `numpy.lexsort`."""
    order = keys[0].argsort(stable=True)
    for key in keys[1:]:
        order = order[key[order].argsort(stable=True)]
    return order


def as_lines(labels: Tensor, texts: int) -> Tensor:
    """Float64[r, 5] as `metrics` has them, from three columns where each text is one query or one document."""
    if labels.shape[1] == 5:
        return labels
    others = torch.ones(texts, dtype=torch.bool, device=labels.device)
    others[labels[:, :2].long().ravel()] = False
    number = others.nonzero().to(labels)
    nan, nobody = torch.full_like(number, torch.nan), torch.full_like(number, -1)
    return torch.cat([torch.cat([labels, labels[:, :2]], dim=1), torch.cat([number, number, nan, nobody, number], dim=1)])


def renumbered(numbers: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Int64[r]: `numbers` without gaps; Int64[n]: the text of each."""
    distinct, of = numbers.unique(return_inverse=True)
    return of, of.new_empty(len(distinct)).scatter_(0, of, texts.long())


def best_grades(pair: Tensor, grade: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair once, ascending, with its best grade."""
    order = lexsort(-grade, pair)
    pair, grade = pair[order], grade[order]
    is_best = pair.diff(prepend=pair.new_tensor([-1])) != 0
    return pair[is_best], grade[is_best]


def ranked_documents(embeddings: Vectors, asking: Tensor, texts: Tensor, k: int) -> Tensor:
    """Int64[queries, k or all]: the documents in order of their scores, of equal ones the later first.

    Args:
        embeddings: of texts.
        asking: Int64[queries], the text of each query.
        texts: Int64[documents], the text of each document.
        k: length of the ranking.
    """
    distinct, of = texts.unique(return_inverse=True)
    document = len(of) - 1 - of.flip(0).argsort(stable=True)  # by text, later ones first
    rank = torch.arange(len(of), device=of.device) - torch.searchsorted(of[document], of[document])
    document = document[rank < k]  # of those with one text only the last k can be among the first k
    best = torch.empty(len(asking), 0, dtype=torch.long, device=of.device)
    for start in range(0, len(distinct), _DOCUMENTS):
        ends = torch.searchsorted(of[document], torch.tensor([start, start + _DOCUMENTS], device=of.device)).tolist()
        block = document[slice(*ends)]
        vectors = _rows(embeddings, distinct[start : start + _DOCUMENTS])
        spread = slice(None) if len(block) == vectors.shape[0] else of[block] - start
        scores = (similarities(_rows(embeddings, rows), vectors)[:, spread] for rows in asking.split(_QUERIES))
        best = torch.cat([best, torch.cat([_top(part, block, k) for part in scores])], dim=1)
        best = best.topk(min(k, best.shape[1])).values
    return best & 0xFFFFFFFF


def _top(scores: Tensor, documents: Tensor, k: int) -> Tensor:
    """Int64[q, k or all]: the best documents of each query, as `_keys`."""
    values, columns = scores.topk(min(k + 1, len(documents)))
    keys = _keys(values[:, :k], documents[columns[:, :k]])
    tied = values[:, k - 1] == values[:, -1] if len(documents) > k else values.new_zeros(len(values), dtype=torch.bool)
    if tied.any():  # more documents have the last score than there is room for
        keys[tied] = _keys(scores[tied], documents).topk(k).values
    return keys


def _keys(scores: Tensor, documents: Tensor) -> Tensor:
    """Int64: the score, as an integer of the same order, above the document's number in 32 bits."""
    bits = (scores.float() + 0.0).view(torch.int32)  # no -0
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32 | documents
