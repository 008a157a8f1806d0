"""Writes a checkpoint every so many steps, where a resumed run goes on exactly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)


class StepCheckpoint(Callback):
    """Keeps one checkpoint of the last steps, `recent.ckpt`, beside the best and the last validated one.

    It is written where `between_steps` first allows it after every `every` steps.

    Three settings of Lightning are not exact, and no part of the defaults. `ModelCheckpoint(every_n_train_steps=…)` also writes
    where a validation is due; a run that goes on from there leaves that validation out, and may choose another best
    checkpoint. `ModelCheckpoint(every_n_epochs=…)` without validation, with accumulated gradients, writes where a resumed run
    takes one batch of the finished epoch again. And a validation between two batches whose gradients are accumulated may be
    followed by a checkpoint that lacks those gradients: this callback moves `val_check_interval` to the end of a step.

    Args:
        dirpath: folder of the checkpoints.
        every: optimizer steps.

    YAML::

        steps: {_target_: acge_lightning.callbacks.StepCheckpoint, dirpath: "${paths.output_dir}/checkpoints", every: 500}
    """

    def __init__(self, dirpath: str | Path, every: int = 1000):
        if every < 1:
            raise InputError(f"every={every} must be 1 step or more")
        self.path, self.every = Path(dirpath) / "recent.ckpt", every
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here; let validations begin at the end of a step."""
        self._saved = trainer.global_step
        interval, accumulated, batches = trainer.val_check_batch, trainer.accumulate_grad_batches, trainer.num_training_batches
        if isinstance(interval, int) and interval % accumulated and interval != batches:
            trainer.val_check_batch = min(-(-interval // accumulated) * accumulated, batches)
            message = "validating every %d batches and not %d: their gradients are accumulated over %d"
            _LOG.warning(message, trainer.val_check_batch, interval, accumulated)
        if trainer.check_val_every_n_epoch is None and batches % accumulated:
            _LOG.warning(
                "a validation may fall within a step; a run that goes on from it may differ: set check_val_every_n_epoch=1"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if trainer.global_step - self._saved >= self.every and between_steps(trainer) and not trial:
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.path)


def between_steps(trainer: Trainer) -> bool:
    """Whether the batch that ends ended an optimizer step, and the next thing is another batch of the same round."""
    loop = trainer.fit_loop.epoch_loop
    if loop._should_accumulate() or loop._num_ready_batches_reached() or trainer.should_stop:
        return False
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and not loop._should_check_val_fx(fetcher)
