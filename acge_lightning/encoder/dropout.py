"""Layers that are faster on a CPU: linear maps that leave less idle and do nothing twice, GELU in place, a dropout."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.activations import GELUActivation

_LEVELS = 1 << 16  # of a dropout probability


def use_fast_layers(model: nn.Module) -> None:
    """Make a model's layers the faster ones of this file, in place.

    Every `nn.Dropout` becomes a `Dropout` and every `nn.Linear` a `Linear` where that is faster; a GELU between the two linear
    maps of a BERT's layer becomes a `GELU`, as nothing else needs what it is given.
    """
    for name, module in model.named_modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
        elif type(module) is nn.Linear and onednn_is_faster():
            module.__class__ = Linear
        elif type(module) is GELUActivation and name.endswith("intermediate_act_fn"):
            module.__class__ = GELU


def _as_torch() -> bool:
    """Whether torch's own operators are wanted, as gradients are, or a graph is recorded."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


# ---- linear maps

_LINEAR_MAPS = (linear, getattr(torch.ops.mkldnn, "_linear_pointwise", None))  # `nn.Linear`'s and `Linear`'s


def onednn_is_faster() -> bool:
    """Whether fp32 products are: on AMD's processors, for which MKL, the library that torch takes, has slower ones."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # an older torch has none
    named = str(capabilities().get("cpu_name", ""))
    return "AMD" in named and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`nn.Linear` that infers in fp32 on a CPU by oneDNN (1.1 to 1.2 times faster on a Zen 4), and is as torch's otherwise."""

    _here = threading.local()  # `weights`: those that `use_packed_weights` gave this thread

    def forward(self, x: Tensor) -> Tensor:
        """Float[..., in_features] -> Float[..., out_features]."""
        plain = self.training or torch.is_autocast_enabled("cpu") or _as_torch()
        if plain or not all(t.dtype == torch.float and t.is_cpu for t in (x, self.weight)):
            return super().forward(x)
        weight = getattr(self._here, "weights", {}).get(self, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")


def packed_weights(model: nn.Module, rows: int) -> dict[Linear, Tensor]:
    """Copies of the weights of a model's `Linear` layers in oneDNN's order, best for `rows` rows but good for any number."""
    layers = [m for m in model.modules() if isinstance(m, Linear) and m.weight.dtype == torch.float and m.weight.is_cpu]
    return {layer: torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows) for layer in layers}


def use_packed_weights(weights: dict[Linear, Tensor]) -> None:
    """Let this thread take them, for as long as it lives, instead of putting them in order at each call."""
    Linear._here.weights = weights


class Repeated(Tensor):
    """Vectors of which many are equal: a linear map is done once for each distinct one. All else sees an ordinary tensor."""

    distinct: Tensor
    which: Tensor

    @classmethod
    def of(cls, distinct: Tensor, which: Tensor) -> Repeated:
        """Float[k, d], and which of them each is, Int64[...] -> Float[..., d]; without gradients."""
        result = embedding(which, distinct).as_subclass(cls)
        result.distinct, result.which = distinct, which
        return result

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Linear maps of distinct vectors; the rest is torch's, and gives plain tensors."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _LINEAR_MAPS and args and isinstance(args[0], cls):
                x, *more = args
                return embedding(x.which, func(x.distinct, *more, **kwargs or {}))
            return func(*args, **kwargs or {})


# ---- activation


class GELU(GELUActivation):
    """`GELUActivation` that writes its result over what it is given, when no gradient is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        """Float[...] -> Float[...], the same tensor; a new one if it may be needed again."""
        return super().forward(x) if _as_torch() else torch.ops.aten.gelu_(x)


# ---- dropout


class Dropout(nn.Dropout):
    """`nn.Dropout` with `dropout` on a CPU."""

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
    """x times mask times scale; autograd's own would hold the mask as floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient * ctx.saved_tensors[0]).mul_(ctx.scale), None, None
