"""A LightningDataModule a task family: its data set, which also trains alone, with the loss and the metric of the family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from acge_lightning.data.dataset import TaskDataset
from acge_lightning.data.labelled import ClassificationDataset, ClusteringDataset
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.data.pair import PairDataset, STSDataset
from acge_lightning.data.retrieval import RerankingDataset, RetrievalDataset
from acge_lightning.data.unlabelled import UnlabelledDataset
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.losses.contrastive import CoSENT, CosineLoss, InfoNCE, LabelContrast, SimCSE
from acge_lightning.metrics.task_metrics import (
    AveragePrecision,
    EmbeddingMetric,
    LinearProbe,
    Reranking,
    Retrieval,
    Spearman,
    VMeasure,
)


class TaskDataModule(TaskDataset, LightningDataModule):
    """Lightning's hooks for a data set, as a mixture of one task; the family's data set stands before it among the bases."""

    default_loss: ClassVar[Callable[[], CosineLoss]]
    default_metric: ClassVar[type[EmbeddingMetric] | None]
    _encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which has no trainer and needs no encoder."""
        return vars(self) | {"trainer": None, "_encoder": None}

    def setup(self, stage: str | None = None) -> None:
        """Check the files and open the splits."""
        self.open()

    def bind(self, encoder: Encoder) -> None:
        """As of `MixtureDataModule`."""
        self._encoder = encoder

    def _as_mixture(self) -> MixtureDataModule:
        mixture = MixtureDataModule({self.family: self})
        mixture.trainer = self.trainer
        if self._encoder is not None:
            mixture.bind(self._encoder)
        return mixture

    def train_dataloader(self) -> DataLoader:
        """Batches of this task only."""
        return self._as_mixture().train_dataloader()

    def val_dataloader(self) -> list[DataLoader]:
        """The dev split."""
        return self._as_mixture().val_dataloader()

    def test_dataloader(self) -> list[DataLoader]:
        """The test split."""
        return self._as_mixture().test_dataloader()


class STSDataModule(STSDataset, TaskDataModule):
    """Semantic textual similarity for Lightning. Arguments as in `TaskDataset`.

    YAML::

        stsb_zh:
          data: {_target_: acge_lightning.data.STSDataModule, path: "${paths.data_dir}/sts/stsb_zh", batch_size: 64}
    """

    default_loss = CoSENT
    default_metric = Spearman


class PairDataModule(PairDataset, TaskDataModule):
    """Pair classification for Lightning. Arguments as in `TaskDataset`.

    YAML::

        snli_zh:
          data: {_target_: acge_lightning.data.PairDataModule, path: "${paths.data_dir}/pair/snli_zh", batch_size: 64}
    """

    default_loss = CoSENT
    default_metric = AveragePrecision


class ClusteringDataModule(ClusteringDataset, TaskDataModule):
    """Clustering for Lightning. Arguments as in `ClusteringDataset`.

    YAML::

        csl_category:
          data: {_target_: acge_lightning.data.ClusteringDataModule, path: "${paths.data_dir}/clustering/csl_category"}
    """

    default_loss = LabelContrast
    default_metric = VMeasure


class ClassificationDataModule(ClassificationDataset, TaskDataModule):
    """Classification for Lightning. Arguments as in `ClassificationDataset`.

    YAML::

        tnews:
          data: {_target_: acge_lightning.data.ClassificationDataModule, path: "${paths.data_dir}/classification/tnews"}
    """

    default_loss = LabelContrast
    default_metric = LinearProbe


class RetrievalDataModule(RetrievalDataset, TaskDataModule):
    """Retrieval for Lightning. Arguments as in `RetrievalDataset`.

    YAML::

        medical_qa:
          data: {_target_: acge_lightning.data.RetrievalDataModule, path: "${paths.data_dir}/retrieval/medical_qa"}
    """

    default_loss = InfoNCE
    default_metric = Retrieval


class RerankingDataModule(RerankingDataset, TaskDataModule):
    """Reranking for Lightning. Arguments as in `RerankingDataset`.

    YAML::

        qbqtc_ltr:
          data: {_target_: acge_lightning.data.RerankingDataModule, path: "${paths.data_dir}/reranking/qbqtc_ltr",
                 batch_size: 16, negatives: 7}
    """

    default_loss = staticmethod(partial(InfoNCE, in_batch=False))
    default_metric = Reranking


class UnlabelledDataModule(UnlabelledDataset, TaskDataModule):
    """Unlabelled text for Lightning. Arguments as in `UnlabelledDataset`.

    YAML::

        news:
          data: {_target_: acge_lightning.data.UnlabelledDataModule, path: "${paths.data_dir}/unlabelled/news_2023",
                 batch_size: 128, augment: span_crop}
    """

    default_loss = SimCSE
    default_metric = None
