"""Draw figures that compare runs and encoders, for a page, TensorBoard or W&B. Needs matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from acge_lightning.evaluation.results import Row, mean_exception, means
from acge_lightning.report.comparison import lower_is_better, runs_by_rows
from acge_lightning.report.runs import Curve, Run, evaluations
from acge_lightning.report.stage_figures import forgetting_figure, gain_figures, last_values, layers_figure
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
_FEWEST_SMOOTHED = 12  # points of a curve
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
            **{f"forgetting/{run.name}": forgetting_figure(run) for run in runs if run.forgetting},
            **{f"layers/{run.name}": layers_figure(run) for run in runs if last_values(run.curves, "ewc/drift/")},
            **gain_figures(runs),
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
    """Draw losses, gradient norms and validation means over the steps; scores of different rows in figures of their own."""
    logged = dict.fromkeys(key for run in runs for key in run.curves)
    trained = [key for key in logged if key.startswith("train/") and key.endswith(("loss", "grad_norm"))]
    keys = [*trained, *(key for key in logged if key.startswith("val/") and key.count("/") == 1)]
    keys.sort(key=lambda key: (key not in ("train/loss", "val/mean"), key))
    found: dict[str, Figure] = {}
    for key in keys:
        groups = {"": list(runs)} if key in trained else runs_by_rows(runs, "val")
        for title, group in groups.items():
            lines = {run.name: run.curves[key] for run in group if run.curves.get(key)}
            found |= {f"curves/{key}{title}": _curve(key, title, lines, runs)} if lines else {}
    return found


def _curve(key: str, title: str, lines: Mapping[str, Curve], runs: Sequence[Run]) -> Figure:
    """Draw a line for each run; what hops from step to step is drawn faintly, and its running mean over it."""
    axes = new_axes(f"{key}{title}", "step")
    ends, legend = [], {}
    for number, run in enumerate(runs):
        if run.name not in lines:
            continue
        points, style = lines[run.name], line_style(number)
        steps, values = (_thinned(np.array(axis_values, dtype=float)) for axis_values in zip(*points, strict=True))
        smooth = _smoothed(values) if key.startswith("train/") else None
        if smooth is not None:
            axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.3)
        marker = "o" if len(steps) < 20 and smooth is None else ""
        axes.plot(steps, values if smooth is None else smooth, **style, linewidth=1.4, marker=marker, markersize=3)
        legend[run.name] = style
        ends.append(f"{run.name} from {points[0][1]:.4f} to {points[-1][1]:.4f} at step {points[-1][0]}")
    return finish_figure(axes, f"{key} against step: {'; '.join(ends)}", legend)


def _smoothed(values: np.ndarray) -> np.ndarray | None:
    """Average each value with its neighbours, of a tenth of all; None for too few. Values that are not finite are left out."""
    if len(values) < _FEWEST_SMOOTHED:
        return None
    window = np.ones(max(5, len(values) // 10) | 1)
    finite = np.isfinite(values)
    counts = np.convolve(finite.astype(float), window, "same")
    sums = np.convolve(np.where(finite, values, 0.0), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Average neighbours until at most `_MOST_POINTS` values are left."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([chunk.mean() for chunk in np.array_split(values, _MOST_POINTS)])


def _scores(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw scores of families and the mean before and after, a figure for each set of rows.

    Keys without a score before, as forgetting, are left out, and those of which lower is better, which are no scores.
    """
    groups = runs_by_rows([run for run in runs if run.after], "val")
    found = {f"scores{title}": _before_and_after(group, title, runs) for title, group in groups.items()}
    return {name: figure for name, figure in found.items() if figure}


def _before_and_after(scored: Sequence[Run], title: str, runs: Sequence[Run]) -> Figure | None:
    logged = dict.fromkeys(key for run in scored for key in run.after if key.count("/") == 1 and not lower_is_better(key))
    keys = sorted(logged, key=lambda key: (not key.endswith("/mean"), key), reverse=True)  # from the bottom
    keys = [key for key in keys if any(key in run.before for run in scored)] or keys
    if not keys:
        return None
    axes = new_axes(f"before (ring) and after (dot){title}", height=1 + 0.2 * len(keys) * max(2, len(scored)))
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
    axes.set_yticks(range(len(keys)), [shortened(key, 30) for key in keys])
    axes.set_ylim(-0.6, len(keys) - 0.4)
    return finish_figure(
        axes, f"Scores: {'; '.join(descriptions)}", {run.name: dot_style(i) for i, run in enumerate(runs) if run in scored}
    )


def _funnel(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw recall over speed-up; the line joins the points that no other beats in both."""
    if not any(run.funnel for run in runs):
        return {}
    axes = new_axes("search in steps", "times faster than exact search", "recall")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    descriptions = []
    for number, run in enumerate(runs):
        points = [p for p in run.funnel if p["speedup"] > 0]
        axes.plot([p["speedup"] for p in points], [p["recall"] for p in points], **dot_style(number))
        best = sorted(pareto(points), key=lambda p: p["speedup"])
        axes.plot([p["speedup"] for p in best], [p["recall"] for p in best], **line_style(number), linewidth=1)
        for p in best:
            label_point(axes, p["speedup"], p["recall"], shortened(p["label"], 28))
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
    rows = [line for row in rows for line in (row, _unseen(row)) if line]
    axes = new_axes(f"{encoder} − {baseline}", "difference", height=0.9 + 0.2 * len(rows))
    for line, row in enumerate(rows):
        is_clean = "unseen" not in row  # of rows that neither was trained on
        colour = GREY if not is_clean else COLOURS[0] if row["low"] > 0 else COLOURS[1] if row["high"] < 0 else GREY
        axes.plot([row["low"], row["high"]], [line, line], color=colour)
        axes.plot([row["difference"]], [line], "o" if colour == GREY else "D", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [shortened(dataset_label(row), 30) + (" †" if "unseen" in row else "") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    description = "; ".join(f"{dataset_label(r)} {r['difference']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in rows)
    return finish_figure(axes, f"{encoder} less {baseline}, with intervals: {description}")


def _unseen(row: Row) -> Row | None:
    """Return the line of a difference without the rows that were seen in training, if there is one."""
    return {**row["unseen"], "family": "", "dataset": f"… unseen rows of {row['dataset']}"} if row.get("unseen") else None


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
