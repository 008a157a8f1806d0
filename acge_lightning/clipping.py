"""Gradient clipping that takes a fused optimizer where Lightning's does not."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from acge_lightning.errors import InputError


def clip_gradients(module: LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None) -> None:
    """Lightning's clipping, which takes a fused optimizer under bf16-mixed too: there, no gradients are scaled.

    Args:
        module: in training.
        optimizer: whose gradients to clip.
        value: `trainer.gradient_clip_val`; None or 0 clips nothing.
        algorithm: `norm` (None too) or `value`.

    Raises:
        InputError: the optimizer is fused, and gradients are scaled (16-mixed): it unscales them too late to be clipped.
    """
    precision = module.trainer.precision_plugin
    fused = isinstance(precision, MixedPrecision) and getattr(optimizer, "_step_supports_amp_scaling", False)
    if not (value and fused):
        module.clip_gradients(optimizer, value, algorithm)
    elif precision.scaler is None:
        Precision.clip_gradients(precision, optimizer, value, GradClipAlgorithmType(algorithm or "norm"))
    else:
        raise InputError(
            "trainer.gradient_clip_val: a fused optimizer unscales gradients within its step, too late for clipping: set "
            "optim.optimizer.fused=false, trainer.precision=bf16-mixed or trainer.gradient_clip_val=null"
        )
