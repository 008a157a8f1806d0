"""The loss of one sample at a time, against a pool that is frozen.

A loss over a batch is no sum over its samples: what a sample adds depends on the others, and so does the gradient's size. Here
each sample meets the same pool of vectors, computed once and without gradient, and its loss is a function of its own vectors:

| loss | a sample | the pool | its loss |
|---|---|---|---|
| `InfoNCE`, `SimCSE` | query, positive | pairs, negatives | its term of the loss of a batch, were the pool the rest of it |
| `LabelContrast` | text | texts with labels | likewise |
| `CoSENT` | scored pair | scored pairs | log(1 + sum over pairs j of the pool of exp(+-(cos_j - cos_i)/tau)) |

(In CoSENT + if j scores lower than the sample, - if higher.) What a batch leaves out, as known positives and equal texts, is
left out here. Of explicit negatives, a query meets the pool's and its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, CosineLoss, InfoNCE, LabelContrast, pair_mask, repeats
from acge_lightning.losses.matryoshka import Matryoshka

Estimator = Literal["empirical", "true", "mas"]
_NOBODY = torch.zeros(0, 3, dtype=torch.long)


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
    """Losses of samples against a frozen pool; made by `against`."""

    columns: ClassVar[int]  # that a sample has of its own

    def __init__(self, loss: CosineLoss, prefixes: Sequence[_Prefix], pool: Embedded, estimator: Estimator):
        self.loss, self.prefixes, self.pool, self.estimator = loss, list(prefixes), pool, estimator
        if estimator == "true" and not self.softmaxes:
            raise InputError(
                f"estimator=true draws targets from the model's softmax, and {type(loss).__name__} has none: "
                "use empirical or mas"
            )

    @property
    def softmaxes(self) -> int:
        """How many targets `estimator=true` draws for a sample and prefix; 0 where the loss has no softmax over targets."""
        return 0

    @property
    def draws(self) -> int:
        """Random numbers that a sample needs."""
        return len(self.prefixes) * self.softmaxes if self.estimator == "true" else 0

    def __call__(self, own: Embedded, draws: Tensor | None = None) -> Tensor:
        """The losses of n samples, weighted and summed over the prefixes.

        Args:
            own: their vectors (with gradient), labels and ids; judgements may be those of more queries than these.
            draws: Float[n, self.draws] in [0, 1), for `estimator=true`.

        Returns:
            Float[n]: entry i depends on the vectors of sample i only.
        """
        known = None if self.estimator == "mas" else self.known(own)
        total: Tensor | float = 0.0
        for k, prefix in enumerate(self.prefixes):
            vectors = tuple(prefix.cut(column) for column in own.vectors[: self.columns])
            if self.estimator == "mas":
                value = self._spread(vectors, prefix)
            else:
                mine = None if draws is None else draws[:, k * self.softmaxes : (k + 1) * self.softmaxes]
                value = self.of_prefix(vectors, prefix, known, mine)
            total = total + prefix.weight * value
        return total

    @abstractmethod
    def known(self, own: Embedded) -> object:
        """What the losses of all prefixes depend on beside cosines."""

    @abstractmethod
    def of_prefix(self, own: tuple[Tensor, ...], prefix: _Prefix, known: object, draws: Tensor | None) -> Tensor:
        """Float[n] at one prefix, from vectors of length 1."""

    def _spread(self, own: tuple[Tensor, ...], prefix: _Prefix) -> Tensor:
        """1/2 the mean square of each text's cosines with the pool: the output whose sensitivity MAS asks for."""
        pool = prefix.cut(torch.cat(list(self.pool.vectors)))
        return torch.stack([(column @ pool.T).square().mean(1) / 2 for column in own]).sum(0)


def against(
    loss: nn.Module, pool: Embedded, estimator: Estimator = "empirical", negatives: tuple[Tensor, Tensor] | None = None
) -> FrozenLoss:
    """What a loss is for single samples, against a frozen pool.

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
    if isinstance(loss, Matryoshka):
        over = 1 if loss.reduction == "sum" else len(loss.dims)
        prefixes = [_Prefix(dim, loss.weights[dim] / over, loss.temperatures[dim]) for dim in loss.dims]
        loss = loss.loss
    elif isinstance(loss, CosineLoss):
        prefixes = [_Prefix(None, 1.0, loss.temperature)]
    kinds = ((InfoNCE, _Contrast), (LabelContrast, _Label), (CoSENT, _Ranked))
    found = next((made for kind, made in kinds if isinstance(loss, kind)), None)
    if found is None:
        raise InputError(
            f"{type(loss).__name__} has no form against a frozen pool: use InfoNCE, SimCSE, CoSENT or LabelContrast"
        )
    made = found(loss, prefixes, pool, estimator)
    if negatives is not None and isinstance(made, _Contrast):
        made.use_own(*negatives)
    return made


class _Contrast(FrozenLoss):
    """InfoNCE, all directions: one row of its logits, with the sample's own positive first."""

    columns = 2
    loss: InfoNCE

    def __init__(self, loss: InfoNCE, prefixes: Sequence[_Prefix], pool: Embedded, estimator: Estimator):
        super().__init__(loss, prefixes, pool, estimator)
        ids, vectors = (torch.cat(list(x[1:])) for x in (pool.ids, pool.vectors))
        kept = ~repeats(ids)
        self.docs, self.doc_ids = vectors[kept], ids[kept]
        self.owned = 0  # docs at the end that are negatives of the queries only that name them
        pairs = torch.stack([pool.ids[0], pool.ids[1]], dim=1)
        judged = _NOBODY.to(ids) if pool.labels is None else pool.labels
        self.right = torch.cat([pairs, judged[judged[:, 2] > 0][:, :2]])

    @property
    def softmaxes(self) -> int:
        return 1 if self.loss.partition == "joint" else len(self.loss.directions)

    def use_own(self, vectors: Tensor, ids: Tensor) -> None:
        """Let the samples meet their own explicit negatives, too."""
        kept = ~repeats(ids) & ~torch.isin(ids, self.doc_ids)
        self.docs, self.doc_ids = torch.cat([self.docs, vectors[kept]]), torch.cat([self.doc_ids, ids[kept]])
        self.owned = int(kept.sum())

    def known(self, own: Embedded) -> dict[str, Tensor]:
        """Bool[n, docs or queries]: whom each direction leaves out."""
        queries, positives = own.ids[:2]
        judged = _NOBODY.to(queries) if own.labels is None else own.labels
        right = torch.cat([judged[judged[:, 2] > 0][:, :2], self.right])
        own_text = [(ids[:, None] == self.doc_ids[None]) for ids in (queries, positives)]
        known = pair_mask(queries, self.doc_ids, right) | own_text[0] | own_text[1]
        named = pair_mask(queries, self.doc_ids, judged[judged[:, 2] <= 0][:, :2])
        shared = torch.arange(len(self.doc_ids), device=queries.device) < len(self.doc_ids) - self.owned
        allowed = named | shared if self.loss.in_batch else named
        others = self.pool.ids[0]
        equal = (queries[:, None] == others[None]) | (positives[:, None] == others[None])
        return {
            "query_to_doc": known | ~allowed,
            "doc_to_query": equal | pair_mask(others, positives, right).T,
            "query_to_query": equal | pair_mask(queries, others, right) | (positives[:, None] == self.pool.ids[1][None]),
            "doc_to_doc": known | pair_mask(queries, self.doc_ids, judged[:, :2]) | ~shared,
        }

    def of_prefix(self, own: tuple[Tensor, ...], prefix: _Prefix, known: dict[str, Tensor], draws: Tensor | None) -> Tensor:
        query, positive = own
        docs, queries = prefix.cut(self.docs), prefix.cut(self.pool.vectors[0])
        itself = (query * positive).sum(1, keepdim=True) / prefix.temperature
        pairs = {
            "query_to_doc": (query, docs),
            "doc_to_query": (positive, queries),
            "query_to_query": (query, queries),
            "doc_to_doc": (positive, docs),
        }
        parts = []
        for direction in self.loss.directions:
            rows, columns = pairs[direction]
            logits = (rows @ columns.T / prefix.temperature).masked_fill(known[direction], -torch.inf)
            parts.append(torch.cat([itself, logits], dim=1) if direction in ("query_to_doc", "doc_to_query") else logits)
        if self.loss.partition == "joint":
            parts = [torch.cat(parts, dim=1)]
        targets = [itself[:, 0]] * len(parts)
        if self.estimator == "true":
            targets = [_drawn(part, draws[:, k]) for k, part in enumerate(parts)]
        return torch.stack([part.logsumexp(1) - target for part, target in zip(parts, targets, strict=True)]).mean(0)


class _Label(FrozenLoss):
    """LabelContrast of a text with the pool's texts."""

    columns = 1

    def known(self, own: Embedded) -> tuple[Tensor, Tensor]:
        """Bool[n, pool]: of the same class, and of these those that are not the text itself."""
        same = own.labels[:, None] == self.pool.labels[None]
        return same, same & (own.ids[0][:, None] != self.pool.ids[0][None])

    def of_prefix(self, own: tuple[Tensor, ...], prefix: _Prefix, known: tuple[Tensor, Tensor], draws: Tensor | None) -> Tensor:
        same, positive = known
        logits = own[0] @ prefix.cut(self.pool.vectors[0]).T / prefix.temperature
        negatives = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        each = nn.functional.softplus(negatives - logits).masked_fill(~positive, 0.0)
        return each.sum(1) / positive.sum(1).clamp(min=1)


class _Ranked(FrozenLoss):
    """CoSENT of a pair with the pool's pairs."""

    columns = 2

    def known(self, own: Embedded) -> Tensor:
        """Int8[n, pool]: 1 where the pool's pair scores lower than the sample, -1 where higher, else 0."""
        return torch.sign(own.labels[:, None] - self.pool.labels[None])

    def of_prefix(self, own: tuple[Tensor, ...], prefix: _Prefix, known: Tensor, draws: Tensor | None) -> Tensor:
        first, second = (prefix.cut(column) for column in self.pool.vectors)
        others = (first * second).sum(1) / prefix.temperature
        mine = (own[0] * own[1]).sum(1) / prefix.temperature
        wrong_way = ((others[None] - mine[:, None]) * known).masked_fill(known == 0, -torch.inf)
        return torch.cat([torch.zeros_like(mine)[:, None], wrong_way], dim=1).logsumexp(1)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Of each row the logit of a column drawn from its softmax: Float[n, m], Float[n] in [0, 1) -> Float[n]."""
    ends = logits.detach().double().softmax(1).cumsum(1)
    place = (ends < draws[:, None].to(ends) * ends[:, -1:]).sum(1, keepdim=True)
    return logits.gather(1, place)[:, 0]
