"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import AdamW, Optimizer

from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

_FAR = 20  # times as large or as small as its kind's own: a learning rate that cannot suit an encoder


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
        if not self.weight_decay >= 0:
            raise InputError(f"optim.weight_decay={self.weight_decay} must be 0 or more: try 0.01")

    def configure(self, model: nn.Module, steps: int) -> OptimizerLRSchedulerConfig:
        """Make the optimizer and its schedule, as a LightningModule's `configure_optimizers` returns them.

        Args:
            model: whose parameters to train.
            steps: optimizer steps of the whole run.

        Raises:
            InputError: a schedule that transformers does not have.
        """
        from transformers import get_scheduler

        try:
            optimizer = self.optimizer(parameter_groups(model, self.weight_decay))
        except (ValueError, TypeError) as error:  # of torch: a value that cannot work
            raise InputError(f"optim.optimizer refused its values: {error}") from error
        try:
            scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup * steps), steps)
        except ValueError as error:
            raise InputError(f"optim.schedule={self.schedule!r} is unknown to transformers ({error}): try linear") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}


@dataclass(frozen=True)
class EncoderKind:
    """What decides on the values of AdamW that suit an encoder.

    Args:
        static: it has one vector a token; else it is a transformer.
        pretrained: its weights were trained before; else they begin at random.

    >>> print(EncoderKind(static=False, pretrained=True), EncoderKind(static=False, pretrained=True).learning_rate)
    a pretrained transformer 2e-05
    """

    static: bool
    pretrained: bool

    def __str__(self) -> str:
        name = "static encoder" if self.static else "transformer"
        return f"a pretrained {name}" if self.pretrained else f"a {name} that begins at random"

    @property
    def learning_rate(self) -> float:
        """The one that is taken where none is given."""
        if self.static:
            return 1.0e-3 if self.pretrained else 5.0e-3
        return 2.0e-5 if self.pretrained else 5.0e-4

    @property
    def weight_decay(self) -> float:
        """The one that is taken where none is given."""
        return 0.0 if self.static else 0.01

    def remark_on(self, learning_rate: float) -> str | None:
        """A sentence about a learning rate of Adam that is far from what suits this kind; None for any other."""
        ratio = learning_rate / self.learning_rate
        if 1 / _FAR <= ratio <= _FAR:
            return None
        effect = "it will hardly learn" if ratio < 1 else "it may lose what it has" if self.pretrained else "it may not learn"
        size = "small" if ratio < 1 else "large"
        return (
            f"optim.optimizer.lr={learning_rate:g} is very {size} for {self}, so {effect}: "
            f"leave it out, or try optim.optimizer.lr={self.learning_rate:g}"
        )


def check_learning_rate(value: Any) -> None:
    """Refuse what is no learning rate; None is one that follows the encoder.

    Raises:
        InputError: a text, or a number that is not above 0 and finite.
    """
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf):
        return
    hint = " (in YAML write 1.0e-5, not 1e-5)" if isinstance(value, str) else ""
    raise InputError(
        f"optim.optimizer.lr={value!r} is no learning rate{hint}: give a number above 0, such as 2.0e-5, "
        "or null for the one that suits the encoder"
    )


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
