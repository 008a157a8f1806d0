"""`acge clean`: training rows without leaks, duplicates and contradictions, and a report of what was left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from acge_lightning.commands.checks import checked_prompts
from acge_lightning.config.building import plain
from acge_lightning.errors import InputError
from acge_lightning.files.folder import check_target, whole_folder
from acge_lightning.mining.cleaning.output import QUARANTINE, digests, write
from acge_lightning.mining.cleaning.pile import Pile
from acge_lightning.mining.cleaning.row_shards import read_datasets
from acge_lightning.mining.cleaning.steps import STEPS, StepResult, clean
from acge_lightning.mining.cleaning.training_rows import DataFiles, ReadingSettings, find_datasets
from acge_lightning.mining.engine.shards import Run, open_engine
from acge_lightning.report.cleaning import cleaning_page
from acge_lightning.terminal import ProgressBar, show, track

_LOG = logging.getLogger(__name__)
_RECORDED = ("source", "family", "tasks", "evaluation", "columns", "labels", "steps", "quality")  # settings in the manifest


def run(cfg: DictConfig) -> None:
    """Clean the rows, and write them with a report, quarantine files and a manifest."""
    config = plain(cfg)
    check_target(config["out"])
    datasets = find_datasets(config["source"], config["family"], config["tasks"])
    if not any(data.train for data in datasets):
        raise InputError(f"source={config['source']} has no training rows: there is nothing to clean")
    evaluated = _evaluation_sets(datasets, config["evaluation"])
    if config["steps"].get("leaks") is not None and not evaluated:
        _LOG.warning("there are no evaluation rows, so leaks are not looked for: give evaluation=DIR, a folder of data sets")
    _check_outside(config["out"], [*datasets, *evaluated])
    steps = _with_encoder(config["steps"])
    sources = digests([*datasets, *(data for data in evaluated if data not in datasets)])
    evaluated_only = [data for data in datasets if not data.train]
    datasets = [data for data in datasets if data.train]
    with open_engine(config["engine"], config["out"], config["workers"], config["ray_address"]) as shards:
        pile = _read(datasets, evaluated, sources, config, shards)
        results = _clean(pile, steps, shards)
        manifest = _write(pile, evaluated_only, sources, config)
    show(_step_table(results), _row_table(manifest["counts"]))
    out = config["out"]
    show(f"The rows are in {out}, those left out in {out}/{QUARANTINE}, examples of them in {out}/report.html")


def _clean(pile: Pile, steps: dict[str, Any], shards: Run) -> list[StepResult]:
    with ProgressBar("clean", "steps", sum(steps.get(name) is not None for name in STEPS)) as progress:
        results = []
        for result in clean(pile, steps, shards):
            results.append(result)
            progress.advance()
    return results


def _write(
    pile: Pile, evaluated_only: list[DataFiles], sources: dict[str, dict[str, str]], config: dict[str, Any]
) -> dict[str, Any]:
    """Write the folder; return its manifest, which does not depend on the engine."""
    settings = {key: config[key] for key in _RECORDED}
    with whole_folder(config["out"]) as folder:
        manifest = write(pile, folder, sources, settings, evaluated_only, config["quality"])
        (folder / "report.html").write_text(cleaning_page(folder), encoding="utf-8")
    return manifest


def _check_outside(out: str, datasets: list[DataFiles]) -> None:
    """Refuse an output folder that holds files that are read: it is replaced whole."""
    folder = Path(out).expanduser().resolve()
    for data in datasets:
        for file in (*data.train, *data.evaluation):
            if file.resolve().is_relative_to(folder):
                raise InputError(f"out={out} holds {file}, which is read, and would be replaced: give another folder")


def _evaluation_sets(datasets: list[DataFiles], folders: str | list[str] | None) -> list[DataFiles]:
    """List the data sets with evaluation rows: those of the source, and of further folders."""
    names = [folders] if isinstance(folders, str) else folders or []
    further = [data for folder in names for data in find_datasets(folder, None, None)]
    return [data for data in [*datasets, *(d for d in further if d not in datasets)] if data.evaluation]


def _read(
    datasets: list[DataFiles],
    evaluated: list[DataFiles],
    sources: dict[str, dict[str, str]],
    config: dict[str, Any],
    shards: Run,
) -> Pile:
    settings = ReadingSettings(config["columns"] or {}, config["labels"] or {}, config["on_bad_row"])
    jobs = [(data, data.train) for data in datasets] + [(data, data.evaluation) for data in evaluated]
    read = list(track(read_datasets(jobs, settings, sources, shards), "read", "data sets", len(jobs)))
    for rows in read[len(datasets) :]:
        if rows.unread:
            _LOG.warning("%s: %d evaluation rows cannot be read, and are not looked for", rows.data.name, len(rows.unread))
    return Pile(read[: len(datasets)], read[len(datasets) :])


def _with_encoder(steps: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the steps; of `consistency`, with what embeds texts in place of its model, prompts and device."""
    settings = dict(steps.get("consistency") or {})
    model, prompts, device = (settings.pop(key, None) for key in ("model", "prompts", "device"))
    if model is None:
        return dict(steps)
    from acge_lightning.embed.cache import Embeddings  # torch, which the other steps do without
    from acge_lightning.zoo.pretrained import load

    embeddings = Embeddings(load(model, device=device))
    names = checked_prompts(prompts, embeddings.encoder.prompts, "steps.consistency.prompts")

    def embed(texts: Sequence[str], role: str) -> np.ndarray:
        return embeddings.encode(list(texts), names.get(role)).numpy()

    return dict(steps) | {"consistency": settings | {"embed": embed}}


def _step_table(results: list[StepResult]) -> Table:
    table = Table(title="Steps", title_justify="left")
    for name in ("step", "rows", "left out", "reported", "seconds", "rows/s"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for result in results:
        rate = f"{result.rows / result.seconds:,.0f}" if result.seconds >= 0.001 else ""
        numbers = [f"{value:,}" for value in (result.rows, result.dropped, result.reported)]
        table.add_row(result.name, *numbers, f"{result.seconds:.1f}", rate)
    return table


def _row_table(counts: dict[str, Any]) -> Table:
    table = Table(title="Rows", title_justify="left")
    for name in ("data set", "read", "kept", "left out"):
        table.add_column(name, justify="right" if name in ("read", "kept") else "left", overflow="fold")
    for name, count in counts.items():
        reasons = count["left_out"] | {key: count[key] for key in ("unreadable", "neutral") if count[key]}
        largest_first = sorted(reasons.items(), key=lambda item: -item[1])
        table.add_row(
            name, f"{count['read']:,}", f"{count['kept']:,}", "; ".join(f"{reason} {rows:,}" for reason, rows in largest_first)
        )
    return table
