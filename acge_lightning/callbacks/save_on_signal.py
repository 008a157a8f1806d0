"""Saves a checkpoint and ends the run on SIGTERM, SIGINT and SIGUSR1."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from acge_lightning.callbacks.steps import between_steps

_LOG = logging.getLogger(__name__)
_STATUSES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 0}
_EXIT = {signal.Signals[name]: status for name, status in _STATUSES.items() if hasattr(signal, name)}  # Windows lacks SIGUSR1


class Signals(Callback):
    """Writes `interrupted.ckpt` after the step at which a signal arrived, and ends the process.

    SIGTERM ends it with exit code 143, SIGINT (Ctrl-C) with 130, SIGUSR1 (not on Windows) with 0: a scheduler that sends it
    wants the job to end well and to be put in the queue again. Under Lightning's SLURM environment with requeueing, SIGUSR1
    does what Lightning does there (save, `scontrol requeue`), but after the step rather than within it. A second
    Ctrl-C ends at once.

    A validation is left off at its next batch, or on several devices before it begins; the run that goes on begins it anew.
    `resume=auto` finds the checkpoint.

    Args:
        dirpath: folder of the checkpoints.

    YAML::

        signals: {_target_: acge_lightning.callbacks.Signals, dirpath: "${paths.output_dir}/checkpoints"}
    """

    def __init__(self, dirpath: str | Path):
        self.path = Path(dirpath) / "interrupted.ckpt"
        self._signal, self._leaving = 0, False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals, in place of Lightning."""
        self._signal = 0
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in _EXIT}

    def _receive(self, number: int, frame: Any) -> None:
        if number == self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step, unless a validation or a new round comes next: those look for themselves."""
        if between_steps(trainer) and self._agreed_signal(trainer):
            self._save_and_exit(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation within the training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._agreed_signal(trainer):
            self._save_and_exit(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """In it, on one device: several, which may differ in their number of batches, go through with it."""
        if trainer.world_size == 1:
            self.on_validation_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        if self._agreed_signal(trainer):
            self._save_and_exit(trainer)
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the signals as they were."""
        self._stop_listening()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A validation that is left off has not begun, or Lightning would go on in its middle with empty metrics."""
        if self._leaving and trainer.validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = dict.fromkeys(progress["total"], 0) | {"ready": 1, "started": 1}
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False

    def _agreed_signal(self, trainer: Trainer) -> int:
        """The signal that arrived, on whichever device."""
        if trainer.world_size > 1:
            received = torch.tensor(self._signal, device=trainer.strategy.root_device)
            self._signal = int(trainer.strategy.reduce(received, reduce_op="max"))
        return self._signal

    def _save_and_exit(self, trainer: Trainer) -> None:
        received, self._signal, self._leaving = signal.Signals(self._signal), 0, True
        environment = trainer._accelerator_connector.cluster_environment
        if received.name == "SIGUSR1" and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._handlers[received](received, None)
            self._leaving = False
            return
        trainer.save_checkpoint(self.path)
        self._leaving = False
        self._stop_listening()
        _LOG.warning("%s: step %d is in %s; go on with resume=auto", received.name, trainer.global_step, self.path)
        raise SystemExit(_EXIT[received])

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
