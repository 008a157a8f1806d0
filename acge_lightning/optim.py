"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay, vectors (biases, norms) do not.

    >>> [len(g["params"]) for g in parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.01)]
    [1, 3]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def configure(
    model: nn.Module,
    optimizer: Callable[..., Optimizer],
    weight_decay: float,
    schedule: str,
    warmup: float,
    steps: int,
) -> dict[str, Any]:
    """What a LightningModule's `configure_optimizers` returns.

    Args:
        model: whose parameters to train.
        optimizer: takes the groups, returns the optimizer (a partial of any `torch.optim` class).
        weight_decay: of matrices.
        schedule: a name of `transformers.get_scheduler`: linear, cosine, constant_with_warmup …
        warmup: share of the steps in which the rate rises from 0.
        steps: optimizer steps of the whole run.
    """
    from transformers import get_scheduler

    made = optimizer(parameter_groups(model, weight_decay))
    scheduler = get_scheduler(schedule, made, num_warmup_steps=round(warmup * steps), num_training_steps=steps)
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}
