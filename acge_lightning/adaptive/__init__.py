"""What prefixes of Matryoshka embeddings make cheaper; names come when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acge_lightning.adaptive.classifier import AdaptiveClassifier as AdaptiveClassifier

_HOME = {
    "AdaptiveClassifier": "classifier",
}
__all__ = ["AdaptiveClassifier"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"acge_lightning.adaptive.{_HOME[name]}"), name)
    raise AttributeError(f"module 'acge_lightning.adaptive' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
