"""`acge evaluate`: score encoders on folders of data sets, or by mteb on its suites."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from acge_lightning.config.building import plain
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.models import open_models
from acge_lightning.evaluation.mteb.benchmark import suite_scores
from acge_lightning.evaluation.results import failures
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.report.tables import evaluation_progress, evaluation_tables, leak_table, suite_table
from acge_lightning.terminal import show


def run(cfg: DictConfig) -> None:
    """Score the encoders, print the tables, and exit with an error if a data set was not scored."""
    config = plain(cfg)
    reading = {key: config[key] for key in ("exclude_own_id", "on_bad_row", "max_bad_fraction", "columns", "labels")}
    models = open_models(config["model"], config["device"], config["prompts"])
    if config["suite"]:
        folder = Path(config["out"]).with_suffix("")
        scores = suite_scores(
            models, config["suite"], folder, config["paths"], tasks=config["tasks"], dims=config["dims"], **reading
        )
        show(suite_table(scores), f"The results, in mteb's format, are in {folder}")
        return
    datasets = find(config["paths"]["data_dir"], config["tasks"], **reading)
    settings = config["dims"], config["out"], config["paths"]["cache_dir"], config["processes"]
    with evaluation_progress(len(models) * len(datasets)) as show_row:
        result = evaluate(models, datasets, *settings, show_row)
    show(leak_table(result), *evaluation_tables(result), f"The scores are in {config['out']}")
    failed = failures(result)
    if failed:
        sys.exit(f"error: {len(failed)} rows have an error; the table says why")
