"""Find the data sets of a folder, and score each family by its protocol of MTEB (arXiv 2210.07316).

| family | what is measured | how |
|---|---|---|
| sts | Spearman's correlation of cosine and score | |
| pair | average precision of the cosine | |
| classification | accuracy of logistic regression | 8 training texts a class, 10 draws |
| clustering | v-measure of mini-batch k-means | 2048 texts drawn with replacement, 10 draws |
| retrieval | nDCG@10; MRR@10, recall@10 | as trec_eval does; `exclude_own_id` where queries are documents |
| reranking | mean average precision; MRR@10 | as trec_eval does, over the listed candidates |
| triplet | nDCG@10; MRR@10, recall@10 | as retrieval, over all texts that the split's rows list; not in the mean of families |

Triplets are `query, positive[, negative]` rows, which train as retrieval. Many sets of them have training rows only; one
without the split to score is skipped. MTEB has no task that ranks the texts of a split's rows instead of a corpus: so triplets
have a column of their own, and the mean of families leaves them out unless there is no other family. It stays comparable with
means of folders that have no triplets.

Each query counts by itself, whatever its text, and of documents with equal scores the later one ranks first. Draws follow
from the seed (42), and are those of MTEB for the same rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from acge_lightning.data.dataset import ROLES, Role, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.labelled import ClassificationDataset, ClusteringDataset
from acge_lightning.data.pair import PairDataset, STSDataset
from acge_lightning.data.retrieval import RerankingDataset, RetrievalDataset
from acge_lightning.data.splits import split_files
from acge_lightning.data.store import MAX_BAD, OnBadRow
from acge_lightning.errors import InputError
from acge_lightning.metrics.task_metrics import (
    AveragePrecision,
    EmbeddingMetric,
    LinearProbe,
    Reranking,
    Retrieval,
    Spearman,
    VMeasure,
)

_LOG = logging.getLogger(__name__)
SEED = 42
FAMILIES: dict[str, tuple[Callable[..., TaskDataset], EmbeddingMetric]] = {
    "classification": (partial(ClassificationDataset, shots=8, draws=10, seed=SEED), LinearProbe(seed=SEED)),
    "clustering": (ClusteringDataset, VMeasure(seed=SEED, draws=10)),
    "pair": (PairDataset, AveragePrecision()),
    "reranking": (RerankingDataset, Reranking()),
    "retrieval": (RetrievalDataset, Retrieval()),
    "sts": (STSDataset, Spearman()),
    "triplet": (RetrievalDataset, Retrieval()),
}


@dataclass(frozen=True)
class Dataset:
    """A data set of a folder.

    Args:
        family: a key of `FAMILIES`.
        path: its folder.
        split: what is scored, `test` or `dev`.
        limit: most rows of the split, evenly drawn; None for all.
        on_bad_row: as in `TaskDataset`.
        max_bad_fraction: as in `TaskDataset`.
        exclude_own_id: as in `RetrievalDataset`.
        columns: as in `TaskDataset`.
        labels: as in `STSDataset`; for sts and pair.
    """

    family: str
    path: Path
    split: Role
    limit: int | None = None
    on_bad_row: OnBadRow = "raise"
    max_bad_fraction: float = MAX_BAD
    exclude_own_id: bool = False
    columns: Mapping[str, str] | None = None
    labels: Mapping[Any, float | None] | None = None

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.path.name

    @property
    def roles(self) -> set[Role]:
        """Return the splits that scoring reads."""
        return {self.split, "train"} if self.family == "classification" else {self.split}

    def task_dataset(self, cache_dir: str | Path, roles: Collection[Role]) -> TaskDataset:
        """Make the task data set that reads the splits of these roles."""
        return FAMILIES[self.family][0](
            self.path,
            splits={role: None for role in ROLES if role not in roles},
            on_bad_row=self.on_bad_row,
            max_bad_fraction=self.max_bad_fraction,
            holdout=0.0,
            max_dev=self.limit,
            cache_dir=cache_dir,
            columns=self.columns,
            **({"exclude_own_id": True} if self.exclude_own_id else {}),
            **({"labels": self.labels} if self.family in ("sts", "pair") else {}),
        )

    def open(self, cache_dir: Path) -> tuple[TaskDataset, EvaluationSet]:
        """Read the rows, and make the evaluation set of the split that is scored."""
        data = self.task_dataset(cache_dir, self.roles)
        evaluation_set = data.evaluation(self.split)
        if evaluation_set is None:
            raise InputError(f"{self.path} has no {self.split} split: nothing can be scored")
        return data, evaluation_set

    def fingerprint(self, evaluation_set: EvaluationSet) -> str:
        """Hash the rows that are scored; files of results call it `mark`."""
        return fingerprint(self.family, self.split, evaluation_set)


def fingerprint(family: str, split: str, evaluation_set: EvaluationSet) -> str:
    """Hash rows that are scored: their texts and labels, with the family and the split."""
    digest = hashlib.sha256(f"{family} {split} {len(evaluation_set)}".encode())
    for text in evaluation_set.texts.to_pylist():
        digest.update(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())
    if evaluation_set.labels is not None:
        digest.update(evaluation_set.labels.numpy().tobytes())
    return digest.hexdigest()[:24]


def labels_of(evaluation_set: EvaluationSet) -> Tensor:
    """Return the labels of a set that is scored.

    Raises:
        InputError: it has none.
    """
    if evaluation_set.labels is None:
        raise InputError("an evaluation set without labels cannot be scored: give rows of a family with labels")
    return evaluation_set.labels


def find(
    folder: str | Path,
    tasks: str | Sequence[str] | None = None,
    split: Role | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
    max_bad_fraction: float = MAX_BAD,
    exclude_own_id: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, float | None] | None = None,
) -> list[Dataset]:
    """List the data sets under `folder`/<family>/<name>; of triplets those that have the split to score.

    Args:
        folder: in our layout.
        tasks: name or names of data sets or of families; all by default.
        split: `test` or `dev`; by default `test`, or `dev` of a set without it.
        limit: as in `Dataset`.
        on_bad_row: as in `Dataset`.
        max_bad_fraction: as in `Dataset`.
        exclude_own_id: name or names of the retrieval sets in which it is set.
        columns: as in `Dataset`, of all of them.
        labels: as in `Dataset`, of all of them.

    Raises:
        InputError: the folder holds no data set, or a name is not among them.
    """
    folder = Path(folder).expanduser()
    tasks = [tasks] if isinstance(tasks, str) else tasks
    with_own_ids = {exclude_own_id} if isinstance(exclude_own_id, str) else set(exclude_own_id or ())
    paths = [(family, path) for family in FAMILIES for path in sorted((folder / family).glob("*")) if path.is_dir()]
    unscored = {  # without held-out rows
        path.name for family, path in paths if family == "triplet" and not _has_split(path, split or _default_split(path))
    }
    left_out = f"{len(unscored)} triplet sets without a {split or 'test or dev'} split ({', '.join(sorted(unscored))})"
    datasets = [
        Dataset(
            family=family,
            path=path,
            split=split or _default_split(path),
            limit=limit,
            on_bad_row=on_bad_row,
            max_bad_fraction=max_bad_fraction,
            exclude_own_id=family == "retrieval" and path.name in with_own_ids,
            columns=columns,
            labels=labels,
        )
        for family, path in paths
        if family != "triplet" or path.name not in unscored
    ]
    if not datasets and unscored:
        raise InputError(f"{folder} holds {left_out}: nothing can be scored")
    if not datasets:
        raise InputError(f"{folder} holds no data set: give a folder with <family>/<name>/, of {', '.join(FAMILIES)}")
    unknown = with_own_ids - {d.name for d in datasets if d.family == "retrieval"}
    if unknown:
        raise InputError(f"exclude_own_id: {min(unknown)!r} is no retrieval set under {folder}: give names of such sets")
    if unscored and (tasks is None or "triplet" in tasks):
        _LOG.warning("%s are not scored", left_out)
    if tasks is None:
        return datasets
    unknown = set(tasks) - {d.name for d in datasets} - {d.family for d in datasets}
    if unknown & unscored:
        name = min(unknown & unscored)
        raise InputError(f"tasks: triplet/{name} has no {split or 'test or dev'} split: nothing can be scored, leave it out")
    if unknown:
        raise InputError(f"tasks: {min(unknown)!r} is not under {folder}: choose from {sorted({d.name for d in datasets})}")
    return [d for d in datasets if d.name in tasks or d.family in tasks]


def _default_split(path: Path) -> Role:
    return "test" if _has_split(path, "test") else "dev"


def _has_split(path: Path, split: str) -> bool:
    """Tell whether a data set has a file of a split."""
    qrels = path / "qrels"
    return bool(split_files(qrels if qrels.is_dir() else path, split, {}))
