"""Stops a run at the step where a number is not finite, and names the texts of its batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from acge_lightning.data.batch import TextBatch
from acge_lightning.errors import InputError
from acge_lightning.training.optimized_module import OptimizedModule

_SHOWN = 6  # ids and rows of a batch


class Guard(Callback):
    """Raises within the step in which a loss, a gradient or a weight becomes NaN or infinite.

    Loss and gradient are checked after the backward pass, before clipping and before the optimizer; so bad ones never reach
    the weights. Weights are checked after the optimizer, and again before any checkpoint is written; so the last good
    checkpoint stays the last. Under 16-mixed infinite gradients are left to the loss scaler, which skips such steps.

    Logs `train/grad_norm`, the 2-norm of all gradients before clipping (not under 16-mixed, where they are scaled). While it is
    above `trainer.gradient_clip_val` at every step, all steps are of one size, whatever their loss is multiplied by.

    Cost: the norms of all gradients and of all weights once a step. On one CPU core that is 0.3 % of the step of a 4-layer
    BERT (64 texts of 32 tokens, AdamW) and 4 % of that of a static encoder (30,000 x 512, 128 texts).

    Raises:
        InputError: naming the step, the task, the hashes of the batch's texts and the rows of its data.

    YAML::

        guard: {_target_: acge_lightning.callbacks.Guard}
    """

    def __init__(self) -> None:
        self._step = -1
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batches of a step."""
        if trainer.global_step != self._step:
            self._step, self._batches, self._losses = trainer.global_step, [], []
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss; looking at it now would make a GPU wait."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check losses and gradients."""
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        checked = [loss.float() for loss in self._losses]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            checked.append(norm(gradients.values()).float())
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
            if (trainer.global_step + 1) % every == 0:
                pl_module.log("train/grad_norm", checked[-1])
        if torch.stack(checked).isfinite().all():
            return
        for micro, loss in enumerate(self._losses):
            if not loss.isfinite():
                raise self._error(trainer, f"the loss is not finite ({loss.item()})", [micro])
        name = _not_finite(gradients)
        if name is not None:
            raise self._error(trainer, f"the gradient of {name} is not finite", range(len(self._batches)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the weights if the optimizer has changed them."""
        if trainer.global_step != self._step:
            self._check_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights, so that no bad checkpoint is written."""
        self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {name: p.detach() for name, p in pl_module.named_parameters() if p.requires_grad}
        if not norm(weights.values()).isfinite():
            name = _not_finite(weights)
            if name is not None:
                raise self._error(trainer, f"the weight {name} is not finite after the step", range(len(self._batches)))

    def _error(self, trainer: Trainer, problem: str, micros: Iterable[int]) -> InputError:
        batches = [_described(trainer, self._step, micro, self._batches[micro]) for micro in micros]
        return InputError(
            f"step {self._step}: {problem}; training stops, the checkpoints before it are good. "
            f"Its batch: {'; '.join(batches)}. "
            "Look at these texts; lower optim.optimizer.lr, set trainer.gradient_clip_val, or use trainer.precision=32-true"
        )


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Float[]: the 2-norm of all tensors together; NaN or infinite if any of their values is."""
    return get_total_norm([t.coalesce().values() if t.is_sparse else t for t in tensors])


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite; None if only the norm of all was too large for its type."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def _described(trainer: Trainer, step: int, micro: int, batch: Any) -> str:
    if not isinstance(batch, TextBatch):
        return type(batch).__name__
    ids = [i for column in batch.ids for i in column.tolist()]
    words = f"task {batch.task}, texts with the ids {_first_few(ids)}"
    datamodule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    if hasattr(datamodule, "rows_of"):
        words += f", rows {_first_few(datamodule.rows_of(step, micro).tolist())} (from 0) of its training data"
    return words


def _first_few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:_SHOWN])) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


@contextmanager
def memory_advice(module: OptimizedModule) -> Iterator[None]:
    """Turn "out of memory", on a GPU or a CPU, into advice.

    Raises:
        InputError: in its place.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)):
            raise
        tokens = module.batch_tokens or module.encoder.batch_tokens
        remedies = [f"module.batch_tokens={max(1, tokens // 2)}"]
        if getattr(module, "recompute", None) is False:
            remedies.append("module.recompute=true")
        remedies.append("a smaller data.batch_size")
        raise InputError(f"out of memory: try {', then '.join(remedies)} ({str(error).partition(chr(10))[0]})") from error
