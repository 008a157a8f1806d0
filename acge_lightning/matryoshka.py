"""Matryoshka representation learning: one loss at several prefix lengths, so that any of them is an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acge_lightning.errors import InputError


class Matryoshka(nn.Module):
    """Wraps any loss of `losses`: its weighted sum over prefixes of the embeddings.

    loss = sum over d of w_d loss(e[:, :d]). The wrapped losses take cosines, so every prefix is normalised after it was cut.
    It is a sum, not a mean: five dims of weight 1 give about five times the gradient of one.

    Args:
        loss: any loss of `acge_lightning.losses`.
        dims: prefix sizes; the full size must be among them, or it would go untrained.
        weights: one a dim, 1 by default.

    Raises:
        InputError: dims beyond the embedding's, repeated, or without the full size; weights of another number.

    Reference: Kusupati et al. 2022 (arXiv 2205.13147), with cosine losses in place of classifiers.

    YAML::

        matryoshka: {dims: [512, 256, 128, 64], weights: null}

    >>> from acge_lightning.losses import CoSENT
    >>> loss = Matryoshka(CoSENT(), dims=[4, 2])
    >>> a, b = torch.randn(3, 4), torch.randn(3, 4)
    >>> labels = torch.tensor([0.0, 1.0, 2.0])
    >>> torch.allclose(loss((a, b), labels), CoSENT()((a, b), labels) + CoSENT()((a[:, :2], b[:, :2]), labels))
    True
    """

    def __init__(self, loss: nn.Module, dims: Sequence[int], weights: Sequence[float] | None = None):
        super().__init__()
        self.loss = loss
        self.set_dims(dims, weights)

    def set_dims(self, dims: Sequence[int], weights: Sequence[float] | None = None) -> None:
        """Replace the dims (and their weights) from the next step on."""
        weights = [1.0] * len(dims) if weights is None else list(weights)
        if not dims or len(set(dims)) != len(dims) or min(dims) < 1:
            raise InputError(f"matryoshka.dims={list(dims)} must be distinct sizes of at least 1")
        if len(weights) != len(dims):
            raise InputError(f"matryoshka.weights has {len(weights)} values for {len(dims)} dims: give one a dim")
        self.dims, self.weights = tuple(dims), tuple(weights)

    def forward(
        self, embeddings: tuple[Tensor, ...], labels: Tensor | None = None, ids: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The wrapped loss over all prefixes: embeddings Float[n_i, D] -> Float[]."""
        check_dims(self.dims, embeddings[0].shape[1])
        total = torch.zeros((), device=embeddings[0].device)
        for dim, weight in zip(self.dims, self.weights, strict=True):
            total = total + weight * self.loss(tuple(e[:, :dim] for e in embeddings), labels, ids)
        return total


def check_dims(dims: Sequence[int], full: int) -> None:
    """An error unless the largest of `dims` is the full size of the embedding.

    >>> check_dims([128, 64], 128)
    """
    if max(dims) > full:
        raise InputError(f"matryoshka.dims={list(dims)}: {max(dims)} is more than the encoder's {full} dims")
    if full not in dims:
        raise InputError(f"matryoshka.dims={list(dims)} leaves the full size {full} untrained: add it")
