"""Encoders scored on data sets, each family by its protocol (see `acge_lightning.evaluation.datasets`), at all dims at once."""

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
from acge_lightning.evaluation.datasets import FAMILIES, SEED, Dataset
from acge_lightning.evaluation.examples import examples
from acge_lightning.evaluation.lexical import LEXICAL
from acge_lightning.evaluation.results import Row
from acge_lightning.metrics.task_metrics import EmbeddingMetric
from acge_lightning.zoo.pretrained import load

_RESAMPLES = 200


@dataclass(frozen=True)
class Model:
    """What is evaluated.

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

    def dims(self, asked: Sequence[int] | None) -> list[int | None]:
        """The sizes to score it at, largest first: those asked for that it has, and its full size."""
        if self.encoder is None:
            return [None]
        chosen = self.encoder.matryoshka_dims if asked is None else asked
        return sorted({self.encoder.dim, *(d for d in chosen if d < self.encoder.dim)}, reverse=True)

    def digest(self, encoder: str) -> str:
        """The hash of its encoder and of the prompts that it is scored with; without any, that of the encoder.

        Raises:
            InputError: a prompt that the encoder does not have.
        """
        available, prompts = self.encoder.prompts, sorted((self.prompts or {}).items())
        for role, name in prompts:
            if name not in available:
                raise InputError(f"prompts.{role}={name!r} is unknown: {self.name} has {sorted(available) or 'no prompts'}")
        texts = {role: available[name] for role, name in prompts}
        return hashlib.sha256(f"{encoder} {json.dumps(texts)}".encode()).hexdigest()[:24] if any(texts.values()) else encoder

    def card(self, digest: str) -> dict[str, Any]:
        """What a file of results says of it: its `digest`, sizes, and from the export what it was trained on."""
        encoder = self.encoder
        dims = {"dim": None, "matryoshka_dims": []}
        if encoder is not None:
            dims = {"dim": encoder.dim, "matryoshka_dims": list(encoder.matryoshka_dims)}
        return {"name": self.name, "path": self.path, "hash": digest, **dims, "trained_on": _trained_on(Path(self.path))}


def _trained_on(folder: Path) -> dict[str, Any] | None:
    """Data, steps, start and versions of the run that made an export, if it says so."""
    file = folder / "training.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config = record.get("config") or {}
        said = {"run": config.get("name"), "seed": config.get("seed"), "encoder": config.get("encoder")}
        said |= {key: record.get(key) for key in ("data", "steps", "versions")}
    except (ValueError, AttributeError) as error:
        return {"damaged": f"{file}: {error}"}
    return {key: value for key, value in said.items() if value is not None} or None


def open_models(
    paths: str | Sequence[str] | Mapping[str, str], device: str | None = None, prompts: Mapping[str, str] | None = None
) -> list[Model]:
    """Encoders by path or name, `bm25` and `tfidf` among them.

    Args:
        paths: one, a list, or name in tables -> path; without a name, that of the folder.
        device: where to put them.
        prompts: as in `Model`.
    """
    paths = [paths] if isinstance(paths, str) else paths
    named = dict(paths) if isinstance(paths, Mapping) else {}
    for path in () if named else paths:
        name = _name(path)
        named[name if name not in named else f"{name}-{len(named) + 1}"] = path
    return [Model(n, path, None if path in LEXICAL else _load(path, device), prompts) for n, path in named.items()]


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
    """Scores all models on all data sets at all dims; what fails has its reason in its row, and the others go on.

    Args:
        models: what is scored.
        datasets: on what.
        dims: prefix sizes; an encoder's Matryoshka dims by default, and always its full size.
        out: JSON file, to which is added after each data set, and at the end a `.csv` beside it. What it holds is not scored
            again and stays, whatever else is scored, also of other encoders and of data that have changed since.
        cache_dir: of checked rows and embeddings.
        processes: how many data sets are scored at a time; an encoder on a GPU takes as many GPUs.
        show: is given each row as it comes.

    Returns:
        What the file holds of these models and data sets: `encoders`, `rows`, `differences` (of each model against the
        first, with a 95 % interval of a paired bootstrap), `leaks`, and `examples` (see `examples`) by encoder
        and <family>/<name>.
    """
    cache_dir = Path(cache_dir).expanduser()
    out = Path(out).expanduser() if out else None
    if out:
        results.check(out)
    job = _Job(models, dims, cache_dir, results.earlier(out) if out else results.NOTHING)
    cards = [model.card(job.hashes[model.name]) for model in models]
    result: dict[str, Any] = {"format": results.FORMAT, "seed": SEED, "encoders": cards}
    result |= {"rows": [], "differences": [], "leaks": [], "examples": {model.name: {} for model in models}}
    for of_dataset in job.over(datasets, processes):
        for name, shown in of_dataset.pop("examples", {}).items():
            result["examples"][name] |= shown
        for key, values in of_dataset.items():
            result[key] += values
        for row in of_dataset["rows"]:
            show(row)
        if out:
            results.add(out, result)
    if out:
        results.add(out, result, table=True)
    return result


class _Job:
    """What is done with each data set; travels to the processes that do it."""

    def __init__(self, models: Sequence[Model], dims: Sequence[int] | None, cache_dir: Path, earlier: dict[str, Any]):
        self.models, self.dims, self.cache_dir = models, dims, cache_dir
        self.kept = results.by_hashes(earlier["rows"])
        self.differences = {(d.get("hash"), d.get("against_hash"), d.get("mark")): d for d in earlier["differences"]}
        shown = [example for sets in earlier["examples"].values() for example in sets.values()]
        self.examples = {(example["hash"], example["mark"]): example for example in shown if "hash" in example}
        self.embeddings = {m.name: Embeddings(m.encoder, cache_dir / "embeddings") for m in models if m.encoder is not None}
        self.hashes = {m.name: m.digest(self.embeddings[m.name].hash) if m.encoder is not None else m.path for m in models}

    def over(self, datasets: Sequence[Dataset], processes: int) -> Iterator[dict[str, Any]]:
        if min(processes, len(datasets)) <= 1:
            yield from map(self.on, datasets)
            return
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(processes, context, _begin, (self, context.Value("i", 0), processes)) as pool:
                yield from pool.map(_on, datasets)
        except BrokenProcessPool as error:
            reason = "a process that scored was ended from outside, perhaps for want of memory"
            raise InputError(f"{reason}: give fewer processes than {processes}; what was scored before is kept") from error

    def on(self, dataset: Dataset) -> dict[str, Any]:
        """Rows, differences, leaks and examples of a data set."""
        try:
            data, evaluation_set = dataset.open(self.cache_dir)
        except (InputError, OSError) as error:
            unmarked = [(model, {"mark": None, "hash": self.hashes[model.name]}) for model in self.models]
            return {"rows": [_row(model, dataset, None, error=str(error)) | more for model, more in unmarked]}
        return _OneSet(self, dataset, data, evaluation_set).result()


class _OneSet:
    """All models on one data set; `units` are those of the models that were scored anew."""

    def __init__(self, job: _Job, dataset: Dataset, data: TaskDataset, evaluation_set: EvaluationSet):
        self.job, self.dataset, self.data, self.evaluation_set = job, dataset, data, evaluation_set
        self.fingerprint = dataset.fingerprint(evaluation_set)
        self.units: dict[str, Tensor | None] = {}

    def result(self) -> dict[str, Any]:
        done: dict[str, Any] = {"rows": [], "leaks": [], "examples": {}}
        for model in self.job.models:
            rows = self._rows(model)
            done["rows"] += rows
            done["leaks"] += _leak(model, self.dataset, self.evaluation_set)
            if model.encoder is not None and not rows[0]["error"]:
                done["examples"][model.name] = {f"{self.dataset.family}/{self.dataset.name}": self._examples(model)}
        failed = {row["encoder"] for row in done["rows"] if row["error"]}
        scored = [model for model in self.job.models if model.name not in failed]
        baselines = [model for model in scored if model is self.job.models[0]]
        return done | {"differences": [self._difference(m, b) for b in baselines for m in scored if m is not b]}

    def _rows(self, model: Model) -> list[Row]:
        """The ones that are kept, if none is lacking; else new ones."""
        wanted, digest = model.dims(self.job.dims), self.job.hashes[model.name]
        names = {"encoder": model.name, "dataset": self.dataset.name}
        kept = {row["dim"]: row | names for row in self.job.kept.get((digest, self.fingerprint), []) if row["dim"] in wanted}
        rows = [kept[dim] for dim in wanted] if len(kept) == len(wanted) else self._score(model, wanted)
        return [row | {"mark": self.fingerprint, "hash": digest} for row in rows]

    def _score(self, model: Model, dims: Sequence[int | None]) -> list[Row]:
        embeddings = self.job.embeddings.get(model.name)
        rows, self.units[model.name] = score(model, self.dataset, self.data, self.evaluation_set, dims, embeddings)
        return rows

    def _examples(self, model: Model) -> dict[str, Any]:
        digests = {"hash": self.job.hashes[model.name], "mark": self.fingerprint}
        kept = self.job.examples.get(tuple(digests.values()))
        if kept is not None:
            return kept
        vectors = self.job.embeddings[model.name].encode_set(self.evaluation_set, model.prompts)
        return examples(self.dataset.family, vectors, self.evaluation_set, getattr(self.data, "classes", ())) | digests

    def _difference(self, model: Model, baseline: Model) -> dict[str, Any]:
        """At full size, with its 95 % interval; measured if it is not kept of these encoders and rows."""
        names = {"encoder": model.name, "against": baseline.name, "family": self.dataset.family, "dataset": self.dataset.name}
        digests = {
            "hash": self.job.hashes[model.name],
            "against_hash": self.job.hashes[baseline.name],
            "mark": self.fingerprint,
        }
        kept = self.job.differences.get(tuple(digests.values()))
        if kept is not None:
            return {**kept, **names}
        for each in (model, baseline):
            if self.units.get(each.name) is None:
                self._score(each, each.dims([]))
        metric = FAMILIES[self.dataset.family][1]
        low, middle, high = bootstrap(metric, self.units[model.name], self.units[baseline.name])
        return names | {"difference": middle, "low": low, "high": high} | digests


_job: _Job


def _begin(job: _Job, counter: Any, processes: int) -> None:
    """In a new process: take the job, and a device; end when the process that started it has ended, however that was."""
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
    multiprocessing.parent_process().join()
    os._exit(1)


def _on(dataset: Dataset) -> dict[str, Any]:
    return _job.on(dataset)


def score(
    model: Model,
    dataset: Dataset,
    data: TaskDataset,
    evaluation_set: EvaluationSet,
    dims: Sequence[int | None],
    embeddings: Embeddings | None,
) -> tuple[list[Row], Tensor | None]:
    """A row for each dim, and the units of the first one; a single row with the reason if it fails."""
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
            measured = metric.units(cut, evaluation_set.labels)
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


# ---- differences and leaks


def bootstrap(metric: EmbeddingMetric, mine: Tensor, other: Tensor, resamples: int = _RESAMPLES) -> tuple[float, float, float]:
    """2.5 %, the difference itself, and 97.5 % of mine less other over units drawn with replacement, the same of both."""
    rng = np.random.default_rng(SEED)
    draws = [torch.from_numpy(rng.integers(0, len(mine), len(mine))) for _ in range(resamples)]
    spread = [metric.values(mine[d])[metric.main] - metric.values(other[d])[metric.main] for d in draws]
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(low), metric.values(mine)[metric.main] - metric.values(other)[metric.main], float(high)


def _leak(model: Model, dataset: Dataset, evaluation_set: EvaluationSet) -> list[dict[str, Any]]:
    """How many evaluated rows are among those that the encoder was trained on, if it says which those are."""
    file = Path(model.path) / "training_rows.npy"
    if not file.is_file():
        return []
    told = {"encoder": model.name, "family": dataset.family, "dataset": dataset.name, "rows": len(evaluation_set.keys)}
    try:
        return [told | {"found": int(np.isin(evaluation_set.keys, _training_rows(file)).sum())}]
    except InputError as error:
        return [told | {"found": None, "error": str(error)}]


def _training_rows(file: Path) -> np.ndarray:
    """Int64[n] hashes of the rows that an encoder was trained on."""
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from None
    except (EOFError, ValueError, MemoryError):
        raise InputError(f"{file} is damaged (NumPy finds no numbers in it): export the encoder again") from None
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise InputError(f"{file} is damaged (it holds {rows.dtype} of {rows.ndim} dims): export the encoder again")
    return rows
