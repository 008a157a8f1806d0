"""Score encoders on data sets, each family by its protocol (see `acge_lightning.evaluation.datasets`), at all dims at once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from acge_lightning.data.dataset import CACHE, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.evaluation import results
from acge_lightning.evaluation.datasets import FAMILIES, SEED, Dataset, labels_of
from acge_lightning.evaluation.examples import examples
from acge_lightning.evaluation.leaks import leaks
from acge_lightning.evaluation.lexical import LEXICAL
from acge_lightning.evaluation.results import Row
from acge_lightning.metrics.task_metrics import EmbeddingMetric
from acge_lightning.zoo.pretrained import load

_RESAMPLES = 200


@dataclass(frozen=True)
class Model:
    """An encoder, or a lexical baseline, that is evaluated.

    Args:
        name: in tables.
        path: where it came from, or the name of a lexical baseline.
        encoder: None for a lexical baseline.
        prompts: role (`query`, `document`, `text`) -> name of one of the encoder's prompts.
    """

    name: str
    path: str
    encoder: Encoder | None = None
    prompts: Mapping[str, str] | None = None

    def dims(self, requested: Sequence[int] | None) -> list[int | None]:
        """Return the sizes to score it at, largest first: the requested ones that it has, and its full size."""
        if self.encoder is None:
            return [None]
        chosen = self.encoder.matryoshka_dims if requested is None else requested
        smaller = {dim for dim in chosen if dim < self.encoder.dim}
        return [self.encoder.dim, *sorted(smaller, reverse=True)]

    def require_encoder(self, reason: str = "give encoders only") -> Encoder:
        """Return the encoder.

        Raises:
            InputError: it is a lexical baseline; the reason says why that will not do.
        """
        if self.encoder is None:
            raise InputError(f"model={self.path} is no encoder: {reason}")
        return self.encoder

    def digest(self, encoder: str) -> str:
        """Hash the encoder and the prompts that it is scored with.

        Args:
            encoder: its hash, which is the digest of a model without prompts.

        Raises:
            InputError: a prompt that the encoder does not have.
        """
        available, prompts = self.require_encoder().prompts, sorted((self.prompts or {}).items())
        for role, name in prompts:
            if name not in available:
                raise InputError(f"prompts.{role}={name!r} is unknown: {self.name} has {sorted(available) or 'no prompts'}")
        texts = {role: available[name] for role, name in prompts}
        return hashlib.sha256(f"{encoder} {json.dumps(texts)}".encode()).hexdigest()[:24] if any(texts.values()) else encoder

    def card(self, digest: str) -> dict[str, Any]:
        """Describe it for a file of results: its `digest`, sizes, and from the export what it was trained on."""
        encoder = self.encoder
        dims: dict[str, Any] = {"dim": None, "matryoshka_dims": []}
        if encoder is not None:
            dims = {"dim": encoder.dim, "matryoshka_dims": list(encoder.matryoshka_dims)}
        return {"name": self.name, "path": self.path, "hash": digest, **dims, "trained_on": _trained_on(Path(self.path))}


def _trained_on(folder: Path) -> dict[str, Any] | None:
    """Read data, steps, start and versions of the run that made an export, if it has a record."""
    file = folder / "training.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config = record.get("config") or {}
        details = {"run": config.get("name"), "seed": config.get("seed"), "encoder": config.get("encoder")}
        details |= {key: record.get(key) for key in ("data", "steps", "versions")}
    except (ValueError, AttributeError) as error:
        return {"damaged": f"{file}: {error}"}
    return {key: value for key, value in details.items() if value is not None} or None


def open_models(
    paths: str | Sequence[str] | Mapping[str, str], device: str | None = None, prompts: Mapping[str, str] | None = None
) -> list[Model]:
    """Load encoders by path or name; `bm25` and `tfidf` are lexical baselines.

    Args:
        paths: one, a list, or name in tables -> path; without a name, the folder's name.
        device: where to put them.
        prompts: as in `Model`.
    """
    paths = [paths] if isinstance(paths, str) else paths
    path_of = dict(paths) if isinstance(paths, Mapping) else {}
    for path in () if path_of else paths:
        name = _name(path)
        path_of[name if name not in path_of else f"{name}-{len(path_of) + 1}"] = path
    return [Model(n, path, None if path in LEXICAL else _load(path, device), prompts) for n, path in path_of.items()]


def _load(path: str, device: str | None) -> Encoder:
    try:
        return load(path, device=device)
    except InputError as error:
        if "/" in path or Path(path).exists():
            raise
        raise InputError(f"{error}; baselines without an encoder are {' and '.join(LEXICAL)}") from None


def _name(path: str) -> str:
    names = [name for name in Path(path).parts if name not in ("export", "/", "..", ".")]
    return names[-1] if names else path


# ---- scoring


def evaluate(
    models: Sequence[Model],
    datasets: Sequence[Dataset],
    dims: Sequence[int] | None = None,
    out: str | Path | None = None,
    cache_dir: str | Path = CACHE,
    processes: int = 1,
    show: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Score all models on all data sets at all dims; what fails has its reason in its row, and the others go on.

    Args:
        models: what is scored.
        datasets: what they are scored on.
        dims: prefix sizes; an encoder's Matryoshka dims by default, and always its full size.
        out: JSON file, which results are added to after each data set; at the end, a `.csv` is written beside it. Results in
            the file are not scored again, and stay, also those of other encoders and of data that have changed since.
        cache_dir: of checked rows and embeddings.
        processes: how many data sets are scored at a time; an encoder on a GPU takes as many GPUs.
        show: is called with each row as it comes.

    Returns:
        The results of these models and data sets: `encoders`, `rows`, `differences` (of each model and the
        first, with a 95 % interval of a paired bootstrap), `leaks`, and `examples` (see `examples`) by encoder
        and <family>/<name>.
    """
    cache_dir = Path(cache_dir).expanduser()
    out = Path(out).expanduser() if out else None
    if out:
        results.check(out)
    job = _Job(models, dims, cache_dir, results.read_results(out) if out else results.NOTHING)
    cards = [model.card(job.hashes[model.name]) for model in models]
    result: dict[str, Any] = {"format": results.FORMAT, "seed": SEED, "encoders": cards}
    result |= {"rows": [], "differences": [], "leaks": [], "examples": {model.name: {} for model in models}}
    for dataset_result in job.results(datasets, processes):
        for name, dataset_examples in dataset_result.pop("examples", {}).items():
            result["examples"][name] |= dataset_examples
        for key, values in dataset_result.items():
            result[key] += values
        for row in dataset_result["rows"]:
            show(row)
        if out:
            results.add(out, result)
    if out:
        results.add(out, result, table=True)
    return result


class _Job:
    """Score data sets; the object is sent to the processes that do it."""

    def __init__(self, models: Sequence[Model], dims: Sequence[int] | None, cache_dir: Path, kept_results: dict[str, Any]):
        self.models, self.dims, self.cache_dir = models, dims, cache_dir
        self.kept_rows = results.by_hashes(kept_results["rows"])
        self.differences = {(d.get("hash"), d.get("against_hash"), d.get("mark")): d for d in kept_results["differences"]}
        kept_examples = [example for sets in kept_results["examples"].values() for example in sets.values()]
        self.examples = {(example["hash"], example["mark"]): example for example in kept_examples if "hash" in example}
        self.embeddings = {m.name: Embeddings(m.encoder, cache_dir / "embeddings") for m in models if m.encoder is not None}
        self.hashes = {m.name: m.digest(self.embeddings[m.name].hash) if m.encoder is not None else m.path for m in models}

    def results(self, datasets: Sequence[Dataset], processes: int) -> Iterator[dict[str, Any]]:
        if min(processes, len(datasets)) <= 1:
            yield from map(self.score, datasets)
            return
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(processes, context, _start_process, (self, context.Value("i", 0), processes)) as pool:
                yield from pool.map(_score_in_process, datasets)
        except BrokenProcessPool as error:
            reason = "a process that scored was ended from outside, perhaps for want of memory"
            raise InputError(f"{reason}: give fewer processes than {processes}; what was scored before is kept") from error

    def score(self, dataset: Dataset) -> dict[str, Any]:
        """Score a data set: rows, differences, leaks and examples."""
        try:
            data, evaluation_set = dataset.open(self.cache_dir)
        except (InputError, OSError) as error:
            rows = [_row(m, dataset, None, error=str(error)) | {"mark": None, "hash": self.hashes[m.name]} for m in self.models]
            return {"rows": rows}
        return _DatasetScoring(self, dataset, data, evaluation_set).result()


class _DatasetScoring:
    """Score all models on one data set; `units` has those of the models that were not kept."""

    def __init__(self, job: _Job, dataset: Dataset, data: TaskDataset, evaluation_set: EvaluationSet):
        self.job, self.dataset, self.data, self.evaluation_set = job, dataset, data, evaluation_set
        self.fingerprint = dataset.fingerprint(evaluation_set)
        self.units: dict[str, Tensor | None] = {}

    def result(self) -> dict[str, Any]:
        done: dict[str, Any] = {"rows": [], "leaks": [], "examples": {}}
        for model in self.job.models:
            rows = self._rows(model)
            done["rows"] += rows
            done["leaks"] += leaks(model.name, Path(model.path), self.dataset, self.evaluation_set)
            if model.encoder is not None and not rows[0]["error"]:
                done["examples"][model.name] = {f"{self.dataset.family}/{self.dataset.name}": self._examples(model)}
        failed = {row["encoder"] for row in done["rows"] if row["error"]}
        scored = [model for model in self.job.models if model.name not in failed]
        baselines = [model for model in scored if model is self.job.models[0]]
        return done | {"differences": [self._difference(m, b) for b in baselines for m in scored if m is not b]}

    def _rows(self, model: Model) -> list[Row]:
        """Return the kept rows, if none is lacking; else score anew."""
        dims, digest = model.dims(self.job.dims), self.job.hashes[model.name]
        names = {"encoder": model.name, "dataset": self.dataset.name}
        kept_rows = {
            row["dim"]: row | names for row in self.job.kept_rows.get((digest, self.fingerprint), []) if row["dim"] in dims
        }
        rows = [kept_rows[dim] for dim in dims] if len(kept_rows) == len(dims) else self._score(model, dims)
        return [row | {"mark": self.fingerprint, "hash": digest} for row in rows]

    def _score(self, model: Model, dims: Sequence[int | None]) -> list[Row]:
        embeddings = self.job.embeddings.get(model.name)
        rows, self.units[model.name] = score(model, self.dataset, self.data, self.evaluation_set, dims, embeddings)
        return rows

    def _examples(self, model: Model) -> dict[str, Any]:
        digests = {"hash": self.job.hashes[model.name], "mark": self.fingerprint}
        kept_examples = self.job.examples.get((digests["hash"], digests["mark"]))
        if kept_examples is not None:
            return kept_examples
        vectors = self.job.embeddings[model.name].encode_set(self.evaluation_set, model.prompts)
        return examples(self.dataset.family, vectors, self.evaluation_set, getattr(self.data, "classes", ())) | digests

    def _difference(self, model: Model, baseline: Model) -> dict[str, Any]:
        """Return the difference at full size, with its 95 % interval; it is computed unless it is kept."""
        names = {"encoder": model.name, "against": baseline.name, "family": self.dataset.family, "dataset": self.dataset.name}
        digests = {
            "hash": self.job.hashes[model.name],
            "against_hash": self.job.hashes[baseline.name],
            "mark": self.fingerprint,
        }
        kept_difference = self.job.differences.get((digests["hash"], digests["against_hash"], digests["mark"]))
        if kept_difference is not None:
            return {**kept_difference, **names}
        metric = FAMILIES[self.dataset.family][1]
        low, middle, high = bootstrap(metric, self._units(model), self._units(baseline))
        return names | {"difference": middle, "low": low, "high": high} | digests

    def _units(self, model: Model) -> Tensor:
        """Return a model's units at full size, which are scored if its rows were kept."""
        units = self.units.get(model.name)
        if units is None:
            rows = self._score(model, model.dims([]))
            units = self.units[model.name]
            if units is None:
                raise InputError(f"{model.name} could not be scored again on {self.dataset.name}: {rows[0]['error']}")
        return units


_job: _Job


def _start_process(job: _Job, counter: Any, processes: int) -> None:
    """Set up a new process: take the job, and a device; end when the process that started it has ended, however that was."""
    global _job
    _job = job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    for model in job.models:
        if model.encoder is not None and model.encoder.device.type == "cuda":
            model.encoder.to(f"cuda:{number % torch.cuda.device_count()}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _score_in_process(dataset: Dataset) -> dict[str, Any]:
    return _job.score(dataset)


def score(
    model: Model,
    dataset: Dataset,
    data: TaskDataset,
    evaluation_set: EvaluationSet,
    dims: Sequence[int | None],
    embeddings: Embeddings | None,
) -> tuple[list[Row], Tensor | None]:
    """Make a row for each dim, and the units of the first one; a single row with the reason if it fails."""
    metric, rows, units = FAMILIES[dataset.family][1], [], None
    try:
        start = time.perf_counter()
        vectors = (
            LEXICAL[model.path](evaluation_set) if embeddings is None else embeddings.encode_set(evaluation_set, model.prompts)
        )
        if isinstance(vectors, Tensor) and not vectors.isfinite().all():
            raise InputError("the encoder gave vectors that are not finite (NaN or infinity)")
        for dim in dims:
            cut = vectors if dim in (None, vectors.shape[1]) else normalize(vectors[:, :dim], dim=-1)
            measured = metric.units(cut, labels_of(evaluation_set))
            values, seconds = metric.values(measured), time.perf_counter() - start
            rows.append(_row(model, dataset, dim, values, len(evaluation_set.keys), seconds, data.note(dataset.split)))
            units, start = measured if units is None else units, time.perf_counter()
    except InputError as error:
        return [_row(model, dataset, dims[0], error=str(error))], None
    return rows, units


def _row(
    model: Model,
    dataset: Dataset,
    dim: int | None,
    values: Mapping[str, float] | None = None,
    n: int = 0,
    seconds: float = 0.0,
    note: str | None = None,
    error: str | None = None,
) -> Row:
    main = FAMILIES[dataset.family][1].main
    return {
        "encoder": model.name,
        "family": dataset.family,
        "dataset": dataset.name,
        "split": dataset.split,
        "dim": dim,
        "metric": main,
        "value": None if values is None else values[main],
        "n": n,
        "seconds": round(seconds, 4),
        "seeds": [SEED],
        "values": dict(values or {}),
        "note": note,
        "error": error,
    }


# ---- differences


def bootstrap(
    metric: EmbeddingMetric, units: Tensor, baseline_units: Tensor, resamples: int = _RESAMPLES
) -> tuple[float, float, float]:
    """Resample the units of both, the same ones, with replacement: 2.5 %, the difference itself, and 97.5 %."""
    rng = np.random.default_rng(SEED)
    draws = [torch.from_numpy(rng.integers(0, len(units), len(units))) for _ in range(resamples)]
    spread = [metric.values(units[d])[metric.main] - metric.values(baseline_units[d])[metric.main] for d in draws]
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(low), metric.values(units)[metric.main] - metric.values(baseline_units)[metric.main], float(high)
