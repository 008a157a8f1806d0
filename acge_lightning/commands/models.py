"""`acge models`: list the encoders that have a name."""

from __future__ import annotations

from acge_lightning.terminal import show
from acge_lightning.zoo.releases import models


def run() -> None:
    """Print a line for each."""
    for name, release in models().items():
        show(f"{name:24} {release.repo:36} {release.note}")
