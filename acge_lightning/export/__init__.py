"""Export: an encoder as a folder that other libraries read."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.export.sentence_transformers import export as export

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    sentence_transformers="export",
)
