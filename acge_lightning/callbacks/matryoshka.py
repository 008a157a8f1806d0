"""Chooses the Matryoshka prefixes that a step trains, as a function of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from acge_lightning.errors import InputError
from acge_lightning.losses.matryoshka import Matryoshka

if TYPE_CHECKING:
    from acge_lightning.training.embedding_module import EmbeddingModule


class MatryoshkaSchedule(Callback):
    """Trains only some of the prefixes at a step; the full size is always one of them.

    The dims follow from the global step alone: they are the same on all devices, for all batches that a step accumulates, and
    after a restart. Every dim keeps its weight and temperature. Give one of three:

    Args:
        at: optimizer step -> dims from then on. Before the first of them all dims are trained.
        coarse_to_fine: optimizer steps. Training begins with the full size and the shortest prefix; the others come in one
            after the other, shortest first and at equal distances, and at this step all are there.
        random: how many prefixes beside the full size are drawn at each step, without replacement.
        seed: of the draws.

    Raises:
        InputError: not exactly one of the three, dims that the module was not made with or without the full size, or more
            random dims than there are.

    Reference: `random` as in sentence-transformers' `n_dims_per_step`. Differs: drawn from seed and step, never from the state
    of a process.

    YAML::

        matryoshka_schedule:
          _target_: acge_lightning.callbacks.MatryoshkaSchedule
          coarse_to_fine: 1000       # or  at: {0: [1792, 128], 500: [1792, 512, 128]}
                                     # or  random: 2
    """

    def __init__(
        self,
        at: Mapping[int, Sequence[int]] | None = None,
        coarse_to_fine: int | None = None,
        random: int | None = None,
        seed: int = 0,
    ):
        schedules = {"at": at, "coarse_to_fine": coarse_to_fine, "random": random}
        if sum(value is not None for value in schedules.values()) != 1:
            raise InputError("callbacks.matryoshka_schedule takes exactly one of at, coarse_to_fine and random")
        for name, value in schedules.items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"callbacks.matryoshka_schedule.{name}={value} must be at least 1")
        self.at = None if at is None else {int(step): tuple(dims) for step, dims in sorted(at.items())}
        self.coarse_to_fine, self.random, self.seed = coarse_to_fine, random, seed
        self._all: tuple[int, ...] = ()

    def dims(self, step: int, all_dims: Sequence[int]) -> tuple[int, ...]:
        """The dims of a step, largest first.

        >>> MatryoshkaSchedule(coarse_to_fine=100).dims(50, [512, 256, 128, 64])
        (512, 128, 64)
        """
        short = sorted(all_dims)[:-1]
        if self.at is not None:
            begun = [dims for start, dims in self.at.items() if start <= step]
            chosen = begun[-1] if begun else tuple(all_dims)
        elif self.random is not None:
            drawn = np.random.default_rng([self.seed, step]).choice(short, self.random, replace=False).tolist()
            chosen = (max(all_dims), *drawn)
        else:
            added = min(len(short) - 1, (len(short) - 1) * step // (self.coarse_to_fine or 1))
            chosen = (max(all_dims), *short[: 1 + added])
        return tuple(sorted(chosen, reverse=True))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule with the module's dims, so that errors come before the first step."""
        module = _embedding_module(pl_module)
        matryoshka = next((loss for loss in module.losses.values() if isinstance(loss, Matryoshka)), None)
        if matryoshka is None:
            raise InputError("a schedule of Matryoshka dims has none to choose from: set matryoshka, for example to halves")
        self._all = tuple(matryoshka.weights)
        if self.random is not None and self.random > len(self._all) - 1:
            raise InputError(f"callbacks.matryoshka_schedule.random={self.random}: there are {len(self._all) - 1} prefixes")
        for step in self.at or [0]:
            module.set_matryoshka_dims(self.dims(step, self._all))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose the dims of this step."""
        _embedding_module(pl_module).set_matryoshka_dims(self.dims(trainer.global_step, self._all))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train all dims again."""
        _embedding_module(pl_module).set_matryoshka_dims(self._all)


def _embedding_module(module: LightningModule) -> EmbeddingModule:
    return cast("EmbeddingModule", module)  # the only kind that trains prefixes
