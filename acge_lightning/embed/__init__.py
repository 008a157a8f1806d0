"""Embeddings that are computed once and kept."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.embed.cache import Embeddings as Embeddings

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    cache="Embeddings",
)
