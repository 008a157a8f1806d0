"""How figures look, and where they go. Needs matplotlib."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import check_replaceable, whole

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox
except ModuleNotFoundError as error:
    raise InputError("figures need matplotlib: pip install 'acge-lightning[report]'") from error

_LOG = logging.getLogger(__name__)
_SOFTWARE = "acge_lightning"  # in each picture, which says by it that it may be replaced
INK = "#1a1a1b"  # of text and axes: a page puts its own in place of it
GREY = "#888888"  # of what is neither good nor bad, and of the rest
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")  # Okabe and Ito, without yellow, black
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
SIZE = (4.4, 3.0)  # inches: readable at the width of a phone
_PLACES = [
    (x, y * away, side) for away in (1, 2, 3) for y in (8, -8, 0) for x, side in ((5, "left"), (-5, "right"), (0, "center"))
]
_CHINESE = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)  # fonts
STYLE = {
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


def log_figures(logger: Any, shown: Mapping[str, Figure], step: int = 0) -> None:
    """Hand figures to a Lightning logger.

    Args:
        logger: one with `log_image`, as `WandbLogger`, or whose `experiment` has `add_figure`, as `TensorBoardLogger`.
        shown: name -> figure.
        step: under which they stand.

    Raises:
        InputError: the logger takes no pictures.
    """
    with _drawing():
        for name, figure in shown.items():
            if hasattr(logger, "log_image"):
                logger.log_image(key=name, images=[figure], step=step)
            elif hasattr(logger.experiment, "add_figure"):
                logger.experiment.add_figure(name, figure, step, close=False)
            else:
                raise InputError(f"{type(logger).__name__} takes no pictures: use logger=tensorboard or logger=wandb")


def save_figures(shown: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Write figures as PNG, one file a figure: `matryoshka/sts` becomes `matryoshka-sts.png`."""
    folder, files = Path(folder).expanduser(), []
    with _drawing():
        for name, figure in shown.items():
            files.append(save_figure(figure, folder / (re.sub(r"[^\w.@+-]+", "-", name) + ".png")))
    return files


def save_figure(figure: Figure, file: Path, dpi: int = 160) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: the file is there and is no picture of ours, or cannot be written.
    """
    check_replaceable(file, _SOFTWARE.encode(), "a picture of acge_lightning")
    with whole(file) as new:
        figure.savefig(new, format="png", dpi=dpi, facecolor="white", metadata={"Software": _SOFTWARE})
    return file


@contextmanager
def _drawing() -> Iterator[None]:
    """In our style; says once what to do if letters are missing from all fonts."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = [found for found in caught if re.match("Glyph .* missing from", str(found.message))]
    for found in caught:
        if found not in missing:
            warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
    if missing:
        _LOG.warning("Pictures show boxes for letters that no font here has: install one with them, such as %s", _CHINESE[0])


def new_axes(title: str, x: str = "", y: str = "", height: float = SIZE[1]) -> Axes:
    """Axes on a figure of their own; `height` in inches."""
    figure = Figure((SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(short(title, 44), loc="left", fontsize=10)
    axes.set(xlabel=x, ylabel=y)
    return axes


def short(text: str, most: int = 20) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= most else text[: most - 1] + "…"  # the whole name is in the legend, label or table


def label_point(axes: Axes, x: float, y: float, text: str, color: str = INK) -> None:
    """Write a few letters at a point; `finished` finds a free place for them."""
    axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", va="center", fontsize=7, color=color)


def finished(axes: Axes, told: str, legend: Mapping[str, dict[str, Any]] | None = None) -> Figure:
    """The figure, with a legend (name -> style) and a label in words; labels of points stand where they hide least."""
    figure = axes.figure
    figure.set_label(told)
    if legend:
        handles = [Line2D([], [], **style) for style in legend.values()]
        figure.legend(handles, list(legend), loc="outside lower left", ncols=1 if max(map(len, legend)) > 20 else 2)
    _spread(axes)
    return figure


def _spread(axes: Axes) -> None:
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    if not labels:
        return
    axes.figure.draw_without_rendering()  # so that the layout has given all their places
    paths = [axes.transData.transform_path(line.get_path()) for line in axes.lines]
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for path in paths for x, y in path.vertices]

    def put(label: Annotation, place: tuple[int, int, str]) -> Bbox:
        label.set(position=place[:2], horizontalalignment=place[2])
        return label.get_window_extent()

    def hidden(box: Bbox) -> int:
        return 10 * box.count_overlaps(taken) + sum(path.intersects_bbox(box, filled=False) for path in paths)

    for label in labels:
        best = min(_PLACES, key=lambda place: hidden(put(label, place)))
        taken.append(put(label, best))


def line_style(place: int) -> dict[str, Any]:
    """Of the line of that number."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": _LINES[place % len(_LINES)]}


def dot_style(place: int) -> dict[str, Any]:
    """Of the points of that number, in the colour of the line."""
    marker = _MARKERS[(place // len(COLOURS)) % len(_MARKERS)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": "none", "marker": marker}
