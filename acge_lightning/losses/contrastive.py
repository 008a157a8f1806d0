"""Losses on embeddings, which know no model, no rank and no data set.

Every loss is called as `loss(embeddings, labels, ids)`:

| loss | embeddings | labels | ids |
|---|---|---|---|
| `InfoNCE` | queries, positives[, negatives] | Int64[r, 3] (query id, text id, grade), or None | Int64[n_i] a column, or None |
| `SimCSE` | first view, second view | None | as above |
| `CoSENT` | first text, second text | Float[n] similarity, only its order matters | unused |
| `LabelContrast` | texts | Int64[n] class numbers | unused |

Embeddings arrive unnormalised; similarity is cosine. Everything is computed in fp32 (fp64 stays fp64), also under autocast.

A loss has three methods (`CosineLoss`), so that `matryoshka` can compute it at many prefix lengths for little more than the
price of one: which rows it compares, its targets (labels or masks), and its value from logits = cosines / temperature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from acge_lightning.errors import InputError

_COMPARISONS = ("query_to_doc", "query_to_query", "doc_to_doc")
Masks = dict[str, Tensor | None]  # direction -> the candidates that it leaves out
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def full_precision(forward: Any) -> Any:
    """Decorate `forward(self, embeddings, …)`: no autocast, half-precision embeddings cast to fp32."""

    @wraps(forward)
    def wrapper(self: nn.Module, embeddings: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(embeddings[0].device.type, enabled=False):
            wide = tuple(e.to(torch.promote_types(e.dtype, torch.float32)) for e in embeddings)
            return forward(self, wide, *args, **kwargs)

    return wrapper


class CosineLoss(nn.Module, ABC):
    """Base of all losses: a loss is a function of cosines divided by a temperature.

    Args:
        temperature: tau > 0.

    Raises:
        InputError: a temperature that is not above 0.
    """

    rowwise: ClassVar[bool] = False  # cosines of row i with row i only: Float[n] in place of Float[n, m]

    def __init__(self, temperature: float):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature={temperature} must be above 0: try 0.05")
        self.temperature = temperature

    @abstractmethod
    def comparisons(self, embeddings: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The rows and columns of each matrix of cosines that the loss needs: pairs of Float[n, d], Float[m, d]."""

    def targets(self, embeddings: Sequence[Tensor], labels: Any, ids: Sequence[Tensor] | None) -> Any:
        """Labels or masks that the value depends on beside the cosines; they are the same for all prefixes."""
        return labels

    @abstractmethod
    def value(self, logits: Sequence[Tensor], targets: Any) -> Tensor:
        """The loss Float[] from the logits of each comparison, Float[n, m], or Float[n] if `rowwise`."""

    def value_and_gradient(self, logits: Sequence[Tensor], targets: Any) -> tuple[Tensor, Sequence[Tensor]]:
        """The value and its derivative by the logits, both detached."""
        with torch.enable_grad():
            logits = [matrix.detach().requires_grad_() for matrix in logits]
            value = self.value(logits, targets)
            gradients = torch.autograd.grad(value, logits, allow_unused=True, materialize_grads=True)
        return value.detach(), gradients

    @full_precision
    def forward(
        self, embeddings: tuple[Tensor, ...], labels: Tensor | None = None, ids: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss: a Float[n_i, d] a column, labels and ids as in the table above -> Float[]."""
        targets = self.targets(embeddings, labels, ids)
        logits = []
        for rows, columns in self.comparisons(embeddings):
            a, b = normalize(rows, dim=-1), normalize(columns, dim=-1)
            logits.append(((a * b).sum(-1) if self.rowwise else a @ b.T) / self.temperature)
        return self.value(logits, targets)


class InfoNCE(CosineLoss):
    """Contrastive loss: each query is to prefer its own positive to every other candidate.

    loss = -mean_i( s(q_i, p_i)/tau - log sum_c exp(s(q_i, c)/tau) ), with c over all positives and explicit negatives of the
    batch and, by `directions`, further terms in the same sum (`joint`) or in sums of their own (`per_direction`).
    Candidates that are no negatives of a query are left out of its sum: texts judged positive, texts equal to its positive,
    positives of an equal query, and the query's own text. A text that comes several times in the batch is a candidate once.

    Args:
        temperature: tau > 0.
        directions: terms of the sum: `query_to_doc` (always), `doc_to_query` (each positive with all queries),
            `query_to_query`, `doc_to_doc` (its positive with the other documents).
        partition: `joint` one softmax over all terms (GTE), `per_direction` one softmax a direction, averaged
            (symmetric InfoNCE; only with `query_to_doc` and `doc_to_query`).
        in_batch: False leaves each query only the negatives that the judgements name as its own (grade 0).

    Reference: van den Oord et al. 2018 (arXiv 1807.03748); directions: Li et al. 2023 (GTE, arXiv 2308.03281). Differs by
    the masking of false negatives.

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
        super().__init__(temperature)
        unknown = set(directions) - set(DIRECTIONS)
        if unknown or "query_to_doc" not in directions:
            raise InputError(f"directions={list(directions)} must contain query_to_doc and only {list(DIRECTIONS)}")
        if partition not in ("joint", "per_direction"):
            raise InputError(f"partition={partition!r} is unknown: choose joint or per_direction")
        if partition == "per_direction" and set(directions) & {"query_to_query", "doc_to_doc"}:
            raise InputError("partition=per_direction has no positive in query_to_query and doc_to_doc: use joint")
        if not in_batch and set(directions) != {"query_to_doc"}:
            raise InputError("in_batch=false keeps only a query's own negatives: use directions: [query_to_doc]")
        self.directions = tuple(directions)
        self.partition = partition
        self.in_batch = in_batch

    def comparisons(self, embeddings: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Queries with documents; queries with queries and positives with documents, if the directions have them.

        Args:
            embeddings: queries Float[n, d], positives Float[n, d], and optionally negatives Float[m, d] of all queries.
        """
        queries, positives = embeddings[:2]
        if len(positives) != len(queries):
            raise InputError(f"InfoNCE has {len(queries)} queries and {len(positives)} positives: give one each")
        docs = torch.cat(list(embeddings[1:])) if len(embeddings) > 2 else positives
        pairs = {"query_to_doc": (queries, docs), "query_to_query": (queries, queries), "doc_to_doc": (positives, docs)}
        return [pair for direction, pair in pairs.items() if direction in self.directions]

    def targets(self, embeddings: Sequence[Tensor], labels: Tensor | None, ids: Sequence[Tensor] | None) -> Masks:
        """The candidates that each direction leaves out: Bool[n, n or m], or None for none.

        Args:
            embeddings: as in `comparisons`.
            labels: Int64[r, 3] judgements (query id, text id, grade; above 0 is positive), or None.
            ids: text ids of each column, aligned with the embeddings, or None for no masking.
        """
        if not self.in_batch and (ids is None or labels is None):
            raise InputError("InfoNCE(in_batch=false) needs ids and judgements to know each query's own negatives")
        if ids is None and set(self.directions) <= {"query_to_doc", "doc_to_query"}:
            return dict.fromkeys(DIRECTIONS)
        n, m, device = len(embeddings[0]), sum(map(len, embeddings[1:])), embeddings[0].device
        own = torch.arange(m, device=device)[None] == torch.arange(n, device=device)[:, None]
        if ids is None:
            return {"query_to_doc": None, "doc_to_query": None, "query_to_query": own[:, :n], "doc_to_doc": own}
        query_ids, doc_ids = ids[0], torch.cat(list(ids[1:]))
        judgements = query_ids.new_zeros(0, 3) if labels is None else labels
        candidate_ids = torch.cat([doc_ids, query_ids])
        positive_docs, positive_queries = positive_mask(query_ids, candidate_ids, judgements).split([m, n], dim=1)
        same_positive = ids[1][:, None] == ids[1][None]
        duplicate_docs, duplicate_queries = duplicate_mask(doc_ids), duplicate_mask(query_ids)
        masks: Masks = {
            "query_to_doc": (positive_docs | duplicate_docs) & ~own,
            "doc_to_query": (positive_docs[:, :n].T | duplicate_queries) & ~own[:, :n],
            "query_to_query": positive_queries | same_positive | duplicate_queries,
            "doc_to_doc": positive_docs | pair_mask(query_ids, doc_ids, judgements[:, :2]) | duplicate_docs,
        }
        if not self.in_batch:
            own_negatives = pair_mask(query_ids, doc_ids, judgements[judgements[:, 2] <= 0][:, :2])
            masks["query_to_doc"] = (positive_docs | ~own_negatives | duplicate_docs) & ~own
        return masks

    def value(self, logits: Sequence[Tensor], targets: Masks) -> Tensor:
        """The mean over queries; `targets` are masks of the candidates to leave out."""
        by_direction = dict(zip([d for d in _COMPARISONS if d in self.directions], logits, strict=True))
        to_docs = by_direction["query_to_doc"]
        if "doc_to_query" in self.directions:
            by_direction["doc_to_query"] = to_docs[:, : len(to_docs)].T
        masked = [_without(by_direction[d], targets[d]) for d in self.directions]
        if self.partition == "joint":
            log_z = torch.logsumexp(torch.cat(masked, dim=1) if len(masked) > 1 else masked[0], dim=1)
        else:
            log_z = torch.stack([torch.logsumexp(candidates, dim=1) for candidates in masked]).mean(0)
        return (log_z - to_docs.diagonal()).mean()

    def value_and_gradient(self, logits: Sequence[Tensor], targets: Masks) -> tuple[Tensor, Sequence[Tensor]]:
        """In closed form where there is one softmax of one direction: the softmax less 1 at the positive, over n."""
        if self.directions != ("query_to_doc",):
            return super().value_and_gradient(logits, targets)
        log_p = _without(logits[0], targets["query_to_doc"]).log_softmax(dim=1)
        value = -log_p.diagonal().mean()
        gradient = log_p.exp_()
        gradient.diagonal().sub_(1)
        return value, [gradient.div_(len(gradient))]


def _without(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits.masked_fill(mask, -torch.inf)


def pair_mask(row_ids: Tensor, column_ids: Tensor, pairs: Tensor) -> Tensor:
    """Where (row id, column id) is one of the listed pairs: Int64[n], Int64[m], Int64[r, 2] -> Bool[n, m].

    >>> pair_mask(torch.tensor([7, 8]), torch.tensor([1, 2, 1]), torch.tensor([[8, 1], [9, 2]])).tolist()
    [[False, False, False], [True, False, True]]
    """
    rows, row_index = torch.unique(row_ids, return_inverse=True)
    columns, column_index = torch.unique(column_ids, return_inverse=True)
    pairs = pairs[torch.isin(pairs[:, 0], rows) & torch.isin(pairs[:, 1], columns)]
    mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=row_ids.device)
    mask[torch.searchsorted(rows, pairs[:, 0].contiguous()), torch.searchsorted(columns, pairs[:, 1].contiguous())] = True
    return mask[row_index][:, column_index]


def duplicate_mask(ids: Tensor) -> Tensor:
    """Where an id stands that has come before: Int64[n] -> Bool[n].

    >>> duplicate_mask(torch.tensor([7, 8, 7, 7])).tolist()
    [False, False, True, True]
    """
    _, distinct = torch.unique(ids, return_inverse=True)
    row = torch.arange(len(ids), device=ids.device)
    first_row = torch.full_like(row, len(ids)).scatter_reduce_(0, distinct, row, "amin")
    return first_row[distinct] < row


def positive_mask(query_ids: Tensor, doc_ids: Tensor, judgements: Tensor) -> Tensor:
    """Which candidates are no negatives of a query, its own positive among them: Bool[n, m].

    These are: texts judged positive for it, texts equal to the positive of an equal query, and the query's own text.

    Args:
        query_ids: Int64[n].
        doc_ids: Int64[m]; the first n are the queries' own positives.
        judgements: Int64[r, 3] (query id, text id, grade; above 0 is positive).
    """
    own_positives = torch.stack([query_ids, doc_ids[: len(query_ids)]], dim=1)
    own_texts = torch.stack([query_ids, query_ids], dim=1)
    return pair_mask(query_ids, doc_ids, torch.cat([own_positives, own_texts, judgements[judgements[:, 2] > 0][:, :2]]))


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


class CoSENT(CosineLoss):
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

    rowwise = True

    def __init__(self, temperature: float = 0.05):
        super().__init__(temperature)

    def comparisons(self, embeddings: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """First text with second text, row by row."""
        first_texts, second_texts = embeddings
        return [(first_texts, second_texts)]

    def value(self, logits: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The loss of n pairs whose similarity labels are Float[n]."""
        return self._log_sum(self._differences(logits[0], targets))

    def value_and_gradient(self, logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """In closed form: each pair of pairs pulls by its share of the sum."""
        differences = self._differences(logits[0], targets)
        value = self._log_sum(differences)
        share = differences.sub_(value).exp_()
        return value, [share.sum(0) - share.sum(1)]

    @staticmethod
    def _differences(logits: Tensor, labels: Tensor) -> Tensor:
        """How much higher j is than i, where i should be higher, else minus infinity: Float[n, n]."""
        return (logits[None, :] - logits[:, None]).masked_fill(labels[:, None] <= labels[None, :], -torch.inf)

    @staticmethod
    def _log_sum(differences: Tensor) -> Tensor:
        """log(1 + sum of exp)."""
        return torch.logsumexp(nn.functional.pad(differences.flatten(), (1, 0)), dim=0)


class LabelContrast(CosineLoss):
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
        super().__init__(temperature)

    def comparisons(self, embeddings: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """All texts with all."""
        return [(embeddings[0], embeddings[0])]

    def targets(self, embeddings: Sequence[Tensor], labels: Tensor, ids: Any) -> tuple[Tensor, Tensor]:
        """Which texts are of one class, with and without each text itself: Bool[n, n] twice, from labels Int64[n]."""
        same = labels[:, None] == labels[None, :]
        return same, same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)

    def value(self, logits: Sequence[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        """The mean over texts that have another of their label."""
        same_class, positives = targets
        return self._mean(self._log_odds(logits[0], same_class), positives)

    def value_and_gradient(self, logits: Sequence[Tensor], targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """In closed form: positives are pulled by the odds of their negatives, which share the push."""
        same_class, positives = targets
        log_odds = self._log_odds(logits[0], same_class)
        value = self._mean(log_odds, positives)
        pull = log_odds.sigmoid().masked_fill_(~positives, 0.0).mul_(self._weights(positives, log_odds.dtype)[:, None])
        push = log_odds.neg_().exp_().masked_fill_(same_class, 0.0)  # the softmax over negatives
        return value, [push.mul_(pull.sum(1, keepdim=True)).sub_(pull)]

    @staticmethod
    def _log_odds(logits: Tensor, same_class: Tensor) -> Tensor:
        """log-sum-exp of each text's negatives less its logit with each other text: Float[n, n]."""
        return torch.logsumexp(logits.masked_fill(same_class, -torch.inf), dim=1, keepdim=True) - logits

    def _mean(self, log_odds: Tensor, positives: Tensor) -> Tensor:
        pair_losses = nn.functional.softplus(log_odds).masked_fill(~positives, 0.0)
        return (pair_losses.sum(1) * self._weights(positives, log_odds.dtype)).sum()

    @staticmethod
    def _weights(positives: Tensor, dtype: torch.dtype) -> Tensor:
        """Each text's weight in the mean, by which its sum over positives is multiplied: Float[n]."""
        count = positives.sum(1, dtype=dtype)
        texts = (count > 0).sum().clamp(min=1)
        return torch.where(count > 0, 1 / (count * texts), 0.0)
