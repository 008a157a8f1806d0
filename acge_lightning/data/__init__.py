"""Data: a LightningDataModule a task family, and the mixture that trains them together."""

from acge_lightning.data.labelled import ClassificationDataModule, ClusteringDataModule
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.data.pair import PairDataModule, STSDataModule
from acge_lightning.data.retrieval import RerankingDataModule, RetrievalDataModule
from acge_lightning.data.unlabelled import UnlabelledDataModule

__all__ = [
    "ClassificationDataModule",
    "ClusteringDataModule",
    "MixtureDataModule",
    "PairDataModule",
    "RerankingDataModule",
    "RetrievalDataModule",
    "STSDataModule",
    "UnlabelledDataModule",
]
