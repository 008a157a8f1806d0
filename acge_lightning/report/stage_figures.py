"""Draw what stages of training have learnt and forgotten. Needs matplotlib."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from acge_lightning.report.comparison import runs_by_rows
from acge_lightning.report.runs import Curve, Run
from acge_lightning.report.style import (
    COLOURS,
    SIZE,
    Figure,
    dot_style,
    finish_figure,
    label_point,
    line_style,
    new_axes,
)
from acge_lightning.terminal import shortened


def forgetting_figure(run: Run) -> Figure:
    """Draw the matrix of scores: after training on each task, the score of each."""
    tasks, matrix = run.forgetting["tasks"], np.array(run.forgetting["matrix"], dtype=float)
    axes = new_axes(f"forgetting, {run.name}", "score of", "after training on", height=1.2 + 0.4 * len(tasks))
    axes.grid(False)
    axes.pcolormesh(matrix, cmap="cividis", vmin=0, vmax=1)  # vector squares; `imshow` would put a bitmap into the page
    axes.invert_yaxis()
    for row, column in product(range(len(tasks)), repeat=2):
        value = matrix[row, column]
        if np.isfinite(value):
            colour = "black" if value > 0.5 else "white"
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{value:.4f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=8 if len(tasks) < 7 else 5,
            )
    centres, names = np.arange(len(tasks)) + 0.5, [shortened(task) for task in tasks]
    axes.set_xticks(centres, names, rotation=30, ha="right")
    axes.set_yticks(centres, names)
    last = "; ".join(f"{task} {value:.4f}" for task, value in zip(tasks, matrix[-1], strict=True) if np.isfinite(value))
    return finish_figure(axes, f"Scores of each task after training on one after the other, {run.name}; at the end: {last}")


def last_values(curves: Mapping[str, Curve], prefix: str) -> dict[str, float]:
    """Take the last value of each curve whose name has the prefix."""
    return {key.removeprefix(prefix): points[-1][1] for key, points in curves.items() if key.startswith(prefix) and points}


def layers_figure(run: Run) -> Figure:
    """Draw drift of each layer of an anchored run, and beside it the importance, if the anchor has weighed the layers."""
    mass, drift = (last_values(run.curves, f"ewc/{kind}/") for kind in ("mass", "drift"))
    if run.forgetting.get("strategy", {}).get("anchor") == "ones":  # L2-SP: no Fisher information, all weights alike
        mass = {}
    names = sorted(drift, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    panels = [(mass, "share of Fisher mass", COLOURS[0])] if mass else []
    panels.append((drift, "drift" if mass else "drift from the anchor", COLOURS[1]))
    figure = Figure((SIZE[0], 1 + 0.2 * len(names)), layout="constrained")
    figure.suptitle(shortened(f"layers, {run.name}", 50), x=0.02, ha="left", fontsize=10)
    (grid,) = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (values, label, colour) in zip(grid, panels, strict=True):
        axes.barh(range(len(names)), [values.get(name, 0.0) for name in names], color=colour)
        axes.set_xlabel(label)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.invert_yaxis()
    shares = {name: f"{mass.get(name, 0.0):.4f} and " if mass else "" for name in names}
    description = "; ".join(f"{name} {shares[name]}{drift[name]:.2e}" for name in names)
    title = "Share of the Fisher mass, and drift" if mass else "Drift"
    return finish_figure(axes, f"{title} from the anchor, of each layer, {run.name}: {description}")


def gain_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw forgetting over gain, a line for each strategy, its points in order of strength; a figure for each set of rows."""
    measured = [run for run in runs if {"gain", "forgetting"} <= run.forgetting.get("measures", {}).keys()]
    groups = {title: _gain(group, title) for title, group in runs_by_rows(measured, "test").items()}
    return {f"gain{title}": figure for title, figure in groups.items() if figure}


def _gain(runs: Sequence[Run], title: str) -> Figure | None:
    lines: dict[str, list[tuple[float, float, float, str]]] = {}
    for run in runs:
        measures, strategy = run.forgetting["measures"], run.forgetting.get("strategy", {})
        number, setting_text = _setting(strategy)
        point = number, measures["gain"], measures["forgetting"], setting_text
        lines.setdefault(str(strategy.get("name") or run.name), []).append(point)
    if sum(map(len, lines.values())) < 2:
        return None
    axes = new_axes(f"what is learnt and what is forgotten{title}", "gain on new tasks", "forgetting of old ones")
    for line_number, points in enumerate(lines.values()):
        points.sort()
        _, gains, forgotten, _ = zip(*points, strict=True)
        axes.plot(gains, forgotten, **line_style(line_number), linewidth=1)
        axes.plot(gains, forgotten, **dot_style(line_number))
        for _, x, y, setting_text in points:
            label_point(axes, x, y, setting_text, dot_style(line_number)["color"])
    axes.margins(0.15)
    description = "; ".join(
        f"{name} {t} gain {x:.4f}, forgetting {y:.4f}" for name, points in lines.items() for _, x, y, t in points
    )
    return finish_figure(axes, f"Forgetting against gain: {description}", {name: dot_style(i) for i, name in enumerate(lines)})


def _setting(strategy: Mapping[str, Any]) -> tuple[float, str]:
    """Read the number that a strategy is tuned by, and write it in words."""
    for switch, key, sign in (("anchor", "strength", "λ"), ("merge", "merge", "α"), ("replay", "replay", "share")):
        value = strategy.get(key)
        if strategy.get(switch) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value), f"{sign} {value:g}"
    return 0.0, ""
