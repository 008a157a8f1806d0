"""Several tasks in one run: training batches of one task each, one validation loader a task."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from acge_lightning.data.collate import Collate
from acge_lightning.data.curriculum import read_curriculum
from acge_lightning.data.dataset import Role, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.loaders import (
    Changes,
    EvaluationTexts,
    LateLoader,
    StepDataset,
    StepSampler,
    batches_before,
    device_rows,
)
from acge_lightning.data.sampler import Coverage, TaskBatchSampler
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)


def _remark(data: TaskDataset) -> str:
    return f" ({data.remark})" if data.remark else ""


class MixtureDataModule(LightningDataModule):
    """Composes the data of several tasks. Its loaders need an encoder's tokenizer: `bind` one first.

    The batch of step s is a function of the seed and s alone, so a run that continues at step s sees what it would have seen.
    Under several devices each takes its slice of the rows. The Trainer needs `use_distributed_sampler=False`.

    Args:
        tasks: name -> data of a task.
        weights: name -> weight; a task of weight 0 is evaluated only.
        temperature: see `TaskBatchSampler`.
        seed: of every order.
        num_workers: processes that read and tokenise ahead; 0 does it in the training process.
        resume_changed_data: go on from a checkpoint although the training rows are no longer those that it has seen.
        curriculum: `start` and `steps` of `Curriculum`; None: all rows train from the first step on.

    Attributes:
        changes: what changes in the data at some steps; a callback sets it. None: nothing does.

    YAML::

        mixture: {temperature: 2.0, num_workers: 0, curriculum: {start: 0.3, steps: 1000}}
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskDataset],
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        num_workers: int = 0,
        resume_changed_data: bool = False,
        curriculum: Mapping[str, float] | None = None,
    ):
        super().__init__()
        unknown = set(weights or {}) - set(tasks)
        if unknown:
            raise InputError(f"weights.{min(unknown)} names no task: choose from {sorted(tasks)}")
        self.tasks = dict(tasks)
        self.weights = dict(weights or {})
        self.temperature = temperature
        self.seed = seed
        self.num_workers = num_workers
        self.resume_changed_data = resume_changed_data
        self.curriculum = None if curriculum is None else read_curriculum(curriculum)
        self.changes: Changes | None = None
        self._sampler: TaskBatchSampler | None = None
        self._fingerprints: dict[str, str] = {}
        self._evaluations: dict[tuple[str, Role], EvaluationSet | None] = {}
        self._collates: dict[str, Collate] = {}

    def bind(self, encoder: Encoder) -> None:
        """Make batches with this encoder's tokenizer and prompts. `EmbeddingModule` does it before a Trainer asks for loaders.

        Raises:
            InputError: a task names a prompt that the encoder does not have.
        """
        self._collates = {name: Collate(name, data, encoder) for name, data in self.tasks.items()}

    @property
    def training_tasks(self) -> dict[str, TaskDataset]:
        """The tasks of a weight above 0."""
        return {name: data for name, data in self.tasks.items() if self.weights.get(name, 1.0) > 0}

    def setup(self, stage: str | None = None) -> None:
        """Check all files and open them; warn of rows that training leaves out, and of evaluation rows that it sees."""
        self._sampler = self.sampler

    @property
    def sampler(self) -> TaskBatchSampler:
        """The batches of the training tasks; the first call opens the files, as `setup` does."""
        if self._sampler is None:
            self._sampler = self._checked_sampler()
        return self._sampler

    def _checked_sampler(self) -> TaskBatchSampler:
        for data in self.tasks.values():
            data.open()
        for name, data in self.training_tasks.items():
            if len(data) == 1:
                raise InputError(f"task {name} has 1 training row: give some hundreds, or two to try it{_remark(data)}")
            try:
                data.check_learnable()
            except InputError as error:
                raise InputError(f"task {name} has nothing to learn: {error}{_remark(data)}") from None
        weights = {name: self.weights.get(name, 1.0) for name in self.training_tasks}
        sampler = TaskBatchSampler(self.training_tasks, weights, self.temperature, self.seed, self.curriculum)
        for name, rows in sampler.rows_of_first_stage().items():
            try:
                self.tasks[name].of_training_rows(rows).check_learnable()
            except InputError as error:
                remedy = "raise mixture.curriculum.start"
                raise InputError(
                    f"task {name} has nothing to learn where the curriculum begins: {error}, or {remedy}"
                ) from None
        for name, role, leaked, total in self.leaked():
            _LOG.warning("%s: %d of the %d %s rows are also training rows", name, leaked, total, role)
        return sampler

    def evaluation(self, name: str, role: Role) -> EvaluationSet | None:
        """A task's evaluation split, put together once."""
        key = name, role
        if key not in self._evaluations:
            self._evaluations[key] = self.tasks[name].evaluation(role)
        return self._evaluations[key]

    def evaluated(self, role: Role) -> list[str]:
        """The tasks that have this split, in the order of their loaders."""
        for data in self.tasks.values():
            data.open()
        return [name for name, data in self.tasks.items() if role in data.opened_splits]

    def check_scorable(self, role: Role) -> list[str]:
        """List the tasks that can be scored on a split; none are, if all have unlabelled texts.

        Raises:
            InputError: a split whose score says nothing, or no split though there are tasks that could be scored.
        """
        names = self.evaluated(role)
        for name in names:
            try:
                self.tasks[name].check_scorable(role)
            except InputError as error:
                raise InputError(f"task {name} cannot be scored: {error}{_remark(self.tasks[name])}") from None
        unscored = {name: data for name, data in self.tasks.items() if name not in names and data.family != "unlabelled"}
        remarks = [f"task {name} is not scored: {data.path}: {data.remark}" for name, data in unscored.items() if data.remark]
        if role == "dev" and unscored and not names:
            reasons = remarks or ["name one with `splits`, or set data.holdout above 0"]
            raise InputError(f"no task has a {role} split to score: {'; '.join(reasons)}")
        for remark in remarks if role == "dev" else ():
            _LOG.warning("%s", remark)
        return names

    def document_counts(self) -> dict[str, str]:
        """Say for scores of tasks of queries, by how their names begin, how many documents were searched."""
        splits: list[tuple[str, Role]] = [("val", "dev"), ("test", "test")]
        scored = [(prefix, role, name) for prefix, role in splits for name in self.evaluated(role)]
        counts = {f"{prefix}/{name}/": self.tasks[name].document_count(role) for prefix, role, name in scored}
        return {key: f"of {count:,} documents" for key, count in counts.items() if count is not None}

    def leaked(self) -> Iterator[tuple[str, Role, int, int]]:
        """(task, split, rows of it that are training rows of any task, rows) for each split with such rows."""
        keys = [data.keys(data.train) for data in self.training_tasks.values()]
        seen = np.unique(np.concatenate(keys))
        for name, data in self.tasks.items():
            data.open()
            for role in ("dev", "test"):
                if role in data.opened_splits:
                    rows = data.keys(data.opened_splits[role])
                    leaked = int(np.isin(rows, seen).sum())
                    if leaked:
                        yield name, role, leaked, len(rows)

    def coverage(self) -> dict[str, Coverage]:
        """What of each training task's rows the trainer's devices take."""
        world, batches = 1, 0
        if self.trainer is not None:
            world, accumulate = self.trainer.world_size, self.trainer.accumulate_grad_batches
            batches = batches_before(len(self.sampler), accumulate, self.trainer.global_step)
        return self.sampler.coverage(world, batches)

    def train_texts(self) -> Iterator[str]:
        """All texts of the training rows, to learn a vocabulary from."""
        for data in self.training_tasks.values():
            yield from data.train_texts()

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what tells whether the training rows are the same, and what they were made of."""
        if not self._fingerprints:
            self._fingerprints = {name: data.fingerprint() for name, data in self.training_tasks.items()}
        return {"fingerprints": self._fingerprints, "made_of": self.made_of}

    @cached_property
    def made_of(self) -> dict[str, dict[str, Any]]:
        """Task -> what its rows were made of, of those that `acge clean` or `acge mine` wrote."""
        return {name: record for name, data in self.training_tasks.items() if (record := data.made_of) is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other rows.

        Raises:
            InputError: the rows of a task changed, or the tasks did.
        """
        if self.resume_changed_data:
            return
        before, now = state_dict["fingerprints"], self.state_dict()["fingerprints"]
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                change = "is new" if name not in before else "is gone" if name not in now else "has other training rows"
                remedy = "put the data back, or set resume_changed_data=true"
                raise InputError(f"task {name} {change} since the checkpoint was written: {remedy}")

    def rows_of(self, step: int, micro: int) -> np.ndarray:
        """Numbers (see `Split.file_rows`) of the rows that this device has in batch `micro`, from 0, of an optimizer step."""
        trainer = self._attached_trainer
        batch = self.sampler[batches_before(len(self.sampler), trainer.accumulate_grad_batches, step) + micro]
        own_rows = device_rows(len(batch.positions), trainer.global_rank, trainer.world_size)
        return self.tasks[batch.task].train.file_rows(batch.positions[own_rows])

    def rows_between(self, start: int, end: int) -> dict[str, np.ndarray]:
        """The training rows of the batches from an optimizer step to before another, by task: Int64[m], on all devices."""
        accumulate = self._attached_trainer.accumulate_grad_batches
        batches = range(*(batches_before(len(self.sampler), accumulate, step) for step in (start, end)))
        return self.sampler.training_rows(batches)

    # ---- loaders

    @property
    def collates(self) -> dict[str, Collate]:
        """What makes the batches of each task.

        Raises:
            InputError: no encoder is bound.
        """
        if not self._collates:
            raise InputError("the data needs an encoder's tokenizer: call bind(encoder) before its loaders are asked for")
        return self._collates

    @property
    def _attached_trainer(self) -> Trainer:
        if self.trainer is None:
            raise InputError("the data has no Trainer, whose devices each take some rows: give it to Trainer.fit")
        return self.trainer

    def train_dataloader(self) -> DataLoader:
        """One batch a step."""
        collates, trainer = self.collates, self._attached_trainer
        steps = StepDataset(self.sampler, collates, trainer.global_rank, trainer.world_size)
        self._warn_of_rows_left_out()
        order = StepSampler(self.sampler, trainer, self.changes)
        options: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        return LateLoader(steps, batch_size=None, sampler=order, generator=torch.Generator(), **options)

    def _warn_of_rows_left_out(self) -> None:
        trainer = self._attached_trainer
        if self.curriculum is not None and trainer.global_rank == 0:
            by_steps = batches_before(len(self.sampler), trainer.accumulate_grad_batches, trainer.max_steps)
            ends = [by_steps if trainer.max_steps > 0 else -1, len(self.sampler) * (trainer.max_epochs or -1)]
            end = min((end for end in ends if end > 0), default=int(self.curriculum.steps))
            if end < self.curriculum.steps:
                shown = 100 * self.curriculum.share(self.curriculum.stage(end - 1))
                _LOG.warning("mixture.curriculum: the run ends after %d batches, with %.0f %% of the rows", end, shown)
        for name, task in self.coverage().items():
            if not task.whole and trainer.global_rank == 0:
                share, size = task.used / task.rows, self.tasks[name].batch_size
                if self.tasks[name].weights is not None:
                    counts = name, task.used, task.rows, 100 * share
                    _LOG.warning("%s: by their weights, an epoch trains on about %d of %d rows (%.1f %%)", *counts)
                    continue
                _LOG.warning("%s: an epoch trains on %d of %d rows (%.1f %%)", name, task.used, task.rows, 100 * share)
                _LOG.warning(
                    "%s: choose a batch_size that divides by the %d devices (it is %d)", name, trainer.world_size, size
                )

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a task that has a dev split."""
        return self._loaders("dev")

    def test_dataloader(self) -> list[DataLoader]:
        """One loader a task that has a test split."""
        return self._loaders("test")

    def _loaders(self, role: Role) -> list[DataLoader]:
        self.setup()
        collates, trainer = self.collates, self._attached_trainer
        sets = {name: self.evaluation(name, role) for name in self.evaluated(role)}
        return [
            DataLoader(
                EvaluationTexts(evaluation_set, collates[name], trainer.global_rank, trainer.world_size),
                batch_size=None,
            )
            for name, evaluation_set in sets.items()
            if evaluation_set is not None
        ]
