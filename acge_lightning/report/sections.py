"""Make the sections of a report's page: scores first, settings last and folded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from acge_lightning.evaluation.results import Row
from acge_lightning.report.blocks import NONE, Block, Pictures, fold, gallery, grid, number, paragraph
from acge_lightning.report.figures import figures
from acge_lightning.report.runs import Run, evaluations
from acge_lightning.report.scores import difference_blocks, evaluation_scores, leak_blocks, overview, training_scores

_DIMS = "Means over the data sets that all encoders were scored on at all their dims. A line without dots has no dims."
_MOST_TASKS = 8  # whose losses are shown without a click
_ERRORS = {  # family -> what is listed, and what the right and the wrong answer of an error are
    "sts": ("The pairs whose cosine is furthest from their score, by rank.", "score in the file", "cosine"),
    "pair": ("The pairs whose cosine is furthest from their label, by rank: 1 is a match, 0 is none.", "label", "cosine"),
    "classification": ("Texts whose nearest text has another label.", "its label", "label of the nearest text"),
    "clustering": ("Texts whose nearest text has another label.", "its label", "label of the nearest text"),
    "retrieval": ("Queries whose right document comes latest.", "right document", "what comes first"),
    "triplet": ("Queries whose right text comes latest.", "right text", "what comes first"),
}


def sections(runs: Sequence[Run]) -> dict[str, list[Block]]:
    """Make the blocks of each section, by title; none where there is no data."""
    pictures, evaluation = figures(runs), evaluations(runs)
    return {
        "Overview": overview(runs),
        "Scores of training": training_scores(runs, pictures),
        "Scores of evaluation": evaluation_scores(evaluation) if evaluation["rows"] else [],
        "Differences": difference_blocks(evaluation["differences"], pictures),
        "Leak check": leak_blocks(evaluation),
        "Matryoshka dims": gallery(pictures, "matryoshka/", _DIMS),
        "Forgetting": _forgetting(runs, pictures),
        "Curves": _curves(pictures),
        "Search in steps": gallery(pictures, "funnel", "Each line joins the points that no other beats in speed and recall."),
        "Worst errors": _examples(evaluation["examples"], "errors", _errors),
        "Neighbours": _examples(evaluation["examples"], "neighbours", _neighbours),
        "Embeddings": gallery(pictures, "projection/", "Texts near each other have similar embeddings.", shared=False),
        "Training data": _training_data(runs, evaluation),
        "Settings": _settings(runs),
    }


def _curves(pictures: Pictures) -> list[Block]:
    """Show the validation mean and the loss of each task; the rest is folded."""
    names = [name for name in pictures if name.startswith("curves/")]
    losses = [name for name in names if name.startswith("curves/train/") and name.endswith("/loss")]
    tasks = [name for name in losses if name != "curves/train/loss"]
    main = [name for name in names if name.startswith("curves/val/mean")] + (tasks or losses)[:_MOST_TASKS]
    other = {name: pictures[name] for name in names if name not in main}
    text = "The strong line of a loss is its running mean over a tenth of the curve, the faint one what was logged."
    folded = gallery(other, "curves/", "The loss of all tasks, one after the other, hops as they differ.")
    shown = gallery({name: pictures[name] for name in main}, "curves/", text)
    return [*shown, *([fold("More curves: families, all tasks together, gradient norms", folded)] if folded else [])]


def _forgetting(runs: Sequence[Run], pictures: Pictures) -> list[Block]:
    tables = []
    for run in runs:
        if run.forgetting:
            tasks, matrix = run.forgetting["tasks"], run.forgetting["matrix"]
            rows = [[task, *map(number, row)] for task, row in zip(tasks, matrix, strict=True)]
            tables.append(grid(f"{run.name}: after training on (line), score of (column)", ["", *tasks], rows))
    text = "Line: after training on this task; column: the score of that task. Down a column is what was kept."
    trade = gallery(pictures, "gain", "Down is less forgotten, to the right is more learnt; a line a strategy.")
    layers = gallery(pictures, "layers/", "How far each layer moved, and, with EWC, how much it mattered for earlier tasks.")
    return [*trade, *gallery(pictures, "forgetting/", text), fold("As tables", tables), *layers] if tables else layers


# ---- examples


def _examples(examples: Mapping[str, Any], key: str, show: Callable[[str, list[Row]], list[Block]]) -> list[Block]:
    """Make a fold for each data set, with the encoders side by side."""
    datasets = dict.fromkeys(name for sets in examples.values() for name, example in sets.items() if example[key])
    folds = []
    for dataset in datasets:
        family = dataset.partition("/")[0]
        by_encoder = {encoder: sets[dataset][key] for encoder, sets in examples.items() if sets.get(dataset, {}).get(key)}
        cards = {encoder: show(family, rows) for encoder, rows in by_encoder.items()}
        intro = [paragraph(_ERRORS[family][0])] if key == "errors" and family in _ERRORS else []
        folds.append(fold(dataset, [*intro, {"kind": "cards", "cards": cards}]))
    return folds


def _neighbours(family: str, rows: Sequence[Row]) -> list[Block]:
    return [{"kind": "hits", "query": row["query"], "hits": row["hits"]} for row in rows]


def _errors(family: str, rows: Sequence[Row]) -> list[Block]:
    _, expected, answer = _ERRORS.get(family, ("", "expected", "found"))
    items = [
        {"texts": [row["text"], *([row["text2"]] if "text2" in row else [])], expected: row["expected"], answer: row["found"]}
        for row in rows
    ]
    return [{"kind": "errors", "items": items, "labels": [expected, answer]}]


# ---- data and settings


def _training_data(runs: Sequence[Run], evaluation: Mapping[str, Any]) -> list[Block]:
    runs = [run for run in runs if run.training.get("data")]
    tasks = dict.fromkeys(task for run in runs for task in run.training["data"])
    rows = [[task, *(_roles(run.training["data"].get(task)) for run in runs)] for task in tasks]
    blocks = [grid("Rows of each task: train / dev / test", ["task", *(run.name for run in runs)], rows)] if rows else []
    records = {card["name"]: card["trained_on"] for card in evaluation["encoders"] if card.get("trained_on")}
    return [*blocks, *(fold(f"{name} was trained on", [paragraph(_yaml(record), "pre")]) for name, record in records.items())]


def _roles(roles: Mapping[str, float] | None) -> str:
    return NONE if roles is None else " / ".join(number(roles.get(role), ",.0f") for role in ("train", "dev", "test"))


def _settings(runs: Sequence[Run]) -> list[Block]:
    """Fold the settings that differ between the runs, then where each run is, its versions and all of its settings."""
    folders = [[run.name, str(run.path), _versions(run)] for run in runs]
    runs = [run for run in runs if run.config]
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(settings.get(key, NONE) for settings in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    blocks = [fold("Folders and versions", [grid("Folders and versions", ["run", "path", "versions"], folders)])]
    if len(runs) > 1:
        same = paragraph("The settings of the runs are the same.")
        table = grid("What differs", ["key", *(run.name for run in runs)], rows)
        blocks.insert(0, fold(f"What differs ({len(rows)} settings)", [table]) if rows else same)
    return blocks + [fold(f"All settings of {run.name}", [paragraph(_yaml(run.config), "pre")]) for run in runs]


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.training.get("versions", {}).items()) or NONE


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
