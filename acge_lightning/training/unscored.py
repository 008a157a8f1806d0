"""Training of tasks that have no score, such as texts alone."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.training.embedding_module import EmbeddingModule

ADVICE = (
    "Nothing was scored: texts have no labels. To see what training gives, add a task that has some, with weight 0: "
    "task=[texts,sample_sts] +task.sample_sts.weight=0; or score the model: acge evaluate model=… paths.data_dir=…"
)


def is_scored(module: LightningModule, mixture: MixtureDataModule) -> bool:
    """Whether a dev split is scored; a module of another kind has scores of its own, and says itself what it lacks."""
    return not isinstance(module, EmbeddingModule) or any(name in module.metrics for name in mixture.evaluated("dev"))


def leave_unscored(trainer: Trainer, module: LightningModule, mixture: MixtureDataModule) -> None:
    """Where nothing is scored, train without validation: there is no early end, and the last checkpoint is the best."""
    if is_scored(module, mixture):
        return
    trainer.limit_val_batches = 0
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.monitor = None
