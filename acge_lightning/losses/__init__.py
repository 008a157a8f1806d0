"""Losses on embeddings, and Matryoshka around any of them."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.losses.contrastive import CoSENT as CoSENT
    from acge_lightning.losses.contrastive import CosineLoss as CosineLoss
    from acge_lightning.losses.contrastive import InfoNCE as InfoNCE
    from acge_lightning.losses.contrastive import LabelContrast as LabelContrast
    from acge_lightning.losses.contrastive import SimCSE as SimCSE
    from acge_lightning.losses.matryoshka import Matryoshka as Matryoshka

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    contrastive="CoSENT CosineLoss InfoNCE LabelContrast SimCSE",
    matryoshka="Matryoshka",
)
