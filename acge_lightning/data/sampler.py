"""Which rows of which task form the batch of a step: a pure function of (seed, step)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from acge_lightning.data.base import TaskDataModule
from acge_lightning.errors import InputError


@dataclass(frozen=True)
class Batch:
    """The rows of one step.

    Args:
        task: name.
        positions: Int64[n] training rows, over all devices.
        draws: Float64[n], the rows' randomness in this epoch.
    """

    task: str
    positions: np.ndarray
    draws: np.ndarray


class TaskBatchSampler:
    """Batches of one task each, mixed; no text comes twice in a batch.

    A round has as many batches as all tasks together have; task t gets a share proportional to weight_t * batches_t^(1/T) of
    it (rounded, at least one batch), in random order. A task that gets more than it has begins its next epoch, newly shuffled.

    Args:
        tasks: name -> data of the tasks that train.
        weights: name -> weight, 1 by default.
        temperature: T; 1 draws tasks in proportion to their size, a larger T evens them out, infinity uses the weights alone.
        seed: of every order.

    Reference: temperature sampling as in mT5 (Xue et al. 2021, arXiv 2010.11934) over batches, not rows.

    YAML::

        mixture: {temperature: 2.0}
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskDataModule],
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        if not tasks:
            raise InputError("there is no task to train on: give one a weight above 0")
        if not temperature > 0:
            raise InputError(f"mixture.temperature={temperature} must be above 0 (1 is proportional, .inf even)")
        self.tasks = dict(tasks)
        self.seed = seed
        self.batches = {name: max(1, len(data) // data.batch_size) for name, data in self.tasks.items()}
        shares = np.array([(weights or {}).get(name, 1.0) * n ** (1 / temperature) for name, n in self.batches.items()])
        if not np.all((shares > 0) & np.isfinite(shares)):
            raise InputError(f"weights {dict(weights or {})} must be above 0, and finite, for tasks that train")
        counts = np.maximum(1, np.round(shares / shares.sum() * sum(self.batches.values()))).astype(int)
        self.counts = dict(zip(self.tasks, counts.tolist(), strict=True))
        self._names = list(self.tasks)
        self._round: tuple[int, np.ndarray] | None = None
        self._epochs: dict[str, tuple[int, list[np.ndarray], np.ndarray]] = {}

    def __len__(self) -> int:
        """Steps of a round."""
        return sum(self.counts.values())

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over the whole run."""
        turn, place = divmod(step, len(self))
        schedule = self._schedule(turn)
        number = int(schedule[place])
        name = self._names[number]
        nth = turn * self.counts[name] + int(np.count_nonzero(schedule[:place] == number))
        epoch, i = divmod(nth, self.batches[name])
        batches, draws = self._epoch(name, epoch)
        positions = batches[i % len(batches)]
        return Batch(name, positions, draws[positions])

    def _schedule(self, turn: int) -> np.ndarray:
        if self._round is None or self._round[0] != turn:
            tasks = np.repeat(np.arange(len(self._names)), list(self.counts.values()))
            self._round = turn, np.random.default_rng([self.seed, turn]).permutation(tasks)
        return self._round[1]

    def _epoch(self, name: str, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        kept = self._epochs.get(name)
        if kept is None or kept[0] != epoch:
            data = self.tasks[name]
            rng = np.random.default_rng([self.seed, self._names.index(name), epoch])
            draws, order = rng.random(len(data)), data.order(rng)
            kept = epoch, list(distinct_batches(order, data.batch_size, *data.texts_of(draws))), draws
            self._epochs[name] = kept
        return kept[1], kept[2]


def distinct_batches(order: np.ndarray, size: int, texts: np.ndarray, row_of: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of `size` rows in which no text comes twice.

    Rows are taken in `order`; one whose text is already in the batch waits for a later one. What is left at the end and
    does not fill a batch is dropped, unless it is all there is.

    Args:
        order: Int64[n], some or all rows.
        size: rows a batch.
        texts: Int64[m] hashes of texts.
        row_of: Int64[m] the row of each, ascending.

    >>> [b.tolist() for b in distinct_batches(np.arange(4), 2, np.array([7, 7, 8, 9]), np.arange(4))]
    [[0, 2], [1, 3]]
    """
    _, place, count = np.unique(texts, return_inverse=True, return_counts=True)
    rows = int(row_of[-1]) + 1
    starts = np.searchsorted(row_of, np.arange(rows + 1))
    shared = np.zeros(rows, dtype=bool)
    shared[row_of[count[place] > 1]] = True
    coming, waiting = iter(order.tolist()), deque[int]()
    yielded = False
    while True:
        batch: list[int] = []
        used: set[int] = set()
        later = deque[int]()

        def fits(row: int, used: set[int] = used) -> bool:
            own = set(place[starts[row] : starts[row + 1]].tolist()) if shared[row] else set()
            if own & used:
                return False
            used |= own
            return True

        while waiting and len(batch) < size:
            row = waiting.popleft()
            (batch if fits(row) else later).append(row)
        for row in coming if len(batch) < size else ():
            (batch if fits(row) else later).append(row)
            if len(batch) == size:
                break
        waiting.extendleft(reversed(later))
        if len(batch) == size or (batch and not yielded):
            yielded = True
            yield np.array(batch, dtype=np.int64)
        if len(batch) < size:
            return
