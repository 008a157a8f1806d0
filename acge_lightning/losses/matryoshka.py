"""Matryoshka representation learning: a loss at several prefix lengths trains each of them to be an embedding."""

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
    them, and the gradient of a block is one product with the sum of the derivatives of the prefixes that hold it. So all
    prefixes together cost two products and a gradient of the full size, and some passes over the n x m logits of each.

    Args:
        loss: any loss of `acge_lightning.losses`.
        dims: prefix sizes; the full size must be among them, or it would go untrained.
        weights: one a dim, 1 by default.
        temperatures: one a dim, in place of the loss's own: cosines of short prefixes spread wider (about 1 / sqrt(d)).
        reduction: `sum`, or `mean`: the sum over the number of dims in use.

    Raises:
        InputError: dims beyond the embedding's, repeated, or without the full size; weights or temperatures of another number.

    After a call `loss_by_dim` holds each dim's own loss, before its weight, detached. The gradient has no second derivative.

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

    loss: CosineLoss

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
        for name, values in (("weights", weights), ("temperatures", temperatures)):
            if values is not None and len(values) != len(dims):
                raise InputError(f"matryoshka.{name} has {len(values)} values for {len(dims)} dims: give one a dim")
        if temperatures is not None and not min(temperatures) > 0:
            raise InputError(f"matryoshka.temperatures={list(temperatures)} must all be above 0: try 0.05")
        if reduction not in ("sum", "mean"):
            raise InputError(f"matryoshka.reduction={reduction!r} is unknown: choose sum or mean")
        self.loss, self.dims, self.reduction = loss, tuple(dims), reduction
        self.weights = dict(zip(dims, weights or [1.0] * len(dims), strict=True))
        self.temperatures = dict(zip(dims, temperatures or [loss.temperature] * len(dims), strict=True))
        self.loss_by_dim: dict[int, Tensor] = {}

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
        divisor = 1 if self.reduction == "sum" else len(self.dims)
        prefixes = [_Prefix(dim, self.weights[dim] / divisor, self.temperatures[dim]) for dim in sorted(self.dims)]
        targets = self.loss.targets(embeddings, labels, ids)
        vectors = [matrix for pair in self.loss.comparisons(embeddings) for matrix in pair]
        total, losses = _PrefixLosses.apply(self.loss, targets, prefixes, *vectors)
        self.loss_by_dim = dict(zip(sorted(self.dims), losses.unbind(), strict=True))
        return total


def check_dims(dims: Sequence[int], full: int) -> None:
    """Raise an `InputError` unless the largest of `dims` is the full size of the embedding.

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


class _PrefixLosses(torch.autograd.Function):
    """A loss over prefixes, and its gradient, which is computed along with it.

    With S the inner products of the prefixes of rows and columns, r and c the lengths of rows and columns, the logits are
    S / (r c tau) and H, the derivative of the loss by S, is that by the logits over (r c tau). A prefix of length d gives to
    row i the gradient sum_j H_ij b_j, less its component along the row itself: (sum_j H_ij S_ij) / r_i^2 times the row.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: CosineLoss, targets: Any, prefixes: Sequence[_Prefix], *vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = _RowwiseCosines if loss.rowwise else _Cosines
        matrices = [kind(rows, columns, prefixes) for rows, columns in zip(vectors[::2], vectors[1::2], strict=True)]
        needs_gradient, total, values = any(ctx.needs_input_grad), vectors[0].new_zeros(()), []
        for index, prefix in enumerate(prefixes):
            logits = [matrix.logits(index) for matrix in matrices]
            if needs_gradient:
                value, gradients = loss.value_and_gradient(logits, targets)
                for matrix, gradient in zip(matrices, gradients, strict=True):
                    matrix.keep(gradient, index)
            else:
                value = loss.value(logits, targets)
            del logits
            total = total + prefix.weight * value
            values.append(value)
        if needs_gradient:
            ctx.save_for_backward(*(gradient for matrix in matrices for gradient in matrix.gradients()))
        losses = torch.stack(values)
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(by_total * gradient for gradient in ctx.saved_tensors)


class _Cosines:
    """Cosines of all rows with all columns, prefix after prefix, from the shortest on; then the gradients of both."""

    products: Tensor  # S of the prefixes so far

    def __init__(self, rows: Tensor, columns: Tensor, prefixes: Sequence[_Prefix]):
        self.vectors, self.prefixes = (rows.detach(), columns.detach()), prefixes
        ends = [prefix.dim for prefix in prefixes]
        self.blocks = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        norms = [torch.stack([torch.linalg.vector_norm(v[:, b], dim=1) for b in self.blocks]) for v in self.vectors]
        self.squared_norms = [norm.square_().cumsum(0) for norm in norms]  # of each prefix, Float[p, n]
        self.inverse_norms = [square.sqrt().clamp_(min=_EPS).reciprocal_() for square in self.squared_norms]
        self.derivatives: list[tuple[Tensor, Sequence[Tensor]]] = []  # a prefix: H, and the sums of H S by row and by column

    def logits(self, index: int) -> Tensor:
        """The logits of the next prefix, whose number this is."""
        self.add(index, *(v[:, self.blocks[index]] for v in self.vectors))
        return self.scaled(self.products, index, 1 / self.prefixes[index].temperature)

    def keep(self, gradient: Tensor, index: int) -> None:
        """Keep the derivative by the logits of the prefix, as one by the products."""
        prefix = self.prefixes[index]
        by_products = self.scaled(gradient, index, prefix.weight / prefix.temperature)
        self.derivatives.append((by_products, self.sums(by_products)))

    def gradients(self) -> list[Tensor]:
        """The gradients of rows and columns, from the last block back to the first; the kept derivatives are used up."""
        sums = [torch.stack(by_prefix) for by_prefix in zip(*(sums for _, sums in self.derivatives), strict=True)]
        along = [  # the component along each vector itself, of each prefix and all longer ones, from the longest on
            torch.where(square > _EPS**2, total / square, 0).flip(0).cumsum(0)
            for total, square in zip(sums, self.squared_norms, strict=True)
        ]
        gradients = [torch.empty_like(v) for v in self.vectors]
        del self.products
        by_products: Tensor | None = None
        for index, block in enumerate(reversed(self.blocks)):
            of_prefix, _ = self.derivatives.pop()
            by_products = of_prefix if by_products is None else by_products.add_(of_prefix)
            vector_blocks = [v[:, block] for v in self.vectors]
            gradient_blocks = [gradient[:, block] for gradient in gradients]
            self.backward(by_products, vector_blocks, gradient_blocks)
            for target, component, vectors in zip(gradient_blocks, along, vector_blocks, strict=True):
                target.addcmul_(component[index][:, None], vectors, value=-1)
        return gradients

    # ---- what differs where row i meets column i only

    def add(self, index: int, rows: Tensor, columns: Tensor) -> None:
        """Add a block's inner products to those of the blocks before it."""
        if index == 0:
            self.products = rows @ columns.T
        else:
            self.products.addmm_(rows, columns.T)

    def scaled(self, values: Tensor, index: int, factor: float) -> Tensor:
        """`values` times `factor`, over the lengths of the prefix's rows and columns."""
        rows, columns = (inverse[index] for inverse in self.inverse_norms)
        return (values * (rows * factor)[:, None]).mul_(columns)

    def sums(self, by_products: Tensor) -> Sequence[Tensor]:
        """H S summed by row and by column."""
        weighted = by_products * self.products
        return weighted.sum(1), weighted.sum(0)

    def backward(self, by_products: Tensor, blocks: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Write the gradients of a block's rows and columns into `targets`."""
        torch.mm(by_products, blocks[1], out=targets[0])
        torch.mm(by_products.T, blocks[0], out=targets[1])


class _RowwiseCosines(_Cosines):
    """Cosines of row i with column i only."""

    def add(self, index: int, rows: Tensor, columns: Tensor) -> None:
        products = (rows * columns).sum(1)
        if index == 0:
            self.products = products
        else:
            self.products.add_(products)

    def scaled(self, values: Tensor, index: int, factor: float) -> Tensor:
        rows, columns = (inverse[index] for inverse in self.inverse_norms)
        return (values * rows).mul_(columns).mul_(factor)

    def sums(self, by_products: Tensor) -> Sequence[Tensor]:
        weighted = by_products * self.products
        return weighted, weighted

    def backward(self, by_products: Tensor, blocks: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        torch.mul(by_products[:, None], blocks[1], out=targets[0])
        torch.mul(by_products[:, None], blocks[0], out=targets[1])
