"""Search that begins with a short prefix of the embeddings and ends with the whole one."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.search.funnel import FunnelIndex as FunnelIndex
    from acge_lightning.search.funnel import Hits as Hits
    from acge_lightning.search.stages import Stage as Stage
    from acge_lightning.search.tune import Tuned as Tuned

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    funnel="FunnelIndex Hits",
    stages="Stage",
    tune="Tuned",
)
