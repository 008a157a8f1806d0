"""What torch's data loaders read: the batch of each step, and the texts of an evaluation, a part a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Protocol, cast

from torch.utils.data import DataLoader, Dataset, Sampler

from acge_lightning.data.batch import EvaluationBatch, TextBatch
from acge_lightning.data.collate import Collate
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.sampler import TaskBatchSampler

_EVALUATION_TEXTS = 512


class StepDataset(Dataset):
    """Item s is the batch of step s; each rank has its slice of the rows."""

    def __init__(self, sampler: TaskBatchSampler, collates: Mapping[str, Collate], rank: int, world: int):
        self.sampler, self.collates, self.rank, self.world = sampler, collates, rank, world

    def __getitem__(self, step: int) -> TextBatch:
        batch = self.sampler[step]
        own_rows = device_rows(len(batch.positions), self.rank, self.world)
        random_negatives = batch.random_negatives[self.rank :: self.world]
        return self.collates[batch.task].training(batch.positions[own_rows], batch.draws[own_rows], random_negatives)


def device_rows(rows: int, rank: int, world: int) -> slice:
    """Which of a batch's rows a device takes: all devices the same number."""
    return slice(rank, rows // world * world, world)


class Changes(Protocol):
    """What changes in the data of a run at some of its optimizer steps, such as negatives that are mined again."""

    def next_change(self, step: int) -> int:
        """The first optimizer step after this one whose batches are made of other data."""

    def prepare(self, step: int) -> None:
        """Bring the data to what it is at a step. On all devices, before a batch of this step or a later one is made."""


class StepSampler(Sampler[int]):
    """The steps from the one that the trainer is at to the end of the round."""

    def __init__(self, sampler: TaskBatchSampler, trainer: Any, changes: Changes | None = None):
        self.sampler, self.trainer, self.changes = sampler, trainer, changes
        self._span: range | None = None

    def __iter__(self) -> Iterator[int]:
        return iter(self._rest() if self._span is None else self._span)

    def __len__(self) -> int:
        return len(self.sampler)

    def _rest(self) -> range:
        start = self._batches_before(self.trainer.global_step)
        return range(start, start - start % len(self) + len(self))

    def _batches_before(self, step: int) -> int:
        return batches_before(len(self), self.trainer.accumulate_grad_batches, step)

    def in_spans(self) -> Iterator[range]:
        """Go through the same steps in spans within which the data does not change; iteration is then over the last span.

        Before each span the data is brought to what it is there; all batches before it have been trained on by then.
        """
        rest, step = self._rest(), self.trainer.global_step
        while len(rest):
            span, then = rest, step
            if self.changes is not None:
                self.changes.prepare(step)
                then = self.changes.next_change(step)
                span = range(rest.start, min(rest.stop, self._batches_before(then)))
            self._span = span
            yield span
            rest, step = range(span.stop, rest.stop), then
        self._span = None


def batches_before(batches: int, accumulate: int, step: int) -> int:
    """Batches drawn before an optimizer step, with so many a round; its last one steps even if too few are accumulated.

    >>> [batches_before(3, 2, step) for step in range(4)]
    [0, 2, 3, 5]
    """
    turn, step_of_round = divmod(step, -(-batches // accumulate))
    return turn * batches + step_of_round * accumulate


class LateLoader(DataLoader):
    """A loader that begins when its first batch is asked for: Lightning calls `iter` before it restores `global_step`.

    Where the data changes its workers are started again: none of them makes a batch of data that is not there yet, or waits
    for it. Give it a `generator` of its own for their seeds, so that the random numbers of training stay as they are.
    """

    def __iter__(self) -> Iterator[TextBatch]:  # type: ignore[override]  # DataLoader declares its own iterator class
        for _ in cast(StepSampler, self.sampler).in_spans():
            yield from super().__iter__()


class EvaluationTexts(Dataset):
    """Batches of a split's texts, a contiguous part a rank; judgements come with the first batch of rank 0.

    A rank for which there is no text has one that another has too: Lightning would not validate there, and the others wait.
    """

    def __init__(self, evaluation_set: EvaluationSet, collate: Collate, rank: int, world: int):
        self.evaluation_set, self.collate, self.rank = evaluation_set, collate, rank
        size = len(evaluation_set)
        start, end = (size * r // world for r in (rank, rank + 1))
        end = max(end, min(start + 1, size))
        ends = [stop for stop, _ in evaluation_set.roles if start < stop < end]
        self.spans = list(pairwise(sorted({*range(start, end, _EVALUATION_TEXTS), *ends, end})))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> EvaluationBatch:
        return self.collate.evaluation(self.evaluation_set, *self.spans[i], with_judgements=not (self.rank or i))
