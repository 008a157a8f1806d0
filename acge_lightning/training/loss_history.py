"""Remembers the training losses of each task: a smoothed value to look at, and whether it has moved over the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, variance
from typing import Any

import torch
from torch import Tensor

_BINS = 40  # means of equally many steps that are kept of a task; when they are full, pairs become one
_DECAY = 0.98  # of the moving average: it looks back over some 50 steps
_WAITING = 10  # losses that wait on their device before they are read: looking at each would make a GPU wait
_ENOUGH = 100  # steps of a task before `ends` says anything of it


class LossHistory:
    """Training losses by task, in little memory however long the run is.

    >>> history = LossHistory()
    >>> for step in range(200):
    ...     history.add("sts", torch.tensor(2.0 - step / 200))
    >>> {task: (round(first, 2), round(last, 2)) for task, (first, last, _) in history.ends().items()}
    {'sts': (1.9, 1.1)}
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Tensor]] = []
        self._curves: dict[str, _Curve] = {}

    def add(self, task: str, loss: Tensor) -> None:
        """Take in Float[] the loss of a step."""
        self._waiting.append((task, loss.detach().float()))
        if len(self._waiting) >= _WAITING:
            self._read()

    def smoothed(self) -> dict[str, float]:
        """Task -> the exponential moving average of its losses, corrected for its beginning, of all but the last few steps."""
        if not self._curves:
            self._read()
        return {task: curve.smoothed for task, curve in self._curves.items()}

    def ends(self) -> dict[str, tuple[float, float, float]]:
        """Task -> its mean losses over the first and the last fifth of its steps, and the standard error of their difference.

        Tasks of fewer than 100 steps are left out.
        """
        self._read()
        return {task: curve.ends() for task, curve in self._curves.items() if curve.steps >= _ENOUGH}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        self._read()
        return {task: curve.state() for task, curve in self._curves.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._waiting = []
        self._curves = {str(task): _Curve(**values) for task, values in state.items()}

    def _read(self) -> None:
        if not self._waiting:
            return
        values = torch.stack([loss for _, loss in self._waiting]).tolist()
        for (task, _), value in zip(self._waiting, values, strict=True):
            self._curves.setdefault(task, _Curve()).add(value)
        self._waiting = []


class _Curve:
    """Sums of equally many losses each, the oldest first, and a moving average."""

    def __init__(self, steps: int = 0, width: int = 1, sums: list[float] | None = None, average: float = 0.0):
        self.steps, self.width, self.sums, self.average = int(steps), int(width), list(map(float, sums or [])), float(average)

    def add(self, value: float) -> None:
        if self.steps == _BINS * self.width:
            self.sums = [first + second for first, second in zip(self.sums[::2], self.sums[1::2], strict=True)]
            self.width *= 2
        if self.steps % self.width == 0:
            self.sums.append(0.0)
        self.sums[-1] += value
        self.steps += 1
        self.average = _DECAY * self.average + (1 - _DECAY) * value

    @property
    def smoothed(self) -> float:
        return self.average / (1 - _DECAY**self.steps)

    def ends(self) -> tuple[float, float, float]:
        means = [total / self.width for total in self.sums[: self.steps // self.width]]
        count = len(means) // 5  # four to eight of the 20 to 40
        first, last = means[:count], means[-count:]
        return fmean(first), fmean(last), math.sqrt((variance(first) + variance(last)) / count)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "width": self.width, "sums": list(self.sums), "average": self.average}
