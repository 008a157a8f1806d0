"""Continual learning: what holds old tasks while a new one is learnt, and how much was forgotten."""

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
