"""Makes the random numbers of a training step a function of the seed and the step."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from acge_lightning.errors import InputError


class StepRandomness(Callback):
    """Seeds torch (all devices), NumPy and Python before each training batch, so that a resumed run draws what it would have.

    The state at a batch follows from (seed, optimizer step, batches since that step, device). Lightning's `batch_idx` plays
    no part: after a restart it differs. Lightning's checkpoints hold no random state, and none is needed.

    Args:
        seed: of all training steps.

    YAML::

        randomness: {_target_: acge_lightning.callbacks.StepRandomness, seed: "${seed}"}
    """

    def __init__(self, seed: int = 0):
        if seed < 0:
            raise InputError(f"seed={seed} must be 0 or more")
        self.seed = seed
        self._step, self._micro = -1, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed everything."""
        step = trainer.global_step
        self._micro = self._micro + 1 if step == self._step else 0
        self._step = step
        seeds = np.random.SeedSequence([self.seed, step, self._micro, trainer.global_rank]).generate_state(3, np.uint64)
        torch.manual_seed(int(seeds[0] >> np.uint64(1)))
        np.random.seed(int(seeds[1] & np.uint64(0xFFFFFFFF)))
        random.seed(int(seeds[2]))
