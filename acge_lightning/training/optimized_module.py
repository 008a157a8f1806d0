"""What both modules share: the encoder that the data is given, the optimizer, and how gradients of a fused one are clipped."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.training.optim import Optim


class OptimizedModule(LightningModule):
    """A LightningModule that trains an encoder, whose `optim` says how it learns."""

    encoder: Encoder
    optim: Optim

    def setup(self, stage: str) -> None:
        """Hand the encoder to the data, whose batches are made with its tokenizer."""
        bind = getattr(self.trainer.datamodule, "bind", None)
        if bind is not None:
            bind(self.encoder)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and its schedule over the whole run."""
        return self.optim.configure(self, int(self.trainer.estimated_stepping_batches))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's clipping, which takes a fused optimizer under bf16-mixed too: there, no gradients are scaled.

        Args:
            optimizer: whose gradients to clip.
            gradient_clip_val: `trainer.gradient_clip_val`; None or 0 clips nothing.
            gradient_clip_algorithm: `norm` (None too) or `value`.

        Raises:
            InputError: the optimizer is fused, and gradients are scaled (16-mixed): it unscales them too late to be clipped.
        """
        precision = self.trainer.precision_plugin
        fused = isinstance(precision, MixedPrecision) and getattr(optimizer, "_step_supports_amp_scaling", False)
        if not (gradient_clip_val and fused):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            raise InputError(
                "trainer.gradient_clip_val: a fused optimizer unscales gradients within its step, too late for clipping: set "
                "optim.optimizer.fused=false, trainer.precision=bf16-mixed or trainer.gradient_clip_val=null"
            )
