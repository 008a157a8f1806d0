"""Losses on embeddings. None of them knows a model, a rank or a data set.

Every loss is called as `loss(embeddings, labels, ids)`:

| loss | embeddings | labels | ids |
|---|---|---|---|
| `InfoNCE` | queries, positives[, negatives] | Int64[r, 3] (query id, text id, grade), or None | Int64[n_i] a column, or None |
| `SimCSE` | first view, second view | None | as above |
| `CoSENT` | first text, second text | Float[n] similarity, only its order matters | unused |
| `LabelContrast` | texts | Int64[n] class numbers | unused |

Embeddings arrive unnormalised; similarity is cosine. Everything is computed in fp32 (fp64 stays fp64), also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from acge_lightning.errors import InputError

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def full_precision(forward: Any) -> Any:
    """Decorate `forward(self, embeddings, …)`: no autocast, half-precision embeddings cast to fp32."""

    @wraps(forward)
    def wrapper(self: nn.Module, embeddings: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(embeddings[0].device.type, enabled=False):
            wide = tuple(e.to(torch.promote_types(e.dtype, torch.float32)) for e in embeddings)
            return forward(self, wide, *args, **kwargs)

    return wrapper


class InfoNCE(nn.Module):
    """Contrastive loss: each query's own positive against every other candidate.

    loss = -mean_i( s(q_i, p_i)/tau - log sum_c exp(s(q_i, c)/tau) ), with c over all positives and explicit negatives of the
    batch and, by `directions`, further terms in the same sum (`joint`) or in sums of their own (`per_direction`).
    Candidates known to be right for a query are left out of its sum: texts judged positive, texts equal to its positive,
    positives of an equal query, and the query's own text.

    Args:
        temperature: tau > 0.
        directions: terms of the sum: `query_to_doc` (always), `doc_to_query` (each positive against all queries),
            `query_to_query`, `doc_to_doc` (its positive against the other documents).
        partition: `joint` one softmax over all terms (GTE), `per_direction` one softmax a direction, averaged
            (symmetric InfoNCE; only with `query_to_doc` and `doc_to_query`).
        in_batch: False leaves each query only the negatives that the judgements name as its own (grade 0).

    Reference: van den Oord et al. 2018 (arXiv 1807.03748); directions: Li et al. 2023 (GTE, arXiv 2308.03281). Differs by
    the masking of known positives.

    YAML::

        loss: {_target_: acge_lightning.losses.InfoNCE, temperature: 0.05, directions: [query_to_doc, doc_to_query],
               partition: per_direction}

    >>> e = torch.eye(4)
    >>> round(InfoNCE(temperature=1.0)((e, e)).item(), 4)  # log(e + 3) - 1
    0.7437
    """

    def __init__(
        self,
        temperature: float = 0.05,
        directions: Sequence[str] = ("query_to_doc",),
        partition: str = "joint",
        in_batch: bool = True,
    ):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature={temperature} must be above 0: try 0.05")
        unknown = set(directions) - set(DIRECTIONS)
        if unknown or "query_to_doc" not in directions:
            raise InputError(f"directions={list(directions)} must contain query_to_doc and only {list(DIRECTIONS)}")
        if partition not in ("joint", "per_direction"):
            raise InputError(f"partition={partition!r} is unknown: choose joint or per_direction")
        if partition == "per_direction" and set(directions) & {"query_to_query", "doc_to_doc"}:
            raise InputError("partition=per_direction has no positive in query_to_query and doc_to_doc: use joint")
        if not in_batch and set(directions) != {"query_to_doc"}:
            raise InputError("in_batch=false keeps only a query's own negatives: use directions: [query_to_doc]")
        self.temperature = temperature
        self.directions = tuple(directions)
        self.partition = partition
        self.in_batch = in_batch

    @full_precision
    def forward(
        self, embeddings: tuple[Tensor, ...], labels: Tensor | None = None, ids: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: queries Float[n, d], positives Float[n, d], and optionally negatives Float[m, d] of all queries.
            labels: Int64[r, 3] judgements (query id, text id, grade; above 0 is positive), or None.
            ids: text ids of each column, aligned with the embeddings, or None for no masking.

        Returns:
            Float[], the mean over queries.
        """
        queries = normalize(embeddings[0], dim=-1)
        docs = normalize(torch.cat(embeddings[1:]), dim=-1)
        if len(embeddings[1]) != len(queries):
            raise InputError(f"InfoNCE has {len(queries)} queries and {len(embeddings[1])} positives: give one each")
        terms = {"query_to_doc": queries @ docs.T / self.temperature}
        positive = terms["query_to_doc"].diagonal()
        blocked = self._blocked(len(queries), len(docs), labels, ids, queries.device)
        terms["query_to_doc"] = terms["query_to_doc"].masked_fill(blocked["query_to_doc"], -torch.inf)
        own = docs[: len(queries)]
        for name, rows, columns in (
            ("query_to_query", queries, queries),
            ("doc_to_query", own, queries),
            ("doc_to_doc", own, docs),
        ):
            if name in self.directions:
                terms[name] = (rows @ columns.T / self.temperature).masked_fill(blocked[name], -torch.inf)
        if self.partition == "joint":
            log_z = torch.logsumexp(torch.cat([terms[d] for d in self.directions], dim=1), dim=1)
        else:
            log_z = torch.stack([torch.logsumexp(terms[d], dim=1) for d in self.directions]).mean(0)
        return (log_z - positive).mean()

    def _blocked(
        self, n: int, m: int, labels: Tensor | None, ids: Sequence[Tensor] | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Which candidates each row's sum leaves out, for each direction: Bool[n, n or m]."""
        row = torch.arange(n, device=device)
        own = torch.arange(m, device=device)[None] == row[:, None]
        if not self.in_batch and (ids is None or labels is None):
            raise InputError("InfoNCE(in_batch=false) needs ids and judgements to know each query's own negatives")
        diagonal = own[:, :n]
        if ids is None:
            known, known_queries = own, diagonal
        else:
            query_ids, doc_ids = ids[0], torch.cat(list(ids[1:]))
            known, known_queries = known_positives(query_ids, torch.cat([doc_ids, query_ids]), labels).split([m, n], dim=1)
            if not self.in_batch:
                known = known | ~pair_mask(query_ids, doc_ids, labels[labels[:, 2] <= 0][:, :2])
        square = known[:, :n]
        same_positive = diagonal if ids is None else ids[1][:, None] == ids[1][None]
        own_negatives = torch.zeros_like(own)
        if ids is not None and labels is not None:
            own_negatives = pair_mask(ids[0], torch.cat(list(ids[1:])), labels[:, :2])
        return {
            "query_to_doc": known & ~own,
            "doc_to_query": square.T & ~diagonal,
            "query_to_query": known_queries | same_positive,
            "doc_to_doc": known | own_negatives,
        }


def pair_mask(row_ids: Tensor, column_ids: Tensor, pairs: Tensor) -> Tensor:
    """Where (row id, column id) is one of the listed pairs: Int64[n], Int64[m], Int64[r, 2] -> Bool[n, m].

    >>> pair_mask(torch.tensor([7, 8]), torch.tensor([1, 2, 1]), torch.tensor([[8, 1], [9, 2]])).tolist()
    [[False, False, False], [True, False, True]]
    """
    rows, row_of = torch.unique(row_ids, return_inverse=True)
    columns, column_of = torch.unique(column_ids, return_inverse=True)
    pairs = pairs[torch.isin(pairs[:, 0], rows) & torch.isin(pairs[:, 1], columns)]
    mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=row_ids.device)
    mask[torch.searchsorted(rows, pairs[:, 0].contiguous()), torch.searchsorted(columns, pairs[:, 1].contiguous())] = True
    return mask[row_of][:, column_of]


def known_positives(query_ids: Tensor, doc_ids: Tensor, labels: Tensor | None) -> Tensor:
    """Candidates that are no negatives of a query, its own positive among them: Bool[n, m].

    These are: texts judged positive for it, texts equal to the positive of an equal query, and the query's own text.
    """
    own = torch.stack([query_ids, doc_ids[: len(query_ids)]], dim=1)
    itself = torch.stack([query_ids, query_ids], dim=1)
    pairs = [own, itself] if labels is None else [own, itself, labels[labels[:, 2] > 0][:, :2]]
    return pair_mask(query_ids, doc_ids, torch.cat(pairs))


class SimCSE(InfoNCE):
    """Unsupervised contrast: two views of the same text (two dropout masks, or an augmentation) attract each other.

    `InfoNCE` between the views; texts that occur twice in a batch are masked.

    Args:
        temperature: tau > 0.

    Reference: Gao et al. 2021 (arXiv 2104.08821), unsupervised. Differs by the masking of equal texts.

    YAML::

        loss: {_target_: acge_lightning.losses.SimCSE, temperature: 0.05}
    """

    def __init__(self, temperature: float = 0.05):
        super().__init__(temperature)


class CoSENT(nn.Module):
    """Ranks pairs: a pair labelled as more similar should have the higher cosine.

    loss = log(1 + sum over pairs of pairs (i, j) with label_i > label_j of exp((cos_j - cos_i)/tau)).
    A sum, not a mean: it grows with the logarithm of the batch. If all labels are equal it is 0 and has no gradient.

    Args:
        temperature: tau > 0 (0.05 is a scale of 20).

    Reference: Su 2022 (CoSENT, kexue.fm/archives/8847).

    YAML::

        loss: {_target_: acge_lightning.losses.CoSENT, temperature: 0.05}

    >>> a = torch.tensor([[1.0, 0.0], [1.0, 0.0]]); b = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(CoSENT(temperature=1.0)((a, b), torch.tensor([5.0, 0.0])).item(), 4)  # log(1 + exp(0 - 1))
    0.3133
    """

    def __init__(self, temperature: float = 0.05):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature={temperature} must be above 0: try 0.05")
        self.temperature = temperature

    @full_precision
    def forward(self, embeddings: tuple[Tensor, ...], labels: Tensor, ids: Sequence[Tensor] | None = None) -> Tensor:
        """The loss of n pairs: embeddings two of Float[n, d], labels Float[n] -> Float[]."""
        first, second = embeddings
        cosine = (normalize(first, dim=-1) * normalize(second, dim=-1)).sum(-1) / self.temperature
        difference = cosine[None, :] - cosine[:, None]
        wrong_way = difference[labels[:, None] > labels[None, :]]
        return torch.logsumexp(torch.cat([wrong_way.new_zeros(1), wrong_way]), dim=0)


class LabelContrast(nn.Module):
    """Contrast by class: texts of the same label are positives, texts of other labels are negatives.

    For every text i with at least one other of its label (set P_i):
    loss_i = -1/|P_i| sum over p in P_i of log( exp(s_ip/tau) / (exp(s_ip/tau) + sum over n of another label exp(s_in/tau)) ).
    The other positives are not in the denominator, so a same-label text is never pushed away. Mean over those texts; 0 if
    there is none, or only one label.

    Args:
        temperature: tau > 0.

    Reference: Khosla et al. 2020 (supervised contrastive, arXiv 2004.11362); denominator as in the label negatives of
    Piccolo2 (arXiv 2405.06932).

    YAML::

        loss: {_target_: acge_lightning.losses.LabelContrast, temperature: 0.05}
    """

    def __init__(self, temperature: float = 0.05):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature={temperature} must be above 0: try 0.05")
        self.temperature = temperature

    @full_precision
    def forward(self, embeddings: tuple[Tensor, ...], labels: Tensor, ids: Sequence[Tensor] | None = None) -> Tensor:
        """The loss of n texts: embeddings one of Float[n, d], labels Int64[n] -> Float[]."""
        vectors = normalize(embeddings[0], dim=-1)
        logits = vectors @ vectors.T / self.temperature
        same = labels[:, None] == labels[None, :]
        negatives = torch.logsumexp(logits.masked_fill(same, -torch.inf), dim=1, keepdim=True)
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        each = nn.functional.softplus(negatives - logits).masked_fill(~positive, 0.0)
        count = positive.sum(1)
        has_any = count > 0
        return (each.sum(1)[has_any] / count[has_any]).sum() / has_any.sum().clamp(min=1)
