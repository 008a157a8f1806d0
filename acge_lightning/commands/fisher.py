"""`acge fisher`: estimate which weights old tasks depend on, and save them as an anchor."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from acge_lightning.commands.single_run import make_tasks
from acge_lightning.continual.fisher import processes, write_anchor
from acge_lightning.errors import InputError
from acge_lightning.terminal import show
from acge_lightning.zoo.pretrained import load


def run(cfg: DictConfig) -> None:
    """Estimate the anchor and write its file."""
    file = Path(cfg.output)
    if file.suffix != ".safetensors":
        raise InputError(f"output={file} must be a file name that ends in .safetensors: try {file}.safetensors")
    with processes(cfg.device) as device:
        encoder, tasks = load(cfg.model, device=device), make_tasks(cfg)
        numbers = {name: cfg[name] for name in ("dims", "estimator", "samples", "pool", "seed", "batch_tokens")}
        _, anchor = write_anchor(file, encoder, tasks, cfg.bf16, **numbers, progress=True)
        if int(os.environ.get("RANK", "0")):
            return
    counts = ", ".join(f"{task['samples']} of {name}" for name, task in anchor.meta["tasks"].items())
    show(f"The anchor of {cfg.model} ({anchor.meta['estimator']}, samples: {counts}) is in {file}")
