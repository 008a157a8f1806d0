"""The LightningModule that trains an encoder on several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acge_lightning.data.batch import EvaluationBatch, TextBatch
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.packing import compile_backbone
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.losses.contrastive import CosineLoss
from acge_lightning.losses.matryoshka import Matryoshka, check_dims
from acge_lightning.metrics.task_metrics import EmbeddingMetric
from acge_lightning.training.gather import any_rank, gather_batch
from acge_lightning.training.optim import Optim
from acge_lightning.training.optimized_module import OptimizedModule

Score = dict[str, float]


class EmbeddingModule(OptimizedModule):
    """Encodes a batch, applies its task's loss, and scores every task's evaluation split.

    Logs `train/loss`, `train/<task>/loss` (with Matryoshka also that of each prefix, `train/<task>/loss@<dim>`),
    `val/<task>/<metric>`, `val/<family>`, and `val/mean`: the mean over families of the mean over a family's tasks of its main
    metric, in [0, 1] (correlations in [-1, 1]). The same under `test/`. Before and after training also the main metrics of
    the prefixes, `val/<task>/<metric>@<dim>` and `val/mean@<dim>`.

    Args:
        encoder: what is trained.
        tasks: name -> task.
        matryoshka: `dims`, and optionally `weights`, `temperatures` and `reduction`, of `Matryoshka` around each task's loss;
            None, or dims of None, for the full size only.
        optim: optimizer and learning-rate schedule.
        batch_tokens: tokens encoded together; less needs less memory, and changes nothing else. By default 2048 on a CPU,
            which its caches hold, and 16384 on a GPU or for a static encoder.
        recompute: compute each chunk again in the backward pass, so that memory no longer grows with the batch.
        compile: `torch.compile` the backbone, over padded texts of any shape; pays on a GPU after minutes of compiling.
        config: plain values that are kept in checkpoints.
    """

    losses: Mapping[str, CosineLoss | Matryoshka]
    metrics: Mapping[str, EmbeddingMetric]

    def __init__(
        self,
        encoder: Encoder,
        tasks: Mapping[str, Task],
        matryoshka: Mapping[str, Any] | None = None,
        optim: Optim | None = None,
        batch_tokens: int | None = None,
        recompute: bool = False,
        compile: bool = False,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        for name in tasks:
            if not name.replace("_", "").replace("-", "").isalnum() or hasattr(nn.ModuleDict, name) or name == "training":
                raise InputError(f"task name {name!r} is taken or not made of letters, digits, - and _: choose another")
        self.save_hyperparameters({"config": dict(config or {})})
        self.encoder = encoder
        self.tasks = dict(tasks)
        losses = {name: task.training_loss() for name, task in tasks.items()}
        metrics = {name: task.evaluation_metric() for name, task in tasks.items()}
        metrics = {name: metric for name, metric in metrics.items() if metric is not None}
        # mypy does not see that a ModuleDict is a mapping
        self.losses = nn.ModuleDict(self._with_prefixes(losses, matryoshka))  # type: ignore[assignment]
        self.metrics = nn.ModuleDict(metrics)  # type: ignore[assignment, arg-type]
        self.optim = optim or Optim()
        self.prefixes: tuple[int, ...] = tuple(sorted((matryoshka or {}).get("dims") or (), reverse=True))[1:]
        self.batch_tokens, self.recompute, self.is_fitting = batch_tokens, recompute, False
        if compile:
            compile_backbone(encoder.backbone)

    def _with_prefixes(self, losses: Mapping[str, CosineLoss], matryoshka: Mapping[str, Any] | None) -> dict[str, nn.Module]:
        """The losses, with `Matryoshka` around each of them if it has settings; the encoder notes the dims."""
        if not matryoshka or matryoshka.get("dims") is None:
            return dict(losses)
        wrapped = {name: Matryoshka(loss, **matryoshka) for name, loss in losses.items()}
        check_dims(matryoshka["dims"], self.encoder.dim)
        self.encoder.matryoshka_dims = tuple(sorted(matryoshka["dims"], reverse=True))
        return dict(wrapped)

    # ---- training

    def set_matryoshka_dims(self, dims: Sequence[int]) -> None:
        """Train these prefixes only, of those that the module was made with, from the next step on."""
        for loss in self.losses.values():
            if isinstance(loss, Matryoshka):
                loss.set_dims(dims)

    def embed(self, batch: TextBatch) -> tuple[Tensor, ...]:
        """Embeddings of each column Float[n_i, D], all encoded together."""
        vectors = self.encoder(Tokens.cat(batch.columns), self.batch_tokens, self.recompute and self.training)
        return vectors.split([len(column) for column in batch.columns])

    def on_fit_start(self) -> None:
        """Score the full size only, until training ends."""
        self.is_fitting = True

    def on_fit_end(self) -> None:
        """Score the prefixes again."""
        self.is_fitting = False

    def training_step(self, batch: TextBatch) -> Tensor:
        """The loss of a batch."""
        task_loss = self.losses[batch.task]
        loss = task_loss(*gather_batch(self.embed(batch), batch.labels, batch.ids))
        self.log(f"train/{batch.task}/loss", loss, batch_size=len(batch))
        if isinstance(task_loss, Matryoshka) and self._is_logged_step():
            for dim, value in task_loss.loss_by_dim.items():
                self.log(f"train/{batch.task}/loss@{dim}", value, batch_size=len(batch))
        self.log("train/loss", loss, batch_size=len(batch))
        self.history.add(batch.task, loss)
        return loss * self.tasks[batch.task].loss_weight

    def _is_logged_step(self) -> bool:
        """Whether the loggers take the values of this step; at other steps calls that go nowhere cost time too."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        return (self.trainer.global_step + 1) % every == 0

    # ---- evaluation

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Give the embeddings of a batch to its task's metric."""
        if batch.task in self.metrics and batch.labels is not None:
            vectors = self.encoder(batch.tokens, self.batch_tokens)
            self.metrics[batch.task].update(vectors, batch.rows, batch.labels)

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Start with empty metrics (a resumed or interrupted epoch may have left some)."""
        for metric in self.metrics.values():
            metric.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Score all tasks and log the values."""
        self._score("val", "dev")

    def on_test_epoch_end(self) -> None:
        """Score all tasks and log the values of the test splits."""
        self._score("test", "test")

    def _score(self, prefix: str, role: str) -> None:
        values: Score = {}
        seen = any_rank([metric.update_called for metric in self.metrics.values()], self.device)
        if not any(seen):
            raise InputError(f"no task has a {role} split to score: add one that has labels, with weight 0 if only to watch")
        dims = () if self.is_fitting else self.prefixes  # before and after training
        for (name, metric), has_texts in zip(self.metrics.items(), seen, strict=True):
            if has_texts:  # every rank takes part then: the others wait for its texts, even for none
                metric.dims = dims
                values |= {f"{prefix}/{name}/{key}": value for key, value in metric.compute().items()}
                metric.reset()
        means = self._family_means(values, prefix)
        values |= {f"{prefix}/{family}": value for family, value in means.items()}
        of_prefixes = {key: value for key, value in values.items() if "@" in key}
        for dim in dims:
            of_prefixes[f"{prefix}/mean@{dim}"] = mean(self._family_means(values, prefix, f"@{dim}").values())
        self.log_dict({key: torch.tensor(value) for key, value in values.items() if key not in of_prefixes})
        self.log_dict({key: torch.tensor(value) for key, value in of_prefixes.items()}, logger=False)
        self.log(f"{prefix}/mean", torch.tensor(mean(means.values())), prog_bar=True)

    def _family_means(self, values: Mapping[str, float], prefix: str, suffix: str = "") -> dict[str, float]:
        """Family -> the mean of its tasks' main scores, of those that have one."""
        families: dict[str, list[float]] = {}
        for name, metric in self.metrics.items():
            key = f"{prefix}/{name}/{metric.main}{suffix}"
            if key in values:
                families.setdefault(self.tasks[name].data.family, []).append(values[key])
        return {family: mean(scores) for family, scores in families.items()}

    def save(self, folder: Path, provenance: Mapping[str, Any], earlier_rows: Sequence[np.ndarray] = ()) -> Path:
        """Export the trained encoder to `folder`/export, with the hashes of its training rows and of those before this run."""
        trained = [task.data for task in self.tasks.values() if task.weight and "train" in task.data.opened_splits]
        rows = [*(data.keys(data.train) for data in trained), *earlier_rows]
        return export(self.encoder, folder / "export", provenance, np.concatenate(rows) if rows else None)
