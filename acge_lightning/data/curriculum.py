"""A quality curriculum: training begins with the best rows, and more of them take part as the steps go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from acge_lightning.errors import InputError

_STAGES = 20  # in which the share grows


@dataclass(frozen=True)
class Curriculum:
    """The share of the best rows (those of the largest weights) that batches are made of, by the step.

    share(s) = start + (1 - start) * s / steps, where s is rounded down to one of 20 even stages; 1 from `steps` on. Within a
    stage a task goes through its share of rows epoch after epoch, dealt to batches as ever. The share is a function of the step
    alone, and the batches of the seed and the step, so a run that continues sees what it would have seen. Tasks whose rows have
    no weights train on all of them.

    Args:
        start: share at the first step, above 0, at most 1.
        steps: batches of the run (all tasks together, before accumulation) after which all rows take part.

    Raises:
        InputError: a value out of range.

    Reference: competence-based curriculum (Platanios et al. 2019, arXiv 1903.09848), of the linear kind. Differs: by quality,
    not by difficulty; in stages, whose rows are dealt and not drawn at random.

    YAML::

        mixture: {curriculum: {start: 0.3, steps: 1000}}
        task: {mine: {data: {weight_column: quality}}}

    >>> growing = Curriculum(start=0.3, steps=1000)
    >>> [round(growing.share(growing.stage(step)), 3) for step in (0, 49, 50, 500, 1000, 5000)]
    [0.3, 0.3, 0.335, 0.65, 1.0, 1.0]
    """

    start: float
    steps: float

    def __post_init__(self) -> None:
        if isinstance(self.start, str) or not 0 < self.start <= 1:
            raise InputError(f"mixture.curriculum.start={self.start!r} is no share of the rows: give above 0, at most 1")
        if isinstance(self.steps, str) or not self.steps >= 1 or self.steps % 1:
            raise InputError(f"mixture.curriculum.steps={self.steps!r} must be a whole number of at least 1")

    def stage(self, step: int) -> int:
        """The stage of a step, from 0; the last one has no end."""
        return min(step * _STAGES // int(self.steps), _STAGES)

    def begin(self, stage: int) -> int:
        """The first step of a stage."""
        return -(-stage * int(self.steps) // _STAGES)

    def share(self, stage: int) -> float:
        """The share of rows of a stage."""
        return 1.0 if stage >= _STAGES else self.start + (1 - self.start) * stage / _STAGES


def read_curriculum(settings: Mapping[str, float]) -> Curriculum:
    """Make a curriculum of what a config says.

    Raises:
        InputError: it does not say just `start` and `steps`.
    """
    if set(settings) != {"start", "steps"}:
        raise InputError(f"mixture.curriculum has {sorted(settings)}: give {{start: 0.3, steps: 1000}}, or null for none")
    return Curriculum(settings["start"], settings["steps"])


def best_rows(weights: np.ndarray, share: float, least: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of the largest weights, ascending; of equal ones `rng` chooses.

    Args:
        weights: Float64[n].
        share: of the rows.
        least: so many at least, or all.
        rng: the same for each share, so that a larger one has the rows of a smaller one.
    """
    order = np.lexsort([rng.permutation(len(weights)), -weights])
    return np.sort(order[: max(least, math.ceil(share * len(weights)))])
