"""Compare what two encoders scored on the same rows: the difference, with an interval of a paired bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.evaluation.datasets import SEED
from acge_lightning.metrics.task_metrics import EmbeddingMetric

_RESAMPLES = 200


def bootstrap(
    metric: EmbeddingMetric, units: Tensor, baseline_units: Tensor, resamples: int = _RESAMPLES
) -> tuple[float, float, float]:
    """Resample the units of both, the same ones, with replacement: 2.5 %, the difference itself, and 97.5 %."""
    rng = np.random.default_rng(SEED)
    draws = [torch.from_numpy(rng.integers(0, len(units), len(units))) for _ in range(resamples)]
    spread = [metric.values(units[d])[metric.main] - metric.values(baseline_units[d])[metric.main] for d in draws]
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(low), metric.values(units)[metric.main] - metric.values(baseline_units)[metric.main], float(high)


def interval(metric: EmbeddingMetric, units: Tensor, baseline_units: Tensor) -> dict[str, Any]:
    """Return `difference`, `low` and `high`, as a file of results has them."""
    low, middle, high = bootstrap(metric, units, baseline_units)
    return {"difference": middle, "low": low, "high": high}
