"""Training: the Lightning modules, their optimizer, checkpoints, and batches across devices."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.training.checkpoint import SafeCheckpointIO as SafeCheckpointIO
    from acge_lightning.training.embedding_module import EmbeddingModule as EmbeddingModule
    from acge_lightning.training.masked_lm import MaskedLanguageModule as MaskedLanguageModule
    from acge_lightning.training.optim import Optim as Optim

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    checkpoint="SafeCheckpointIO",
    embedding_module="EmbeddingModule",
    masked_lm="MaskedLanguageModule",
    optim="Optim",
)
