"""Elastic weight consolidation: weights that mattered for old tasks are held near where they were.

Functions over matched lists of tensors: the weights theta, theta* where they are anchored, and their importance F (`anchor`
holds the last two, `fisher` makes them). F may be bf16 and may lie, as theta*, on another device; all arithmetic is in the
precision of theta or fp32, whichever is finer. A weight of F = 0, and every weight at strength 0, keeps its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from acge_lightning.continual.anchor import Anchor

_BLOCK = {"cpu": 1 << 17}  # weights worked on together, so that what is computed in between stays in a core's cache
_GPU_BLOCK = 1 << 24


def penalty(theta: Sequence[Tensor], theta_star: Sequence[Tensor], fisher: Sequence[Tensor], strength: float) -> Tensor:
    """1/2 lambda sum F (theta - theta*)^2, with gradient.

    Args:
        theta: Float of any shapes.
        theta_star: of the same shapes.
        fisher: of the same shapes, 0 or above.
        strength: lambda, 0 or above.

    Returns:
        Float[].

    Reference: Kirkpatrick et al. 2017 (arXiv 1612.00796); with their factor 1/2, which some programs leave out.

    >>> penalty([torch.tensor([3.0, 1.0])], [torch.zeros(2)], [torch.tensor([2.0, 0.0])], 0.5).item()
    4.5
    """
    terms = [
        (f.to(_wide(x)) * (x - star.to(x.device)).square()).sum() for x, star, f in zip(theta, theta_star, fisher, strict=True)
    ]
    return 0.5 * strength * torch.stack(terms).sum()


@torch.no_grad()
def add_penalty_gradient_(
    grad: Sequence[Tensor], theta: Sequence[Tensor], theta_star: Sequence[Tensor], fisher: Sequence[Tensor], strength: float
) -> None:
    """Add the gradient of `penalty`, lambda F (theta - theta*), bit for bit, without its graph and its copies.

    Args:
        grad: changed in place.
        theta: as in `penalty`.
        theta_star: as in `penalty`.
        fisher: as in `penalty`.
        strength: lambda.
    """
    for g, x, star, f in _blocks(grad, theta, theta_star, fisher):
        g.add_((f.to(_wide(x)) * strength).mul_(x - star))


def proximal_(
    theta: Sequence[Tensor], theta_star: Sequence[Tensor], fisher: Sequence[Tensor], strength: float, rate: float
) -> None:
    """Take the penalty's own step after the optimizer's: theta <- (theta + eta lambda F theta*) / (1 + eta lambda F).

    It is stable for any lambda, where a step along the gradient needs eta lambda F < 2. Under Adam, whose steps are rescaled
    and this one is not, it settles elsewhere than the penalty's gradient does: a lambda does not carry over.

    Args:
        theta: changed in place.
        theta_star: as in `penalty`.
        fisher: as in `penalty`.
        strength: lambda.
        rate: eta, the learning rate of the step.
    """
    _pull_(theta, theta_star, fisher, strength * rate)


def rate_(theta: Sequence[Tensor], before: Sequence[Tensor], fisher: Sequence[Tensor], strength: float) -> None:
    """Give every weight its own speed, the important ones less: theta <- before + (theta - before) / (1 + lambda F).

    Args:
        theta: after the optimizer's step; changed in place.
        before: the same weights before it.
        fisher: as in `penalty`.
        strength: lambda.
    """
    _pull_(theta, before, fisher, strength)


def merged(anchors: Sequence[Anchor], decay: float) -> Anchor:
    """Merge anchors, old to new, into one: theta* of the last, F = gamma F_old + F_new.

    A parameter that the last ones lack keeps the theta* that it had.

    Args:
        anchors: at least one.
        decay: gamma in [0, 1].

    Raises:
        InputError: no anchor, a decay outside [0, 1], or shapes that differ.

    Reference: Schwarz et al. 2018 (online EWC, arXiv 1805.06370).
    """
    if not anchors or not 0 <= decay <= 1:
        raise InputError(f"merged needs an anchor or more and a decay of 0 to 1, not {len(anchors)} and {decay}")
    theta: dict[str, Tensor] = {}
    fisher: dict[str, Tensor] = {}
    for anchor in anchors:
        for name, values in theta.items():
            if name in anchor.theta and anchor.theta[name].shape != values.shape:
                shapes = tuple(values.shape), tuple(anchor.theta[name].shape)
                raise InputError(
                    f"{name} is {shapes[0]} in one anchor and {shapes[1]} in a later one: merge those of one encoder"
                )
        theta = theta | anchor.theta
        old = {name: values * decay for name, values in fisher.items()}
        fisher = old | {name: values + old[name] if name in old else values for name, values in anchor.fisher.items()}
    meta: dict[str, Any] = dict(anchors[-1].meta)
    if len(anchors) > 1:
        meta |= {"merged": [dict(anchor.meta) for anchor in anchors], "decay": decay}
    return replace(anchors[-1], theta=theta, fisher=fisher, meta=meta)


@torch.no_grad()
def _pull_(theta: Sequence[Tensor], goal: Sequence[Tensor], fisher: Sequence[Tensor], strength: float) -> None:
    """Add c / (1 + c) (goal - theta) with c = strength F: nothing for c = 0, all the way for c = inf."""
    for x, target, f in _blocks(theta, goal, fisher):
        share = (f.to(_wide(x)) * strength).reciprocal_().add_(1).reciprocal_()
        x.add_(share.mul_(target - x))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the tensor, or fp32 if that is finer."""
    return torch.promote_types(x.dtype, torch.float32)


def _blocks(*lists: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Matching slices of matching tensors, on the device of those of the first list."""
    for tensors in zip(*lists, strict=True):
        weights = tensors[0]
        if any(t.shape != weights.shape for t in tensors):
            raise InputError(f"shapes {[tuple(t.shape) for t in tensors]} differ: give tensors of the same parameter")
        if not all(t.is_contiguous() for t in tensors):
            yield tuple(t.to(weights.device) for t in tensors)
            continue
        flat = [t.detach().view(-1) for t in tensors]
        size = _BLOCK.get(weights.device.type, _GPU_BLOCK)
        for start in range(0, weights.numel(), size):
            yield tuple(t[start : start + size].to(weights.device, non_blocking=True) for t in flat)
