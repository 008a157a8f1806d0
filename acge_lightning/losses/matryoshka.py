"""Matryoshka representation learning: one loss at several prefix lengths, so that any of them is an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CosineLoss, full_precision

_EPS = 1e-12  # least norm of a vector, as in torch.nn.functional.normalize


class Matryoshka(nn.Module):
    """Wraps any loss of `losses`: its weighted sum over prefixes of the embeddings.

    loss = sum over d of w_d loss(e[:, :d]), each prefix normalised after it was cut. By default a sum, not a mean: five dims
    of weight 1 give about five times the gradient of one.

    The prefixes share their work: the inner products of a prefix are those of the next shorter one and of the block between
    them, and the gradient of a block is one product with the sum of what the prefixes that hold it ask for. So all prefixes
    together cost two products and a gradient of the full size, and some passes over the n x m logits of each.

    Args:
        loss: any loss of `acge_lightning.losses`.
        dims: prefix sizes; the full size must be among them, or it would go untrained.
        weights: one a dim, 1 by default.
        temperatures: one a dim, in place of the loss's own: cosines of short prefixes spread wider (about 1 / sqrt(d)).
        reduction: `sum`, or `mean`: the sum over the number of dims in use.

    Raises:
        InputError: dims beyond the embedding's, repeated, or without the full size; weights or temperatures of another number.

    After a call `parts` holds each dim's own loss, before its weight, detached. The gradient has no second derivative.

    Reference: Kusupati et al. 2022 (arXiv 2205.13147), with cosine losses in place of classifiers.

    YAML::

        matryoshka: {dims: [512, 256, 128, 64], weights: null, temperatures: null, reduction: sum}

    >>> from acge_lightning.losses.contrastive import CoSENT
    >>> loss = Matryoshka(CoSENT(), dims=[4, 2])
    >>> a, b = torch.randn(3, 4), torch.randn(3, 4)
    >>> labels = torch.tensor([0.0, 1.0, 2.0])
    >>> torch.allclose(loss((a, b), labels), CoSENT()((a, b), labels) + CoSENT()((a[:, :2], b[:, :2]), labels))
    True
    """

    def __init__(
        self,
        loss: CosineLoss,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        reduction: str = "sum",
    ):
        super().__init__()
        if not dims or len(set(dims)) != len(dims) or min(dims) < 1:
            raise InputError(f"matryoshka.dims={list(dims)} must be distinct sizes of at least 1")
        for name, given in (("weights", weights), ("temperatures", temperatures)):
            if given is not None and len(given) != len(dims):
                raise InputError(f"matryoshka.{name} has {len(given)} values for {len(dims)} dims: give one a dim")
        if temperatures is not None and not min(temperatures) > 0:
            raise InputError(f"matryoshka.temperatures={list(temperatures)} must all be above 0: try 0.05")
        if reduction not in ("sum", "mean"):
            raise InputError(f"matryoshka.reduction={reduction!r} is unknown: choose sum or mean")
        self.loss, self.dims, self.reduction = loss, tuple(dims), reduction
        self.weights = dict(zip(dims, weights or [1.0] * len(dims), strict=True))
        self.temperatures = dict(zip(dims, temperatures or [loss.temperature] * len(dims), strict=True))
        self.parts: dict[int, Tensor] = {}

    def set_dims(self, dims: Sequence[int]) -> None:
        """Use only these of the dims from the next call on, each with its weight and temperature."""
        unknown = set(dims) - set(self.weights)
        if unknown or max(self.weights) not in dims or len(set(dims)) != len(dims):
            raise InputError(f"dims={list(dims)} must be some of {sorted(self.weights)}, and {max(self.weights)} among them")
        self.dims = tuple(dims)

    @full_precision
    def forward(
        self, embeddings: tuple[Tensor, ...], labels: Tensor | None = None, ids: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The wrapped loss over all prefixes: embeddings Float[n_i, D] -> Float[]."""
        check_dims(self.dims, embeddings[0].shape[1])
        over = 1 if self.reduction == "sum" else len(self.dims)
        prefixes = [_Prefix(dim, self.weights[dim] / over, self.temperatures[dim]) for dim in sorted(self.dims)]
        known = self.loss.known(embeddings, labels, ids)
        sides = [vectors for side in self.loss.sides(embeddings) for vectors in side]
        total, parts = _Nested.apply(self.loss, known, prefixes, *sides)
        self.parts = dict(zip(sorted(self.dims), parts.unbind(), strict=True))
        return total


def check_dims(dims: Sequence[int], full: int) -> None:
    """An error unless the largest of `dims` is the full size of the embedding.

    >>> check_dims([128, 64], 128)
    """
    if max(dims) > full:
        raise InputError(f"matryoshka.dims={list(dims)}: {max(dims)} is more than the encoder's {full} dims")
    if full not in dims:
        raise InputError(f"matryoshka.dims={list(dims)} leaves the full size {full} untrained: add it")


@dataclass(frozen=True)
class _Prefix:
    dim: int
    weight: float
    temperature: float


class _Nested(torch.autograd.Function):
    """A loss over prefixes, and its gradient, which is found along with it.

    With S the inner products of two sides' prefixes, r and c the lengths of rows and columns, the logits are
    S / (r c tau) and H, the derivative of the loss by S, is that by the logits over (r c tau). A prefix of length d gives to
    row i the gradient sum_j H_ij b_j, less its part along the row itself: (sum_j H_ij S_ij) / r_i^2 times the row.
    """

    @staticmethod
    def forward(ctx: Any, loss: CosineLoss, known: Any, prefixes: Sequence[_Prefix], *vectors: Tensor) -> tuple[Tensor, Tensor]:
        kind = _RowSide if loss.rowwise else _Side
        sides = [kind(rows, columns, prefixes) for rows, columns in zip(vectors[::2], vectors[1::2], strict=True)]
        wanted, total, parts = any(ctx.needs_input_grad), vectors[0].new_zeros(()), []
        for place, prefix in enumerate(prefixes):
            logits = [side.logits(place) for side in sides]
            if wanted:
                value, gradients = loss.value_and_gradient(logits, known)
                for side, gradient in zip(sides, gradients, strict=True):
                    side.keep(gradient, place)
            else:
                value = loss.value(logits, known)
            del logits
            total = total + prefix.weight * value
            parts.append(value)
        if wanted:
            ctx.save_for_backward(*(gradient for side in sides for gradient in side.gradients()))
        parts = torch.stack(parts)
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(by_total * gradient for gradient in ctx.saved_tensors)


class _Side:
    """Cosines of all rows with all columns, prefix after prefix, from the shortest on; then the gradients of both."""

    def __init__(self, rows: Tensor, columns: Tensor, prefixes: Sequence[_Prefix]):
        self.vectors, self.prefixes = (rows.detach(), columns.detach()), prefixes
        ends = [prefix.dim for prefix in prefixes]
        self.blocks = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        norms = [torch.stack([torch.linalg.vector_norm(v[:, b], dim=1) for b in self.blocks]) for v in self.vectors]
        self.squares = [norm.square_().cumsum(0) for norm in norms]  # of each prefix, Float[p, n]
        self.inverse = [square.sqrt().clamp_(min=_EPS).reciprocal_() for square in self.squares]
        self.products: Tensor | None = None
        self.kept: list[tuple[Tensor, Sequence[Tensor]]] = []  # of each prefix: H, and the sums of H S by row and by column

    def logits(self, place: int) -> Tensor:
        """Those of the next prefix."""
        self.add(*(v[:, self.blocks[place]] for v in self.vectors))
        return self.scaled(self.products, place, 1 / self.prefixes[place].temperature)

    def keep(self, gradient: Tensor, place: int) -> None:
        """Take in the derivative by the logits of the prefix."""
        prefix = self.prefixes[place]
        by_products = self.scaled(gradient, place, prefix.weight / prefix.temperature)
        self.kept.append((by_products, self.sums(by_products)))

    def gradients(self) -> list[Tensor]:
        """The gradients of rows and columns, from the last block back to the first; what was kept is used up."""
        sums = [torch.stack(parts) for parts in zip(*(parts for _, parts in self.kept), strict=True)]
        along = [torch.where(q > _EPS**2, part / q, 0).flip(0).cumsum(0) for part, q in zip(sums, self.squares, strict=True)]
        found = [torch.empty_like(v) for v in self.vectors]
        by_products, self.products = None, None
        for turn, block in enumerate(reversed(self.blocks)):
            more, _ = self.kept.pop()
            by_products = more if by_products is None else by_products.add_(more)
            pieces = [v[:, block] for v in self.vectors]
            targets = [gradient[:, block] for gradient in found]
            self.back(by_products, pieces, targets)
            for target, part, piece in zip(targets, along, pieces, strict=True):
                target.addcmul_(part[turn][:, None], piece, value=-1)
        return found

    # ---- what differs where row i meets column i only

    def add(self, rows: Tensor, columns: Tensor) -> None:
        self.products = rows @ columns.T if self.products is None else self.products.addmm_(rows, columns.T)

    def scaled(self, values: Tensor, place: int, factor: float) -> Tensor:
        rows, columns = (inverse[place] for inverse in self.inverse)
        return (values * (rows * factor)[:, None]).mul_(columns)

    def sums(self, by_products: Tensor) -> Sequence[Tensor]:
        both = by_products * self.products
        return both.sum(1), both.sum(0)

    def back(self, by_products: Tensor, pieces: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        torch.mm(by_products, pieces[1], out=targets[0])
        torch.mm(by_products.T, pieces[0], out=targets[1])


class _RowSide(_Side):
    """Cosines of each row with the column of its number."""

    def add(self, rows: Tensor, columns: Tensor) -> None:
        block = (rows * columns).sum(1)
        self.products = block if self.products is None else self.products.add_(block)

    def scaled(self, values: Tensor, place: int, factor: float) -> Tensor:
        rows, columns = (inverse[place] for inverse in self.inverse)
        return (values * rows).mul_(columns).mul_(factor)

    def sums(self, by_products: Tensor) -> Sequence[Tensor]:
        both = by_products * self.products
        return both, both

    def back(self, by_products: Tensor, pieces: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        torch.mul(by_products[:, None], pieces[1], out=targets[0])
        torch.mul(by_products[:, None], pieces[0], out=targets[1])
