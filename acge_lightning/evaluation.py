"""Scores of encoders on every data set of a folder, each family by the protocol of MTEB (arXiv 2210.07316).

| family | what is measured | how |
|---|---|---|
| sts | Spearman's correlation of cosine and score | |
| pair | average precision of the cosine | |
| classification | accuracy of logistic regression | 8 training texts a class, 10 draws |
| clustering | v-measure of mini-batch k-means | 2048 texts drawn with replacement, 10 draws |
| retrieval | nDCG@10; MRR@10, recall@10 | |
| reranking | mean average precision; MRR@10 | |

Draws follow from the seed (42), and are those of MTEB for the same rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from acge_lightning.data import (
    ClassificationDataModule,
    ClusteringDataModule,
    PairDataModule,
    RerankingDataModule,
    RetrievalDataModule,
    STSDataModule,
)
from acge_lightning.data.base import CACHE, EvaluationSet, TaskDataModule
from acge_lightning.embeddings import Embeddings
from acge_lightning.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.examples import examples
from acge_lightning.lexical import LEXICAL
from acge_lightning.metrics import AveragePrecision, EmbeddingMetric, LinearProbe, Reranking, Retrieval, Spearman, VMeasure
from acge_lightning.pretrained import load

SEED = 42
FAMILIES: dict[str, tuple[Callable[..., TaskDataModule], EmbeddingMetric]] = {
    "classification": (partial(ClassificationDataModule, shots=8, draws=10, seed=SEED), LinearProbe(seed=SEED)),
    "clustering": (ClusteringDataModule, VMeasure(seed=SEED, draws=10)),
    "pair": (PairDataModule, AveragePrecision()),
    "reranking": (RerankingDataModule, Reranking()),
    "retrieval": (RetrievalDataModule, Retrieval()),
    "sts": (STSDataModule, Spearman()),
}
_RESAMPLES = 200
Row = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """A data set of a folder.

    Args:
        family: a key of `FAMILIES`.
        path: its folder.
        split: what is scored, `test` or `dev`.
        limit: most rows of the split, evenly drawn; None for all.
    """

    family: str
    path: Path
    split: str
    limit: int | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def open(self, cache_dir: Path) -> tuple[TaskDataModule, EvaluationSet]:
        """Its rows, checked, and what is scored."""
        needed = {self.split, "train"} if self.family == "classification" else {self.split}
        unread = {role: None for role in ("train", "dev", "test") if role not in needed}
        data = FAMILIES[self.family][0](self.path, splits=unread, holdout=0.0, max_dev=self.limit, cache_dir=cache_dir)
        found = data.evaluation(self.split)
        if found is None:
            raise InputError(f"{self.path} has no {self.split} split: nothing can be scored")
        return data, found


def find(
    folder: str | Path, tasks: Sequence[str] | None = None, split: str | None = None, limit: int | None = None
) -> list[Dataset]:
    """The data sets under `folder`/<family>/<name>.

    Args:
        folder: in our layout.
        tasks: names of data sets or of families; all by default.
        split: `test` or `dev`; by default `test`, or `dev` of a set without it.
        limit: as in `Dataset`.

    Raises:
        InputError: nothing there, or a name that is not there.
    """
    folder = Path(folder).expanduser()
    found = [
        Dataset(family, path, split or _split(path), limit)
        for family in FAMILIES
        for path in sorted((folder / family).glob("*"))
        if path.is_dir()
    ]
    if not found:
        raise InputError(f"{folder} holds no data set: give a folder with <family>/<name>/, of {', '.join(FAMILIES)}")
    if tasks is None:
        return found
    unknown = set(tasks) - {d.name for d in found} - {d.family for d in found}
    if unknown:
        raise InputError(f"tasks: {min(unknown)!r} is not under {folder}: choose from {sorted({d.name for d in found})}")
    return [d for d in found if d.name in tasks or d.family in tasks]


def _split(path: Path) -> str:
    names = [file.name for file in (path / "qrels" if (path / "qrels").is_dir() else path).glob("*")]
    return "test" if any(name.startswith("test") for name in names) else "dev"


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
    return [Model(n, path, None if path in LEXICAL else load(path, device=device), prompts) for n, path in named.items()]


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
    earlier = _earlier(Path(out)) if out else {"rows": [], "differences": [], "examples": {}}
    job = _Job(models, dims, cache_dir, earlier)
    cards = [_card(model, job.hashes[model.name]) for model in models]
    result: dict[str, Any] = {"format": 1, "seed": SEED, "encoders": cards, "rows": [], "differences": [], "leaks": []}
    result["examples"] = {model.name: {} for model in models}
    for part in job.over(datasets, processes):
        for name, found in part.pop("examples", {}).items():
            result["examples"][name] |= found
        for key, values in part.items():
            result[key] += values
        for row in part["rows"]:
            show(row)
        if out:
            _write(Path(out), result)
    if out:
        write_csv(Path(out).with_suffix(".csv"), result["rows"])
    return result


class _Job:
    """What is done with each data set; travels to the processes that do it."""

    def __init__(self, models: Sequence[Model], dims: Sequence[int] | None, cache_dir: Path, earlier: dict[str, Any]):
        self.models, self.dims, self.cache_dir, self.earlier = models, dims, cache_dir, earlier
        self.kept = _by_hashes(earlier["rows"])
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
        mark, units = _mark(dataset, found), {}
        done: dict[str, Any] = {"rows": [], "leaks": [], "examples": {}}
        for model in self.models:
            wanted, digest = model.dims(self.dims), self.hashes[model.name]
            rows = [row | {"encoder": model.name} for row in self.kept.get((digest, mark), []) if row["dim"] in wanted]
            if len(rows) < len(wanted):
                rows, units[model.name] = score(model, dataset, data, found, wanted, self.embeddings.get(model.name))
            done["rows"] += [row | {"mark": mark, "hash": digest} for row in rows]
            done["leaks"] += _leak(model, dataset, found)
            shown = self._examples(model, dataset, found, rows)
            done["examples"] |= {model.name: {f"{dataset.family}/{dataset.name}": shown}} if shown else {}
        return done | {"differences": _differences(self.models, dataset, units, self.earlier["differences"])}

    def _examples(self, model: Model, dataset: Dataset, found: EvaluationSet, rows: Sequence[Row]) -> dict[str, Any] | None:
        earlier = self.earlier["examples"].get(model.name, {}).get(f"{dataset.family}/{dataset.name}")
        if model.encoder is None or rows[0]["error"] or earlier:
            return earlier
        return examples(dataset.family, self.embeddings[model.name].of(found, model.prompts), found)


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
            measured = metric.units(vectors if dim is None else normalize(vectors[:, :dim], dim=-1), found.labels)
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


def failures(result: Mapping[str, Any]) -> list[Row]:
    """The rows with an error or a note."""
    return [row for row in result["rows"] if row["error"] or row["note"]]


def means(rows: Sequence[Row], encoder: str, dim: int | None) -> dict[str, float]:
    """Mean of the main scores of each family at a dim, and `mean`, that of the families; sets that failed are left out."""
    families: dict[str, list[float]] = {}
    for row in rows:
        if row["encoder"] == encoder and row["dim"] == dim and row["value"] is not None:
            families.setdefault(row["family"], []).append(row["value"])
    found = {family: sum(values) / len(values) for family, values in sorted(families.items())}
    return found | ({"mean": sum(found.values()) / len(found)} if found else {})


def suite_scores(
    models: Sequence[Model],
    suite: str,
    out: str | Path,
    paths: Mapping[str, str],
    tasks: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by mteb's own program: encoder at dim -> task -> metric -> value.

    Args:
        models: encoders; lexical baselines have no place in mteb.
        suite: `local` for the data sets under `paths["data_dir"]`, `cmteb` or another benchmark's name for the hub's.
        out: folder for results in mteb's format.
        paths: `data_dir` and `cache_dir`.
        tasks: with `local`, as in `find`.
        dims: prefix sizes; as in `Model.dims`.
    """
    from acge_lightning.benchmark import run_local, run_suite

    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in models:
        if model.encoder is None:
            raise InputError(f"model={model.path} is no encoder: with suite={suite} give encoders only")
        for dim in model.dims(dims):
            given = {"dim": dim, "prompts": model.prompts}
            if suite == "local":
                datasets = find(paths["data_dir"], tasks)
                scores = run_local(model.encoder, model.name, datasets, out, cache_dir=paths["cache_dir"], **given)
            else:
                scores = run_suite(model.encoder, model.name, suite, out, **given)
            found[f"{model.name}@{dim}"] = scores
    return found


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


# ---- files


def _card(model: Model, digest: str) -> dict[str, Any]:
    encoder = model.encoder
    dims = {} if encoder is None else {"dim": encoder.dim, "matryoshka_dims": list(encoder.matryoshka_dims)}
    return {"name": model.name, "path": model.path, "hash": digest, "dim": None, "matryoshka_dims": []} | dims


def _mark(dataset: Dataset, found: EvaluationSet) -> str:
    """A digest of the rows that are scored."""
    digest = hashlib.sha256(f"{dataset.family} {dataset.split} {len(found)}".encode())
    for text in found.texts.to_pylist():
        digest.update(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())
    digest.update(found.labels.numpy().tobytes())
    return digest.hexdigest()[:24]


def _earlier(file: Path) -> dict[str, Any]:
    """What an earlier run has left in a file, if it is there."""
    if not file.is_file():
        return {"rows": [], "differences": [], "examples": {}}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _by_hashes(found["rows"])
        return {key: found[key] for key in ("rows", "differences", "examples")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"out={file} holds no results of an evaluation ({error}): give another file") from None


def _by_hashes(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(encoder's hash, data's mark) -> the rows without an error."""
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["error"]:
            kept.setdefault((row["hash"], row["mark"]), []).append(row)
    return kept


def _write(file: Path, result: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, file)


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """One line a row."""
    columns = ["encoder", "family", "dataset", "split", "dim", "metric", "value", "n", "seconds", "note", "error"]
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
