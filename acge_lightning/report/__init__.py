"""Compare runs and evaluations: read their files, draw figures, write one page, print tables."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.report.page import report as report

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    page="report",
)
