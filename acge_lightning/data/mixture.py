"""Several tasks in one run: training batches of one task each, one validation loader a task."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from acge_lightning.data.base import NO_ROWS, EvaluationSet, Role, TaskDataModule
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.tokens import TextBatch, Tokens
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_EVALUATION_TEXTS = 512


@dataclass(frozen=True)
class Coverage:
    """Training rows of a task.

    Args:
        rows: that it has.
        used: that an epoch trains on, on all devices together.
        batches: of an epoch.
        epochs: that the run has trained.
    """

    rows: int
    used: int
    batches: int
    epochs: float

    @property
    def whole(self) -> bool:
        """Whether an epoch trains on 99 % of the rows, or on all but the few that make no equal shares."""
        return self.used >= 0.99 * self.rows or self.rows - self.used < 8


class MixtureDataModule(LightningDataModule):
    """Composes the data of several tasks.

    The batch of step s is a function of the seed and s alone, so a run that continues at step s sees what it would have seen.
    Under several devices each takes its slice of the rows. The Trainer needs `use_distributed_sampler=False`.

    Args:
        tasks: name -> data of a task.
        weights: name -> weight; a task of weight 0 is evaluated only.
        temperature: see `TaskBatchSampler`.
        seed: of every order.
        num_workers: processes that read and tokenise ahead; 0 does it in the training process.
        resume_changed_data: go on from a checkpoint although the training rows are no longer those that it has seen.

    YAML::

        mixture: {temperature: 2.0, num_workers: 0}
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskDataModule],
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        num_workers: int = 0,
        resume_changed_data: bool = False,
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
        self.sampler: TaskBatchSampler | None = None
        self._fingerprints: dict[str, str] = {}
        self._evaluations: dict[tuple[str, str], EvaluationSet | None] = {}

    @property
    def training_tasks(self) -> dict[str, TaskDataModule]:
        """The tasks of a weight above 0."""
        return {name: data for name, data in self.tasks.items() if self.weights.get(name, 1.0) > 0}

    def setup(self, stage: str | None = None) -> None:
        """Check all files and open them; warn of rows that training leaves out, and of evaluation rows that it sees."""
        if self.sampler is not None:
            return
        for data in self.tasks.values():
            data.setup(stage)
        for name, data in self.training_tasks.items():
            try:
                data.check_learnable()
            except InputError as error:
                raise InputError(f"task {name} has nothing to learn: {error}") from None
        weights = {name: self.weights.get(name, 1.0) for name in self.training_tasks}
        self.sampler = TaskBatchSampler(self.training_tasks, weights, self.temperature, self.seed)
        for name, role, found, total in self.leaked():
            _LOG.warning("%s: %d of the %d %s rows are also training rows", name, found, total, role)

    def evaluation(self, name: str, role: Role) -> EvaluationSet | None:
        """A task's evaluation split, put together once."""
        key = name, role
        if key not in self._evaluations:
            self._evaluations[key] = self.tasks[name].evaluation(role)
        return self._evaluations[key]

    def evaluated(self, role: Role) -> list[str]:
        """The tasks that have this split, in the order of their loaders."""
        for data in self.tasks.values():
            data.setup()
        return [name for name, data in self.tasks.items() if role in data.parts]

    def leaked(self) -> Iterator[tuple[str, Role, int, int]]:
        """(task, split, rows of it that are training rows of any task, rows) for each split with such rows."""
        keys = [data.keys(data.train) for data in self.training_tasks.values()]
        seen = np.unique(np.concatenate(keys))
        for name, data in self.tasks.items():
            data.setup()
            for role in ("dev", "test"):
                if role in data.parts:
                    rows = data.keys(data.parts[role])
                    both = int(np.isin(rows, seen).sum())
                    if both:
                        yield name, role, both, len(rows)

    def coverage(self) -> dict[str, Coverage]:
        """What of each training task's rows the trainer's devices take."""
        self.setup()
        world, batches = 1, 0
        if self.trainer is not None:
            world, accumulate = self.trainer.world_size, self.trainer.accumulate_grad_batches
            batches = first_batch(len(self.sampler), accumulate, self.trainer.global_step)
        found = {}
        for name, sizes in self.sampler.sizes.items():
            used, epochs = int((sizes // world * world).sum()), self.sampler.drawn(name, batches) / len(sizes)
            found[name] = Coverage(len(self.tasks[name]), used, len(sizes), epochs)
        return found

    def train_texts(self) -> Iterator[str]:
        """All texts of the training rows, to learn a vocabulary from."""
        for data in self.training_tasks.values():
            yield from data.train_texts()

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what tells whether the training rows are the same."""
        if not self._fingerprints:
            self._fingerprints = {name: data.fingerprint() for name, data in self.training_tasks.items()}
        return {"fingerprints": self._fingerprints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other rows.

        Raises:
            InputError: the rows of a task changed, or the tasks did.
        """
        if self.resume_changed_data:
            return
        known, now = state_dict["fingerprints"], self.state_dict()["fingerprints"]
        for name in sorted(known.keys() | now.keys()):
            if known.get(name) != now.get(name):
                change = "is new" if name not in known else "is gone" if name not in now else "has other training rows"
                remedy = "put the data back, or set resume_changed_data=true"
                raise InputError(f"task {name} {change} since the checkpoint was written: {remedy}")

    def rows_of(self, step: int, micro: int) -> np.ndarray:
        """Numbers (see `file_rows`) of the rows that this device has in batch `micro`, from 0, of an optimizer step."""
        batch = self.sampler[first_batch(len(self.sampler), self.trainer.accumulate_grad_batches, step) + micro]
        mine = device_rows(len(batch.positions), self.trainer.global_rank, self.trainer.world_size)
        return self.tasks[batch.task].file_rows(batch.positions[mine])

    # ---- loaders

    def _encoder(self) -> Encoder:
        encoder = getattr(getattr(self.trainer, "lightning_module", None), "encoder", None)
        if not isinstance(encoder, Encoder):
            raise InputError("the data needs an encoder's tokenizer: train a module that has an `encoder`")
        return encoder

    def _collates(self) -> dict[str, Collate]:
        return {name: Collate(name, data, self._encoder()) for name, data in self.tasks.items()}

    def train_dataloader(self) -> DataLoader:
        """One batch a step."""
        self.setup()
        trainer = self.trainer
        steps = StepDataset(self.sampler, self._collates(), trainer.global_rank, trainer.world_size)
        self._warn_of_rows_left_out()
        order = StepSampler(self.sampler, trainer)
        pin = torch.cuda.is_available()
        return LateLoader(steps, batch_size=None, sampler=order, num_workers=self.num_workers, pin_memory=pin)

    def _warn_of_rows_left_out(self) -> None:
        devices = self.trainer.world_size
        for name, task in self.coverage().items():
            if not task.whole and self.trainer.global_rank == 0:
                share, size = task.used / task.rows, self.tasks[name].batch_size
                _LOG.warning("%s: an epoch trains on %d of %d rows (%.1f %%)", name, task.used, task.rows, 100 * share)
                _LOG.warning("%s: choose a batch_size that divides by the %d devices (it is %d)", name, devices, size)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a task that has a dev split."""
        return self._loaders("dev")

    def test_dataloader(self) -> list[DataLoader]:
        """One loader a task that has a test split."""
        return self._loaders("test")

    def _loaders(self, role: Role) -> list[DataLoader]:
        self.setup()
        collates, trainer = self._collates(), self.trainer
        return [
            DataLoader(
                EvaluationTexts(self.evaluation(name, role), collates[name], trainer.global_rank, trainer.world_size),
                batch_size=None,
            )
            for name in self.evaluated(role)
        ]


class Collate:
    """Texts to tokens, with the prompts of their roles.

    Args:
        task: name.
        data: of the task.
        encoder: whose tokenizer and prompts to use.
    """

    def __init__(self, task: str, data: TaskDataModule, encoder: Encoder):
        self.task = task
        self.data = data
        self.tokenize = encoder.tokenize
        unknown = sorted(set(data.prompts.values()) - set(encoder.prompts))
        if unknown:
            raise InputError(f"task {task}: prompt {unknown[0]!r} is none of the encoder's: {sorted(encoder.prompts)}")
        self.prefix = {role: encoder.prompts[name] for role, name in data.prompts.items()}

    def tokens(self, texts: list[str], role: str) -> Tokens:
        """Token ids of texts of one role."""
        prefix = self.prefix.get(role, "")
        return self.tokenize([prefix + text for text in texts] if prefix else texts)

    def training(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> TextBatch:
        """The batch of these training rows."""
        found = self.data.examples(positions, draws, random_negatives)
        columns = tuple(self.tokens(texts, role) for texts, role in zip(found.columns, found.roles, strict=True))
        return TextBatch(self.task, columns, found.labels, tuple(torch.from_numpy(ids) for ids in found.ids))


class StepDataset(Dataset):
    """Item s is the batch of step s; each rank has its slice of the rows."""

    def __init__(self, sampler: TaskBatchSampler, collates: Mapping[str, Collate], rank: int, world: int):
        self.sampler, self.collates, self.rank, self.world = sampler, collates, rank, world

    def __getitem__(self, step: int) -> TextBatch:
        batch = self.sampler[step]
        mine = device_rows(len(batch.positions), self.rank, self.world)
        more = batch.random_negatives[self.rank :: self.world]
        return self.collates[batch.task].training(batch.positions[mine], batch.draws[mine], more)


def device_rows(rows: int, rank: int, world: int) -> slice:
    """Which of a batch's rows a device takes: all devices the same number."""
    return slice(rank, rows // world * world, world)


class StepSampler(Sampler[int]):
    """The steps from the one that the trainer is at to the end of the round."""

    def __init__(self, sampler: TaskBatchSampler, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __iter__(self) -> Iterator[int]:
        start = first_batch(len(self), self.trainer.accumulate_grad_batches, self.trainer.global_step)
        return iter(range(start, start - start % len(self) + len(self)))

    def __len__(self) -> int:
        return len(self.sampler)


def first_batch(batches: int, accumulate: int, step: int) -> int:
    """Batches drawn before an optimizer step, with so many a round; its last one steps even if too few are accumulated.

    >>> [first_batch(3, 2, step) for step in range(4)]
    [0, 2, 3, 5]
    """
    turn, place = divmod(step, -(-batches // accumulate))
    return turn * batches + place * accumulate


class LateLoader(DataLoader):
    """A loader that begins when its first batch is asked for: Lightning calls `iter` before it restores `global_step`."""

    def __iter__(self) -> Iterator[TextBatch]:
        yield from super().__iter__()


class EvaluationTexts(Dataset):
    """Batches of a split's texts, a contiguous part a rank; judgements come with the first batch of rank 0.

    A rank for which there is no text has one that another has too: Lightning would not validate there, and the others wait.
    """

    def __init__(self, found: EvaluationSet, collate: Collate, rank: int, world: int):
        self.found, self.collate, self.rank = found, collate, rank
        cuts = [len(found) * r // world for r in (rank, rank + 1)]
        cuts[1] = max(cuts[1], min(cuts[0] + 1, len(found)))
        ends = [end for end, _ in found.roles if cuts[0] < end < cuts[1]]
        bounds = sorted({*range(cuts[0], cuts[1], _EVALUATION_TEXTS), *ends, cuts[1]})
        self.spans = list(pairwise(bounds))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> TextBatch:
        start, end = self.spans[i]
        role = next(role for stop, role in self.found.roles if start < stop)
        tokens = self.collate.tokens(self.found.texts.slice(start, end - start).to_pylist(), role)
        labels = self.found.labels
        if labels.shape[1] == 2:
            labels = labels[start:end]
        elif self.rank or i:
            labels = labels[:0]
        return TextBatch(self.collate.task, (tokens,), labels, (torch.arange(start, end),))
