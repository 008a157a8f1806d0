"""Score our encoders with the library mteb, on its suites and on local folders."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.evaluation.mteb.encoder import MTEBEncoder as MTEBEncoder
    from acge_lightning.evaluation.mteb.encoder import as_mteb as as_mteb

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    encoder="MTEBEncoder as_mteb",
)
