"""One line of a mixture: a data set, and how it is trained on and scored."""

from __future__ import annotations

from dataclasses import dataclass

from acge_lightning.data.dataset import TaskDataset
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CosineLoss
from acge_lightning.metrics.task_metrics import EmbeddingMetric


@dataclass(frozen=True)
class Task:
    """One line of a mixture.

    Args:
        data: of the task.
        loss: on its embeddings; the family's own by default, which a data module of `data.modules` names.
        metric: of its evaluation splits; the family's own by default.
        weight: how often it trains; 0 only evaluates it.
        loss_weight: what its loss is multiplied by. Gradient clipping, while it bites at every step, undoes that: set
            `trainer.gradient_clip_val=null`, or mix by `weight`.

    Raises:
        InputError: a negative weight, or a metric of texts that have no labels.

    YAML::

        task:
          stsb_zh:
            data: {_target_: acge_lightning.data.STSDataModule, path: "${paths.data_dir}/sts/stsb_zh", batch_size: 64}
            loss: {_target_: acge_lightning.losses.CoSENT, temperature: 0.05}
            weight: 1.0
            loss_weight: 0.2
    """

    data: TaskDataset
    loss: CosineLoss | None = None
    metric: EmbeddingMetric | None = None
    weight: float = 1.0
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "loss_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"task.….{name}={getattr(self, name)} must be 0 or more")
        if self.metric is not None and self.data.family == "unlabelled":
            raise InputError("task.….metric: unlabelled texts have nothing to be scored by: leave it out")

    def training_loss(self) -> CosineLoss:
        """The loss, or a new one of the family's own.

        Raises:
            InputError: neither is there, as `data` is a plain data set.
        """
        if self.loss is not None:
            return self.loss
        default_loss = getattr(self.data, "default_loss", None)  # of a data module
        if default_loss is None:
            raise InputError(f"task.….loss is missing: {type(self.data).__name__} names none of its own, a data module does")
        return default_loss()

    def evaluation_metric(self) -> EmbeddingMetric | None:
        """The metric, or a new one of the family's own; None if there is none."""
        if self.metric is not None:
            return self.metric
        default_metric = getattr(self.data, "default_metric", None)
        return default_metric and default_metric()
