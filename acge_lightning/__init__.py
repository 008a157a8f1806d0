"""Train text-embedding models and use them: the importable names, loaded when first asked for."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.classify import AdaptiveClassifier as AdaptiveClassifier
    from acge_lightning.encoder import Encoder as Encoder
    from acge_lightning.encoder import similarity as similarity
    from acge_lightning.errors import InputError as InputError
    from acge_lightning.search import FunnelIndex as FunnelIndex
    from acge_lightning.zoo import load as load

__version__ = "0.1.0"
__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    classify="AdaptiveClassifier",
    encoder="Encoder similarity",
    errors="InputError",
    search="FunnelIndex",
    zoo="load",
)
