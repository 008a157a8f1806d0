"""`acge pca`: rotate an encoder to its principal components, so that short prefixes keep most."""

from __future__ import annotations

from omegaconf import DictConfig

from acge_lightning.commands.single_run import make_tasks
from acge_lightning.config.secrets import recorded
from acge_lightning.encoder.pca import rotate_to_components, sample_texts
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.export.sentence_transformers import export
from acge_lightning.files.folder import check_target
from acge_lightning.terminal import show
from acge_lightning.zoo.pretrained import load


def run(cfg: DictConfig) -> None:
    """Rotate the encoder and export it."""
    check_target(cfg.output)
    encoder, tasks = load(cfg.model, device=cfg.device), make_tasks(cfg)
    texts = Texts(lambda: (text for task in tasks.values() for text in task.data.train_texts()))
    chosen = sample_texts(texts, cfg.texts)
    record = {"pca": {"of": str(recorded(cfg)["model"]), "texts": len(chosen)}}
    folder = export(rotate_to_components(encoder, chosen), cfg.output, record)
    show(f"{cfg.model}, turned to the {encoder.dim} components of {len(chosen)} texts, is in {folder}")
