"""Drops elements faster than torch does on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # of a dropout probability: 16 random bits an element


def use_fast_dropout(model: nn.Module) -> None:
    """Make every `nn.Dropout` of a model a `Dropout`, in place; derived classes stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


class Dropout(nn.Dropout):
    """`nn.Dropout`, computed by `dropout` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with elements dropped in training, as it is in evaluation."""
        return dropout(x, self.p) if self.training and self.p and x.device.type == "cpu" else super().forward(x)


def dropout(x: Tensor, p: float) -> Tensor:
    """Each element zero with probability `p`, else divided by 1 - p: 16 random bits an element, where torch takes 64.

    `p` is rounded to a multiple of 2^-16. Draws from torch's generator of the CPU; keeps a byte an element for the backward.
    """
    drop = min(round(p * _LEVELS), _LEVELS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    keep = bits.view(x.shape) >= drop - _LEVELS // 2 if drop < _LEVELS else torch.zeros(x.shape, dtype=torch.bool)
    return _Keep.apply(x, keep, _LEVELS / max(1, _LEVELS - drop))


class _Keep(torch.autograd.Function):
    """x times mask times scale; autograd would keep the mask as floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient * ctx.saved_tensors[0]).mul_(ctx.scale), None, None
