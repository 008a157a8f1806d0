"""Metrics: pure functions on arrays, and a torchmetrics metric a task family over them."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.metrics.task_metrics import AveragePrecision as AveragePrecision
    from acge_lightning.metrics.task_metrics import EmbeddingMetric as EmbeddingMetric
    from acge_lightning.metrics.task_metrics import LinearProbe as LinearProbe
    from acge_lightning.metrics.task_metrics import Reranking as Reranking
    from acge_lightning.metrics.task_metrics import Retrieval as Retrieval
    from acge_lightning.metrics.task_metrics import Spearman as Spearman
    from acge_lightning.metrics.task_metrics import VMeasure as VMeasure

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    task_metrics="AveragePrecision EmbeddingMetric LinearProbe Reranking Retrieval Spearman VMeasure",
)
