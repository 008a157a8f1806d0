"""Figures that compare runs and encoders, for a page, TensorBoard or W&B. Needs matplotlib."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from acge_lightning.evaluation.results import Row, means
from acge_lightning.report.runs import Curve, Run, evaluations
from acge_lightning.report.style import (
    COLOURS,
    GREY,
    INK,
    SIZE,
    STYLE,
    Figure,
    dot_style,
    finished,
    label_point,
    line_style,
    matplotlib,
    new_axes,
    short,
)

_MOST_POINTS = 200  # of a curve, and ten times as many of a scatter plot
_MOST_LABELS = 14  # that have a colour of their own


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """The figures that the runs have data for.

    Args:
        runs: from `read_runs`.

    Returns:
        Name -> figure: `curves/<logged name>`, `scores`, `matryoshka/<family>`, `differences/<encoder> − <encoder>`,
        `forgetting/<run>`, `layers/<run>`, `gain`, `funnel`, `projection/<encoder>/<dataset>`. A figure's label tells in words
        what it shows.
    """
    with matplotlib.rc_context(STYLE):
        found = evaluations(runs)
        return {
            **_curves(runs),
            **_scores(runs),
            **_matryoshka(found),
            **_differences(found["differences"]),
            **{f"forgetting/{run.name}": _forgetting(run) for run in runs if run.forgetting},
            **{f"layers/{run.name}": _layers(run) for run in runs if _last(run.curves, "ewc/drift/")},
            **_trade(runs),
            **_funnel(runs),
            **{
                f"projection/{encoder}/{name}": _projection(f"{name}, {encoder}", part["points"])
                for encoder, sets in found["examples"].items()
                for name, part in sets.items()
                if part["points"]
            },
        }


# ---- training


def _curves(runs: Sequence[Run]) -> dict[str, Figure]:
    """Losses, gradient norms and validation means against the step."""
    logged = dict.fromkeys(key for run in runs for key in run.curves)
    trained = [key for key in logged if key.startswith("train/") and key.endswith(("loss", "grad_norm"))]
    keys = [*trained, *(key for key in logged if key.startswith("val/") and key.count("/") == 1)]
    keys.sort(key=lambda key: (key not in ("train/loss", "val/mean"), key))
    return {f"curves/{key}": _curve(key, {run.name: run.curves.get(key, []) for run in runs}) for key in keys}


def _curve(key: str, lines: Mapping[str, Curve]) -> Figure:
    axes = new_axes(key, "step")
    ends, legend = [], {}
    for place, (name, points) in enumerate(lines.items()):
        if points:
            steps, values = (_thinned(np.array(part, dtype=float)) for part in zip(*points, strict=True))
            axes.plot(steps, values, **line_style(place), linewidth=1.4, marker="o" if len(steps) < 20 else "", markersize=3)
            legend[name] = line_style(place)
            ends.append(f"{name} from {points[0][1]:.4f} to {points[-1][1]:.4f} at step {points[-1][0]}")
    return finished(axes, f"{key} against step: {'; '.join(ends)}", legend)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Means of neighbours, `_MOST_POINTS` at most."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MOST_POINTS)])


def _scores(runs: Sequence[Run]) -> dict[str, Figure]:
    """Before and after, of families and the mean; what has no before, as forgetting, is shown elsewhere."""
    keys = dict.fromkeys(key for run in runs for key in sorted(run.after) if key.count("/") == 1)
    keys = sorted(keys, key=lambda key: (not key.endswith("/mean"), key), reverse=True)  # from the bottom
    keys = [key for key in keys if any(key in run.before for run in runs)] or keys
    if not keys:
        return {}
    scored = [run for run in runs if run.after]
    axes = new_axes("before (ring) and after (dot)", height=1 + 0.2 * len(keys) * max(2, len(scored)))
    told = []
    for line, run in enumerate(scored):
        place = runs.index(run)
        for row, key in enumerate(keys):
            y = row + (len(scored) / 2 - line - 0.5) * 0.7 / len(scored)
            old, new = run.before.get(key), run.after.get(key)
            colour = line_style(place)["color"]
            if new is not None:
                axes.plot([new], [y], "o", color=colour)
                told.append(f"{run.name} {key} {'' if old is None else f'{old:.4f} to '}{new:.4f}")
                if old is not None:
                    axes.plot([old, new], [y, y], color=colour, linewidth=1)
                    axes.plot([old], [y], "o", color=colour, markerfacecolor="none")
    axes.set_yticks(range(len(keys)), [short(key) for key in keys])
    axes.set_ylim(-0.6, len(keys) - 0.4)
    return {
        "scores": finished(
            axes, f"Scores: {'; '.join(told)}", {run.name: dot_style(i) for i, run in enumerate(runs) if run.after}
        )
    }


def _forgetting(run: Run) -> Figure:
    tasks, matrix = run.forgetting["tasks"], np.array(run.forgetting["matrix"], dtype=float)
    axes = new_axes(f"forgetting, {run.name}", "score of", "after training on", height=1.2 + 0.4 * len(tasks))
    axes.grid(False)
    axes.pcolormesh(matrix, cmap="cividis", vmin=0, vmax=1)  # squares, as `imshow` would put a bitmap into the page
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
    places, names = np.arange(len(tasks)) + 0.5, [short(task) for task in tasks]
    axes.set_xticks(places, names, rotation=30, ha="right")
    axes.set_yticks(places, names)
    last = "; ".join(f"{task} {value:.4f}" for task, value in zip(tasks, matrix[-1], strict=True) if np.isfinite(value))
    return finished(axes, f"Scores of each task after training on one after the other, {run.name}; at the end: {last}")


def _last(curves: Mapping[str, Curve], prefix: str) -> dict[str, float]:
    """What stands at the end of the curves of this prefix."""
    return {key.removeprefix(prefix): points[-1][1] for key, points in curves.items() if key.startswith(prefix) and points}


def _layers(run: Run) -> Figure:
    """Importance and drift of each layer of an anchored run, side by side."""
    mass, drift = (_last(run.curves, f"ewc/{kind}/") for kind in ("mass", "drift"))
    names = sorted(drift, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    figure = Figure((SIZE[0], 1 + 0.2 * len(names)), layout="constrained")
    figure.suptitle(short(f"layers, {run.name}", 50), x=0.02, ha="left", fontsize=10)
    for axes, values, label, colour in zip(
        figure.subplots(1, 2, sharey=True), (mass, drift), ("share of Fisher mass", "drift"), COLOURS, strict=False
    ):
        axes.barh(range(len(names)), [values.get(name, 0.0) for name in names], color=colour)
        axes.set_xlabel(label)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    told = "; ".join(f"{n} {mass.get(n, 0.0):.4f} and {drift[n]:.2e}" for n in names)
    return finished(axes, f"Share of the Fisher mass, and drift from the anchor, of each layer, {run.name}: {told}")


def _trade(runs: Sequence[Run]) -> dict[str, Figure]:
    """Forgetting against gain, a line a strategy, its points in order of strength."""
    lines: dict[str, list[tuple[float, float, float, str]]] = {}
    for run in runs:
        measures, strategy = run.forgetting.get("measures", {}), run.forgetting.get("strategy", {})
        if {"gain", "forgetting"} <= measures.keys():
            number, told = _setting(strategy)
            point = number, measures["gain"], measures["forgetting"], told
            lines.setdefault(str(strategy.get("name") or run.name), []).append(point)
    if sum(map(len, lines.values())) < 2:
        return {}
    axes = new_axes("what is learnt and what is forgotten", "gain on new tasks", "forgetting of old ones")
    for place, points in enumerate(lines.values()):
        points.sort()
        _, x, y, _ = zip(*points, strict=True)
        axes.plot(x, y, **line_style(place), linewidth=1)
        axes.plot(x, y, **dot_style(place))
        for _, x, y, told in points:
            label_point(axes, x, y, told, dot_style(place)["color"])
    axes.margins(0.15)
    told = "; ".join(f"{name} {t} gain {x:.4f}, forgetting {y:.4f}" for name, points in lines.items() for _, x, y, t in points)
    return {"gain": finished(axes, f"Forgetting against gain: {told}", {name: dot_style(i) for i, name in enumerate(lines)})}


def _setting(strategy: Mapping[str, Any]) -> tuple[float, str]:
    """The number that a strategy is tuned by, and in words."""
    for switch, key, sign in (("anchor", "strength", "λ"), ("merge", "merge", "α"), ("replay", "replay", "share")):
        value = strategy.get(key)
        if strategy.get(switch) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value), f"{sign} {value:g}"
    return 0.0, ""


def _funnel(runs: Sequence[Run]) -> dict[str, Figure]:
    """Recall against speed-up; the line joins the points that no other beats in both."""
    if not any(run.funnel for run in runs):
        return {}
    axes = new_axes("search in steps", "times faster than exact search", "recall")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    told = []
    for place, run in enumerate(runs):
        points = [p for p in run.funnel if p["speedup"] > 0]
        axes.plot([p["speedup"] for p in points], [p["recall"] for p in points], **dot_style(place))
        best = sorted(pareto(points), key=lambda p: p["speedup"])
        axes.plot([p["speedup"] for p in best], [p["recall"] for p in best], **line_style(place), linewidth=1)
        for p in best:
            label_point(axes, p["speedup"], p["recall"], short(p["label"]))
        told += [f"{run.name} {p['label']} recall {p['recall']:.4f}, {p['speedup']:.4g} times faster" for p in best]
    axes.margins(0.15)
    legend = {run.name: dot_style(i) for i, run in enumerate(runs) if run.funnel}
    return {"funnel": finished(axes, f"Recall against speed-up, the best: {'; '.join(told)}", legend)}


def pareto(points: Sequence[Row]) -> list[Row]:
    """The points that no other point beats in recall or speed-up without losing in the other."""

    def beaten(p: Row) -> bool:
        better = (q for q in points if q["recall"] >= p["recall"] and q["speedup"] >= p["speedup"])
        return any((q["recall"], q["speedup"]) != (p["recall"], p["speedup"]) for q in better)

    return [p for p in points if not beaten(p)]


# ---- evaluations


def full_dim(found: Mapping[str, Any], encoder: str) -> float | None:
    """An encoder's full size; None for lexical baselines."""
    card = next(card for card in found["encoders"] if card["name"] == encoder)
    return card["dim"] or max((r["dim"] for r in found["rows"] if r["encoder"] == encoder and r["dim"]), default=None)


def _matryoshka(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Family means against the dim, a line an encoder, over the data sets that all were scored on at all their dims."""
    scored: dict[tuple[str, str], set[tuple[str, float | None]]] = {}
    for row in found["rows"]:
        if row["value"] is not None:
            scored.setdefault((row["family"], row["dataset"]), set()).add((row["encoder"], row["dim"]))
    there = {pair for pairs in scored.values() for pair in pairs}
    dims = {card["name"]: sorted(dim for name, dim in there if name == card["name"] and dim) for card in found["encoders"]}
    if max(map(len, dims.values()), default=0) < 2:
        return {}
    rows = [row for row in found["rows"] if scored.get((row["family"], row["dataset"])) == there]
    scores = {name: {dim: means(rows, name, dim) for dim in sizes or [None]} for name, sizes in dims.items()}
    families = sorted({f for by_dim in scores.values() for m in by_dim.values() for f in m}, key=lambda f: (f != "mean", f))
    return {f"matryoshka/{family}": _at_dims(family, scores) for family in families}


def _at_dims(family: str, scores: Mapping[str, Mapping[float | None, Mapping[str, float]]]) -> Figure:
    axes = new_axes("mean of families" if family == "mean" else family, "dims")
    axes.set_xscale("log", base=2)
    told, ticks = [], set()
    for place, (name, by_dim) in enumerate(scores.items()):
        points = [(dim, found[family]) for dim, found in by_dim.items() if family in found]
        if points and points[0][0] is None:
            axes.axhline(points[0][1], **line_style(place), linewidth=1)
        elif points:
            axes.plot(*zip(*points, strict=True), **line_style(place), marker="o", markersize=4)
            ticks |= {dim for dim, _ in points}
        told += [f"{name} {'' if dim is None else f'at {dim:g} dims '}{value:.4f}" for dim, value in points]
    axes.set_xticks(sorted(ticks), [f"{dim:g}" for dim in sorted(ticks)])
    axes.minorticks_off()
    return finished(axes, f"{family} against dims: {'; '.join(told)}", {name: line_style(i) for i, name in enumerate(scores)})


def _differences(rows: Sequence[Row]) -> dict[str, Figure]:
    """Intervals of each pair of encoders, a line a data set."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["encoder"], row["against"]), []).append(row)
    return {
        f"differences/{encoder} − {against}": _intervals(encoder, against, mine) for (encoder, against), mine in pairs.items()
    }


def _intervals(encoder: str, against: str, rows: Sequence[Row]) -> Figure:
    axes = new_axes(f"{encoder} − {against}", "difference", height=0.9 + 0.2 * len(rows))
    for place, row in enumerate(rows):
        colour = COLOURS[0] if row["low"] > 0 else COLOURS[1] if row["high"] < 0 else GREY
        axes.plot([row["low"], row["high"]], [place, place], color=colour)
        axes.plot([row["difference"]], [place], "o" if colour == GREY else "D", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [short(told_dataset(row), 30) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    told = "; ".join(f"{told_dataset(r)} {r['difference']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in rows)
    return finished(axes, f"{encoder} less {against}, with intervals: {told}")


def told_dataset(row: Row) -> str:
    """A data set in words, with the dim where one is given."""
    return (
        (f"{row['family']}/" if row.get("family") else "") + row["dataset"] + (f" at {row['dim']:g}" if row.get("dim") else "")
    )


def _projection(title: str, points: Sequence[tuple[float, float, str]]) -> Figure:
    """A dot a text, coloured by label; the rarer ones of many labels share a colour."""
    points = points[:: -(-len(points) // (10 * _MOST_POINTS))]
    counts = Counter(label for _, _, label in points)
    named = sorted(label for label, _ in counts.most_common(_MOST_LABELS))
    styles = {label: dot_style(place) for place, label in enumerate(named)}
    others = {label for label in counts if label not in styles}
    if others:
        name = f"{len(others)} others"
        styles = {name: {"color": GREY, "linestyle": "none", "marker": "."}} | styles  # below the rest
        points = [(x, y, name if label in others else label) for x, y, label in points]
    axes = new_axes(title, height=SIZE[1] + 0.1 * len(styles))
    for label, style in styles.items():
        axes.plot(*zip(*((x, y) for x, y, other in points if other == label), strict=True), **style, markersize=3.5, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    told = ", ".join(f"{label} ({sum(other == label for _, _, other in points)})" for label in styles)
    return finished(axes, f"Embeddings of {title} in two dimensions, {len(points)} texts: {told}", styles)
