"""Make the blocks of scores: of training, before and after, and of evaluations, with the leaks that spoil them beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from acge_lightning.evaluation.leak_marks import LEGEND, Leaks, leaks_by_score, seen_text, spoilt_families
from acge_lightning.evaluation.results import Row, families_in_mean, mean_exception, means
from acge_lightning.evaluation.scored_rows import SPLITS, rows_hash, seen_mark
from acge_lightning.report.blocks import NONE, Block, Pictures, fold, gallery, grid, number, paragraph
from acge_lightning.report.comparison import best, explain_letters, lower_is_better, row_letters
from acge_lightning.report.figures import dataset_label, full_dim
from acge_lightning.report.runs import Run

_BEST = "Bold and green is the best of a line, among scores of the same rows."


# ---- of training


def overview(runs: Sequence[Run]) -> list[Block]:
    """List what each run has reached, a line for each; different rows, and files that are missing, are named first."""
    remarks = [paragraph(f"{run.name}: {remark}.", "warning") for run in runs for remark in run.remarks]
    remarks += [paragraph(text, "warning") for text in rows_notes(runs)]
    shown = {run.name: run for run in runs if run.before or run.after or run.training or run.curves}
    columns: dict[str, list[Any]] = {
        "val/mean before": [number(run.before.get("val/mean")) for run in shown.values()],
        "val/mean after": _after("val/mean", list(shown.values())),
        "test/mean after": _after("test/mean", list(shown.values())),
        **{
            f"{split} rows": [letter or NONE for letter in row_letters(list(shown.values()), prefix)]
            for prefix, split in SPLITS.items()
        },
        "steps": [number(run.training.get("steps"), ",.0f") for run in shown.values()],
        "training rows": [number(sum(train_rows(run)) or None, ",.0f") for run in shown.values()],
        "encoder": [_encoder(run.config.get("encoder")) for run in shown.values()],
    }
    columns = {name: cells for name, cells in columns.items() if any(cell not in (NONE, (NONE, "")) for cell in cells)}
    rows = [[name, *cells] for name, *cells in zip(shown, *columns.values(), strict=True)]
    table = [grid("Runs", ["run", *columns], rows)] if rows else []
    evaluated = [
        [run.name, ", ".join(card["name"] for card in run.evaluation["encoders"])]
        for run in runs
        if run.evaluation.get("encoders")
    ]
    return [*remarks, *table, *([grid("Evaluations", ["results", "encoders"], evaluated)] if evaluated else [])]


def rows_notes(runs: Sequence[Run]) -> list[str]:
    """Say where runs were scored on different rows."""
    return [text for prefix in SPLITS if (text := explain_letters(runs, prefix))]


def _after(key: str, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Write a score after training of each run, with its mark."""
    marks = [seen_mark(key, run.rows) for run in runs]
    texts = [number(run.after.get(key)) + (mark if key in run.after else "") for run, mark in zip(runs, marks, strict=True)]
    top = best_runs(key, runs)
    return [(text, "best" if i in top else "") for i, text in enumerate(texts)]


def best_runs(key: str, runs: Sequence[Run]) -> set[int]:
    """Find the runs that are best in a score, among those of the same rows; a score of rows seen in training is not."""
    rows = [None if seen_mark(key, run.rows) else rows_hash(key, run.rows) for run in runs]
    return best([run.after.get(key) for run in runs], rows, lower_is_better(key))


def train_rows(run: Run) -> list[float]:
    """Return the training rows of each task."""
    return [roles["train"] for roles in run.training.get("data", {}).values() if "train" in roles]


def _encoder(settings: Any) -> str:
    if not isinstance(settings, dict):
        return NONE
    name = str(settings.get("_target_", "")).rpartition(".")[2]
    return " ".join(str(word) for word in (name, settings.get("path"), settings.get("dim")) if word) or NONE


def training_scores(runs: Sequence[Run], pictures: Pictures) -> list[Block]:
    """List scores before and after training, means first, tasks folded."""
    runs = [run for run in runs if run.after or run.before]
    keys = sorted({key for run in runs for key in (*run.after, *run.before)}, key=lambda k: (not k.endswith("/mean"), k))
    if not keys:
        return []
    head = ["score", *(run.name for run in runs)]
    letters = [[f"{split} rows", *(letter or NONE for letter in row_letters(runs, prefix))] for prefix, split in SPLITS.items()]
    letters = [line for line in letters if set(line[1:]) != {NONE}]
    table = grid("Before → after", head, [*letters, *(_before_after(key, runs) for key in keys if key.count("/") == 1)])
    tasks = [_before_after(key, runs) for key in keys if key.count("/") > 1]
    legend = [f"{LEGEND}."] if any(seen_mark(key, run.rows) for run in runs for key in run.after) else []
    text = " ".join([_BEST] * (len(runs) > 1) + _lower_text(keys) + legend)
    folded = [fold("Scores of single tasks", [grid("Before → after", head, tasks)])] if tasks else []
    return [paragraph(text), table, *gallery(pictures, "scores", ""), *folded]


def _lower_text(keys: Sequence[str]) -> list[str]:
    names = sorted({key.rpartition("/")[2] for key in keys if lower_is_better(key)})
    return [f"Of {' and '.join(names)} less is better."] if names else []


def _before_after(key: str, runs: Sequence[Run]) -> list[Any]:
    top = best_runs(key, runs)
    cells: list[Any] = [key]
    for position, run in enumerate(runs):
        old, new, mark = run.before.get(key), run.after.get(key), seen_mark(key, run.rows)
        change = "" if old is None or new is None else f" ({new - old:+.4f})"
        text = f"{number(old)} → {number(new)}{change}" if old is not None else number(new)
        cells.append((text + mark if new is not None else text, "best" if position in top else ""))
    return cells


# ---- of evaluations


def evaluation_scores(evaluation: Mapping[str, Any]) -> list[Block]:
    """List full-size scores, a line for each data set and a column for each encoder; means of families; errors."""
    names = [card["name"] for card in evaluation["encoders"]]
    full = {name: full_dim(evaluation, name) for name in names}
    at_full = {name: means(evaluation["rows"], name, full[name]) for name in names}
    leaky = leaks_by_score(evaluation)
    cells: dict[tuple[str, ...], Row] = {}
    cells |= {(r["encoder"], r["family"], r["dataset"]): r for r in evaluation["rows"] if r["error"]}
    cells |= {(r["encoder"], r["family"], r["dataset"]): r for r in evaluation["rows"] if r["dim"] == full[r["encoder"]]}
    datasets = sorted({(row["family"], row["dataset"], row["metric"]) for row in evaluation["rows"]})
    families = {family for family, _, _ in datasets}
    spoilt = {name: spoilt_families(leaky, name, families) for name in names}
    rows = []
    for family, group in groupby(datasets, key=lambda dataset: dataset[0]):
        sets = list(group)
        rows += [[f"{family}/{name}, {metric}", *_scores_of(names, cells, (family, name), leaky)] for _, name, metric in sets]
        rows.append(_mean_line(family, at_full, {n: _count(cells, n, sets) for n in names}, len(sets), spoilt))
    averaged = [dataset for dataset in datasets if dataset[0] in families_in_mean(families)]
    counts = {name: _count(cells, name, averaged) for name in names}
    rows.append(_mean_line("mean", at_full, counts, len(averaged), spoilt, f"mean of families{mean_exception(families)}"))
    remarks = [
        paragraph(f"{r['encoder']} on {dataset_label(r)}: {r['error']}", "warning") for r in evaluation["rows"] if r["error"]
    ]
    remarks += [paragraph(f"* {r['encoder']} on {dataset_label(r)}: {r['note']}") for r in cells.values() if r["note"]]
    legend = f" {LEGEND}; such a score is not marked as the best." if leaky else ""
    intro = paragraph(f"Each encoder at its full size; the best of a line is bold.{legend}")
    return [intro, grid("Scores", ["data set", *_headings(evaluation, full)], rows), *remarks]


def _headings(evaluation: Mapping[str, Any], full: Mapping[str, float | None]) -> list[str]:
    return [card["name"] + (f" ({full[card['name']]:g})" if full[card["name"]] else "") for card in evaluation["encoders"]]


def _scores_of(names: Sequence[str], cells: Mapping[tuple[str, ...], Row], dataset: tuple[str, str], leaky: Leaks) -> list[Any]:
    rows = [cells.get((name, *dataset)) or {"value": None, "error": None, "note": None} for name in names]
    leaks = [leaky.get((name, *dataset)) for name in names]
    top = best([row["value"] for row in rows], [None if leak else "the same" for leak in leaks])
    line = []
    for position, (row, leak) in enumerate(zip(rows, leaks, strict=True)):
        kind = "bad" if row["error"] else "best" if position in top else ""
        text = number(row["value"]) + ("*" if row["note"] else "") + _leak_text(leak if row["value"] is not None else None)
        line.append(("error" if row["error"] else text, kind))
    return line


def _leak_text(leak: Mapping[str, Any] | None) -> str:
    """Write what stands beside a score of rows that were seen in training: how many, and the score on the others."""
    if leak is None:
        return ""
    without = "" if leak["unseen"] is None else f"; {number(leak['unseen'])} on unseen rows"
    return f" {seen_text(leak['found'], leak['rows'])}{without}"


def _count(cells: Mapping[tuple[str, ...], Row], encoder: str, datasets: Sequence[tuple[str, ...]]) -> int:
    """Count the data sets on which an encoder has a score."""
    return sum(cells.get((encoder, family, name), {}).get("value") is not None for family, name, _ in datasets)


def _mean_line(
    group: str,
    scores: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
    total: int,
    spoilt: Mapping[str, set[str]],
    label: str | None = None,
) -> list[Any]:
    """List the means of a group; one over fewer data sets, or with seen rows, says so and is not marked as the best."""
    values = {name: family_means.get(group) for name, family_means in scores.items()}
    comparable = ["all" if counts[name] == total and group not in spoilt[name] else None for name in values]
    top = best(list(values.values()), comparable)
    cells: list[Any] = [(label or f"mean of {group}", "mean")]
    for position, (name, value) in enumerate(values.items()):
        suffix = "" if value is None or counts[name] == total else f" ({counts[name]} of {total})"
        suffix += " †" if value is not None and group in spoilt[name] else ""
        cells.append((number(value) + suffix, "mean best" if position in top else "mean"))
    return cells


# ---- leaks and differences


def leak_blocks(evaluation: Mapping[str, Any]) -> list[Block]:
    """List evaluated rows that an encoder was trained on, and the encoders without a record of training data."""
    leaky = [row for row in evaluation["leaks"] if row["found"]]
    clean = [
        name for name in dict.fromkeys(r["encoder"] for r in evaluation["leaks"]) if name not in {r["encoder"] for r in leaky}
    ]
    checked = {row["encoder"] for row in evaluation["leaks"]}
    unchecked = [card["name"] for card in evaluation["encoders"] if card["dim"] is not None and card["name"] not in checked]
    blocks = []
    if leaky:
        rows = [[r["encoder"], dataset_label(r), f"{r['rows']:,}", (f"{r['found']:,}", "bad"), _share(r)] for r in leaky]
        head = ["encoder", "data set", "evaluated", "of them trained on", "share"]
        blocks.append(
            paragraph("Some evaluated rows are training data: the scores of these data sets are too high.", "warning")
        )
        blocks.append(grid("Leaks", head, rows))
    if clean:
        blocks.append(paragraph(f"No evaluated row is among the recorded training data of {', '.join(clean)}."))
    if unchecked:
        blocks.append(
            paragraph(f"Leaks are not known, for want of a record of training data: {', '.join(unchecked)}.", "warning")
        )
    return blocks


def _share(row: Row) -> str:
    return f"{100 * row['found'] / row['rows']:.1f} %" if row["rows"] else NONE


def difference_blocks(rows: Sequence[Row], pictures: Pictures) -> list[Block]:
    """Show differences with their intervals; one of rows that were seen in training has a mark, and one without them below."""
    if not rows:
        return []
    cells = []
    for row in rows:
        mark = " †" if "unseen" in row else ""
        cells.append([row["encoder"], row["against"], dataset_label(row), *_interval(row, mark)])
        if row.get("unseen"):
            cells.append([row["encoder"], row["against"], f"{dataset_label(row)}, unseen rows", *_interval(row["unseen"])])
    leaks = " † One of the two was trained on some of these rows, so this is no clean gain or loss, and grey."
    text = "An interval in colour does not hold 0: better is blue, worse is orange."
    text += leaks if any("unseen" in row for row in rows) else ""
    head = ["encoder", "less", "data set", "difference", "from", "to"]
    return [*gallery(pictures, "differences/", text), fold("As a table", [grid("Differences", head, cells)])]


def _interval(row: Row, mark: str = "") -> list[str]:
    return [f"{row['difference']:+.4f}{mark}", f"{row['low']:+.4f}", f"{row['high']:+.4f}"]
