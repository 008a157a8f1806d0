"""Where a cascade may stop: confidence thresholds that keep its accuracy at the fewest dims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PRICES = 60  # trade-offs between dims and errors that are tried
_SWEEPS = 8  # over the stages, at most; few are needed
_APART = 1e-9  # confidences closer than this are one: a threshold between them would be an accident of rounding


def stages(confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The stage at which each text stops: the first whose confidence reaches its threshold, or else the last.

    Args:
        confidence: Float[n, stages - 1].
        thresholds: Float[stages - 1].

    Returns:
        Int64[n].

    >>> stages(np.array([[0.9, 0.1], [0.2, 0.7], [0.2, 0.3]]), np.array([0.8, 0.6])).tolist()
    [0, 1, 2]
    """
    ends = np.ones((len(confidence), 1), dtype=bool)
    return np.concatenate([confidence >= thresholds, ends], axis=1).argmax(axis=1)


def tune(
    confidence: np.ndarray,
    right: np.ndarray,
    dims: Sequence[int],
    tolerance: float,
    margin: float,
    budget: float | None = None,
) -> np.ndarray:
    """Thresholds with the smallest mean dim among those tried that keep the accuracy; or, within a budget, the most accurate.

    For a price p of a dim, mean(wrong + p dim) is lowered one stage after the other, each exactly (a sort and a running
    sum), until none improves; p runs through a range. Kept is what has

        accuracy - accuracy of the last stage - margin * standard error of that difference >= -tolerance.

    Args:
        confidence: Float[n, stages - 1], of each stage but the last.
        right: Bool[n, stages], whether the stage's answer is right.
        dims: of the stages, ascending.
        tolerance: how much accuracy may be lost.
        margin: standard errors (of a paired difference) that are added to what is seen to be lost.
        budget: mean dim that may be read; tolerance and margin do not count then.

    Returns:
        Float[stages - 1]; infinity where no text stops.
    """
    sizes, wrong = np.asarray(dims, dtype=float), (~right).astype(float)
    never = np.full(len(dims) - 1, np.inf)
    rows, tried = np.arange(len(right)), []
    for price in np.geomspace(1e-3, 10, _PRICES) / sizes[-1]:
        found = _cheapest(confidence, wrong + price * sizes, never)
        stopped = stages(confidence, found)
        change = right[rows, stopped].astype(float) - right[:, -1]
        lost, read = -change.mean(), sizes[stopped].mean()
        if budget is None:
            good, rank = lost + margin * change.std() / np.sqrt(len(change)) <= tolerance, (read, lost)
        else:
            good, rank = read <= budget, (lost, read)
        if good:
            tried.append((rank, found))
    return min(tried, key=lambda pair: pair[0])[1] if tried else never


def _cheapest(confidence: np.ndarray, cost: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Thresholds of the least total cost Float[n, stages] of the stages at which texts stop, by coordinate descent."""
    thresholds, rows = start.copy(), np.arange(len(cost))
    for _ in range(_SWEEPS):
        before = thresholds.copy()
        for stage in reversed(range(len(thresholds))):
            thresholds[stage] = np.inf
            stopped = stages(confidence, thresholds)
            reach = stopped > stage
            gain = (cost[rows, stopped] - cost[:, stage])[reach]
            thresholds[stage] = _cut(confidence[reach, stage], gain)
        if np.array_equal(before, thresholds):
            break
    return thresholds


def _cut(confidence: np.ndarray, gain: np.ndarray) -> float:
    """The threshold at which the texts above it gain most together."""
    order = np.argsort(-confidence, kind="stable")
    ranked, total = confidence[order], gain[order].cumsum()
    ends = np.append(ranked[:-1] - ranked[1:] > _APART, True)[: len(ranked)]
    if not (ends & (total > 0)).any():
        return np.inf
    last = int(np.where(ends, total, -np.inf).argmax())
    return float(ranked[last : last + 2].mean()) if last + 1 < len(ranked) else 0.0
