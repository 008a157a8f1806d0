"""The base of both modules: hands the encoder to the data, makes the optimizer, clips gradients of fused optimizers too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.training.loss_history import LossHistory
from acge_lightning.training.optim import Optim

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


class OptimizedModule(LightningModule, ABC):
    """A LightningModule that trains an encoder, whose `optim` says how it learns."""

    encoder: Encoder
    optim: Optim
    batch_tokens: int | None

    def __init__(self) -> None:
        super().__init__()
        self.history = LossHistory()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses so far."""
        checkpoint["losses"] = self.history.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the losses so far."""
        self.history.load_state_dict(checkpoint.get("losses") or {})

    @abstractmethod
    def save(self, folder: Path, provenance: Mapping[str, Any], earlier_rows: Sequence[np.ndarray] = ()) -> Path:
        """Write what was trained to a folder in `folder`, and return it; each module has its own form.

        Args:
            folder: of the run.
            provenance: plain data on how it was made.
            earlier_rows: hashes of the rows that the encoders it began from were trained on, Int64[n] each.
        """

    def setup(self, stage: str) -> None:
        """Hand the encoder to the data, whose batches are made with its tokenizer."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        bind = getattr(datamodule, "bind", None)
        if bind is not None:
            bind(self.encoder)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer, and its schedule over the whole run."""
        return self.optim.configure(self, int(self.trainer.estimated_stepping_batches))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, and take a fused optimizer under bf16-mixed too: there, no gradients are scaled.

        Args:
            optimizer: whose gradients to clip.
            gradient_clip_val: `trainer.gradient_clip_val`; None or 0 clips nothing.
            gradient_clip_algorithm: `norm` (None too) or `value`.

        Raises:
            InputError: the optimizer is fused, and gradients are scaled (16-mixed): it unscales them too late to be clipped.
        """
        precision = self.trainer.precision_plugin
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if not (gradient_clip_val and fused and isinstance(precision, MixedPrecision)):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            raise InputError(
                "trainer.gradient_clip_val: a fused optimizer unscales gradients within its step, too late for clipping: set "
                "optim.optimizer.fused=false, trainer.precision=bf16-mixed or trainer.gradient_clip_val=null"
            )
