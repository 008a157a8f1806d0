"""Draw the settings that `FunnelIndex.tune` has tried. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acge_lightning.errors import InputError
from acge_lightning.evaluation.results import Row
from acge_lightning.report.figures import figures
from acge_lightning.report.runs import Run
from acge_lightning.report.style import figure_style, save_figure

_DPI = 200


def save_tuning_figure(points: Sequence[Row], file: str | Path) -> Path:
    """Draw recall against speed-up, with the Pareto front, and write it as PNG.

    Args:
        points: `Tuned.to_rows()`, or the `points` of a `funnel.json`: rows with `label`, `recall` and `speedup`.
        file: the picture.

    Raises:
        InputError: matplotlib is not installed, there are no points, or the file is there and is no picture of ours.
    """
    if not points:
        raise InputError("there are no points to draw: give the rows of what was tried")
    figure = figures([Run("funnels", Path(file).parent, funnel=list(points))])["funnel"]
    with figure_style():
        return save_figure(figure, Path(file), _DPI)
