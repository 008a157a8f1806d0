"""Encoders scored on data sets, each family by its protocol (see `acge_lightning.protocols`), at all dims at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from acge_lightning import results
from acge_lightning.data.base import CACHE, EvaluationSet, TaskDataModule
from acge_lightning.embeddings import Embeddings
from acge_lightning.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.examples import examples
from acge_lightning.lexical import LEXICAL
from acge_lightning.metrics import EmbeddingMetric
from acge_lightning.pretrained import load
from acge_lightning.protocols import FAMILIES, SEED, Dataset
from acge_lightning.results import Row

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
    parts = [part for part in Path(path).parts if part not in ("export", "/", "..", ".")]
    return parts[-1] if parts else path


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
        out: JSON file, written after each data set and, at the end, beside a `.csv`; rows that it holds are not scored again.
        cache_dir: of checked rows and embeddings.
        processes: how many data sets are scored at a time; an encoder on a GPU takes as many GPUs.
        show: is given each row as it comes.

    Returns:
        What the file holds: `encoders`, `rows`, `differences` (of each model against the first, with a 95 % interval of a
        paired bootstrap), `leaks`, and `examples` (see `acge_lightning.examples`) by encoder and <family>/<name>.
    """
    cache_dir = Path(cache_dir).expanduser()
    earlier = results.earlier(Path(out)) if out else {"rows": [], "differences": [], "examples": {}}
    job = _Job(models, dims, cache_dir, earlier)
    cards = [model.card(job.hashes[model.name]) for model in models]
    result: dict[str, Any] = {"format": results.FORMAT, "seed": SEED, "encoders": cards}
    result |= {"rows": [], "differences": [], "leaks": [], "examples": {model.name: {} for model in models}}
    for part in job.over(datasets, processes):
        for name, found in part.pop("examples", {}).items():
            result["examples"][name] |= found
        for key, values in part.items():
            result[key] += values
        for row in part["rows"]:
            show(row)
        if out:
            results.write(Path(out), result)
    if out:
        results.write_csv(Path(out).with_suffix(".csv"), result["rows"])
    return result


class _Job:
    """What is done with each data set; travels to the processes that do it."""

    def __init__(self, models: Sequence[Model], dims: Sequence[int] | None, cache_dir: Path, earlier: dict[str, Any]):
        self.models, self.dims, self.cache_dir, self.earlier = models, dims, cache_dir, earlier
        self.kept = results.by_hashes(earlier["rows"])
        self.embeddings = {m.name: Embeddings(m.encoder, cache_dir / "embeddings") for m in models if m.encoder is not None}
        self.hashes = {m.name: self.embeddings[m.name].hash if m.encoder is not None else m.path for m in models}

    def over(self, datasets: Sequence[Dataset], processes: int) -> Iterator[dict[str, Any]]:
        if min(processes, len(datasets)) <= 1:
            yield from map(self.on, datasets)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, _begin, (self, context.Value("i", 0), processes)) as pool:
            yield from pool.map(_on, datasets)

    def on(self, dataset: Dataset) -> dict[str, Any]:
        """Rows, differences, leaks and examples of a data set."""
        try:
            data, found = dataset.open(self.cache_dir)
        except InputError as error:
            return {"rows": [_row(model, dataset, None, error=str(error)) for model in self.models]}
        mark, units = dataset.mark(found), {}
        done: dict[str, Any] = {"rows": [], "leaks": [], "examples": {}}
        for model in self.models:
            wanted, digest = model.dims(self.dims), self.hashes[model.name]
            rows = [row | {"encoder": model.name} for row in self.kept.get((digest, mark), []) if row["dim"] in wanted]
            if len(rows) < len(wanted):
                rows, units[model.name] = score(model, dataset, data, found, wanted, self.embeddings.get(model.name))
            done["rows"] += [row | {"mark": mark, "hash": digest} for row in rows]
            done["leaks"] += _leak(model, dataset, found)
            shown = self._examples(model, dataset, data, found, rows)
            done["examples"] |= {model.name: {f"{dataset.family}/{dataset.name}": shown}} if shown else {}
        return done | {"differences": _differences(self.models, dataset, units, self.earlier["differences"])}

    def _examples(
        self, model: Model, dataset: Dataset, data: TaskDataModule, found: EvaluationSet, rows: Sequence[Row]
    ) -> dict[str, Any] | None:
        earlier = self.earlier["examples"].get(model.name, {}).get(f"{dataset.family}/{dataset.name}")
        if model.encoder is None or rows[0]["error"] or earlier:
            return earlier
        vectors = self.embeddings[model.name].of(found, model.prompts)
        return examples(dataset.family, vectors, found, getattr(data, "classes", ()))


_job: _Job


def _begin(job: _Job, counter: Any, processes: int) -> None:
    """In a new process: take the job, and a device."""
    global _job
    _job = job
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    for model in job.models:
        if model.encoder is not None and model.encoder.device.type == "cuda":
            model.encoder.to(f"cuda:{number % torch.cuda.device_count()}")


def _on(dataset: Dataset) -> dict[str, Any]:
    return _job.on(dataset)


def score(
    model: Model,
    dataset: Dataset,
    data: TaskDataModule,
    found: EvaluationSet,
    dims: Sequence[int | None],
    embeddings: Embeddings | None,
) -> tuple[list[Row], Tensor | None]:
    """A row for each dim, and the units of the first one; a single row with the reason if it fails."""
    metric, rows, units = FAMILIES[dataset.family][1], [], None
    try:
        start = time.perf_counter()
        vectors = LEXICAL[model.path](found) if embeddings is None else embeddings.of(found, model.prompts)
        if isinstance(vectors, Tensor) and not vectors.isfinite().all():
            raise InputError("the encoder gave vectors that are not finite (NaN or infinity)")
        for dim in dims:
            cut = vectors if dim in (None, vectors.shape[1]) else normalize(vectors[:, :dim], dim=-1)
            measured = metric.units(cut, found.labels)
            values, seconds = metric.values(measured), time.perf_counter() - start
            rows.append(_row(model, dataset, dim, values, len(found.keys), seconds, data.note(dataset.split)))
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


def _differences(
    models: Sequence[Model], dataset: Dataset, units: Mapping[str, Tensor | None], earlier: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of each model against the first, at full size: the difference and its 95 % interval."""
    metric, found = FAMILIES[dataset.family][1], []
    for model in models[1:]:
        names = {"encoder": model.name, "against": models[0].name, "family": dataset.family, "dataset": dataset.name}
        mine, other = units.get(model.name), units.get(models[0].name)
        if mine is not None and other is not None:
            low, middle, high = bootstrap(metric, mine, other)
            found.append(names | {"difference": middle, "low": low, "high": high})
        elif not (model.name in units and models[0].name in units):  # one of them was not scored again
            found += [dict(known) for known in earlier if names.items() <= known.items()]
    return found


def bootstrap(metric: EmbeddingMetric, mine: Tensor, other: Tensor, resamples: int = _RESAMPLES) -> tuple[float, float, float]:
    """2.5 %, the difference itself, and 97.5 % of mine less other over units drawn with replacement, the same of both."""
    rng = np.random.default_rng(SEED)
    draws = [torch.from_numpy(rng.integers(0, len(mine), len(mine))) for _ in range(resamples)]
    spread = [metric.values(mine[d])[metric.main] - metric.values(other[d])[metric.main] for d in draws]
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(low), metric.values(mine)[metric.main] - metric.values(other)[metric.main], float(high)


def _leak(model: Model, dataset: Dataset, found: EvaluationSet) -> list[dict[str, Any]]:
    """How many evaluated rows are among those that the encoder was trained on, if it says which those are."""
    file = Path(model.path) / "training_rows.npy"
    if not file.is_file():
        return []
    seen = np.load(file, allow_pickle=False)
    return [
        {
            "encoder": model.name,
            "family": dataset.family,
            "dataset": dataset.name,
            "rows": len(found.keys),
            "found": int(np.isin(found.keys, seen).sum()),
        }
    ]
