"""Score encoders on data sets, each family by its protocol (see `acge_lightning.evaluation.datasets`), at all dims at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from acge_lightning.data.dataset import CACHE, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.evaluation import results
from acge_lightning.evaluation.datasets import FAMILIES, SEED, Dataset, labels_of
from acge_lightning.evaluation.differences import interval
from acge_lightning.evaluation.examples import examples
from acge_lightning.evaluation.leaks import leaks, seen_rows, unseen_units
from acge_lightning.evaluation.lexical import LEXICAL
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.results import Row


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
        self.leaks = {(leak.get("hash"), leak.get("mark"), leak.get("found")): leak for leak in kept_results["leaks"]}
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
        self.seen: dict[str, np.ndarray] = {}  # Bool[rows], of models that were trained on some of them

    def result(self) -> dict[str, Any]:
        done: dict[str, Any] = {"rows": [], "leaks": [], "examples": {}}
        for model in self.job.models:
            rows = self._rows(model)
            done["rows"] += rows
            done["leaks"] += self._leaks(model, bool(rows[0]["error"]))
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

    def _leaks(self, model: Model, failed: bool) -> list[dict[str, Any]]:
        """Count the rows that a model was trained on, and score it without them (`unseen`) where that can be done."""
        entries = leaks(model.name, Path(model.path), self.dataset, self.evaluation_set)
        seen = seen_rows(Path(model.path), self.evaluation_set) if entries and entries[0]["found"] else None
        if seen is None or failed:
            return entries
        self.seen[model.name] = seen
        digests = {"hash": self.job.hashes[model.name], "mark": self.fingerprint}
        kept_leak = self.job.leaks.get((*digests.values(), entries[0]["found"]), {})
        unseen = kept_leak["unseen"] if "unseen" in kept_leak else self._without_seen(model)
        return [entries[0] | digests | {"unseen": unseen}]

    def _without_seen(self, model: Model) -> float | None:
        metric, units = FAMILIES[self.dataset.family][1], self._units(model)
        kept = unseen_units(self.dataset.family, self.evaluation_set, len(units), self.seen[model.name])
        return None if kept is None else metric.values(units[kept])[metric.main]

    def _difference(self, model: Model, baseline: Model) -> dict[str, Any]:
        """Return the difference at full size, with its 95 % interval; it is computed unless it is kept."""
        names = {"encoder": model.name, "against": baseline.name, "family": self.dataset.family, "dataset": self.dataset.name}
        hashes = self.job.hashes
        digests = {"hash": hashes[model.name], "against_hash": hashes[baseline.name], "mark": self.fingerprint}
        kept_difference = self.job.differences.get((digests["hash"], digests["against_hash"], digests["mark"]))
        seen = [self.seen[m.name] for m in (model, baseline) if m.name in self.seen]
        if kept_difference is not None and ("unseen" in kept_difference) == bool(seen):
            return {**kept_difference, **names}
        metric, units = FAMILIES[self.dataset.family][1], (self._units(model), self._units(baseline))
        difference = names | interval(metric, *units) | digests
        if seen:
            kept = unseen_units(self.dataset.family, self.evaluation_set, len(units[0]), np.logical_or.reduce(seen))
            difference["unseen"] = None if kept is None else interval(metric, *(measured[kept] for measured in units))
        return difference

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
