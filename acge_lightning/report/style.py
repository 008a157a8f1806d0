"""Style, label and save figures. Needs matplotlib."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import check_replaceable, whole
from acge_lightning.lazy import naming_extra
from acge_lightning.terminal import shortened

with naming_extra("figures need"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_LOG = logging.getLogger(__name__)
_SOFTWARE = "acge_lightning"  # written into each picture: it marks the file as one that may be replaced
GREY = "#888888"  # of values that are neither good nor bad, and of the rest
INK = "#1a1a1b"  # of text and axes; a page replaces it by its own text colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")  # Okabe and Ito, without yellow, black
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
SIZE = (4.4, 3.0)  # inches: readable at the width of a phone
_LABEL_OFFSETS = [  # in points from the dot, the nearest first
    (x * away, y * away, side)
    for away in (1, 2, 3, 4)
    for y in (8, -8, 0)
    for x, side in ((5, "left"), (-5, "right"), (0, "center"))
    if x or y
]
_FAR = 14  # points from the dot to its label, from which a line joins them
_CHINESE = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)  # fonts
STYLE: dict[Any, Any] = {  # Any: matplotlib types its keys as literals
    "font.family": ["DejaVu Sans", *(name for name in _CHINESE if name in fontManager.get_font_names())],
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "acge_lightning",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": f"{GREY}55",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
}


def log_figures(logger: Any, figures: Mapping[str, Figure], step: int = 0) -> None:
    """Log figures to a Lightning logger.

    Args:
        logger: one with `log_image`, as `WandbLogger`, or whose `experiment` has `add_figure`, as `TensorBoardLogger`.
        figures: name -> figure.
        step: that they are logged at.

    Raises:
        InputError: the logger takes no pictures.
    """
    with figure_style():
        for name, figure in figures.items():
            if hasattr(logger, "log_image"):
                logger.log_image(key=name, images=[figure], step=step)
            elif hasattr(logger.experiment, "add_figure"):
                logger.experiment.add_figure(name, figure, step, close=False)
            else:
                raise InputError(f"{type(logger).__name__} takes no pictures: use logger=tensorboard or logger=wandb")


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Write figures as PNG, one file a figure: `matryoshka/sts` becomes `matryoshka-sts.png`."""
    folder, files = Path(folder).expanduser(), []
    with figure_style():
        for name, figure in figures.items():
            files.append(save_figure(figure, folder / (re.sub(r"[^\w.@+-]+", "-", name) + ".png")))
    return files


def save_figure(figure: Figure, file: Path, dpi: int = 160) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: the file is there and is no picture of ours, or cannot be written.
    """
    check_replaceable(file, _SOFTWARE.encode(), "a picture of acge_lightning")
    with whole(file) as new:
        figure.savefig(new, format="png", dpi=dpi, facecolor="white", bbox_inches="tight", metadata={"Software": _SOFTWARE})
    return file


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply our style in the block; warn once, with a remedy, if no font has some letters."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = [warning for warning in caught if re.match("Glyph .* missing from", str(warning.message))]
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        _LOG.warning("Pictures show boxes for letters that no font here has: install one with them, such as %s", _CHINESE[0])


def new_axes(title: str, x: str = "", y: str = "", height: float = SIZE[1]) -> Axes:
    """Make a figure with one pair of axes; `height` in inches."""
    figure = Figure((SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(shortened(title, 44), loc="left", fontsize=10)
    axes.set(xlabel=x, ylabel=y)
    return axes


def label_point(axes: Axes, x: float, y: float, text: str, color: str = INK) -> None:
    """Label a point; `finish_figure` moves the label to a free position."""
    axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", va="center", fontsize=7, color=color)


def finish_figure(axes: Axes, description: str, legend: Mapping[str, dict[str, Any]] | None = None) -> Figure:
    """Add a legend (name -> style) and a description in words, and move the labels of points to where they hide least."""
    figure = cast(Figure, axes.figure)  # no subfigure: `new_axes` made it
    figure.set_label(description)
    if legend:
        handles = [Line2D([], [], **style) for style in legend.values()]
        figure.legend(handles, list(legend), loc="outside lower left", ncols=1 if max(map(len, legend)) > 20 else 2)
    _spread_labels(figure, axes)
    return figure


def _spread_labels(figure: Figure, axes: Axes) -> None:
    """Move the labels of points to where they hide least, within the axes; a line joins a far one to its point."""
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    if not labels:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # told where the figure is written
        figure.draw_without_rendering()  # which computes the layout
    paths = [axes.transData.transform_path(line.get_path()) for line in axes.lines]
    occupied = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for path in paths for x, y in np.asarray(path.vertices)]
    frame = axes.get_window_extent()

    def move(label: Annotation, offset: tuple[int, int, str]) -> Bbox:
        label.set(position=offset[:2], horizontalalignment=offset[2])
        return label.get_window_extent()

    def cost(box: Bbox) -> float:
        outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0)
        crossed = sum(path.intersects_bbox(box, filled=False) for path in paths)
        return 1000 * (outside > 0) + outside + 10 * box.count_overlaps(occupied) + crossed

    for label in labels:
        best = min(_LABEL_OFFSETS, key=lambda offset: cost(move(label, offset)))
        occupied.append(move(label, best))
        if abs(best[1]) > _FAR or abs(best[0]) > _FAR:
            line = {"arrowstyle": "-", "color": label.get_color(), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", label.xy, xytext=best[:2], textcoords="offset points", arrowprops=line)


def line_style(number: int) -> dict[str, Any]:
    """Return the style of the line of that number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _LINES[number % len(_LINES)]}


def dot_style(number: int) -> dict[str, Any]:
    """Return the style of the points of that number, in the colour of the line."""
    marker = _MARKERS[(number // len(COLOURS)) % len(_MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": "none", "marker": marker}
