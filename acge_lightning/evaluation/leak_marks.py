"""Mark the scores of rows that were seen in training, wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from acge_lightning.evaluation.results import families_in_mean

LEGEND = "† so many of the scored rows are in the encoder's training data: the score is too high"
Leaks = Mapping[tuple[str, str, str], Mapping[str, Any]]


def seen_text(seen: int, rows: int) -> str:
    """Write the mark that stands beside a score.

    >>> seen_text(273, 1000), seen_text(1, 10_000)
    ('†27.3 % seen', '†<0.1 % seen')
    """
    share = 100 * seen / max(1, rows)
    return f"†{share:.1f} % seen" if share >= 0.1 else "†<0.1 % seen"


def leaks_by_score(result: Mapping[str, Any]) -> Leaks:
    """Map encoder, family and data set to the entry of a leak, of those that have seen rows."""
    return {(leak["encoder"], leak["family"], leak["dataset"]): leak for leak in result.get("leaks", ()) if leak["found"]}


def spoilt_families(leaky: Leaks, encoder: str, families: Iterable[str]) -> set[str]:
    """Name the families whose mean has a data set with seen rows, and `mean` if it counts in the mean of families.

    Args:
        leaky: as of `leaks_by_score`.
        encoder: its name.
        families: all that the encoder has scores of.
    """
    spoilt = {family for name, family, _ in leaky if name == encoder}
    return spoilt | ({"mean"} if spoilt & set(families_in_mean(families)) else set())
