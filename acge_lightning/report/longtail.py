"""Show results of the long-tail protocol as tables and as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_PANEL_SUBSETS = ("tail", "head")  # test subsets that have a row of panels


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Make tables of a result: accuracy ± its spread over seeds for all, head, tail, perturbed texts; differences; errors."""
    result_tables = []
    for name, rows in _by_dataset(result["rows"]):
        kinds, shots = (list(dict.fromkeys(row[key] for row in rows)) for key in ("perturbation", "shots"))
        unperturbed = [row for row in rows if row["perturbation"] == kinds[0]]
        for subset in ("all", "head", "tail"):
            title = f"{name}: accuracy on {subset}, {kinds[0]} texts, by training texts of a tail class"
            result_tables.append(_table(title, "shots", shots, unperturbed, subset))
        if len(kinds) > 1:
            most_shots = [row for row in rows if row["shots"] == shots[-1]]
            title = f"{name}: accuracy on all texts, {shots[-1]} shots"
            result_tables.append(_table(title, "perturbation", kinds, most_shots, "all"))
        differences = [d for d in result["differences"] if d["dataset"] == name and d["perturbation"] == kinds[0]]
        if differences:
            title = f"{name}: difference from {differences[0]['against']}, seed by seed, on the tail"
            result_tables.append(_table(title, "shots", shots, differences, "tail", "+"))
    failed = [row for row in result["rows"] if row["error"]]
    return result_tables + ([_failures(failed)] if failed else [])


def _by_dataset(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    good = [row for row in rows if not row["error"]]
    for name in dict.fromkeys(row["dataset"] for row in good):
        yield name, [row for row in good if row["dataset"] == name]


def _table(title: str, key: str, columns: Sequence[Any], rows: Sequence[Row], subset: str, sign: str = "") -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("encoder", "dim", *(str(c) for c in columns)):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    cells: dict[tuple[str, int | None], dict[Any, Row]] = {}
    for row in rows:
        cells.setdefault((row["encoder"], row["dim"]), {})[row[key]] = row
    for (encoder, dim), by_column in cells.items():
        texts = [_accuracy_text(by_column[column], subset, sign, with_mean_dim=not dim) for column in columns]
        table.add_row(encoder, "adaptive" if dim is None else str(dim), *texts)
    return table


def _accuracy_text(row: Row, subset: str, sign: str, with_mean_dim: bool) -> str:
    mean_dim = f" ({row['mean_dim']:.0f})" if with_mean_dim and "mean_dim" in row else ""
    return f"{100 * row['values'][subset]:{sign}.1f} ± {100 * row['spread'][subset]:.1f}{mean_dim}"


def _failures(rows: Sequence[Row]) -> Table:
    table = Table("data set", "error", title="Not scored", title_justify="left", style="red")
    for name, error in dict.fromkeys((row["dataset"], row["error"]) for row in rows):
        table.add_row(name, error)
    return table


# ---- pictures


def save_figures(result: Mapping[str, Any], out: str | Path) -> list[Path]:
    """Draw pictures beside the JSON file `out`: `<stem>-<dataset>.png`, and `…-perturbed.png` where there are perturbations.

    Raises:
        InputError: matplotlib is not installed, or a file of that name is another picture.
    """
    from acge_lightning.report.style import figure_style, save_figure

    files = []
    with figure_style():
        for name, rows in _by_dataset(result["rows"]):
            kinds, shots = (list(dict.fromkeys(row[key] for row in rows)) for key in ("perturbation", "shots"))
            panels = {name: (name, [(_shots(s), "shots", s, "perturbation", kinds[0]) for s in shots])}
            if len(kinds) > 1:
                title = f"{name}, perturbed texts, {_shots(shots[-1])} a tail class"
                panels[f"{name}-perturbed"] = title, [(k, "perturbation", k, "shots", shots[-1]) for k in kinds]
            for end, (title, columns) in panels.items():
                file = Path(out).with_name(f"{Path(out).stem}-{end}.png")
                files.append(save_figure(_figure(title, rows, columns), file, 150))
    return files


def _shots(number: int) -> str:
    return f"{number} shot{'s' * (number > 1)}"


def _figure(title: str, rows: Sequence[Row], columns: Sequence[tuple[str, str, Any, str, Any]]) -> Figure:
    """Draw accuracy over dims: a column of panels for each number of shots or perturbation, a row for each test subset."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from acge_lightning.report.style import COLOURS, GREY

    encoders = dict.fromkeys(row["encoder"] for row in rows)
    colours = {encoder: COLOURS[number % len(COLOURS)] for number, encoder in enumerate(encoders)}
    dims = sorted({row["dim"] for row in rows if row["dim"]}, reverse=True)
    ticks = dims[:: 1 if len(dims) < 6 else 2]
    figure = Figure((1 + 2.4 * len(columns), 5.2), layout="constrained")
    grid = figure.subplots(len(_PANEL_SUBSETS), len(columns), sharex=True, sharey="row", squeeze=False)
    for (panel_row, subset), (panel_column, (name, key, value, other, fixed)) in product(
        enumerate(_PANEL_SUBSETS), enumerate(columns)
    ):
        axes = grid[panel_row][panel_column]
        chosen = [row for row in rows if row[key] == value and row[other] == fixed]
        for encoder, colour in colours.items():
            _line(axes, [row for row in chosen if row["encoder"] == encoder], subset, colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(dim) for dim in ticks])
        axes.minorticks_off()
        axes.set_xlabel("dims" if panel_row == len(_PANEL_SUBSETS) - 1 else "")
        axes.tick_params("x", labelrotation=45)
        if panel_row == 0:
            axes.set_title(name, fontsize=9)
        if panel_column == 0:
            axes.set_ylabel(f"accuracy, {subset}")
    figure.suptitle(title, x=0.02, ha="left", fontsize=10)
    handles = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in colours.values()]
    names = list(colours)
    if any(row["dim"] is None for row in rows):
        handles.append(Line2D([], [], color=GREY, marker="*", markersize=9, linestyle="none"))
        names.append("adaptive, at its mean dim")
    figure.legend(handles, names, loc="outside lower left", ncols=len(handles))
    return figure


def _line(axes: Axes, rows: Sequence[Row], subset: str, colour: str) -> None:
    """Draw the mean over seeds with one standard deviation, and the cascade as a star."""
    single = sorted((row for row in rows if row["dim"]), key=lambda row: row["dim"])
    if not single:  # it was scored with other shots or perturbations
        return
    dims, means, spreads = zip(*((r["dim"], r["values"][subset], r["spread"][subset]) for r in single), strict=True)
    axes.plot(dims, means, color=colour, marker="o", markersize=3, linewidth=1.3)
    low, high = ([m + side * s for m, s in zip(means, spreads, strict=True)] for side in (-1, 1))
    axes.fill_between(dims, low, high, color=colour, alpha=0.15, linewidth=0)
    for row in rows:
        if row["dim"] is None:
            axes.plot([row["mean_dim"]], [row["values"][subset]], "*", color=colour, markersize=9, markeredgecolor="white")
