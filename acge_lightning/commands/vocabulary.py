"""`acge vocabulary`: learn a vocabulary from the texts of tasks."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from acge_lightning.commands.single_run import make_tasks
from acge_lightning.config.building import instantiate
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.files.folder import check_target, whole_folder
from acge_lightning.terminal import show


def run(cfg: DictConfig) -> None:
    """Learn the vocabulary and write its folder."""
    folder = Path(cfg.output)
    check_target(folder)
    tasks = make_tasks(cfg)
    texts = Texts(lambda: (text for task in tasks.values() for text in task.data.train_texts()))
    tokenizer = instantiate(cfg.vocabulary, texts=texts, trusted=cfg.trusted)
    with whole_folder(folder) as new:
        tokenizer.save_pretrained(new)
    show(f"A vocabulary of {len(tokenizer)} tokens is in {folder}: use it with encoder.tokenizer={folder}")
