"""Make the sections of a report's page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from acge_lightning.evaluation.results import Row, families_in_mean, mean_exception, means
from acge_lightning.report.blocks import NONE, Block, Pictures, fold, gallery, grid, number, paragraph
from acge_lightning.report.figures import dataset_label, figures, full_dim
from acge_lightning.report.runs import Run, evaluations

_DIMS = "Means over the data sets that all encoders were scored on at all their dims. A line without dots has no dims."


def sections(runs: Sequence[Run]) -> dict[str, list[Block]]:
    """Make the blocks of each section, by title; none where there is no data."""
    pictures, evaluation = figures(runs), evaluations(runs)
    return {
        "Overview": _overview(runs),
        "Settings": _settings(runs),
        "Training data and leak check": [*_leaks(evaluation), *_training_data(runs, evaluation)],
        "Curves": _curves(pictures),
        "Scores of training": _training_scores(runs, pictures),
        "Scores of evaluation": _evaluation_scores(evaluation) if evaluation["rows"] else [],
        "Matryoshka dims": gallery(pictures, "matryoshka/", _DIMS),
        "Differences": _differences(evaluation["differences"], pictures),
        "Forgetting": _forgetting(runs, pictures),
        "Search in steps": gallery(pictures, "funnel", "Each line joins the points that no other beats in speed and recall."),
        "Embeddings": gallery(pictures, "projection/", "Texts near each other have similar embeddings.", shared=False),
        "Neighbours": _examples(evaluation["examples"], "neighbours", _neighbours),
        "Worst errors": _examples(evaluation["examples"], "errors", _errors),
    }


def _overview(runs: Sequence[Run]) -> list[Block]:
    lines: dict[str, Callable[[Run], str]] = {
        "path": lambda run: str(run.path),
        "val/mean before": lambda run: number(run.before.get("val/mean")),
        "val/mean after": lambda run: number(run.after.get("val/mean")),
        "test/mean after": lambda run: number(run.after.get("test/mean")),
        "last train/loss": lambda run: number(run.curves["train/loss"][-1][1]) if run.curves.get("train/loss") else NONE,
        "steps": lambda run: number(run.training.get("steps"), ",.0f"),
        "seed": lambda run: str(run.config.get("seed", NONE)),
        "encoder": lambda run: _encoder(run.config.get("encoder")),
        "training tasks": lambda run: number(len(_train_rows(run)) or None, "d"),
        "training rows": lambda run: number(sum(_train_rows(run)) or None, ",.0f"),
        "versions": lambda run: ", ".join(f"{k} {v}" for k, v in run.training.get("versions", {}).items()) or NONE,
        "evaluated encoders": lambda run: ", ".join(card["name"] for card in run.evaluation.get("encoders", [])) or NONE,
    }
    rows = [[name, *(describe(run) for run in runs)] for name, describe in lines.items()]
    table = grid("Runs", ["", *(run.name for run in runs)], [row for row in rows if set(row[1:]) != {NONE}])
    return [*(paragraph(f"{run.name}: {remark}.", "warning") for run in runs for remark in run.remarks), table]


def _encoder(settings: Any) -> str:
    if not isinstance(settings, dict):
        return NONE
    name = str(settings.get("_target_", "")).rpartition(".")[2]
    return " ".join(str(word) for word in (name, settings.get("path"), settings.get("dim")) if word) or NONE


def _train_rows(run: Run) -> list[float]:
    return [roles["train"] for roles in run.training.get("data", {}).values() if "train" in roles]


def _leaks(evaluation: Mapping[str, Any]) -> list[Block]:
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
    return f"{row['found'] / row['rows']:.4f}" if row["rows"] else NONE


def _training_data(runs: Sequence[Run], evaluation: Mapping[str, Any]) -> list[Block]:
    runs = [run for run in runs if run.training.get("data")]
    tasks = dict.fromkeys(task for run in runs for task in run.training["data"])
    rows = [[task, *(_roles(run.training["data"].get(task)) for run in runs)] for task in tasks]
    blocks = [grid("Rows of each task: train / dev / test", ["task", *(run.name for run in runs)], rows)] if rows else []
    records = {card["name"]: card["trained_on"] for card in evaluation["encoders"] if card.get("trained_on")}
    return [*blocks, *(fold(f"{name} was trained on", [paragraph(_yaml(record), "pre")]) for name, record in records.items())]


def _roles(roles: Mapping[str, float] | None) -> str:
    return NONE if roles is None else " / ".join(number(roles.get(role), ",.0f") for role in ("train", "dev", "test"))


def _training_scores(runs: Sequence[Run], pictures: Pictures) -> list[Block]:
    runs = [run for run in runs if run.after or run.before]
    keys = sorted({key for run in runs for key in (*run.after, *run.before)}, key=lambda k: (not k.endswith("/mean"), k))
    head = ["score", *(run.name for run in runs)]
    table = grid("Before → after", head, [_before_after(key, runs) for key in keys if key.count("/") == 1])
    tasks = grid("Before → after", head, [_before_after(key, runs) for key in keys if key.count("/") > 1])
    folded = [fold("Scores of single tasks", [tasks])] if tasks["rows"] else []
    return [table, *gallery(pictures, "scores", ""), *folded] if keys else []


def _before_after(key: str, runs: Sequence[Run]) -> list[Any]:
    best = _best([run.after.get(key) for run in runs])
    cells: list[Any] = [key]
    for run in runs:
        old, new = run.before.get(key), run.after.get(key)
        change = "" if old is None or new is None else f" ({new - old:+.4f})"
        text = f"{number(old)} → {number(new)}{change}" if old is not None else number(new)
        cells.append((text, "best" if new is not None and new == best else ""))
    return cells


def _best(values: Sequence[float | None]) -> float | None:
    """Return the largest of two or more numbers."""
    numbers = [value for value in values if value is not None and value == value]
    return max(numbers) if len(numbers) > 1 else None


def _evaluation_scores(evaluation: Mapping[str, Any]) -> list[Block]:
    """List full-size scores, a line for each data set and a column for each encoder; means of families; errors."""
    names = [card["name"] for card in evaluation["encoders"]]
    full = {name: full_dim(evaluation, name) for name in names}
    at_full = {name: means(evaluation["rows"], name, full[name]) for name in names}
    cells: dict[tuple[str, ...], Row] = {}
    cells |= {(r["encoder"], r["family"], r["dataset"]): r for r in evaluation["rows"] if r["error"]}
    cells |= {(r["encoder"], r["family"], r["dataset"]): r for r in evaluation["rows"] if r["dim"] == full[r["encoder"]]}
    datasets = sorted({(row["family"], row["dataset"], row["metric"]) for row in evaluation["rows"]})
    rows = []
    for family, group in groupby(datasets, key=lambda dataset: dataset[0]):
        sets = list(group)
        rows += [[f"{family}/{name}, {metric}", *_scores_of(names, cells, (family, name))] for _, name, metric in sets]
        rows.append(_mean_line(family, at_full, {n: _count(cells, n, sets) for n in names}, len(sets)))
    families = {family for family, _, _ in datasets}
    averaged = [dataset for dataset in datasets if dataset[0] in families_in_mean(families)]
    counts = {name: _count(cells, name, averaged) for name in names}
    rows.append(_mean_line("mean", at_full, counts, len(averaged), f"mean of families{mean_exception(families)}"))
    remarks = [
        paragraph(f"{r['encoder']} on {dataset_label(r)}: {r['error']}", "warning") for r in evaluation["rows"] if r["error"]
    ]
    remarks += [paragraph(f"* {r['encoder']} on {dataset_label(r)}: {r['note']}") for r in cells.values() if r["note"]]
    intro = paragraph("Each encoder at its full size; the best of a line is bold.")
    return [intro, grid("Scores", ["data set", *_headings(evaluation, full)], rows), *remarks]


def _headings(evaluation: Mapping[str, Any], full: Mapping[str, float | None]) -> list[str]:
    return [card["name"] + (f" ({full[card['name']]:g})" if full[card["name"]] else "") for card in evaluation["encoders"]]


def _scores_of(names: Sequence[str], cells: Mapping[tuple[str, ...], Row], dataset: tuple[str, str]) -> list[Any]:
    rows = [cells.get((name, *dataset)) or {"value": None, "error": None, "note": None} for name in names]
    best = _best([row["value"] for row in rows])
    line = []
    for row in rows:
        kind = "bad" if row["error"] else "best" if row["value"] is not None and row["value"] == best else ""
        line.append(("error" if row["error"] else number(row["value"]) + ("*" if row["note"] else ""), kind))
    return line


def _count(cells: Mapping[tuple[str, ...], Row], encoder: str, datasets: Sequence[tuple[str, ...]]) -> int:
    """Count the data sets on which an encoder has a score."""
    return sum(cells.get((encoder, family, name), {}).get("value") is not None for family, name, _ in datasets)


def _mean_line(
    group: str, scores: Mapping[str, Mapping[str, float]], counts: Mapping[str, int], total: int, label: str | None = None
) -> list[Any]:
    """List the means of a group; one over fewer data sets says so, and is not marked as the best."""
    values = {name: family_means.get(group) for name, family_means in scores.items()}
    best = _best([value for name, value in values.items() if counts[name] == total])
    cells: list[Any] = [(label or f"mean of {group}", "mean")]
    for name, value in values.items():
        suffix = "" if value is None or counts[name] == total else f" ({counts[name]} of {total})"
        cells.append((number(value) + suffix, "mean best" if value is not None and value == best and not suffix else "mean"))
    return cells


def _differences(rows: Sequence[Row], pictures: Pictures) -> list[Block]:
    text = "An interval in colour does not hold 0: better is blue, worse is orange."
    cells = [
        [r["encoder"], r["against"], dataset_label(r), f"{r['difference']:+.4f}", f"{r['low']:+.4f}", f"{r['high']:+.4f}"]
        for r in rows
    ]
    head = ["encoder", "less", "data set", "difference", "from", "to"]
    return [*gallery(pictures, "differences/", text), fold("As a table", [grid("Differences", head, cells)])] if rows else []


def _curves(pictures: Pictures) -> list[Block]:
    main_curves = {name: figure for name, figure in pictures.items() if name in ("curves/train/loss", "curves/val/mean")}
    other_curves = {name: figure for name, figure in pictures.items() if name not in main_curves}
    folded = gallery(other_curves, "curves/", "")
    text = "Long curves are shown as means of neighbouring points."
    return [*gallery(main_curves, "curves/", text), *([fold("Single tasks and families", folded)] if folded else [])]


def _forgetting(runs: Sequence[Run], pictures: Pictures) -> list[Block]:
    tables = []
    for run in runs:
        if run.forgetting:
            tasks, matrix = run.forgetting["tasks"], run.forgetting["matrix"]
            rows = [[task, *map(number, row)] for task, row in zip(tasks, matrix, strict=True)]
            tables.append(grid(f"{run.name}: after training on (line), score of (column)", ["", *tasks], rows))
    text = "Line: after training on this task; column: the score of that task. Down a column is what was kept."
    trade = gallery(pictures, "gain", "Down is less forgotten, to the right is more learnt; a line a strategy.")
    layers = gallery(pictures, "layers/", "How much each layer mattered for earlier tasks, and how far it moved.")
    return [*trade, *gallery(pictures, "forgetting/", text), fold("As tables", tables), *layers] if tables else layers


def _examples(examples: Mapping[str, Any], key: str, show: Callable[[Any], list[Block]]) -> list[Block]:
    """Make a fold for each data set, with the encoders side by side."""
    datasets = dict.fromkeys(name for sets in examples.values() for name, example in sets.items() if example[key])
    folds = []
    for dataset in datasets:
        by_encoder = {encoder: sets[dataset][key] for encoder, sets in examples.items() if sets.get(dataset, {}).get(key)}
        folds.append(fold(dataset, [{"kind": "cards", "cards": {encoder: show(rows) for encoder, rows in by_encoder.items()}}]))
    return folds


def _neighbours(rows: Sequence[Row]) -> list[Block]:
    return [{"kind": "hits", "query": row["query"], "hits": row["hits"]} for row in rows]


def _errors(rows: Sequence[Row]) -> list[Block]:
    head = ["text", "expected", "found"]
    return [grid("Errors", head, [[row[key] for key in head] for row in rows])]


def _settings(runs: Sequence[Run]) -> list[Block]:
    """List the settings that differ between the runs, then all settings."""
    runs = [run for run in runs if run.config]
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(settings.get(key, NONE) for settings in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    blocks = [fold(f"All of {run.name}", [paragraph(_yaml(run.config), "pre")]) for run in runs]
    if len(runs) > 1:
        same = paragraph("The settings of the runs are the same.")
        blocks.insert(0, grid("What differs", ["key", *(run.name for run in runs)], rows) if rows else same)
    return blocks


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten settings to dotted key -> value as text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return flat


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
