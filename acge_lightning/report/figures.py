"""Draw figures that compare runs and encoders, for a page, TensorBoard or W&B. Needs matplotlib."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from acge_lightning.evaluation.results import Row, mean_exception, means
from acge_lightning.report.runs import Curve, Run, evaluations
from acge_lightning.report.style import (
    COLOURS,
    GREY,
    INK,
    SIZE,
    STYLE,
    Figure,
    dot_style,
    finish_figure,
    label_point,
    line_style,
    matplotlib,
    new_axes,
)
from acge_lightning.terminal import shortened

_MOST_POINTS = 200  # of a curve, and ten times as many of a scatter plot
_MOST_LABELS = 14  # that have a colour of their own


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw the figures that the runs have data for.

    Args:
        runs: from `read_runs`.

    Returns:
        Name -> figure: `curves/<logged name>`, `scores`, `matryoshka/<family>`, `differences/<encoder> − <encoder>`,
        `forgetting/<run>`, `layers/<run>`, `gain`, `funnel`, `projection/<encoder>/<dataset>`. A figure's label says in words
        what it shows.
    """
    with matplotlib.rc_context(STYLE):
        evaluation = evaluations(runs)
        return {
            **_curves(runs),
            **_scores(runs),
            **_matryoshka(evaluation),
            **_differences(evaluation["differences"]),
            **{f"forgetting/{run.name}": _forgetting(run) for run in runs if run.forgetting},
            **{f"layers/{run.name}": _layers(run) for run in runs if _last_values(run.curves, "ewc/drift/")},
            **_gain_against_forgetting(runs),
            **_funnel(runs),
            **{
                f"projection/{encoder}/{name}": _projection(f"{name}, {encoder}", example["points"])
                for encoder, sets in evaluation["examples"].items()
                for name, example in sets.items()
                if example["points"]
            },
        }


# ---- training


def _curves(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw losses, gradient norms and validation means over the steps."""
    logged = dict.fromkeys(key for run in runs for key in run.curves)
    trained = [key for key in logged if key.startswith("train/") and key.endswith(("loss", "grad_norm"))]
    keys = [*trained, *(key for key in logged if key.startswith("val/") and key.count("/") == 1)]
    keys.sort(key=lambda key: (key not in ("train/loss", "val/mean"), key))
    return {f"curves/{key}": _curve(key, {run.name: run.curves.get(key, []) for run in runs}) for key in keys}


def _curve(key: str, lines: Mapping[str, Curve]) -> Figure:
    axes = new_axes(key, "step")
    ends, legend = [], {}
    for number, (name, points) in enumerate(lines.items()):
        if points:
            steps, values = (_thinned(np.array(axis_values, dtype=float)) for axis_values in zip(*points, strict=True))
            axes.plot(steps, values, **line_style(number), linewidth=1.4, marker="o" if len(steps) < 20 else "", markersize=3)
            legend[name] = line_style(number)
            ends.append(f"{name} from {points[0][1]:.4f} to {points[-1][1]:.4f} at step {points[-1][0]}")
    return finish_figure(axes, f"{key} against step: {'; '.join(ends)}", legend)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Average neighbours until at most `_MOST_POINTS` values are left."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([chunk.mean() for chunk in np.array_split(values, _MOST_POINTS)])


def _scores(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw scores of families and the mean before and after; keys without a score before, as forgetting, are left out."""
    logged = dict.fromkeys(key for run in runs for key in run.after if key.count("/") == 1)
    keys = sorted(logged, key=lambda key: (not key.endswith("/mean"), key), reverse=True)  # from the bottom
    keys = [key for key in keys if any(key in run.before for run in runs)] or keys
    if not keys:
        return {}
    scored = [run for run in runs if run.after]
    axes = new_axes("before (ring) and after (dot)", height=1 + 0.2 * len(keys) * max(2, len(scored)))
    descriptions = []
    for line, run in enumerate(scored):
        number = runs.index(run)
        for row, key in enumerate(keys):
            y = row + (len(scored) / 2 - line - 0.5) * 0.7 / len(scored)
            old, new = run.before.get(key), run.after.get(key)
            colour = line_style(number)["color"]
            if new is not None:
                axes.plot([new], [y], "o", color=colour)
                descriptions.append(f"{run.name} {key} {'' if old is None else f'{old:.4f} to '}{new:.4f}")
                if old is not None:
                    axes.plot([old, new], [y, y], color=colour, linewidth=1)
                    axes.plot([old], [y], "o", color=colour, markerfacecolor="none")
    axes.set_yticks(range(len(keys)), [shortened(key) for key in keys])
    axes.set_ylim(-0.6, len(keys) - 0.4)
    return {
        "scores": finish_figure(
            axes, f"Scores: {'; '.join(descriptions)}", {run.name: dot_style(i) for i, run in enumerate(runs) if run.after}
        )
    }


def _forgetting(run: Run) -> Figure:
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


def _last_values(curves: Mapping[str, Curve], prefix: str) -> dict[str, float]:
    """Take the last value of each curve whose name has the prefix."""
    return {key.removeprefix(prefix): points[-1][1] for key, points in curves.items() if key.startswith(prefix) and points}


def _layers(run: Run) -> Figure:
    """Draw importance and drift of each layer of an anchored run, side by side."""
    mass, drift = (_last_values(run.curves, f"ewc/{kind}/") for kind in ("mass", "drift"))
    names = sorted(drift, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    figure = Figure((SIZE[0], 1 + 0.2 * len(names)), layout="constrained")
    figure.suptitle(shortened(f"layers, {run.name}", 50), x=0.02, ha="left", fontsize=10)
    for axes, values, label, colour in zip(
        figure.subplots(1, 2, sharey=True), (mass, drift), ("share of Fisher mass", "drift"), COLOURS, strict=False
    ):
        axes.barh(range(len(names)), [values.get(name, 0.0) for name in names], color=colour)
        axes.set_xlabel(label)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.invert_yaxis()
    description = "; ".join(f"{n} {mass.get(n, 0.0):.4f} and {drift[n]:.2e}" for n in names)
    return finish_figure(axes, f"Share of the Fisher mass, and drift from the anchor, of each layer, {run.name}: {description}")


def _gain_against_forgetting(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw forgetting over gain, a line for each strategy, its points in order of strength."""
    lines: dict[str, list[tuple[float, float, float, str]]] = {}
    for run in runs:
        measures, strategy = run.forgetting.get("measures", {}), run.forgetting.get("strategy", {})
        if {"gain", "forgetting"} <= measures.keys():
            number, setting_text = _setting(strategy)
            point = number, measures["gain"], measures["forgetting"], setting_text
            lines.setdefault(str(strategy.get("name") or run.name), []).append(point)
    if sum(map(len, lines.values())) < 2:
        return {}
    axes = new_axes("what is learnt and what is forgotten", "gain on new tasks", "forgetting of old ones")
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
    return {
        "gain": finish_figure(
            axes, f"Forgetting against gain: {description}", {name: dot_style(i) for i, name in enumerate(lines)}
        )
    }


def _setting(strategy: Mapping[str, Any]) -> tuple[float, str]:
    """Read the number that a strategy is tuned by, and write it in words."""
    for switch, key, sign in (("anchor", "strength", "λ"), ("merge", "merge", "α"), ("replay", "replay", "share")):
        value = strategy.get(key)
        if strategy.get(switch) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value), f"{sign} {value:g}"
    return 0.0, ""


def _funnel(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw recall over speed-up; the line joins the points that no other beats in both."""
    if not any(run.funnel for run in runs):
        return {}
    axes = new_axes("search in steps", "times faster than exact search", "recall")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    descriptions = []
    for number, run in enumerate(runs):
        points = [p for p in run.funnel if p["speedup"] > 0]
        axes.plot([p["speedup"] for p in points], [p["recall"] for p in points], **dot_style(number))
        best = sorted(pareto(points), key=lambda p: p["speedup"])
        axes.plot([p["speedup"] for p in best], [p["recall"] for p in best], **line_style(number), linewidth=1)
        for p in best:
            label_point(axes, p["speedup"], p["recall"], shortened(p["label"]))
        descriptions += [f"{run.name} {p['label']} recall {p['recall']:.4f}, {p['speedup']:.4g} times faster" for p in best]
    axes.margins(0.15)
    legend = {run.name: dot_style(i) for i, run in enumerate(runs) if run.funnel}
    return {"funnel": finish_figure(axes, f"Recall against speed-up, the best: {'; '.join(descriptions)}", legend)}


def pareto(points: Sequence[Row]) -> list[Row]:
    """Select the points that no other point beats in recall or speed-up without losing in the other."""

    def beaten(p: Row) -> bool:
        better = (q for q in points if q["recall"] >= p["recall"] and q["speedup"] >= p["speedup"])
        return any((q["recall"], q["speedup"]) != (p["recall"], p["speedup"]) for q in better)

    return [p for p in points if not beaten(p)]


# ---- evaluations


def full_dim(evaluation: Mapping[str, Any], encoder: str) -> float | None:
    """Return an encoder's full size; None for lexical baselines."""
    card = next(card for card in evaluation["encoders"] if card["name"] == encoder)
    return card["dim"] or max((r["dim"] for r in evaluation["rows"] if r["encoder"] == encoder and r["dim"]), default=None)


def _matryoshka(evaluation: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw family means over dims, a line for each encoder, of the data sets that all were scored on at all their dims."""
    scored: dict[tuple[str, str], set[tuple[str, float | None]]] = {}
    for row in evaluation["rows"]:
        if row["value"] is not None:
            scored.setdefault((row["family"], row["dataset"]), set()).add((row["encoder"], row["dim"]))
    all_pairs = {pair for pairs in scored.values() for pair in pairs}
    dims = {
        card["name"]: sorted(dim for name, dim in all_pairs if name == card["name"] and dim) for card in evaluation["encoders"]
    }
    if max(map(len, dims.values()), default=0) < 2:
        return {}
    rows = [row for row in evaluation["rows"] if scored.get((row["family"], row["dataset"])) == all_pairs]
    scores: dict[str, dict[float | None, dict[str, float]]] = {
        name: {dim: means(rows, name, dim) for dim in sizes or (None,)} for name, sizes in dims.items()
    }
    families = sorted({f for by_dim in scores.values() for m in by_dim.values() for f in m}, key=lambda f: (f != "mean", f))
    title = f"mean of families{mean_exception(families[1:])}"
    return {f"matryoshka/{family}": _at_dims(family, scores, title if family == "mean" else family) for family in families}


def _at_dims(family: str, scores: Mapping[str, Mapping[float | None, Mapping[str, float]]], title: str) -> Figure:
    axes = new_axes(title, "dims")
    axes.set_xscale("log", base=2)
    descriptions: list[str] = []
    ticks: set[float] = set()
    for number, (name, by_dim) in enumerate(scores.items()):
        points = [(dim, family_means[family]) for dim, family_means in by_dim.items() if family in family_means]
        if points and points[0][0] is None:
            axes.axhline(points[0][1], **line_style(number), linewidth=1)
        elif points:
            axes.plot(*zip(*points, strict=True), **line_style(number), marker="o", markersize=4)
            ticks |= {dim for dim, _ in points if dim is not None}
        descriptions += [f"{name} {'' if dim is None else f'at {dim:g} dims '}{value:.4f}" for dim, value in points]
    axes.set_xticks(sorted(ticks), [f"{dim:g}" for dim in sorted(ticks)])
    axes.minorticks_off()
    return finish_figure(
        axes, f"{family} against dims: {'; '.join(descriptions)}", {name: line_style(i) for i, name in enumerate(scores)}
    )


def _differences(rows: Sequence[Row]) -> dict[str, Figure]:
    """Draw the intervals of each pair of encoders, a line for each data set."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["encoder"], row["against"]), []).append(row)
    return {
        f"differences/{encoder} − {baseline}": _intervals(encoder, baseline, pair_rows)
        for (encoder, baseline), pair_rows in pairs.items()
    }


def _intervals(encoder: str, baseline: str, rows: Sequence[Row]) -> Figure:
    axes = new_axes(f"{encoder} − {baseline}", "difference", height=0.9 + 0.2 * len(rows))
    for line, row in enumerate(rows):
        colour = COLOURS[0] if row["low"] > 0 else COLOURS[1] if row["high"] < 0 else GREY
        axes.plot([row["low"], row["high"]], [line, line], color=colour)
        axes.plot([row["difference"]], [line], "o" if colour == GREY else "D", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [shortened(dataset_label(row), 30) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    description = "; ".join(f"{dataset_label(r)} {r['difference']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in rows)
    return finish_figure(axes, f"{encoder} less {baseline}, with intervals: {description}")


def dataset_label(row: Row) -> str:
    """Name a data set, with the dim where one is given."""
    return (
        (f"{row['family']}/" if row.get("family") else "") + row["dataset"] + (f" at {row['dim']:g}" if row.get("dim") else "")
    )


def _projection(title: str, points: Sequence[tuple[float, float, str]]) -> Figure:
    """Draw a dot for each text, coloured by label; of many labels the rarer ones share a colour."""
    points = points[:: -(-len(points) // (10 * _MOST_POINTS))]
    counts = Counter(label for _, _, label in points)
    common_labels = sorted(label for label, _ in counts.most_common(_MOST_LABELS))
    styles = {label: dot_style(number) for number, label in enumerate(common_labels)}
    rare_labels = {label for label in counts if label not in styles}
    if rare_labels:
        name = f"{len(rare_labels)} others"
        styles = {name: {"color": GREY, "linestyle": "none", "marker": "."}} | styles  # below the rest
        points = [(x, y, name if label in rare_labels else label) for x, y, label in points]
    axes = new_axes(title, height=SIZE[1] + 0.1 * len(styles))
    for label, style in styles.items():
        axes.plot(*zip(*((x, y) for x, y, other in points if other == label), strict=True), **style, markersize=3.5, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    description = ", ".join(f"{label} ({sum(other == label for _, _, other in points)})" for label in styles)
    return finish_figure(axes, f"Embeddings of {title} in two dimensions, {len(points)} texts: {description}", styles)
