"""`acge train`: train one run, or several stages one after the other."""

from __future__ import annotations

from omegaconf import DictConfig

from acge_lightning.commands.jobs import needs_own_process, run_in_own_process
from acge_lightning.errors import InputError


def run(cfg: DictConfig) -> float:
    """Train as the config says, and return the score for a sweep."""
    if cfg.get("stages"):
        from acge_lightning.commands.stages import sequence as job
    elif cfg.get("strategy"):
        raise InputError("strategy is for several stages: set stages, or callbacks=[…,ewc] for one run with an anchor")
    elif needs_own_process(cfg):
        job = run_in_own_process
    else:
        from acge_lightning.commands.single_run import train as job
    return job(cfg)
