"""Lists the released weights that `load` knows by a name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """Released weights: their repository and revision on the hub, and a line about them."""

    repo: str
    revision: str
    note: str


RELEASES = {
    "acge_text_embedding": Release("aspire/acge_text_embedding", "main", "Chinese, 1792 dims, Matryoshka, 1024 tokens"),
}


def models() -> dict[str, Release]:
    """Name -> released weights."""
    return dict(RELEASES)
