"""Loads encoders by path or name: folders, named releases, the Hugging Face hub; grows a transformer from a static one."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.zoo.growth import grow as grow
    from acge_lightning.zoo.pretrained import from_pretrained as from_pretrained
    from acge_lightning.zoo.pretrained import load as load
    from acge_lightning.zoo.releases import Release as Release
    from acge_lightning.zoo.releases import models as models

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    growth="grow",
    pretrained="from_pretrained load",
    releases="Release models",
)
