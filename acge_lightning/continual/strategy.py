"""Strategies against forgetting: an anchor, replay, a mean of weights, or several of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from acge_lightning.continual.anchor import Anchor
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError


@dataclass(frozen=True)
class Strategy:
    """How the stages of a sequence hold what earlier ones have learnt; all off: plain fine-tuning.

    Args:
        name: in tables and figures.
        anchor: `fisher`, each stage's importance of weights for its tasks (EWC); `ones`, the same for all weights (L2-SP,
            Li et al. 2018, arXiv 1802.01483); None for no anchor.
        mode: of `EWCAnchor`.
        strength: of `EWCAnchor`.
        decay: of `EWCAnchor`; 0 keeps the newest anchor only.
        replay: share of the batches of a stage that come from the tasks of earlier ones.
        merge: after a stage, weights become (1 - merge) * before + merge * after (as in LM-Cocktail, Xiao et al. 2023,
            arXiv 2311.13534); None leaves them.

    YAML::

        strategy: {name: ewc, anchor: fisher, mode: gradient, strength: 1.0, decay: null, replay: 0.0, merge: null}
    """

    name: str = "none"
    anchor: Literal["fisher", "ones"] | None = None
    mode: str = "gradient"
    strength: float | Mapping[int, float] = 1.0
    decay: float | None = None
    replay: float = 0.0
    merge: float | None = None

    def __post_init__(self) -> None:
        if self.anchor not in (None, "fisher", "ones"):
            raise InputError(f"strategy.anchor={self.anchor!r} is unknown: choose fisher, ones or null")
        if not 0 <= self.replay < 1:
            raise InputError(f"strategy.replay={self.replay} is a share of the batches: give 0 to 0.9")
        if self.merge is not None and not 0 <= self.merge <= 1:
            raise InputError(f"strategy.merge={self.merge} is the share of the new weights: give 0 to 1, or null")

    def callback(self, files: Collection[str]) -> dict[str, Any]:
        """The node of a callback that holds weights near these anchors."""
        node = {"_target_": "acge_lightning.callbacks.EWCAnchor", "anchors": list(files)}
        return node | {"mode": self.mode, "strength": self.strength, "decay": self.decay}


def ones(encoder: Encoder) -> Anchor:
    """An anchor to which all weights matter alike."""
    theta = {name: p.detach().float().cpu().clone() for name, p in encoder.named_parameters()}
    return Anchor(theta, {name: torch.ones_like(p) for name, p in theta.items()}, {"estimator": "ones", "tasks": {}})


def replay_weights(
    tasks: Mapping[str, Task], old: Collection[str], share: float, temperature: float = 1.0
) -> tuple[dict[str, float], int]:
    """Weights of a mixture in which old tasks have a share of the batches, and the number of batches of a round.

    A round holds the batches of the new tasks once, as it would without replay, and the old ones' share on top.

    Args:
        tasks: name -> task, old and new.
        old: which are old.
        share: of the batches, in [0, 1).
        temperature: of the mixture.
    """
    data = {name: task.data for name, task in tasks.items() if task.weight > 0}
    batches = {name: len(batch_sizes(len(rows), rows.batch_size)) for name, rows in data.items()}
    drawn = {name: tasks[name].weight * count ** (1 / temperature) for name, count in batches.items()}
    drawn_old = sum(drawn[name] for name in drawn if name in old)
    drawn_new = sum(drawn[name] for name in drawn if name not in old)
    factor = share / (1 - share) * drawn_new / drawn_old
    weights = {name: task.weight * (factor if name in old else 1.0) for name, task in tasks.items()}
    new_batches = sum(count for name, count in batches.items() if name not in old)
    return weights, max(1, round(new_batches / (1 - share)))


@torch.no_grad()
def averaged(old: Encoder, new: Encoder, share: float) -> Encoder:
    """Average two encoders: the weights are (1 - share) * old + share * new.

    Raises:
        InputError: they are not of one architecture.
    """
    merged = copy.deepcopy(new)
    before = dict(old.named_parameters())
    for name, weight in merged.named_parameters():
        if name not in before or before[name].shape != weight.shape:
            raise InputError(f"strategy.merge: {name} is not the same in the encoder before: weights cannot be averaged")
        weight.copy_(torch.lerp(before[name].to(weight), weight, share))
    return merged
