"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import AdamW, Optimizer

from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


@dataclass(frozen=True)
class Optim:
    """How weights are updated.

    Args:
        optimizer: makes an optimizer from parameter groups; a partial of any class of `torch.optim`.
        weight_decay: of matrices.
        schedule: a name of `transformers.get_scheduler`: linear, cosine, constant_with_warmup …
        warmup: share of the steps in which the learning rate rises from 0.

    YAML::

        optim:
          _target_: acge_lightning.training.Optim
          optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 2.0e-5}
          weight_decay: 0.01
          schedule: linear
          warmup: 0.1
    """

    optimizer: Callable[..., Optimizer] = AdamW
    weight_decay: float = 0.01
    schedule: str = "linear"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise InputError(f"optim.warmup={self.warmup} is a share of the steps: give 0 to 1")

    def configure(self, model: nn.Module, steps: int) -> OptimizerLRSchedulerConfig:
        """Make the optimizer and its schedule, as a LightningModule's `configure_optimizers` returns them.

        Args:
            model: whose parameters to train.
            steps: optimizer steps of the whole run.

        Raises:
            InputError: a schedule that transformers does not have.
        """
        from transformers import get_scheduler

        optimizer = self.optimizer(parameter_groups(model, self.weight_decay))
        try:
            scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup * steps), steps)
        except ValueError as error:
            raise InputError(f"optim.schedule={self.schedule!r} is unknown to transformers ({error}): try linear") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters in two: matrices decay, vectors (biases, norms) do not.

    >>> [len(g["params"]) for g in parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.01)]
    [1, 3]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
