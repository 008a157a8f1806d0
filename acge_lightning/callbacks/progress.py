"""The progress line of a training run: where it is, and a smoothed loss of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from acge_lightning.training.optimized_module import OptimizedModule

_MOST_TASKS = 8  # that have a line each


class Progress(RichProgressBar):
    """Lightning's progress bar, with the moving average of each task's loss in place of the loss of the last batch.

    Batches are of one task each, and losses of tasks differ in size: that of the last batch would jump with every step. Of
    more than eight tasks the mean of their moving averages is shown.

    Args:
        leave: keep the line of a finished round on the terminal.

    YAML::

        progress: {_target_: acge_lightning.callbacks.Progress, leave: true}
    """

    def __init__(self, leave: bool = True):
        super().__init__(leave=leave, theme=RichProgressBarTheme(metrics_text_delimiter="\n", metrics_format=".4g"))

    @contextmanager
    def counting(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a further bar while a block does something else than training; yields what it calls with how many are done.

        Args:
            name: of the work.
            total: how many there are.
        """
        progress = self.progress
        if progress is None:
            yield lambda count: None
            return
        task = progress.add_task(name, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)
            self.refresh()

        try:
            yield advance
        finally:  # hidden and not removed: Lightning finds its own bars by their numbers
            progress.update(task, visible=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers of the line: losses by task, then what is logged for the progress bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the number of the csv log: nothing that anyone needs
        losses = pl_module.history.smoothed() if isinstance(pl_module, OptimizedModule) else {}
        if len(losses) > _MOST_TASKS:
            return {f"loss of {len(losses)} tasks": fmean(losses.values())} | metrics
        return {f"{task} loss": losses[task] for task in sorted(losses)} | metrics

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        if epochs == -1:
            return f"Epoch {current_epoch + 1}"
        return f"Epoch {current_epoch + 1} of {epochs}"
