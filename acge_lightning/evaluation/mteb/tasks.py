"""Make tasks of mteb's own classes from local folders.

What defines each local protocol, so that its numbers can be had without mteb. `X` holds Float32 vectors of length 1 of the
rows in the order of the files; `y` their labels; scikit-learn gets NumPy arrays of 32 bits. The seed is 42 everywhere. Values
have 6 decimals, also those of retrieval and reranking, of which mteb by itself would keep 5.

**sts** (`cosine_spearman`): `scipy.stats.spearmanr(scores, cosines)`; NaN where all scores or all cosines are equal.

**pair** (`cosine_ap`): `sklearn.metrics.average_precision_score(labels, cosines)`.

**classification** (`accuracy`): the mean over 10 draws of 8 texts a label, or all where there are fewer. Labels are numbered
in the order of `sorted(words)`. A generator of the same seed shuffles each time what the last one left::

    order = list(range(len(y_train)))
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        chosen = [...]  # the first 8 of each label in `order`, in that order
        probe = LogisticRegression(max_iter=100, random_state=42).fit(X_train[chosen], y_train[chosen])
        accuracy = (probe.predict(X_test) == y_test).mean()

**clustering** (`v_measure`): the mean over 10 draws of 2048 texts with replacement, from one generator; k-means starts each
time from the same seed, with as many clusters as the whole split has labels::

    draw = random.Random(42)
    for _ in range(10):
        chosen = draw.choices(range(len(y)), k=2048)
        means = MiniBatchKMeans(len(set(y)), batch_size=512, init="k-means++", n_init=1, random_state=42)
        value = v_measure_score(y[chosen], means.fit_predict(X[chosen]))

**retrieval** (`ndcg_at_10`): trec_eval's `ndcg_cut_10` over the whole corpus (without one, over the distinct texts of the
split's rows, as for **triplet**), the mean over queries; gain = grade, below 0 counts as 0, the best one where a document is
judged twice. Queries without a grade above 0 are left out, as they are everywhere in this package. With `exclude_own_id`, the
document that has the query's `_id` is not in its ranking (mteb's `ignore_identical_ids`); a grade that it has still counts in
the ideal one.

**reranking** (`map_at_1000`): trec_eval's `map_cut_1000` over each query's own candidates, the mean over queries that have
relevant and other ones. Each listed candidate is a document, positives first, though its text be listed twice.

Each row of queries, and of documents, counts by itself, also where another has the same text. The run file of both, with
names that ascend with the rows::

    cosines = (Q.astype(float) @ D.astype(float).T).astype(np.float32)

trec_eval reads scores as 32 bits and ranks of equal ones the document of the later name first: the later row. Products in 32
bits would differ in the last ones with the place of a row in the matrix, and part documents of equal text. mteb encodes
50,000 documents at a time, and keeps 1000 a query: in a larger corpus the vectors of equal texts may differ in their last
bits, and among more than 1000 documents of one score it is not said which are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from acge_lightning.data.dataset import CACHE, Role
from acge_lightning.data.judgements import JudgedQueries
from acge_lightning.data.labelled import ClusteringDataset
from acge_lightning.data.pair import STSDataset
from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.data.rows import RowDataset
from acge_lightning.data.source import has_rows, locate
from acge_lightning.data.store import VERSION
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import SEED, Dataset
from acge_lightning.evaluation.mteb.encoder import isolated_randomness, mteb_library

_VERSION = 2  # of how rows are made into a task: results of another one are not taken for its own
_UNSAFE = re.compile(r"[^\w.-]")  # in the name of a file


# ---- rows


def _pairs(data: STSDataset, split: Role) -> Any:
    from datasets import Dataset, DatasetDict

    rows = _rows(data, split)
    texts = {"sentence1": [r["text1"] for r in rows], "sentence2": [r["text2"] for r in rows]}
    label, column = ("score", "score") if data.family == "sts" else ("label", "labels")
    return DatasetDict({split: Dataset.from_dict(texts | {column: [r[label] for r in rows]})})


def _labelled(data: ClusteringDataset, split: Role) -> Any:
    from datasets import Dataset, DatasetDict

    if data.family == "clustering":
        rows = _rows(data, split)
        columns = {"sentences": [r["text"] for r in rows], "labels": [r["label"] for r in rows]}
        return DatasetDict({split: Dataset.from_dict(columns)})
    splits = {role: _rows(data, role) for role in ("train", split)}
    number = {word: i for i, word in enumerate(sorted({r["label"] for rows in splits.values() for r in rows}))}
    return DatasetDict(
        {
            role: Dataset.from_dict({"text": [r["text"] for r in rows], "label": [number[r["label"]] for r in rows]})
            for role, rows in splits.items()
        }
    )


def _judged(data: RetrievalDataset, split: Role) -> Any:
    from datasets import Dataset

    queries: JudgedQueries = data.opened_splits[split]
    is_reranking = data.family == "reranking"
    if is_reranking:
        queries = queries.select(np.flatnonzero((queries.positives > 0) & (queries.positives < np.diff(queries.offsets))))
        if not len(queries):
            raise InputError(f"{data.path}: no query of {split} has both relevant and other candidates")
    column, text_numbers, document_numbers = data.documents(queries)
    texts = column.take(pa.array(text_numbers)) if is_reranking else column
    grade = (queries.grades > 0).astype(float) if is_reranking else queries.grades.clip(min=0)
    if (grade % 1).any():
        raise InputError(f"{data.path}: {split} has the grade {grade[grade % 1 > 0][0]:g}: trec_eval needs whole numbers")
    documents = _names("d", len(text_numbers))
    own_documents = data.own_documents(queries).tolist()
    names = [documents[row] if row >= 0 else name for row, name in zip(own_documents, _names("q", len(queries)), strict=True)]
    relevant: dict[str, dict[str, int]] = {name: {} for name in names}
    query_numbers = queries.judged_texts(np.arange(len(queries)))[1]
    for query, document, value in zip(query_numbers.tolist(), document_numbers.tolist(), grade.tolist(), strict=True):
        grades = relevant[names[query]]
        grades[documents[document]] = max(int(value), grades.get(documents[document], 0))
    judged = {
        "corpus": Dataset(pa.table({"id": documents, "text": texts})),
        "queries": Dataset.from_dict({"id": names, "text": queries.read_queries(np.arange(len(queries)))}),
        "relevant_docs": relevant,
        "top_ranked": {name: list(candidates) for name, candidates in relevant.items()} if is_reranking else None,
    }
    return {"default": {split: judged}}


def _rows(data: RowDataset, role: Role) -> list[dict[str, Any]]:
    return data.opened_splits[role].all()


def _names(kind: str, count: int) -> list[str]:
    """Make names whose alphabetical order, by which trec_eval orders equal scores, is that of the rows."""
    return [f"{kind}{i:010d}" for i in range(count)]


# ---- tasks


@dataclass(frozen=True)
class _Family:
    """A task family as mteb knows it: the name of its class, its type, category, main score, our rows, constants, our name."""

    base: str
    type: Any  # one of mteb's literals
    category: Any  # likewise
    main: str
    read: Callable[[Any, Role], Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


_CLASSES = {"samples_per_label": 8, "n_experiments": 10}
_CLUSTERS = {
    "n_clusters": 10,
    "max_documents_per_cluster": 2048,
    "k_mean_batch_size": 512,
    "max_document_to_embed": None,
    "max_fraction_of_documents_to_embed": None,
}
_FAMILIES = {
    "sts": _Family("AbsTaskSTS", "STS", "t2t", "cosine_spearman", _pairs),
    "pair": _Family("AbsTaskPairClassification", "PairClassification", "t2t", "cosine_ap", _pairs),
    "classification": _Family(
        "AbsTaskClassification", "Classification", "t2c", "accuracy", _labelled, _CLASSES
    ),
    "clustering": _Family(
        "AbsTaskClustering", "Clustering", "t2c", "v_measure", _labelled, _CLUSTERS
    ),
    "retrieval": _Family("AbsTaskRetrieval", "Retrieval", "t2t", "ndcg_at_10", _judged),
    "reranking": _Family("AbsTaskRetrieval", "Reranking", "t2t", "map_at_1000", _judged),
    "triplet": _Family("AbsTaskRetrieval", "Retrieval", "t2t", "ndcg_at_10", _judged, label="Triplet"),
}  # fmt: skip


_MEASURES = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "precision", "success": "hit_rate"}  # of trec_eval


class _Local:
    """Mixed into a class of mteb: reads the rows of a folder instead of the hub's."""

    _source: ClassVar[Dataset]
    _cache_dir: ClassVar[str | Path]
    data_loaded: bool
    dataset: Any

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """Read and check the rows, once."""
        if self.data_loaded:
            return
        source, family = self._source, _FAMILIES[self._source.family]
        data = source.task_dataset(self._cache_dir, source.roles)
        data.open()
        missing = source.roles - set(data.opened_splits)
        if missing:
            raise InputError(f"{source.path} has no {min(missing)} split, which {source.family} needs: add its file")
        self.dataset = family.read(data, source.split)
        self.data_loaded = True

    def task_specific_scores(
        self, scores: Mapping[str, Mapping[str, float]], *arguments: Any, **options: Any
    ) -> dict[str, float]:
        """Average trec_eval's values over queries, for retrieval and reranking, which mteb would round to 5 decimals."""
        means = {}
        for measure in next(iter(scores.values())):
            kind, _, depth = measure.rpartition("_")
            means[f"{_MEASURES[kind]}_at_{depth}"] = float(np.mean([values[measure] for values in scores.values()]))
        return means


@isolated_randomness()
def local_tasks(datasets: Sequence[Dataset], cache_dir: str | Path = CACHE) -> list[Any]:
    """Make tasks of mteb's own classes from local folders.

    Their names are `Local<type>_<name>` (`LocalSTS_stsb_zh`; of triplets `LocalTriplet_<name>`); their revisions are hashes of
    the folders' files. Draws follow from a task's own generator: make new tasks for each evaluation.

    Args:
        datasets: as those of `acge_lightning.evaluation.datasets.find`.
        cache_dir: of the checked rows.

    Raises:
        InputError: mteb is not installed, an unknown family or split, a folder that is not there, or two of one name.
    """
    mteb_library()
    tasks = [_task(dataset, cache_dir) for dataset in datasets]
    names = [task.metadata.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two data sets are {name}: rename one, or score their splits one after the other")
    return tasks


def _task(dataset: Dataset, cache_dir: str | Path) -> Any:
    from mteb import TaskMetadata, abstasks

    family = _FAMILIES.get(dataset.family)
    if family is None:
        raise InputError(f"{dataset.path}: family {dataset.family!r} is unknown: choose from {', '.join(_FAMILIES)}")
    if dataset.split not in ("test", "dev"):
        raise InputError(f"{dataset.path}: split {dataset.split!r} cannot be scored: choose test or dev")
    metadata = TaskMetadata(
        name=f"Local{family.label or family.type}_{_UNSAFE.sub('_', dataset.name)}",
        description=f"The {dataset.split} rows of the local data set {dataset.name}.",
        dataset={"path": str(dataset.path), "revision": _digest(dataset)},
        type=family.type,
        category=family.category,
        modalities=["text"],
        eval_splits=[dataset.split],
        eval_langs=["und-Zyyy"],  # undetermined: a folder does not say
        main_score=family.main,
        is_public=False,
    )
    body = {**family.constants, "metadata": metadata, "_source": dataset, "_cache_dir": cache_dir, "__module__": __name__}
    body["ignore_identical_ids"] = getattr(dataset, "exclude_own_id", False)
    return type(metadata.name, (_Local, getattr(abstasks, family.base)), body)(seed=SEED)


def _digest(dataset: Dataset) -> str:
    """Hash the files of the folder, and how they are read."""
    folder = locate(dataset.path)
    suffix = "" if dataset.on_bad_row == "raise" else " without bad rows"
    suffix += "".join(f" {dict(setting)}" for setting in (dataset.columns, dataset.labels) if setting)
    digest = hashlib.sha256(f"{VERSION} {_VERSION} {dataset.limit} {dataset.exclude_own_id}{suffix}".encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and has_rows(path)):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:24]
