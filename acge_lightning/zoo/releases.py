"""Weights that have a name of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """Weights that have a name of their own: where they lie on the hub, and a line about them."""

    repo: str
    revision: str
    note: str


RELEASES = {
    "acge_text_embedding": Release("aspire/acge_text_embedding", "main", "Chinese, 1792 dims, Matryoshka, 1024 tokens"),
}


def models() -> dict[str, Release]:
    """The named weights."""
    return dict(RELEASES)
