"""Record the rows that a run's scores come from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acge_lightning.data.dataset import Role
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import fingerprint
from acge_lightning.evaluation.leaks import read_training_rows
from acge_lightning.evaluation.scored_rows import SPLITS

_LOG = logging.getLogger(__name__)
_PREFIXES = {split: prefix for prefix, split in SPLITS.items()}


def scored_rows(config: Mapping[str, Any], mixture: MixtureDataModule) -> dict[str, dict[str, dict[str, Any]]]:
    """Record the rows of `dev`, and with `test` those of `test`: of which data they are, and how many were seen in training.

    Rows of this run's training count, and those that its encoder was trained on before, if the encoder has a record.

    Args:
        config: of the run.
        mixture: its data, set up.

    Returns:
        What `result.json` keeps as `data`: see `acge_lightning.evaluation.scored_rows`.
    """
    training_rows = [data.keys(data.train) for data in mixture.training_tasks.values()]
    roles: tuple[Role, ...] = ("dev", "test") if config["test"] else ("dev",)
    sets = [scored for role in roles for scored in _sets(mixture, role)]
    labelled = [scored for scored in sets if scored[3].labels is not None]  # the others have scores in masked-LM runs only
    rows = np.concatenate([*training_rows, *earlier_rows(config["encoder"].get("path"))])
    limit = config["trainer"].get("limit_val_batches")
    part = "" if limit is None or (isinstance(limit, float) and limit == 1) else f" {limit}"  # of fewer rows, so others
    record: dict[str, dict[str, dict[str, Any]]] = {}
    for role, task, family, evaluation_set in labelled or sets:
        entry = {"family": family, "rows": len(evaluation_set.keys), "hash": fingerprint(family, role, evaluation_set) + part}
        entry["seen"] = int(np.isin(evaluation_set.keys, rows).sum())
        record.setdefault(_PREFIXES[role], {})[task] = entry
    return record


def stage_rows(result: Mapping[str, Any], stages: Mapping[str, Sequence[str]], encoder: str) -> dict[str, dict[str, Any]]:
    """Record the rows that the tasks of each stage are scored on, as `scored_rows` does for tasks.

    Args:
        result: of `evaluate`, whose data sets are tasks.
        stages: name -> its tasks.
        encoder: whose training rows are looked for among them.
    """
    scored = {row["dataset"]: row for row in result["rows"] if row["encoder"] == encoder}
    seen = {leak["dataset"]: leak["found"] or 0 for leak in result["leaks"] if leak["encoder"] == encoder}
    record = {}
    for stage, tasks in stages.items():
        names = [name for name in tasks if name in scored]
        digest = hashlib.sha256(" ".join(f"{name} {scored[name]['mark']}" for name in names).encode()).hexdigest()[:24]
        counts = {"rows": sum(scored[name]["n"] for name in names), "seen": sum(seen.get(name, 0) for name in names)}
        record[stage] = {"family": "", "hash": digest, **counts}
    return record


def earlier_rows(path: str | None) -> list[np.ndarray]:
    """Read what a pretrained encoder was trained on; a damaged record is no reason to end a run that is done."""
    try:
        rows = read_training_rows(Path(path).expanduser()) if path else None
    except InputError as error:
        _LOG.warning("%s", error)
        return []
    return [] if rows is None else [rows]


def _sets(mixture: MixtureDataModule, role: Role) -> Iterator[tuple[str, str, str, EvaluationSet]]:
    for name in mixture.evaluated(role):
        evaluation_set = mixture.evaluation(name, role)
        if evaluation_set is not None:
            yield role, name, mixture.tasks[name].family, evaluation_set
