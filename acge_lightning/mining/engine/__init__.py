"""Work on shards of rows: in this process, in several, or on a Ray cluster, with the same functions and results in order."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.mining.engine.shards import Run as Run
    from acge_lightning.mining.engine.shards import in_process as in_process
    from acge_lightning.mining.engine.shards import open_engine as open_engine
    from acge_lightning.mining.engine.shards import tables as tables

__all__, __getattr__, __dir__ = lazy_names(__name__, shards="Run in_process open_engine tables")
