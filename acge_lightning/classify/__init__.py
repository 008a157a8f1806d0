"""Classification that reads a short prefix of an embedding first, and more of it only where it must."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.classify.classifier import AdaptiveClassifier as AdaptiveClassifier

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    classifier="AdaptiveClassifier",
)
