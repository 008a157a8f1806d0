"""Score few-shot, long-tailed classification: some classes have many training texts, the others k, at every embedding size.

A seed draws the head, a share of the classes, among those with enough training texts; a head class is learnt from
`head_shots` texts, a tail class from k. The larger draws of a seed hold the smaller ones. A probe is fitted at each dim
to prefixes of length 1, and the cascade of `acge_lightning.classify` to all dims together. The score is accuracy over all test
texts, over those of the head, and over those of the tail; the test texts are also scored as people type them (`perturb`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from acge_lightning.classify import AdaptiveClassifier
from acge_lightning.data.dataset import CACHE
from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset
from acge_lightning.evaluation.longtail_results import add, check
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.perturb import KINDS, perturb
from acge_lightning.metrics.logistic_regression import BoundedLogisticRegression
from acge_lightning.terminal import track

_CHUNK = 1024  # texts whose cosines with all classes are in memory at a time
SUBSETS = ("all", "head", "tail")


class Centroid(ClassifierMixin, BaseEstimator):
    """Predict the class whose mean vector has the highest cosine with the text.

    scikit-learn's NearestCentroid takes distances, and the mean of many vectors is shorter than one of them: nearer to all.
    """

    def fit(self, vectors: np.ndarray, labels: np.ndarray) -> Centroid:
        """Average the vectors Float[n, d] of each class, at length 1."""
        self.classes_, counts = np.unique(labels, return_counts=True)
        rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        self.centroids_ = normalize(np.stack([vectors[class_rows].mean(axis=0) for class_rows in rows]))
        return self

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """Predict the labels of vectors Float[n, d]."""
        chunks = np.split(vectors, range(_CHUNK, len(vectors), _CHUNK))
        return self.classes_[np.concatenate([(chunk @ self.centroids_.T).argmax(axis=1) for chunk in chunks])]


PROBES: dict[str, ClassifierMixin] = {
    "logistic": BoundedLogisticRegression(max_iter=100, class_weight="balanced"),
    "centroid": Centroid(),
}
_FAMILIES = ("classification", "clustering")
Row = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """The settings of the draws and the probes.

    Args:
        shots: training texts of a tail class, one or more numbers.
        seeds: how many draws, from 0.
        head: share of the classes that are the head.
        head_shots: training texts of a head class.
        probe: `logistic` regression with balanced classes, or the nearest `centroid` by cosine.
        adaptive: whether the cascade is scored beside the single dims; it needs `logistic`.
        perturbations: of the test texts; see `perturb`.

    Raises:
        InputError: a value out of range.
    """

    shots: Sequence[int] = (1, 2, 5, 10)
    seeds: int = 5
    head: float = 0.2
    head_shots: int = 30
    probe: str = "logistic"
    adaptive: bool = True
    perturbations: Sequence[str] = field(default=tuple(KINDS))

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise InputError(f"probe={self.probe!r} is unknown: choose from {', '.join(PROBES)}")
        if self.adaptive and self.probe != "logistic":
            raise InputError("adaptive=true needs confidences: give probe=logistic, or adaptive=false")
        if not self.shots or min(self.shots) < 1 or max(self.shots) > self.head_shots:
            raise InputError(f"shots={list(self.shots)} must be 1 to head_shots={self.head_shots}")
        if self.seeds < 1 or not 0 < self.head < 1:
            raise InputError(f"seeds={self.seeds} must be 1 or more, and head={self.head} between 0 and 1")
        unknown = set(self.perturbations) - set(KINDS)
        if unknown or not self.perturbations:
            raise InputError(f"perturbations={list(self.perturbations)}: choose from {', '.join(KINDS)}")


def draw(labels: np.ndarray, shots: int, head: float, head_shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training rows of a seed, and the classes of its head.

    Args:
        labels: Int64[n] classes of all training rows.
        shots: rows of a tail class, or all that it has.
        head: share of the classes.
        head_shots: rows of a head class.
        seed: of the draw; with the same seed, more shots add rows to those of fewer.

    Returns:
        Int64[rows] positions, ascending, and Int64[head classes].

    Raises:
        InputError: too few classes have `head_shots` rows.

    >>> rows, heads = draw(np.repeat([0, 1, 2, 3], 9), shots=2, head=0.25, head_shots=5, seed=0)
    >>> len(rows), len(heads)
    (11, 1)
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    eligible, head_count = classes[counts >= head_shots], max(1, round(head * len(classes)))
    if len(eligible) < head_count:
        raise InputError(
            f"{head_count} classes need {head_shots} training texts, {len(eligible)} have them: lower head_shots or head"
        )
    heads = np.sort(rng.choice(eligible, head_count, replace=False))
    drawn_rows = []
    for label in classes:
        class_rows = rng.permutation(np.flatnonzero(labels == label))
        drawn_rows.append(class_rows[: head_shots if label in heads else shots])
    return np.sort(np.concatenate(drawn_rows)), heads


@dataclass(frozen=True)
class Texts:
    """Training and test texts of a data set, and the numbers of their classes.

    Training texts that are test texts too are left out, and test texts of a class that has no training text.
    """

    train: list[str]
    train_labels: np.ndarray
    test: list[str]
    test_labels: np.ndarray

    @classmethod
    def from_dataset(cls, dataset: Dataset, cache_dir: Path) -> Texts:
        """Read the texts of a data set."""
        if dataset.family not in _FAMILIES:
            raise InputError(f"{dataset.path} is of the family {dataset.family}: name tasks of classification or clustering")
        data = dataset.task_dataset(cache_dir, {"train", dataset.split})
        train_split, test_split = data.train, data.opened_splits.get(dataset.split)
        if test_split is None:
            raise InputError(f"{dataset.path} has no {dataset.split} split: nothing can be scored")
        test_texts = set(test_split.column("text"))
        is_new = np.array([text not in test_texts for text in train_split.column("text")], dtype=bool)
        classes, labels = np.unique(train_split.column("label")[is_new].astype(str), return_inverse=True)
        number = {label: i for i, label in enumerate(classes)}
        test_labels = np.array([number.get(label, -1) for label in test_split.column("label").astype(str)])
        texts = test_split.column("text")[test_labels >= 0].tolist()
        return cls(train_split.column("text")[is_new].tolist(), labels, texts, test_labels[test_labels >= 0])

    def fingerprint(self) -> str:
        """Hash the texts and their classes."""
        digest = hashlib.sha256(f"{len(self.train)}".encode())
        for text in (*self.train, *self.test):
            digest.update(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())
        digest.update(self.train_labels.tobytes() + self.test_labels.tobytes())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class _EncodedTexts:
    """An encoder's vectors of the training texts, Float32[n, D], and by perturbation of the test texts; and its hash."""

    name: str
    hash: str
    dims: list[int]
    train: np.ndarray
    test: dict[str, np.ndarray]

    def rotated(self) -> _EncodedTexts:
        """Rotate the vectors by a PCA, fitted to the training texts; dims that these are too few for are left out."""
        dims = [dim for dim in self.dims if dim <= min(self.train.shape)]
        if not dims:
            raise InputError(f"pca={self.name}: {len(self.train)} training texts are too few for {min(self.dims)} dims")
        components = PCA(max(dims), svd_solver="full").fit(self.train)
        test = {kind: components.transform(vectors) for kind, vectors in self.test.items()}
        return _EncodedTexts(f"{self.name} PCA", f"PCA {self.hash}", dims, components.transform(self.train), test)


def longtail(
    models: Sequence[Model],
    datasets: Sequence[Dataset],
    protocol: Protocol | None = None,
    dims: Sequence[int] | None = None,
    pca: str | None = None,
    out: str | Path | None = None,
    cache_dir: str | Path = CACHE,
    progress: bool = False,
) -> dict[str, Any]:
    """Score all encoders by the protocol; a data set that fails has its reason in a row, and the others go on.

    Args:
        models: encoders; the others are compared with the first one.
        datasets: of classification or clustering, with training texts.
        protocol: what is drawn and fitted.
        dims: prefix sizes; an encoder's Matryoshka dims by default, and always its full size.
        pca: name of a model whose principal components are scored too.
        out: JSON file, which results are added to after each data set; those of other encoders and data sets stay.
        cache_dir: of checked rows and embeddings.
        progress: show a progress bar for each data set.

    Returns:
        The results of these encoders and data sets: `protocol`, `encoders`, `rows` and `differences`. A row's `value` is the
        mean accuracy over seeds, `values` that of all, head and tail, `spread` their standard deviations over seeds, `each`
        the single values; its `dim` is null for the cascade; `mean_dim` is the mean dim that was read. `differences` are
        paired, seed by seed.

    Raises:
        InputError: a model that is no encoder, an unknown `pca`, or an `out` that is another file or of another protocol.
    """
    protocol, cache_dir = protocol or Protocol(), Path(cache_dir).expanduser()
    for model in models:
        model.require_encoder("it has no dims to cut")
    if pca is not None and pca not in [model.name for model in models]:
        raise InputError(f"pca={pca} is none of the models: choose from {[model.name for model in models]}")
    names = [name for model in models for name in (model.name, *([f"{model.name} PCA"] if model.name == pca else []))]
    settings = {key: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for key, v in vars(protocol).items()}
    result: dict[str, Any] = {"format": 1, "kind": "longtail", "protocol": settings, "encoders": names}
    result |= {"rows": [], "differences": []}
    if out:
        check(Path(out), result)
    for dataset in datasets:
        try:
            texts = Texts.from_dataset(dataset, cache_dir)
            encoded_sets = _encode(models, texts, protocol, dims, pca, cache_dir)
            rows = list(_rows(encoded_sets, dataset, texts, protocol, progress))
        except (InputError, OSError) as error:
            rows = [_dataset_fields(dataset) | {"encoder": name, "value": None, "error": str(error)} for name in names]
        result["rows"] += rows
        result["differences"] += _differences(rows, names[0])
        if out:
            add(Path(out), result)
    return result


def _encode(
    models: Sequence[Model],
    texts: Texts,
    protocol: Protocol,
    dims: Sequence[int] | None,
    pca: str | None,
    cache_dir: Path,
) -> list[_EncodedTexts]:
    perturbed = {kind: perturb(texts.test, kind) for kind in protocol.perturbations}
    encoded_sets: list[_EncodedTexts] = []
    for model in models:
        embeddings, prompt = Embeddings(model.require_encoder(), cache_dir / "embeddings"), (model.prompts or {}).get("text")
        train = embeddings.encode(texts.train, prompt).numpy()
        test = {kind: embeddings.encode(texts_of_kind, prompt).numpy() for kind, texts_of_kind in perturbed.items()}
        if not all(np.isfinite(vectors).all() for vectors in (train, *test.values())):
            raise InputError(f"model={model.name} gave vectors that are not finite (NaN or infinity)")
        digest = model.digest(embeddings.hash)
        encoded_sets.append(_EncodedTexts(model.name, digest, [d for d in model.dims(dims) if d], train, test))
        encoded_sets += [encoded_sets[-1].rotated()] if model.name == pca else []
    return encoded_sets


# ---- scores


def _rows(
    encoded_sets: Sequence[_EncodedTexts], dataset: Dataset, texts: Texts, protocol: Protocol, progress: bool
) -> Iterator[Row]:
    """Score each encoder at each dim, number of shots and perturbation; a row for each."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    draws = {
        (shots, seed): draw(texts.train_labels, shots, protocol.head, protocol.head_shots, seed)
        for shots in protocol.shots
        for seed in range(protocol.seeds)
    }
    fingerprint = texts.fingerprint()
    keys = [
        (encoded, dim, shots)
        for encoded in encoded_sets
        for dim in (*encoded.dims, *([None] if protocol.adaptive else []))
        for shots in protocol.shots
    ]
    jobs = [(encoded, dim, shots, seed) for encoded, dim, shots in keys for seed in range(protocol.seeds)]
    score = partial(_score, texts=texts, protocol=protocol)
    with threadpool_limits(1):
        running = Parallel(n_jobs=os.cpu_count() or 1, prefer="threads", return_as="generator")(
            delayed(score)(encoded, dim, seed, *draws[shots, seed]) for encoded, dim, shots, seed in jobs
        )
        if progress:
            running = track(running, dataset.name, "fits", len(jobs))
        for encoded, dim, shots in keys:
            seeds = [next(running) for _ in range(protocol.seeds)]
            for kind in protocol.perturbations:
                per_seed = {subset: [seed[kind][subset] for seed in seeds] for subset in (*SUBSETS, "mean_dim")}
                names: Row = {"encoder": encoded.name, "hash": encoded.hash, "mark": fingerprint}
                names |= {"dim": dim, "shots": shots, "perturbation": kind}
                seconds = sum(seed["seconds"] for seed in seeds)
                yield (
                    _dataset_fields(dataset) | names | _summary(per_seed) | {"n": len(texts.test), "seconds": round(seconds, 3)}
                )
        next(running, None)  # ends the progress bar


def _score(
    encoded: _EncodedTexts, dim: int | None, seed: int, rows: np.ndarray, heads: np.ndarray, texts: Texts, protocol: Protocol
) -> dict[str, Any]:
    """Fit and score one draw: perturbation -> accuracy of all, head, tail, and mean dim; `seconds` -> the time."""
    start, probe = time.perf_counter(), clone(PROBES[protocol.probe])
    train_vectors, labels = encoded.train[rows], texts.train_labels[rows]
    if dim is None:
        cascade = AdaptiveClassifier(encoded.dims, probe, random_state=seed).fit(train_vectors, labels)
    else:
        probe.fit(normalize(train_vectors[:, :dim]), labels)
    in_head, result = np.isin(texts.test_labels, heads), {}
    for kind, vectors in encoded.test.items():
        if dim is None:
            predicted, dims_read = cascade.predict_with_dims(vectors)
        else:
            predicted, dims_read = probe.predict(normalize(vectors[:, :dim])), np.array([dim])
        correct = predicted == texts.test_labels
        correct_of = {"all": correct, "head": correct[in_head], "tail": correct[~in_head]}
        result[kind] = {subset: float(values.mean()) if len(values) else float("nan") for subset, values in correct_of.items()}
        result[kind]["mean_dim"] = float(dims_read.mean())
    return result | {"seconds": time.perf_counter() - start}


def _summary(per_seed: Mapping[str, Sequence[float]]) -> Row:
    values = {subset: float(np.mean(per_seed[subset])) for subset in SUBSETS}
    spread = {subset: float(np.std(per_seed[subset], ddof=1)) if len(per_seed[subset]) > 1 else 0.0 for subset in SUBSETS}
    row = {"metric": "accuracy", "value": values["all"], "values": values, "spread": spread}
    return row | {
        "each": {subset: list(per_seed[subset]) for subset in SUBSETS},
        "mean_dim": float(np.mean(per_seed["mean_dim"])),
        "seeds": list(range(len(per_seed["all"]))),
        "error": None,
    }


def _dataset_fields(dataset: Dataset) -> Row:
    return {"family": dataset.family, "dataset": dataset.name, "split": dataset.split}


def _differences(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Subtract the baseline's accuracy from each encoder's at the same dim, shots and perturbation, seed by seed."""
    keys = ("family", "dataset", "dim", "shots", "perturbation")
    baseline_rows = {tuple(row[key] for key in keys): row for row in rows if not row["error"] and row["encoder"] == baseline}
    differences = []
    for row in rows:
        baseline_row = (
            None if row["error"] or row["encoder"] == baseline else baseline_rows.get(tuple(row[key] for key in keys))
        )
        if baseline_row is not None:
            per_seed = {subset: np.subtract(row["each"][subset], baseline_row["each"][subset]).tolist() for subset in SUBSETS}
            summary = _summary(per_seed | {"mean_dim": [row["mean_dim"] - baseline_row["mean_dim"]]})
            names = {"encoder": row["encoder"], "against": baseline} | {key: row[key] for key in keys}
            differences.append(names | {key: summary[key] for key in ("values", "spread", "each", "seeds")})
    return differences
