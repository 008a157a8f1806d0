"""Data: a data set a task family, its LightningDataModule, and what trains several of them together."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

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

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    batch="EvaluationBatch TextBatch",
    collate="Collate",
    dataset="TaskDataset",
    evaluation_set="EvaluationSet",
    labelled="ClassificationDataset ClusteringDataset",
    mixture="MixtureDataModule",
    modules="ClassificationDataModule ClusteringDataModule PairDataModule RerankingDataModule RetrievalDataModule "
    "STSDataModule UnlabelledDataModule",
    pair="PairDataset STSDataset",
    retrieval="RerankingDataset RetrievalDataset",
    sampler="TaskBatchSampler",
    task="Task",
    unlabelled="UnlabelledDataset",
)
