"""Scores the encoder at several dims during training, for a bounded share of its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from acge_lightning.data.dataset import CACHE, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.store import MAX_BAD, OnBadRow
from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset, find
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.results import Row, means
from acge_lightning.evaluation.scoring import score

_LOG = logging.getLogger(__name__)


class Evaluation(Callback):
    """Every so many steps, scores the encoder on small sets by the protocols of `acge evaluate`.

    Logs `eval/<family>/<data set>@<dim>` and `eval/mean@<dim>`. It takes dev splits: test splits do not choose. On several
    devices each scores some of the sets, and none waits longer than for the slowest of them. A turn is left out if with
    another as long as the last one scoring would exceed its share.

    Args:
        folder: with <family>/<name>/, as for `acge evaluate`.
        tasks: names of data sets or of families; all by default.
        dims: prefix sizes; the encoder's Matryoshka dims by default.
        every: optimizer steps.
        share: of the time since training began that scoring may take.
        limit: most rows of a set, evenly drawn.
        exclude_own_id: names of the retrieval sets in which queries are documents (see `RetrievalDataset`).
        cache_dir: of checked rows.
        on_bad_row: as in `TaskDataset`; None for `raise`.
        max_bad_fraction: as in `TaskDataset`; None for its default.

    Raises:
        InputError: values that cannot work, nothing to score, or a set without a dev split.

    YAML::

        evaluation:
          _target_: acge_lightning.callbacks.Evaluation
          folder: ${paths.data_dir}
          tasks: [stsb_zh, medical_qa]
          every: 500
          share: 0.1
    """

    def __init__(
        self,
        folder: str | Path,
        tasks: Sequence[str] | None = None,
        dims: Sequence[int] | None = None,
        every: int = 500,
        share: float = 0.1,
        limit: int | None = 1000,
        exclude_own_id: str | Sequence[str] | None = None,
        cache_dir: str | Path = CACHE,
        on_bad_row: OnBadRow | None = None,
        max_bad_fraction: float | None = None,
    ):
        if every < 1:
            raise InputError(f"callbacks.evaluation.every={every} must be at least 1")
        if not 0 < share <= 1:
            raise InputError(f"callbacks.evaluation.share={share} must be above 0 and at most 1: 0.1 is a tenth of the time")
        max_bad = MAX_BAD if max_bad_fraction is None else max_bad_fraction
        self.datasets = find(folder, tasks, "dev", limit, on_bad_row or "raise", max_bad, exclude_own_id)
        self.dims, self.every, self.share = dims, every, share
        self.cache_dir = Path(cache_dir).expanduser()
        self.rows: list[Row] = []
        self._opened: list[tuple[Dataset, TaskDataset, EvaluationSet]] = []
        self._begin = self._spent = self._last = 0.0
        self._done = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the sets, so that errors come before the first step."""
        self._opened = [(dataset, *dataset.open(self.cache_dir)) for dataset in self.datasets]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin, self._spent, self._last, self._done = time.monotonic(), 0.0, 0.0, trainer.global_step
        steps, step = trainer.estimated_stepping_batches, trainer.global_step
        if steps < step - step % self.every + self.every:
            _LOG.warning(
                "callbacks.evaluation.every=%d, and the run ends after %d steps: it scores nothing; set it to %d, for example",
                *(self.every, steps, max(1, (int(steps) - step) // 4)),
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Score, if it is a turn and the share allows it."""
        step = trainer.global_step
        if step == self._done or step % self.every:
            return
        self._done = step
        if not self._allowed(trainer):
            return
        start = time.monotonic()
        self.rows = self._gathered(trainer, self._score(trainer, pl_module))
        self._last = time.monotonic() - start
        self._spent += self._last
        self._log(trainer)

    def _allowed(self, trainer: Trainer) -> bool:
        """Whether the share allows another turn, by the clock of rank 0, on all ranks."""
        allowed = self._spent + self._last <= self.share * (time.monotonic() - self._begin)
        return bool(trainer.strategy.broadcast(allowed))

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> list[Row]:
        encoder = cast(Encoder, pl_module.encoder)
        model, embeddings = Model("encoder", "", encoder), Embeddings(encoder)
        rows: list[Row] = []
        for dataset, data, evaluation_set in self._opened[trainer.global_rank :: trainer.world_size]:
            rows += score(model, dataset, data, evaluation_set, model.dims(self.dims), embeddings)[0]
        return rows

    def _gathered(self, trainer: Trainer, rows: list[Row]) -> list[Row]:
        if trainer.world_size == 1:
            return rows
        rows_by_rank: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(rows_by_rank, rows)
        return [row for rank_rows in rows_by_rank for row in rank_rows]

    def _log(self, trainer: Trainer) -> None:
        values = {f"eval/{r['family']}/{r['dataset']}@{r['dim']}": r["value"] for r in self.rows if r["error"] is None}
        for row in self.rows:
            if row["error"]:
                _LOG.warning("%s/%s was not scored: %s", row["family"], row["dataset"], row["error"])
        for dim in {row["dim"] for row in self.rows}:
            values |= {f"eval/mean@{dim}": value for name, value in means(self.rows, "encoder", dim).items() if name == "mean"}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
