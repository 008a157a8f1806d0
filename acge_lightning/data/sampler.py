"""Which rows of which task form the batch of a step: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from acge_lightning.data.curriculum import Curriculum, best_rows
from acge_lightning.data.dataset import TaskDataset
from acge_lightning.data.epoch import batch_sizes, expected_distinct, resample
from acge_lightning.errors import InputError

_OF_BEST_ROWS = 2**31  # no epoch: the randomness of which of equally good rows are the best
_Stage = tuple[np.ndarray, np.ndarray, int, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """The rows of one step.

    Args:
        task: name.
        positions: Int64[n] training rows, over all devices.
        draws: Float64[n], the rows' randomness in this epoch.
        random_negatives: Int64[m] numbers of texts that come along, over all devices.
    """

    task: str
    positions: np.ndarray
    draws: np.ndarray
    random_negatives: np.ndarray


@dataclass(frozen=True)
class Coverage:
    """Training rows of a task.

    Args:
        rows: that it has.
        used: that an epoch trains on, on all devices together; of rows that are drawn by weight the expected number.
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


class TaskBatchSampler:
    """Batches of one task each, mixed; an epoch of a task has all its rows, but for fewer than eight.

    Of a task whose rows have weights, an epoch has as many rows, drawn anew in proportion to them (see `resample`): a row of
    weight w comes rows * w / sum(w) times, rounded up or down at random. A row that comes several times has the same draws.

    A round has as many batches as all tasks together have; task t gets a share proportional to weight_t * batches_t^(1/T) of
    it (rounded, at least one batch), in random order. A task that gets more than it has begins its next epoch, newly shuffled.

    Args:
        tasks: name -> data of the tasks that train.
        weights: name -> weight, 1 by default.
        temperature: T; 1 draws tasks in proportion to their size, a larger T evens them out, infinity uses the weights alone.
        seed: of every order.
        curriculum: which share of the rows of tasks with weights takes part by the step; None: all from the beginning.

    Raises:
        InputError: no task, a value out of range, or a curriculum without weights.

    Reference: temperature sampling as in mT5 (Xue et al. 2021, arXiv 2010.11934) over batches, not rows.

    YAML::

        mixture: {temperature: 2.0}
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskDataset],
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        curriculum: Curriculum | None = None,
    ):
        if not tasks:
            raise InputError("there is no task to train on: give one a weight above 0")
        if not temperature > 0:
            raise InputError(f"mixture.temperature={temperature} must be above 0 (1 is proportional, .inf even)")
        self.tasks = dict(tasks)
        self.seed = seed
        self.row_weights = {name: values for name, data in self.tasks.items() if (values := data.weights) is not None}
        if curriculum is not None and not self.row_weights:
            raise InputError("mixture.curriculum needs rows with weights: name their column, task.….data.weight_column=quality")
        self.curriculum = curriculum
        self.sizes = {name: batch_sizes(len(data), data.batch_size) for name, data in self.tasks.items()}
        self.batches = {name: len(sizes) for name, sizes in self.sizes.items()}
        shares = np.array([(weights or {}).get(name, 1.0) * n ** (1 / temperature) for name, n in self.batches.items()])
        if not np.all((shares > 0) & np.isfinite(shares)):
            raise InputError(f"weights {dict(weights or {})} must be above 0, and finite, for tasks that train")
        counts = np.maximum(1, np.round(shares / shares.sum() * sum(self.batches.values()))).astype(int)
        self.counts = dict(zip(self.tasks, counts.tolist(), strict=True))
        self._names = list(self.tasks)
        self._round: tuple[int, np.ndarray] | None = None
        self._epochs: dict[str, tuple[tuple[int, ...], list[np.ndarray], np.ndarray]] = {}
        self._stages: dict[str, _Stage] = {}

    def __len__(self) -> int:
        """Steps of a round."""
        return sum(self.counts.values())

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over the whole run."""
        name, positions, draws = self._rows(step)
        return Batch(name, positions, draws, self.tasks[name].random_negatives(positions, draws))

    def training_rows(self, steps: range) -> dict[str, np.ndarray]:
        """The rows that the batches of some steps are made of, by task: Int64[m], each once, ascending."""
        positions: dict[str, list[np.ndarray]] = {}
        for step in steps:
            name, batch, _ = self._rows(step)
            positions.setdefault(name, []).append(batch)
        return {name: np.unique(np.concatenate(batches)) for name, batches in positions.items()}

    def _rows(self, step: int) -> tuple[str, np.ndarray, np.ndarray]:
        """The task of a step, its rows, and their draws."""
        turn, index = divmod(step, len(self))
        name = self._names[int(self._schedule(turn)[index])]
        rows, sizes, before, stage = self._stage(name, step)
        epoch, i = divmod(self.drawn(name, step) - before, len(sizes))
        batches, draws = self._epoch(name, (epoch, *stage), rows, sizes)
        return name, batches[i], draws[batches[i]]

    def rows_of_first_stage(self) -> dict[str, np.ndarray]:
        """The training rows with which a curriculum begins, by task; {} without one."""
        return {} if self.curriculum is None else {name: self._stage(name, 0)[0] for name in self.row_weights}

    def drawn(self, name: str, step: int) -> int:
        """How many batches of a task come before a step."""
        turn, index = divmod(step, len(self))
        return turn * self.counts[name] + int(np.count_nonzero(self._schedule(turn)[:index] == self._names.index(name)))

    def coverage(self, world: int, batches: int) -> dict[str, Coverage]:
        """What of each task's rows so many devices take, after so many batches of the run."""
        covered = {}
        for name, sizes in self.sizes.items():
            used, epochs = int((sizes // world * world).sum()), self.drawn(name, batches) / len(sizes)
            if name in self.row_weights:
                used = round(expected_distinct(self.row_weights[name], int(sizes.sum()), used / int(sizes.sum())))
            covered[name] = Coverage(len(self.tasks[name]), used, len(sizes), epochs)
        return covered

    def _schedule(self, turn: int) -> np.ndarray:
        if self._round is None or self._round[0] != turn:
            tasks = np.repeat(np.arange(len(self._names)), list(self.counts.values()))
            self._round = turn, np.random.default_rng([self.seed, turn]).permutation(tasks)
        return self._round[1]

    def _stage(self, name: str, step: int) -> _Stage:
        """Of a task at a step: its rows, the sizes of an epoch's batches, how many came before this stage, and its number."""
        if self.curriculum is None or name not in self.row_weights:
            return np.arange(len(self.tasks[name])), self.sizes[name], 0, ()
        number = self.curriculum.stage(step) + 1  # trailing zeros do not count in a seed
        kept = self._stages.get(name)
        if kept is None or kept[3] != (number,):
            size, share = self.tasks[name].batch_size, self.curriculum.share(number - 1)
            rng = np.random.default_rng([self.seed, self._names.index(name), _OF_BEST_ROWS])
            rows = best_rows(self.row_weights[name], share, size, rng)
            before = self.drawn(name, self.curriculum.begin(number - 1))
            kept = self._stages[name] = rows, batch_sizes(len(rows), size), before, (number,)
        return kept

    def _epoch(
        self, name: str, turn: tuple[int, ...], rows: np.ndarray, sizes: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The batches of an epoch of a task, and the draws of all its rows; `turn` is the epoch, and the stage if any."""
        kept = self._epochs.get(name)
        if kept is None or kept[0] != turn:
            data = self.tasks[name]
            rng = np.random.default_rng([self.seed, self._names.index(name), *turn])
            draws, drawn = rng.random(len(data)), None
            if name in self.row_weights:
                drawn = rows[resample(self.row_weights[name][rows], len(rows), rng)]
            batches = np.split(data.order(rng, draws, sizes, drawn)[: sizes.sum()], np.cumsum(sizes)[:-1])
            kept = turn, [batches[i] for i in rng.permutation(len(batches))], draws
            self._epochs[name] = kept
        return kept[1], kept[2]
