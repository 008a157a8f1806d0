"""Where a cascade may stop: confidence thresholds that keep its accuracy at the fewest dims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PRICES = 60  # trade-offs between dims and errors that are tried
_MOST_SWEEPS = 8  # over the stages; few are needed
_SAME = 1e-9  # confidences closer than this are one: a threshold between them would be an accident of rounding


def stopping_stages(confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The stage at which each text stops: the first whose confidence reaches its threshold, or else the last.

    Args:
        confidence: Float[n, stages - 1].
        thresholds: Float[stages - 1].

    Returns:
        Int64[n].

    >>> stopping_stages(np.array([[0.9, 0.1], [0.2, 0.7], [0.2, 0.3]]), np.array([0.8, 0.6])).tolist()
    [0, 1, 2]
    """
    ends = np.ones((len(confidence), 1), dtype=bool)
    return np.concatenate([confidence >= thresholds, ends], axis=1).argmax(axis=1)


def tune_thresholds(
    confidence: np.ndarray,
    correct: np.ndarray,
    dims: Sequence[int],
    tolerance: float,
    margin: float,
    budget: float | None = None,
) -> np.ndarray:
    """Find the thresholds with the smallest mean dim that keep the accuracy; or, within a budget, the most accurate ones.

    For a price p of a dim, mean(wrong + p dim) is lowered one stage after the other, each exactly (a sort and a running
    sum), until none improves; p runs through a range. Thresholds keep the accuracy if

        accuracy - accuracy of the last stage - margin * standard error of that difference >= -tolerance.

    Args:
        confidence: Float[n, stages - 1], of each stage but the last.
        correct: Bool[n, stages], whether the stage's answer is right.
        dims: of the stages, ascending.
        tolerance: how much accuracy may be lost.
        margin: standard errors (of a paired difference) that are added to what is seen to be lost.
        budget: mean dim that may be read; tolerance and margin do not count then.

    Returns:
        Float[stages - 1]; infinity where no text stops.
    """
    sizes, wrong = np.asarray(dims, dtype=float), (~correct).astype(float)
    rows, accepted = np.arange(len(correct)), []
    for price in np.geomspace(1e-3, 10, _PRICES) / sizes[-1]:
        thresholds = cheapest_thresholds(confidence, wrong + price * sizes)
        stopped = stopping_stages(confidence, thresholds)
        change = correct[rows, stopped].astype(float) - correct[:, -1]
        loss, mean_dim = -change.mean(), sizes[stopped].mean()
        if budget is None:
            accept, rank = loss + margin * change.std() / np.sqrt(len(change)) <= tolerance, (mean_dim, loss)
        else:
            accept, rank = mean_dim <= budget, (loss, mean_dim)
        if accept:
            accepted.append((rank, thresholds))
    return min(accepted, key=lambda pair: pair[0])[1] if accepted else np.full(len(dims) - 1, np.inf)


def cheapest_thresholds(confidence: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Lower the total cost of the stages at which texts stop, one threshold after the other, until none lowers it more.

    A single threshold has the least cost that there is.

    Args:
        confidence: Float[n, stages - 1].
        cost: Float[n, stages], of a text that stops at a stage.

    Returns:
        Float[stages - 1]; infinity where no text stops.
    """
    thresholds, rows = np.full(confidence.shape[1], np.inf), np.arange(len(cost))
    for _ in range(_MOST_SWEEPS):
        before = thresholds.copy()
        for stage in reversed(range(len(thresholds))):
            thresholds[stage] = np.inf
            stopped = stopping_stages(confidence, thresholds)
            reached = stopped > stage
            gain = (cost[rows, stopped] - cost[:, stage])[reached]
            thresholds[stage] = _best_threshold(confidence[reached, stage], gain)
        if np.array_equal(before, thresholds):
            break
    return thresholds


def _best_threshold(confidence: np.ndarray, gain: np.ndarray) -> float:
    """The threshold above which texts have the largest total gain; infinity if none is above 0."""
    order = np.argsort(-confidence, kind="stable")
    ranked, total = confidence[order], gain[order].cumsum()
    ends = np.append(ranked[:-1] - ranked[1:] > _SAME, True)[: len(ranked)]
    if not (ends & (total > 0)).any():
        return np.inf
    last = int(np.where(ends, total, -np.inf).argmax())
    return float(ranked[last : last + 2].mean()) if last + 1 < len(ranked) else 0.0
