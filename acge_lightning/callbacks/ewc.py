"""Elastic weight consolidation: weights that mattered for earlier tasks move less."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.ewc import add_penalty_gradient_, merged, penalty, proximal_, rate_
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_KEY = "callbacks.ewc"
Mode = Literal["gradient", "proximal", "rate"]


@dataclass
class _AnchoredGroup:
    """The anchored weights of one parameter group of the optimizer, and their anchor."""

    options: dict[str, Any]
    names: list[str]
    theta: list[Tensor]
    star: list[Tensor]
    fisher: list[Tensor]
    before: list[Tensor]


class EWCAnchor(Callback):
    """Holds weights near those of an anchor, each as strongly as it mattered there: the penalty 1/2 λ Σ F (θ − θ*)².

    | `mode` | what happens once an optimizer step |
    |---|---|
    | `gradient` | ∇ ← ∇ + λ F (θ − θ*), after unscaling and before clipping: the penalty of the paper, at a third of its cost |
    | `proximal` | after the step: θ ← (θ + η λ F θ*) / (1 + η λ F), η the learning rate; stable for every λ |
    | `rate` | after the step: θ ← θ_before + (θ − θ_before) / (1 + λ F): what matters learns more slowly, θ* pulls nothing |

    Under AdamW `gradient` and `proximal` end at different places for the same λ, since Adam rescales the gradient: a λ that
    suits one mode is no guide for another. Batches whose gradients are accumulated, and devices, count as one step; a step
    that the loss scaler skips is none. Logs `ewc/strength`, `ewc/penalty` and, for each layer, `ewc/drift/<layer>`
    (‖θ − θ*‖ / ‖θ*‖) and once `ewc/mass/<layer>`, its share of the importance.

    Args:
        anchors: files of `acge fisher`, the oldest first. Their penalties add up; in memory they are one anchor at the
            weighted mean of theirs, which is the same quadratic.
        mode: see above.
        strength: λ; or optimizer step -> λ, linear in between and constant beyond, for example `{0: 0.0, 500: 10.0}`.
        decay: γ; older anchors are kept as F ← γ F_old + F_new around the newest θ* only (online EWC); None adds them up.

    Raises:
        InputError: values that cannot work; before the first step, an anchor that is missing or of another encoder, sharded
            weights (FSDP), or an anchor that is not the one the run began with.

    Reference: Kirkpatrick et al. 2017 (arXiv 1612.00796); `decay`: Schwarz et al. 2018 (arXiv 1805.06370). Differs: the factor
    1/2 is there (libraries leave it out), and F is normalised, so that λ carries over between batch sizes and models.

    YAML::

        ewc: {_target_: acge_lightning.callbacks.EWCAnchor, anchors: old.safetensors, mode: gradient, strength: 1.0}
    """

    def __init__(
        self,
        anchors: str | Path | Sequence[str | Path],
        mode: Mode = "gradient",
        strength: float | Mapping[int, float] = 1.0,
        decay: float | None = None,
    ):
        self.files = [Path(f).expanduser() for f in ([anchors] if isinstance(anchors, (str, Path)) else anchors)]
        self.mode, self.decay = mode, decay
        points = strength if isinstance(strength, Mapping) else {0: strength}
        self.points = sorted((int(step), float(value)) for step, value in points.items())
        if not self.files:
            raise InputError(f"{_KEY}.anchors is empty: name a file that `acge fisher` wrote")
        for file in self.files:
            if not file.is_file():
                raise InputError(f"{_KEY}.anchors: there is no file {file}: make it with `acge fisher`")
        if mode not in ("gradient", "proximal", "rate"):
            raise InputError(f"{_KEY}.mode={mode!r} is unknown: choose gradient, proximal or rate")
        if not self.points or not all(0 <= value < np.inf for _, value in self.points):
            raise InputError(f"{_KEY}.strength={strength} must be 0 or more, and finite")
        if decay is not None and not 0 <= decay <= 1:
            raise InputError(f"{_KEY}.decay={decay} must be 0 to 1, or null for separate anchors")
        self._digests: list[str] = []
        self._anchor = Anchor({}, {}, {})
        self._offset = 0.0  # the penalty of several anchors at their mean
        self._groups: list[_AnchoredGroup] = []
        self._step_strength = 0.0
        self._handle: Any = None
        self._logged = -1

    def strength(self, step: int) -> float:
        """λ of a step."""
        return float(np.interp(step, [s for s, _ in self.points], [value for _, value in self.points]))

    # ---- before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the anchors and compare them with the encoder, so that errors come before the first score."""
        if self._anchor.theta:
            return
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(trainer.strategy).__name__
            raise InputError(f"{_KEY} needs whole weights on each device, and {name} divides them: use trainer.strategy=ddp")
        anchors, parameters = [], dict(_encoder(pl_module).named_parameters())
        for file in self.files:
            anchors.append(Anchor.load(file))
            try:
                free = anchors[-1].check(parameters)
            except InputError as error:
                raise InputError(f"{_KEY}.anchors: {file}: {error}") from error
            if free:
                _LOG.warning("%s has no %s: left free", file, ", ".join(free[:3]) + (" and others" if free[3:] else ""))
        self._digests = [_digest(file) for file in self.files]
        if self.decay is None:
            self._anchor, self._offset = summed(anchors)
        else:
            self._anchor = merged(anchors, self.decay)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Match the anchor with the optimizer's weights, on their device."""
        (optimizer,) = trainer.optimizers
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise InputError(
                f"{_KEY}: a fused optimizer unscales gradients within its step, too late for the penalty: set "
                "optim.optimizer.fused=false, or trainer.precision=bf16-mixed"
            )
        names = {p: name for name, p in _encoder(pl_module).named_parameters() if name in self._anchor.theta}
        self._groups = []
        for options in optimizer.param_groups:
            theta = [p for p in options["params"] if p in names]
            anchored = [names[p] for p in theta]
            star_device = "cpu" if self.mode == "rate" else None  # there θ* is only for the log
            star = [self._anchor.theta[n].to(star_device or p.device) for n, p in zip(anchored, theta, strict=True)]
            fisher = [self._anchor.fisher[n].to(p.device) for n, p in zip(anchored, theta, strict=True)]
            before = [torch.empty_like(p) for p in theta] if self.mode == "rate" else []
            self._groups.append(_AnchoredGroup(options, anchored, theta, star, fisher, before))
        self._handle = None if self.mode == "gradient" else optimizer.register_step_post_hook(self._after_step)
        self._step_strength, self._logged = 0.0, -1
        mass = self._by_layer(lambda theta, star, fisher: fisher.double().sum())
        self._log_metrics(trainer, {f"ewc/mass/{layer}": m / max(sum(mass.values()), 1e-300) for layer, m in mass.items()})

    # ---- each step

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient, or keep the weights as they are before the step."""
        self._step_strength = self.strength(trainer.global_step)
        for group in self._groups if self._step_strength else ():
            if self.mode == "gradient":
                gradients = [_gradient(weight) for weight in group.theta]
                add_penalty_gradient_(gradients, group.theta, group.star, group.fisher, self._step_strength)
            elif self.mode == "rate" and group.theta:
                torch._foreach_copy_(group.before, group.theta)

    def _after_step(self, optimizer: Optimizer, *args: Any) -> None:
        """The optimizer has moved the weights (it has not if the loss scaler left out the step)."""
        for group in self._groups if self._step_strength else ():
            if self.mode == "proximal":
                proximal_(group.theta, group.star, group.fisher, self._step_strength, float(group.options["lr"]))
            else:
                rate_(group.theta, group.before, group.fisher, self._step_strength)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log as often as the trainer does."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if trainer.global_step % every == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the run ends with, and let go of the optimizer."""
        self._log(trainer)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizer."""
        self._release()

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._groups = None, []

    # ---- log

    @torch.no_grad()
    def _log(self, trainer: Trainer) -> None:
        if trainer.global_step == self._logged or not trainer.loggers:
            return
        self._logged = trainer.global_step
        moved = self._by_layer(lambda theta, star, fisher: (theta.double() - star).square().sum())
        size = self._by_layer(lambda theta, star, fisher: star.double().square().sum())
        drift = {f"ewc/drift/{layer}": (d / size[layer]) ** 0.5 if size[layer] else 0.0 for layer, d in moved.items()}
        value = sum(self._by_layer(lambda theta, star, fisher: penalty([theta], [star], [fisher], 1.0)).values())
        self._log_metrics(
            trainer, {"ewc/penalty": self._step_strength * (value + self._offset), "ewc/strength": self._step_strength} | drift
        )

    def _by_layer(self, statistic: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, float]:
        """The sum over each layer of a statistic of theta, theta* and F."""
        totals: dict[str, Tensor | float] = {}
        for group in self._groups:
            for name, theta, star, fisher in zip(group.names, group.theta, group.star, group.fisher, strict=True):
                key = layer_of(name)
                totals[key] = totals.get(key, 0.0) + statistic(theta, star.to(theta.device), fisher)
        return {key: float(value) for key, value in totals.items()}

    def _log_metrics(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Digests of the anchor files; all else follows from them, the settings and the step."""
        return {"anchors": list(self._digests)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other anchors."""
        if state_dict.get("anchors") != self._digests:
            files = ", ".join(map(str, self.files))
            raise InputError(f"{_KEY}.anchors ({files}) are not those that the checkpoint was trained with: put them back")


def summed(anchors: Sequence[Anchor]) -> tuple[Anchor, float]:
    """Sum anchors to one whose penalty is the sum of their penalties, but for a constant.

    Σ F_i (θ − θ_i)² = F (θ − θ*)² + c with F = Σ F_i and θ* the mean of the θ_i, weighted by F_i.

    Returns:
        The anchor, and 1/2 c.
    """
    theta, fisher, constant = dict(anchors[0].theta), dict(anchors[0].fisher), 0.0
    for anchor in anchors[1:]:
        for name, new in anchor.theta.items():
            if name not in theta:
                theta[name], fisher[name] = new, anchor.fisher[name]
                continue
            total = fisher[name].float() + anchor.fisher[name].float()
            share = torch.where(total > 0, anchor.fisher[name] / total, 1.0)  # what matters nowhere stays with the newest
            constant += 0.5 * float((fisher[name].double() * share * (new.double() - theta[name]).square()).sum())
            theta[name], fisher[name] = theta[name] + share * (new - theta[name]), total
    return Anchor(theta, fisher, dict(anchors[-1].meta)), constant


def layer_of(name: str) -> str:
    """The layer of a parameter: the word before its first number and the number, or else its first word.

    >>> layer_of("backbone.encoder.layer.3.attention.self.query.weight"), layer_of("backbone.embeddings.word_embeddings.weight")
    ('layer 3', 'embeddings')
    """
    numbered = re.match(r"(?:.*?\.)?(\w+)\.(\d+)\.", name)
    if numbered:
        return f"{numbered[1]} {numbered[2]}"
    return name.removeprefix("backbone.").split(".")[0]


def _encoder(module: LightningModule) -> nn.Module:
    return cast(nn.Module, module.encoder)


def _gradient(weight: Tensor) -> Tensor:
    """The gradient of a weight, which is 0 where it has none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:32]
