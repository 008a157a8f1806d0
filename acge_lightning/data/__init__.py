"""Data: a data set a task family, its LightningDataModule, and what trains several; names are loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acge_lightning.data.batch import EvaluationBatch as EvaluationBatch
    from acge_lightning.data.batch import TextBatch as TextBatch
    from acge_lightning.data.collate import Collate as Collate
    from acge_lightning.data.dataset import TaskDataset as TaskDataset
    from acge_lightning.data.evaluation_set import EvaluationSet as EvaluationSet
    from acge_lightning.data.labelled import ClassificationDataset as ClassificationDataset
    from acge_lightning.data.labelled import ClusteringDataset as ClusteringDataset
    from acge_lightning.data.mixture import MixtureDataModule as MixtureDataModule
    from acge_lightning.data.modules import ClassificationDataModule as ClassificationDataModule
    from acge_lightning.data.modules import ClusteringDataModule as ClusteringDataModule
    from acge_lightning.data.modules import PairDataModule as PairDataModule
    from acge_lightning.data.modules import RerankingDataModule as RerankingDataModule
    from acge_lightning.data.modules import RetrievalDataModule as RetrievalDataModule
    from acge_lightning.data.modules import STSDataModule as STSDataModule
    from acge_lightning.data.modules import UnlabelledDataModule as UnlabelledDataModule
    from acge_lightning.data.pair import PairDataset as PairDataset
    from acge_lightning.data.pair import STSDataset as STSDataset
    from acge_lightning.data.retrieval import RerankingDataset as RerankingDataset
    from acge_lightning.data.retrieval import RetrievalDataset as RetrievalDataset
    from acge_lightning.data.sampler import TaskBatchSampler as TaskBatchSampler
    from acge_lightning.data.task import Task as Task
    from acge_lightning.data.unlabelled import UnlabelledDataset as UnlabelledDataset

_HOME = {
    "ClassificationDataModule": "modules",
    "ClassificationDataset": "labelled",
    "ClusteringDataModule": "modules",
    "ClusteringDataset": "labelled",
    "Collate": "collate",
    "EvaluationBatch": "batch",
    "EvaluationSet": "evaluation_set",
    "MixtureDataModule": "mixture",
    "PairDataModule": "modules",
    "PairDataset": "pair",
    "RerankingDataModule": "modules",
    "RerankingDataset": "retrieval",
    "RetrievalDataModule": "modules",
    "RetrievalDataset": "retrieval",
    "STSDataModule": "modules",
    "STSDataset": "pair",
    "Task": "task",
    "TaskBatchSampler": "sampler",
    "TaskDataset": "dataset",
    "TextBatch": "batch",
    "UnlabelledDataModule": "modules",
    "UnlabelledDataset": "unlabelled",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"acge_lightning.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'acge_lightning.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
