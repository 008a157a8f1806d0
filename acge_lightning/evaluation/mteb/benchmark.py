"""Score encoders with mteb 2: on its suites, whose data come from the hub, and on local folders."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acge_lightning.data.dataset import CACHE
from acge_lightning.data.store import MAX_BAD, OnBadRow
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import SEED, Dataset, find
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.mteb.encoder import MTEBEncoder, as_mteb, isolated_randomness, mteb_library
from acge_lightning.evaluation.mteb.tasks import local_tasks

_LOG = logging.getLogger(__name__)
_UNSAFE = re.compile(r"[^\w.-]")  # in the name of a file
SUITES = {"cmteb": "MTEB(cmn, v1)"}
_DECIMALS = 6  # as in mteb's files, so that a value does not depend on whether it is read from there
Scores = dict[str, dict[str, float]]


def suite_scores(
    models: Sequence[Model],
    suite: str,
    out: str | Path,
    paths: Mapping[str, str],
    tasks: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    on_bad_row: OnBadRow = "raise",
    max_bad_fraction: float = MAX_BAD,
    exclude_own_id: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, float | None] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Score encoders with mteb: encoder at dim -> task -> metric -> value.

    Args:
        models: encoders; mteb takes no lexical baselines.
        suite: `local` for the data sets under `paths["data_dir"]`, `cmteb` or another benchmark's name for the hub's.
        out: folder for results in mteb's format.
        paths: `data_dir` and `cache_dir`.
        tasks: with `local`, as in `find`.
        dims: prefix sizes; as in `Model.dims`.
        on_bad_row: with `local`, as in `find`.
        max_bad_fraction: with `local`, as in `find`.
        exclude_own_id: with `local`, as in `find`.
        columns: with `local`, as in `find`.
        labels: with `local`, as in `find`.
    """
    scores_of: dict[str, dict[str, dict[str, float]]] = {}
    for model in models:
        encoder = model.require_encoder(f"with suite={suite} give encoders only")
        for dim in model.dims(dims):
            if suite == "local":
                datasets = find(
                    paths["data_dir"],
                    tasks,
                    on_bad_row=on_bad_row,
                    max_bad_fraction=max_bad_fraction,
                    exclude_own_id=exclude_own_id,
                    columns=columns,
                    labels=labels,
                )
                scores = run_local(encoder, model.name, datasets, out, dim, model.prompts, paths["cache_dir"])
            else:
                scores = run_suite(encoder, model.name, suite, out, dim, model.prompts)
            scores_of[f"{model.name}@{dim}"] = scores
    return scores_of


@isolated_randomness()
def run_suite(
    encoder: Encoder,
    name: str,
    suite: str = "cmteb",
    out: str | Path = "mteb",
    dim: int | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Scores:
    """Score an encoder on a benchmark of mteb, whose data come from the hub.

    Args:
        encoder: what is scored.
        name: as in `as_mteb`, also `dim` and `prompts`.
        suite: `cmteb` (MTEB(cmn, v1), the Chinese tasks), or the name of any other benchmark of mteb.
        out: folder of the results in mteb's format; what it holds of this encoder is not scored again.
        dim: leading dims.
        prompts: task, type or role -> name of a prompt.

    Returns:
        Name of a task -> metric -> value, the mean over its splits and subsets; `main_score` is what mteb counts.

    Raises:
        InputError: an unknown suite, a hub that cannot be reached, or what `as_mteb` raises.
    """
    mteb = mteb_library()
    try:
        benchmark = mteb.get_benchmark(SUITES.get(suite, suite))
    except KeyError as error:
        raise InputError(
            f"suite={suite!r} is unknown ({error.args[0]}): give {', '.join(SUITES)} or a name of mteb's"
        ) from None
    tasks = [_fresh_task(task) for task in benchmark.tasks]
    results = _run(as_mteb(encoder, name, dim, prompts), tasks, out)
    return dict(zip((task.metadata.name for task in tasks), results, strict=True))


@isolated_randomness()
def run_local(
    encoder: Encoder,
    name: str,
    datasets: Sequence[Dataset],
    out: str | Path,
    dim: int | None = None,
    prompts: Mapping[str, str] | None = None,
    cache_dir: str | Path = CACHE,
) -> Scores:
    """Score an encoder with mteb's tasks on local folders; no network is needed.

    Args:
        encoder: what is scored.
        name: as in `as_mteb`, also `dim` and `prompts`.
        datasets: as in `local_tasks`.
        out: folder of the results in mteb's format; what it holds of this encoder and the same files is not scored again.
        dim: leading dims.
        prompts: task, type or role -> name of a prompt.
        cache_dir: of the checked rows.

    Returns:
        Name of a data set (`family/name` where several share one) -> metric -> value; `main_score` is what mteb counts.

    Raises:
        InputError: what `as_mteb` and `local_tasks` raise, or rows that do not fit.
    """
    tasks = local_tasks(datasets, cache_dir)
    names = [dataset.name for dataset in datasets]
    keys = [d.name if names.count(d.name) == 1 else f"{d.family}/{d.name}" for d in datasets]
    return dict(zip(keys, _run(as_mteb(encoder, name, dim, prompts), tasks, out), strict=True))


def _fresh_task(task: Any) -> Any:
    """Make a task anew: mteb keeps one object for all runs, whose generator would continue from the last run."""
    fresh = type(task)(seed=SEED)
    fresh.hf_subsets = task.hf_subsets
    return fresh.filter_eval_splits(task.eval_splits)


def _run(model: MTEBEncoder, tasks: Sequence[Any], out: str | Path) -> list[dict[str, float]]:
    """Score each task; mteb writes the results below `out`."""
    mteb = mteb_library()
    from httpx import TransportError
    from huggingface_hub.errors import HfHubHTTPError
    from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

    _check_keys(model.prompts, tasks)
    cache, results = mteb.ResultCache(Path(out).expanduser()), []
    for task in tasks:
        has_result = _has_result(cache, task, model)
        try:
            with warnings.catch_warnings():
                for category in (ConvergenceWarning, UndefinedMetricWarning):  # mteb's 100 iterations; labels never predicted
                    warnings.simplefilter("ignore", category)
                result = mteb.evaluate(
                    model,
                    task,
                    co2_tracker=False,
                    encode_kwargs={"batch_size": 1024, "show_progress_bar": False},
                    cache=cache,
                    overwrite_strategy="only-missing" if has_result else "always",
                    show_progress_bar=False,
                )
        except (ConnectionError, HfHubHTTPError, TransportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{task.metadata.name}: the hub cannot be reached ({reason}): check the network and run again, what is done is "
                f"in {out}; or use suite=local, which scores folders of data and works offline"
            ) from error
        results.append(_values(result.task_results[0]))
    return results


def _has_result(cache: Any, task: Any, model: MTEBEncoder) -> bool:
    """Tell whether the folder has a result of this task and its rows; one of other rows, or a damaged one, is renamed."""
    name, meta = task.metadata.name, model.mteb_model_meta
    try:
        result = cache.load_task_result(name, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        suffix, reason = "damaged", f"is damaged ({' '.join(str(error).split()):.200})"
    else:
        if result is None or result.dataset_revision == task.metadata.revision:
            return result is not None
        suffix, reason = str(result.dataset_revision)[:24], "is of other rows"
    file = cache.get_task_result_path(name, meta)
    aside = file.with_name(f"{file.name}.{_UNSAFE.sub('_', suffix)}")
    os.replace(file, aside)
    _LOG.warning("%s %s: it is kept as %s, and the task is scored again", file, reason, aside.name)
    return False


def _check_keys(prompts: Mapping[str, str], tasks: Sequence[Any]) -> None:
    types = {task.metadata.type for task in tasks}
    allowed_keys = {task.metadata.name for task in tasks} | types | {"query", "document"}
    for key in prompts:
        if key not in allowed_keys and re.sub("-(query|document)$", "", key) not in allowed_keys:
            raise InputError(
                f"prompts.{key} fits no text of these tasks: give query, document, a type ({', '.join(sorted(types))}) or "
                "the name of a task, both also with -query or -document"
            )


def _values(result: Any) -> dict[str, float]:
    """Average each metric over splits and subsets: `main_score`, and others if they are numbers."""
    subset_scores = [scores for split in result.scores.values() for scores in split]
    numbers = [name for name, value in subset_scores[0].items() if isinstance(value, (int, float))]
    values = {name: round(float(np.mean([scores[name] for scores in subset_scores])), _DECIMALS) for name in numbers}
    return {name: value for name, value in values.items() if name == "main_score" or np.isfinite(value)}
