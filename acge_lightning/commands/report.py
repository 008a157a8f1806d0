"""`acge report`: write one page that compares runs and evaluations."""

from __future__ import annotations

from omegaconf import DictConfig

from acge_lightning.config.building import instantiate_all, plain
from acge_lightning.report.figures import figures
from acge_lightning.report.page import report
from acge_lightning.report.style import log_figures, save_figures
from acge_lightning.terminal import show


def run(cfg: DictConfig) -> None:
    """Write the page, and the pictures and loggers that the config names."""
    config = plain(cfg)
    runs = report(config["runs"], config["out"])
    if config["pictures"]:
        show(f"{len(save_figures(figures(runs), config['pictures']))} pictures are in {config['pictures']}")
    loggers = instantiate_all(cfg.logger, trusted=[])
    if loggers:
        from acge_lightning.commands.single_run import closing

        with closing(loggers):
            for logger in loggers:
                log_figures(logger, figures(runs))
    for item in runs:
        for remark in item.remarks:
            show(f"{item.name}: {remark}", stderr=True)
    show(f"The report is in {config['out']}")
