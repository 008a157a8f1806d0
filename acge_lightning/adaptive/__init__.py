"""Searching and classifying that begin with a short prefix of the embeddings; names are loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acge_lightning.adaptive.classifier import AdaptiveClassifier as AdaptiveClassifier
    from acge_lightning.adaptive.funnel import FunnelIndex as FunnelIndex
    from acge_lightning.adaptive.funnel import Hits as Hits
    from acge_lightning.adaptive.stages import Stage as Stage
    from acge_lightning.adaptive.tune import Tuned as Tuned

_HOME = {
    "AdaptiveClassifier": "classifier",
    "FunnelIndex": "funnel",
    "Hits": "funnel",
    "Stage": "stages",
    "Tuned": "tune",
}
__all__ = ["AdaptiveClassifier", "FunnelIndex", "Hits", "Stage", "Tuned"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"acge_lightning.adaptive.{_HOME[name]}"), name)
    raise AttributeError(f"module 'acge_lightning.adaptive' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
