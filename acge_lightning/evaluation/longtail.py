"""Few-shot, long-tailed classification: some classes have many training texts, the others k, at every size of an embedding.

A seed draws the head, a share of the classes, among those with enough training texts; a head class is learnt from
`head_shots` texts, a tail class from k. The larger draws of a seed hold the smaller ones. A probe is fitted at each dim
to prefixes of length 1, and the cascade of `acge_lightning.classify` to all dims together. Scored is accuracy over all test
texts, over those of the head, and over those of the tail; the test texts also as people type them (`perturb`).
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
from acge_lightning.evaluation.perturb import KINDS, perturb
from acge_lightning.evaluation.scoring import Model
from acge_lightning.metrics.logistic_regression import BoundedLogisticRegression
from acge_lightning.terminal import track

_PART = 1024  # texts whose cosines with all classes are in memory
PARTS = ("all", "head", "tail")


class Centroid(ClassifierMixin, BaseEstimator):
    """The class whose mean vector has the highest cosine with the text.

    scikit-learn's NearestCentroid takes distances, and the mean of many vectors is shorter than one of them: nearer to all.
    """

    def fit(self, vectors: np.ndarray, labels: np.ndarray) -> Centroid:
        """Means of Float[n, d] of each class, at length 1."""
        self.classes_, counts = np.unique(labels, return_counts=True)
        rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        self.centroids_ = normalize(np.stack([vectors[mine].mean(axis=0) for mine in rows]))
        return self

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """The labels of Float[n, d]."""
        parts = np.split(vectors, range(_PART, len(vectors), _PART))
        return self.classes_[np.concatenate([(part @ self.centroids_.T).argmax(axis=1) for part in parts])]


PROBES: dict[str, ClassifierMixin] = {
    "logistic": BoundedLogisticRegression(max_iter=100, class_weight="balanced"),
    "centroid": Centroid(),
}
_FAMILIES = ("classification", "clustering")
Row = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What is drawn and fitted.

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
    """The training rows of a seed, and the classes of its head.

    Args:
        labels: Int64[n] classes of all training rows.
        shots: rows of a tail class, or all that it has.
        head: share of the classes.
        head_shots: rows of a head class.
        seed: of the draw; with the same one, more shots add rows and keep the others.

    Returns:
        Int64[rows] places, ascending, and Int64[head classes].

    Raises:
        InputError: too few classes have `head_shots` rows.

    >>> rows, heads = draw(np.repeat([0, 1, 2, 3], 9), shots=2, head=0.25, head_shots=5, seed=0)
    >>> len(rows), len(heads)
    (11, 1)
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    able, wanted = classes[counts >= head_shots], max(1, round(head * len(classes)))
    if len(able) < wanted:
        raise InputError(f"{wanted} classes need {head_shots} training texts, {len(able)} have them: lower head_shots or head")
    heads = np.sort(rng.choice(able, wanted, replace=False))
    rows = []
    for label in classes:
        mine = rng.permutation(np.flatnonzero(labels == label))
        rows.append(mine[: head_shots if label in heads else shots])
    return np.sort(np.concatenate(rows)), heads


@dataclass(frozen=True)
class Texts:
    """Training and test texts of a data set, and the numbers of their classes.

    Training texts that are test texts too are left out, and test texts of a class that has no training text.
    """

    known: list[str]
    known_labels: np.ndarray
    tested: list[str]
    tested_labels: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, cache_dir: Path) -> Texts:
        """Those of a data set."""
        if dataset.family not in _FAMILIES:
            raise InputError(f"{dataset.path} is of the family {dataset.family}: name tasks of classification or clustering")
        data = dataset.task_dataset(cache_dir, {"train", dataset.split})
        learn, test = data.train, data.opened_splits.get(dataset.split)
        if test is None:
            raise InputError(f"{dataset.path} has no {dataset.split} split: nothing can be scored")
        tested = set(test.column("text"))
        keep = np.array([text not in tested for text in learn.column("text")], dtype=bool)
        classes, labels = np.unique(learn.column("label")[keep].astype(str), return_inverse=True)
        number = {label: i for i, label in enumerate(classes)}
        answers = np.array([number.get(label, -1) for label in test.column("label").astype(str)])
        texts = test.column("text")[answers >= 0].tolist()
        return cls(learn.column("text")[keep].tolist(), labels, texts, answers[answers >= 0])

    def fingerprint(self) -> str:
        """A digest of the texts and their classes."""
        digest = hashlib.sha256(f"{len(self.known)}".encode())
        for text in (*self.known, *self.tested):
            digest.update(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())
        digest.update(self.known_labels.tobytes() + self.tested_labels.tobytes())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class _Side:
    """An encoder's vectors of a data set: Float32[known, D], and for each perturbation Float32[tested, D]; and its hash."""

    name: str
    hash: str
    dims: list[int]
    known: np.ndarray
    tested: dict[str, np.ndarray]

    def rotated(self) -> _Side:
        """The same after a PCA, fitted to the training texts; dims that these are too few for are left out."""
        dims = [dim for dim in self.dims if dim <= min(self.known.shape)]
        if not dims:
            raise InputError(f"pca={self.name}: {len(self.known)} training texts are too few for {min(self.dims)} dims")
        fitted = PCA(max(dims), svd_solver="full").fit(self.known)
        tested = {kind: fitted.transform(vectors) for kind, vectors in self.tested.items()}
        return _Side(f"{self.name} PCA", f"PCA {self.hash}", dims, fitted.transform(self.known), tested)


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
    """Scores all encoders by the protocol; a data set that fails has its reason in a row, and the others go on.

    Args:
        models: encoders; the others are compared with the first one.
        datasets: of classification or clustering, with training texts.
        protocol: what is drawn and fitted.
        dims: prefix sizes; an encoder's Matryoshka dims by default, and always its full size.
        pca: name of a model whose principal components are scored too.
        out: JSON file, to which is added after each data set: what it holds of other encoders and data sets stays.
        cache_dir: of checked rows and embeddings.
        progress: show a progress bar for each data set.

    Returns:
        What the file holds of these: `protocol`, `encoders`, `rows` and `differences`. A row's `value` is the mean accuracy
        over seeds, `values` that of all, head and tail, `spread` their standard deviations over seeds, `each` the single
        values; its `dim` is null for the cascade; `mean_dim` is what was read. `differences` are paired, seed by seed.

    Raises:
        InputError: a model that is no encoder, an unknown `pca`, or an `out` that is another file or of another protocol.
    """
    protocol, cache_dir = protocol or Protocol(), Path(cache_dir).expanduser()
    for model in models:
        if model.encoder is None:
            raise InputError(f"model={model.path} is no encoder: it has no dims to cut")
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
            texts = Texts.of(dataset, cache_dir)
            sides = _sides(models, texts, protocol, dims, pca, cache_dir)
            rows = list(_rows(sides, dataset, texts, protocol, progress))
        except (InputError, OSError) as error:
            rows = [_place(dataset) | {"encoder": name, "value": None, "error": str(error)} for name in names]
        result["rows"] += rows
        result["differences"] += _differences(rows, names[0])
        if out:
            add(Path(out), result)
    return result


def _sides(
    models: Sequence[Model],
    texts: Texts,
    protocol: Protocol,
    dims: Sequence[int] | None,
    pca: str | None,
    cache_dir: Path,
) -> list[_Side]:
    changed, sides = {kind: perturb(texts.tested, kind) for kind in protocol.perturbations}, []
    for model in models:
        embeddings, prompt = Embeddings(model.encoder, cache_dir / "embeddings"), (model.prompts or {}).get("text")
        known = embeddings.encode(texts.known, prompt).numpy()
        tested = {kind: embeddings.encode(each, prompt).numpy() for kind, each in changed.items()}
        if not all(np.isfinite(vectors).all() for vectors in (known, *tested.values())):
            raise InputError(f"model={model.name} gave vectors that are not finite (NaN or infinity)")
        digest = model.digest(embeddings.hash)
        sides.append(_Side(model.name, digest, [d for d in model.dims(dims) if d], known, tested))
        sides += [sides[-1].rotated()] if model.name == pca else []
    return sides


# ---- scores


def _rows(sides: Sequence[_Side], dataset: Dataset, texts: Texts, protocol: Protocol, progress: bool) -> Iterator[Row]:
    """A row for each encoder, dim, number of shots and perturbation."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    drawn = {
        (shots, seed): draw(texts.known_labels, shots, protocol.head, protocol.head_shots, seed)
        for shots in protocol.shots
        for seed in range(protocol.seeds)
    }
    fingerprint = texts.fingerprint()
    keys = [
        (side, dim, shots)
        for side in sides
        for dim in (*side.dims, *([None] if protocol.adaptive else []))
        for shots in protocol.shots
    ]
    jobs = [(side, dim, shots, seed) for side, dim, shots in keys for seed in range(protocol.seeds)]
    score = partial(_score, texts=texts, protocol=protocol)
    with threadpool_limits(1):
        running = Parallel(n_jobs=os.cpu_count() or 1, prefer="threads", return_as="generator")(
            delayed(score)(side, dim, seed, *drawn[shots, seed]) for side, dim, shots, seed in jobs
        )
        if progress:
            running = track(running, dataset.name, "fits", len(jobs))
        for side, dim, shots in keys:
            seeds = [next(running) for _ in range(protocol.seeds)]
            for kind in protocol.perturbations:
                each = {part: [seed[kind][part] for seed in seeds] for part in (*PARTS, "mean_dim")}
                names = {"encoder": side.name, "hash": side.hash, "mark": fingerprint}
                names |= {"dim": dim, "shots": shots, "perturbation": kind}
                seconds = sum(seed["seconds"] for seed in seeds)
                yield _place(dataset) | names | _summary(each) | {"n": len(texts.tested), "seconds": round(seconds, 3)}
        next(running, None)  # lets the bar come to its end


def _score(
    side: _Side, dim: int | None, seed: int, rows: np.ndarray, heads: np.ndarray, texts: Texts, protocol: Protocol
) -> dict[str, Any]:
    """Perturbation -> accuracy of all, head, tail, and mean dim, of one draw; `seconds` that it took."""
    start, probe = time.perf_counter(), clone(PROBES[protocol.probe])
    known, labels = side.known[rows], texts.known_labels[rows]
    if dim is None:
        cascade = AdaptiveClassifier(side.dims, probe, random_state=seed).fit(known, labels)
    else:
        probe.fit(normalize(known[:, :dim]), labels)
    in_head, found = np.isin(texts.tested_labels, heads), {}
    for kind, vectors in side.tested.items():
        if dim is None:
            told, read = cascade.predict_with_dims(vectors)
        else:
            told, read = probe.predict(normalize(vectors[:, :dim])), np.array([dim])
        right = told == texts.tested_labels
        parts = {"all": right, "head": right[in_head], "tail": right[~in_head]}
        found[kind] = {part: float(values.mean()) if len(values) else float("nan") for part, values in parts.items()}
        found[kind]["mean_dim"] = float(read.mean())
    return found | {"seconds": time.perf_counter() - start}


def _summary(each: Mapping[str, Sequence[float]]) -> Row:
    values = {part: float(np.mean(each[part])) for part in PARTS}
    spread = {part: float(np.std(each[part], ddof=1)) if len(each[part]) > 1 else 0.0 for part in PARTS}
    row = {"metric": "accuracy", "value": values["all"], "values": values, "spread": spread}
    return row | {
        "each": {part: list(each[part]) for part in PARTS},
        "mean_dim": float(np.mean(each["mean_dim"])),
        "seeds": list(range(len(each["all"]))),
        "error": None,
    }


def _place(dataset: Dataset) -> Row:
    return {"family": dataset.family, "dataset": dataset.name, "split": dataset.split}


def _differences(rows: Sequence[Row], first: str) -> list[Row]:
    """Of each encoder against the first one, at the same dim, shots and perturbation: mean and spread over seeds."""
    same = ("family", "dataset", "dim", "shots", "perturbation")
    base = {tuple(row[key] for key in same): row for row in rows if not row["error"] and row["encoder"] == first}
    found = []
    for row in rows:
        other = None if row["error"] or row["encoder"] == first else base.get(tuple(row[key] for key in same))
        if other is not None:
            each = {part: np.subtract(row["each"][part], other["each"][part]).tolist() for part in PARTS}
            summary = _summary(each | {"mean_dim": [row["mean_dim"] - other["mean_dim"]]})
            names = {"encoder": row["encoder"], "against": first} | {key: row[key] for key in same}
            found.append(names | {key: summary[key] for key in ("values", "spread", "each", "seeds")})
    return found
