"""The loss of single samples against a frozen pool.

A loss over a batch is no sum over its samples: what a sample adds depends on the others, and so does the gradient's size. Here
each sample meets the same pool of vectors, computed once and without gradient, and its loss is a function of its own vectors:

| loss | a sample | the pool | its loss |
|---|---|---|---|
| `InfoNCE`, `SimCSE` | query, positive | pairs, negatives | its term of the loss of a batch, were the pool the rest of it |
| `LabelContrast` | text | texts with labels | likewise |
| `CoSENT` | scored pair | scored pairs | log(1 + sum over pairs j of the pool of exp(+-(cos_j - cos_i)/tau)) |

(In CoSENT + if j scores lower than the sample, - if higher.) What a batch leaves out, such as false negatives and equal texts,
is left out here. Of explicit negatives, a query meets the pool's and its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, CosineLoss, InfoNCE, LabelContrast, duplicate_mask, pair_mask
from acge_lightning.losses.matryoshka import Matryoshka

Estimator = Literal["empirical", "true", "mas"]
_NO_JUDGEMENTS = torch.zeros(0, 3, dtype=torch.long)


@dataclass(frozen=True)
class Embedded:
    """Some rows of a task, encoded.

    Args:
        vectors: Float[n_i, D] a column.
        labels: as the losses take them.
        ids: Int64[n_i] a column, hashes of the texts.
    """

    vectors: tuple[Tensor, ...]
    labels: Tensor | None
    ids: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Prefix:
    dim: int | None
    weight: float
    temperature: float

    def cut(self, vectors: Tensor) -> Tensor:
        return normalize(vectors[:, : self.dim].to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


class FrozenLoss(ABC):
    """Losses of samples against a frozen pool; made by `frozen_loss`."""

    columns: ClassVar[int]  # of a sample

    def __init__(self, loss: CosineLoss, prefixes: Sequence[_Prefix], pool: Embedded, estimator: Estimator):
        self.loss, self.prefixes, self.pool, self.estimator = loss, list(prefixes), pool, estimator
        if estimator == "true" and not self.draws_per_prefix:
            raise InputError(
                f"estimator=true draws targets from the model's softmax, and {type(loss).__name__} has none: "
                "use empirical or mas"
            )

    @property
    def draws_per_prefix(self) -> int:
        """How many targets `estimator=true` draws for a sample and prefix; 0 where the loss has no softmax over targets."""
        return 0

    @property
    def draws_per_sample(self) -> int:
        """Random numbers that a sample needs."""
        return len(self.prefixes) * self.draws_per_prefix if self.estimator == "true" else 0

    def __call__(self, samples: Embedded, draws: Tensor | None = None) -> Tensor:
        """The losses of n samples, weighted and summed over the prefixes.

        Args:
            samples: their vectors (with gradient), labels and ids; judgements may be those of more queries than these.
            draws: Float[n, draws_per_sample] in [0, 1), for `estimator=true`.

        Returns:
            Float[n]: entry i depends on the vectors of sample i only.

        Raises:
            InputError: no labels, and the loss compares labels.
            ValueError: no draws, and the estimator needs some.
        """
        if draws is None:
            if self.draws_per_sample:
                raise ValueError(f"estimator={self.estimator} needs {self.draws_per_sample} random numbers a sample")
            draws = samples.vectors[0].new_empty(len(samples.vectors[0]), 0)
        targets = None if self.estimator == "mas" else self.targets(samples)
        by_prefix = draws.split(self.draws_per_prefix, dim=1) if self.draws_per_sample else [draws] * len(self.prefixes)
        losses = []
        for prefix, prefix_draws in zip(self.prefixes, by_prefix, strict=True):
            vectors = tuple(prefix.cut(column) for column in samples.vectors[: self.columns])
            if self.estimator == "mas":
                value = self._mean_square(vectors, prefix)
            else:
                value = self.prefix_losses(vectors, prefix, targets, prefix_draws)
            losses.append(prefix.weight * value)
        return sum(losses[1:], losses[0])

    @abstractmethod
    def targets(self, samples: Embedded) -> Any:
        """Labels or masks that the losses depend on beside cosines; they are the same for all prefixes."""

    @abstractmethod
    def prefix_losses(self, vectors: tuple[Tensor, ...], prefix: _Prefix, targets: Any, draws: Tensor) -> Tensor:
        """Float[n]: the losses at one prefix, from the samples' vectors of length 1."""

    def _mean_square(self, vectors: tuple[Tensor, ...], prefix: _Prefix) -> Tensor:
        """1/2 the mean square of each text's cosines with the pool: the output whose sensitivity MAS asks for."""
        pool = prefix.cut(torch.cat(list(self.pool.vectors)))
        return torch.stack([(column @ pool.T).square().mean(1) / 2 for column in vectors]).sum(0)

    def _labels(self, rows: Embedded) -> Tensor:
        if rows.labels is None:
            raise InputError(f"{type(self.loss).__name__} compares labels, and the task has none: use InfoNCE or SimCSE")
        return rows.labels


def frozen_loss(
    loss: nn.Module, pool: Embedded, estimator: Estimator = "empirical", negatives: tuple[Tensor, Tensor] | None = None
) -> FrozenLoss:
    """Make of a loss over batches one of single samples against a frozen pool.

    Args:
        loss: of `losses`, or `Matryoshka` around one: then the sum over its prefixes, with their weights and temperatures.
        pool: rows of the task, without gradient.
        estimator: `empirical`: the labels as they are; `true`: targets drawn from the model's own softmax, so that the squared
            gradients' mean is the Fisher information; `mas`: in place of the loss 1/2 the mean square of a text's cosines with
            the pool, which needs no labels (its gradients' sizes are averaged, not their squares).
        negatives: vectors Float[m, D] and ids Int64[m] of the samples' own explicit negatives, without gradient (InfoNCE).

    Raises:
        InputError: a loss that is none of ours, `true` for one without a softmax over targets, or an unknown estimator.

    Reference: EWC (Kirkpatrick et al. 2017, arXiv 1612.00796); `mas`: Aljundi et al. 2018 (arXiv 1711.09601), with cosines, as
    the length of an embedding, which they use, is nothing to a cosine.
    """
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator={estimator!r} is unknown: choose from {list(get_args(Estimator))}")
    inner = loss.loss if isinstance(loss, Matryoshka) else loss
    if isinstance(inner, InfoNCE):
        contrast = _FrozenInfoNCE(inner, _prefixes(loss), pool, estimator)
        if negatives is not None:
            contrast.add_negatives(*negatives)
        return contrast
    if isinstance(inner, LabelContrast):
        return _FrozenLabelContrast(inner, _prefixes(loss), pool, estimator)
    if isinstance(inner, CoSENT):
        return _FrozenCoSENT(inner, _prefixes(loss), pool, estimator)
    raise InputError(f"{type(inner).__name__} has no form against a frozen pool: use InfoNCE, SimCSE, CoSENT or LabelContrast")


def _prefixes(loss: Any) -> list[_Prefix]:
    """Those of `Matryoshka`; of another loss the full size."""
    if not isinstance(loss, Matryoshka):
        return [_Prefix(None, 1.0, loss.temperature)]
    divisor = 1 if loss.reduction == "sum" else len(loss.dims)
    return [_Prefix(dim, loss.weights[dim] / divisor, loss.temperatures[dim]) for dim in loss.dims]


class _FrozenInfoNCE(FrozenLoss):
    """InfoNCE, all directions: one row of its logits, with the sample's own positive first."""

    columns = 2
    loss: InfoNCE

    def __init__(self, loss: InfoNCE, prefixes: Sequence[_Prefix], pool: Embedded, estimator: Estimator):
        super().__init__(loss, prefixes, pool, estimator)
        ids, vectors = (torch.cat(list(x[1:])) for x in (pool.ids, pool.vectors))
        kept = ~duplicate_mask(ids)
        self.docs, self.doc_ids = vectors[kept], ids[kept]
        self.added = 0  # docs at the end that are negatives of the queries only whose judgements name them
        pairs = torch.stack([pool.ids[0], pool.ids[1]], dim=1)
        judgements = _NO_JUDGEMENTS.to(ids) if pool.labels is None else pool.labels
        self.positive_pairs = torch.cat([pairs, judgements[judgements[:, 2] > 0][:, :2]])

    @property
    def draws_per_prefix(self) -> int:
        return 1 if self.loss.partition == "joint" else len(self.loss.directions)

    def add_negatives(self, vectors: Tensor, ids: Tensor) -> None:
        """Add the samples' own explicit negatives, Float[m, D] and Int64[m], which only they meet."""
        kept = ~duplicate_mask(ids) & ~torch.isin(ids, self.doc_ids)
        self.docs, self.doc_ids = torch.cat([self.docs, vectors[kept]]), torch.cat([self.doc_ids, ids[kept]])
        self.added = int(kept.sum())

    def targets(self, samples: Embedded) -> dict[str, Tensor]:
        """Bool[n, docs or queries]: the candidates that each direction leaves out."""
        query_ids, positive_ids = samples.ids[:2]
        judgements = _NO_JUDGEMENTS.to(query_ids) if samples.labels is None else samples.labels
        positive_pairs = torch.cat([judgements[judgements[:, 2] > 0][:, :2], self.positive_pairs])
        own_texts = (query_ids[:, None] == self.doc_ids[None]) | (positive_ids[:, None] == self.doc_ids[None])
        positive_docs = pair_mask(query_ids, self.doc_ids, positive_pairs) | own_texts
        own_negatives = pair_mask(query_ids, self.doc_ids, judgements[judgements[:, 2] <= 0][:, :2])
        shared = torch.arange(len(self.doc_ids), device=query_ids.device) < len(self.doc_ids) - self.added
        candidates = own_negatives | shared if self.loss.in_batch else own_negatives
        pool_queries, pool_positives = self.pool.ids[:2]
        own_queries = (query_ids[:, None] == pool_queries[None]) | (positive_ids[:, None] == pool_queries[None])
        same_positive = positive_ids[:, None] == pool_positives[None]
        return {
            "query_to_doc": positive_docs | ~candidates,
            "doc_to_query": own_queries | pair_mask(pool_queries, positive_ids, positive_pairs).T,
            "query_to_query": own_queries | pair_mask(query_ids, pool_queries, positive_pairs) | same_positive,
            "doc_to_doc": positive_docs | pair_mask(query_ids, self.doc_ids, judgements[:, :2]) | ~shared,
        }

    def prefix_losses(self, vectors: tuple[Tensor, ...], prefix: _Prefix, targets: dict[str, Tensor], draws: Tensor) -> Tensor:
        query, positive = vectors
        docs, queries = prefix.cut(self.docs), prefix.cut(self.pool.vectors[0])
        own_logit = (query * positive).sum(1, keepdim=True) / prefix.temperature
        compared = {
            "query_to_doc": (query, docs),
            "doc_to_query": (positive, queries),
            "query_to_query": (query, queries),
            "doc_to_doc": (positive, docs),
        }
        softmaxes = []
        for direction in self.loss.directions:
            rows, columns = compared[direction]
            logits = (rows @ columns.T / prefix.temperature).masked_fill(targets[direction], -torch.inf)
            has_positive = direction in ("query_to_doc", "doc_to_query")
            softmaxes.append(torch.cat([own_logit, logits], dim=1) if has_positive else logits)
        if self.loss.partition == "joint":
            softmaxes = [torch.cat(softmaxes, dim=1)]
        chosen = [own_logit[:, 0]] * len(softmaxes)
        if self.estimator == "true":
            chosen = [_drawn(logits, draws[:, k]) for k, logits in enumerate(softmaxes)]
        return torch.stack([logits.logsumexp(1) - logit for logits, logit in zip(softmaxes, chosen, strict=True)]).mean(0)


class _FrozenLabelContrast(FrozenLoss):
    """LabelContrast of a text with the pool's texts."""

    columns = 1

    def targets(self, samples: Embedded) -> tuple[Tensor, Tensor]:
        """Bool[n, pool]: those of the same class, and of these those that are not the text itself."""
        same_class = self._labels(samples)[:, None] == self._labels(self.pool)[None]
        return same_class, same_class & (samples.ids[0][:, None] != self.pool.ids[0][None])

    def prefix_losses(
        self, vectors: tuple[Tensor, ...], prefix: _Prefix, targets: tuple[Tensor, Tensor], draws: Tensor
    ) -> Tensor:
        same_class, positives = targets
        logits = vectors[0] @ prefix.cut(self.pool.vectors[0]).T / prefix.temperature
        negatives = logits.masked_fill(same_class, -torch.inf).logsumexp(1, keepdim=True)
        pair_losses = nn.functional.softplus(negatives - logits).masked_fill(~positives, 0.0)
        return pair_losses.sum(1) / positives.sum(1).clamp(min=1)


class _FrozenCoSENT(FrozenLoss):
    """CoSENT of a pair with the pool's pairs."""

    columns = 2

    def targets(self, samples: Embedded) -> Tensor:
        """Float[n, pool]: 1 where the pool's pair scores lower than the sample, -1 where higher, else 0."""
        return torch.sign(self._labels(samples)[:, None] - self._labels(self.pool)[None])

    def prefix_losses(self, vectors: tuple[Tensor, ...], prefix: _Prefix, targets: Tensor, draws: Tensor) -> Tensor:
        first_texts, second_texts = (prefix.cut(column) for column in self.pool.vectors)
        pool_logits = (first_texts * second_texts).sum(1) / prefix.temperature
        logits = (vectors[0] * vectors[1]).sum(1) / prefix.temperature
        differences = ((pool_logits[None] - logits[:, None]) * targets).masked_fill(targets == 0, -torch.inf)
        return torch.cat([torch.zeros_like(logits)[:, None], differences], dim=1).logsumexp(1)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Of each row the logit of a column drawn from its softmax: Float[n, m], Float[n] in [0, 1) -> Float[n]."""
    ends = logits.detach().double().softmax(1).cumsum(1)
    column = (ends < draws[:, None].to(ends) * ends[:, -1:]).sum(1, keepdim=True)
    return logits.gather(1, column)[:, 0]
