"""Continual learning: holding old tasks while a new one is learnt, and measures of forgetting."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.continual.anchor import Anchor as Anchor
    from acge_lightning.continual.strategy import Strategy as Strategy

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    anchor="Anchor",
    strategy="Strategy",
)
