"""`acge models`: list the encoders that have a name, with what is known of them."""

from __future__ import annotations

from itertools import pairwise

from rich.table import Table

from acge_lightning.terminal import show
from acge_lightning.zoo.location import is_downloaded
from acge_lightning.zoo.releases import Release, models

_COLUMNS = ("name", "MB", "dims", "trained prefixes", "tokens", "licence", "here")


def run() -> None:
    """Print a table of them, and the remarks."""
    releases = models()
    table = Table(*_COLUMNS, title="Encoders that load(NAME) knows")
    table.columns[0].no_wrap = True
    for name, release in releases.items():
        sizes = f"{release.megabytes:,.0f}", str(release.dims), _prefixes(release), f"{release.max_tokens or 0:,}"
        table.add_row(name, *sizes, release.licence, "✓" if is_downloaded(release) else "")
    show(table)
    for name, release in releases.items():
        if release.note:
            show(f"{name}: {release.note}")
    show("Others are fetched from the Hugging Face hub when they are first loaded. `none declared`: ask their makers first.")


def _prefixes(release: Release) -> str:
    """Its trained prefixes in short."""
    dims = release.matryoshka_dims
    steps = {longer - shorter for shorter, longer in pairwise(dims)}
    return f"{dims[0]} to {dims[-1]}, each {steps.pop()}" if len(dims) > 3 and len(steps) == 1 else ", ".join(map(str, dims))
