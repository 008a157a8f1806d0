"""`acge longtail`: score few-shot, long-tailed classification at every size of an embedding."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from acge_lightning.config.building import plain
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.longtail import Protocol, longtail
from acge_lightning.evaluation.longtail_results import read
from acge_lightning.evaluation.models import open_models
from acge_lightning.report.longtail import save_figures, tables
from acge_lightning.terminal import show


def run(cfg: DictConfig) -> None:
    """Score the encoders, draw the pictures, and exit with an error if a data set was not scored."""
    config = plain(cfg)
    reading = {key: config[key] for key in ("on_bad_row", "max_bad_fraction", "columns")}
    datasets = find(config["paths"]["data_dir"], config["tasks"], **reading)
    protocol = Protocol(**config["protocol"])
    models = open_models(config["model"], config["device"], config["prompts"])
    settings = {"dims": config["dims"], "pca": config["pca"], "out": config["out"], "cache_dir": config["paths"]["cache_dir"]}
    result = longtail(models, datasets, protocol, **settings, progress=True)
    pictures = ", ".join(str(file) for file in save_figures(read(Path(config["out"])) or result, config["out"]))
    show(*tables(result), f"The scores are in {config['out']}, the pictures in {pictures}")
    if any(row["error"] for row in result["rows"]):
        sys.exit("error: a data set was not scored; the table says why")
