"""What a run shows at its end: scores before and after, example searches, and where its outputs are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from acge_lightning.data.sampler import Coverage
from acge_lightning.encoder.encoder import Encoder, similarity
from acge_lightning.errors import InputError
from acge_lightning.evaluation.results import means
from acge_lightning.files.atomic import check_replaceable, write_text
from acge_lightning.files.spreadsheet import write_csv
from acge_lightning.files.yaml_file import read_yaml
from acge_lightning.terminal import ProgressBar

if TYPE_CHECKING:
    from acge_lightning.data.mixture import MixtureDataModule

Scores = Mapping[str, float]
_WIDEST = 46  # characters of a hit that are shown


def score_table(before: Scores, after: Scores) -> Table:
    """One line a score, before (if there was a before) and after; families and the mean last."""
    table = Table(title="Scores", title_justify="left")
    table.add_column("score")
    for name in ("before", "after", "change") if before else ("score",):
        table.add_column(name, justify="right")
    for key in sorted(after, key=lambda key: (key.endswith("/mean"), key.count("/") == 1, key)):
        old, new = before.get(key), after[key]
        change = "" if old is None else f"{new - old:+.4f}"
        style = "bold" if key.endswith("/mean") else None
        values = ("" if old is None else f"{old:.4f}", f"{new:.4f}", change) if before else (f"{new:.4f}",)
        table.add_row(key, *values, style=style)
    return table


def coverage_table(coverage: Mapping[str, Coverage]) -> Table:
    """One line a training task: its rows, those that an epoch trains on, and how often the run has gone through them."""
    table = Table(title="Training rows", title_justify="left")
    for column in ("task", "rows", "of an epoch", "share", "batches", "epochs"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, task in coverage.items():
        share, style = f"{100 * task.used / task.rows:.1f} %", None if task.whole else "red"
        table.add_row(name, str(task.rows), str(task.used), share, str(task.batches), f"{task.epochs:.2f}", style=style)
    return table


@contextmanager
def evaluation_progress(total: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Shows how many of `total` pairs of model and data set are scored, and a line with each score.

    Yields:
        What takes a row of an evaluation, as `evaluate` does with `show`.
    """
    scored: set[tuple[str, str, str]] = set()
    with ProgressBar("evaluate", "scored", total) as bar:

        def add(row: Mapping[str, Any]) -> None:
            pair = (row["encoder"], row["family"], row["dataset"])
            bar.advance(pair not in scored)
            scored.add(pair)
            value = row["error"] or f"{row['value']:.4f}"
            dim = "" if row["dim"] is None else f" at {row['dim']} dims"
            dataset = f"{row['family']}/{row['dataset']}"
            bar.print_line(f"[{len(scored)}/{total}] {row['encoder']} on {dataset}{dim}: {row['metric']} {value}")

        yield add


def evaluation_tables(result: Mapping[str, Any]) -> list[Table]:
    """Scores at full size, a line a data set and a column an encoder; family means at each dim; intervals of differences."""
    rows, names = result["rows"], [card["name"] for card in result["encoders"]]
    largest = {card["name"]: card["dim"] for card in result["encoders"]}
    table = Table(title="Scores at full size", title_justify="left")
    for column in ("family", "data set", "metric", *names, "remark"):
        table.add_column(column, justify="right" if column in names else "left")
    for family, name in dict.fromkeys((row["family"], row["dataset"]) for row in rows):
        found = [row for row in rows if (row["family"], row["dataset"]) == (family, name)]
        cells = {r["encoder"]: r for r in found if r["dim"] == largest[r["encoder"]] or r["error"]}
        remark = "; ".join(dict.fromkeys(str(r["error"] or r["note"]) for r in cells.values() if r["error"] or r["note"]))
        values = ["error" if n in cells and cells[n]["error"] else _digits(cells.get(n, {}).get("value")) for n in names]
        table.add_row(family, name, found[0]["metric"], *values, remark)
    return [table, _mean_table(rows, largest), *_difference_table(result["differences"])]


def _mean_table(rows: Sequence[Mapping[str, Any]], largest: Mapping[str, int | None]) -> Table:
    families = sorted({row["family"] for row in rows})
    table = Table(title="Means of families", title_justify="left")
    for column in ("encoder", "dim", *families, "mean"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for name in largest:
        dims = dict.fromkeys(row["dim"] for row in rows if row["encoder"] == name and not row["error"])
        for dim in dims:
            found = means(rows, name, dim)
            shown = [_digits(found.get(family)) for family in (*families, "mean")]
            table.add_row(name, "all" if dim is None else str(dim), *shown)
    return table


def _difference_table(differences: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not differences:
        return []
    table = Table(title="Differences, with a 95 % interval of a paired bootstrap", title_justify="left")
    for column in ("encoder", "against", "data set", "difference", "from", "to"):
        table.add_column(column)
    for d in differences:
        clear = "bold" if d["low"] > 0 or d["high"] < 0 else None
        values = (f"{d[key]:+.4f}" for key in ("difference", "low", "high"))
        table.add_row(d["encoder"], d["against"], f"{d['family']}/{d['dataset']}", *values, style=clear)
    return [table]


def forgetting_tables(found: Mapping[str, Any]) -> list[Table]:
    """Scores of each stage's tasks after each stage, what was learnt and forgotten, and what old indexes are worth.

    Args:
        found: the contents of `forgetting.json`.
    """
    table = Table(title="Test scores of each stage's tasks", title_justify="left")
    for column in ("after", *found["tasks"]):
        table.add_column(column, justify="left" if column == "after" else "right")
    for name, row in zip(("start", *found["tasks"]), (found["start"], *found["matrix"]), strict=True):
        table.add_row(name, *(_digits(None if value != value else value) for value in row))
    summary = Table(title=f"Learnt and forgotten, strategy {found['strategy']['name']}", title_justify="left")
    for column in ("split", *found["measures"]):
        summary.add_column(column.replace("_", " "), justify="left" if column == "split" else "right")
    for split, part in (("test", found), ("dev", found["dev"])):
        summary.add_row(split, *(_digits(None if value != value else value) for value in part["measures"].values()))
    return [table, summary, *_index_table(found["old_index"])]


def _index_table(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not rows:
        return []
    table = Table(title="Recall at 10 of documents embedded by one encoder and queries by another", title_justify="left")
    for column in ("task", "documents", "queries", "recall"):
        table.add_column(column, justify="right" if column == "recall" else "left")
    for row in rows:
        table.add_row(row["task"], row["documents"], row["queries"], _digits(row["recall"]))
    return [table]


def suite_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Main scores of mteb's tasks, a line a task and a column an encoder."""
    table = Table(title="mteb's main scores", title_justify="left")
    for column in ("task", *scores):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in dict.fromkeys(task for found in scores.values() for task in found):
        table.add_row(task, *(_digits(found.get(task, {}).get("main_score")) for found in scores.values()))
    return table


def leak_table(result: Mapping[str, Any]) -> Table | str:
    """Evaluated rows that an encoder was trained on, by its own record."""
    known = {leak["encoder"]: leak.get("error") or "" for leak in result["leaks"]}
    silent = [card["name"] for card in result["encoders"] if card["name"] not in known and card["dim"] is not None]
    found = [leak for leak in result["leaks"] if leak["found"]]
    if not found:
        unknown = [f"{', '.join(silent)}: no record of training data"] if silent else []
        unknown += [f"{name}: {error}" for name, error in known.items() if error]
        told = f" ({'; '.join(unknown)})" if unknown else ""
        return f"Leak check: no evaluated row is among the recorded training data{told}."
    table = Table(title="Leak check: evaluated rows that are in the training data", title_justify="left", style="red")
    for column in ("encoder", "data set", "rows", "seen in training"):
        table.add_column(column)
    for leak in found:
        share = f"{leak['found']} ({leak['found'] / leak['rows']:.1%})"
        table.add_row(leak["encoder"], f"{leak['family']}/{leak['dataset']}", str(leak["rows"]), share)
    for name, error in known.items():
        if error:
            table.add_row(name, "", "", error)
    return table


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def searches(encoder: Encoder, mixture: MixtureDataModule, count: int = 3, hits: int = 3) -> Table | None:
    """A few dev queries and what the encoder finds for them in the corpus; None without a retrieval task."""
    for name, data in mixture.tasks.items():
        evaluation_set = mixture.evaluation(name, "dev") if data.family == "retrieval" else None
        if evaluation_set is None:
            continue
        boundary = evaluation_set.roles[0][0]
        chosen = np.linspace(0, boundary - 1, min(count, boundary)).round().astype(int)
        queries = [evaluation_set.texts[int(i)].as_py() for i in chosen]
        documents = evaluation_set.texts.slice(boundary).to_pylist()
        prompts = data.prompts
        vectors = encoder.encode(queries, prompt=prompts.get("query"))
        scores = similarity(vectors, encoder.encode(documents, prompt=prompts.get("document")))
        grades = {(int(i), int(j)): grade for i, _, grade, _, j in evaluation_set.judgements.tolist()}
        table = Table(title=f"Searches in {len(documents)} documents of {name}", title_justify="left")
        for column in ("query", "cosine", "hit", "right"):
            table.add_column(column)
        for row, query in enumerate(queries):
            hidden = [j for (i, j), grade in grades.items() if i == chosen[row] and math.isnan(grade)]
            scores[row, hidden] = -math.inf
            best = scores[row].topk(min(hits, len(documents) - len(hidden)))
            for place, (value, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                right = "✓" if grades.get((int(chosen[row]), i), 0) > 0 else ""
                end = place == len(best.indices) - 1
                table.add_row(_cut(query) if place == 0 else "", f"{value:.3f}", _cut(documents[i]), right, end_section=end)
        return table
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def check_result(folder: Path) -> None:
    """Refuse a folder with a `result.json` that no run has written."""
    check_replaceable(folder / "result.json", b'"before"', "the result of a run")


def write_result(folder: Path, before: Scores, after: Scores, output: Path) -> None:
    """`result.json` of a run, by which it counts as done: its scores, and where its model is; whole or not at all."""
    check_result(folder)
    result = {"before": dict(before), "after": dict(after), "output": str(output)}
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")


def summarise(folder: Path) -> tuple[Table, int]:
    """One line for every job of a multirun, best first; also written to `summary.csv`.

    Args:
        folder: of the multirun; each job's folder holds `result.json` and `.hydra/overrides.yaml`.

    Returns:
        The table, and how many jobs left no result.

    Raises:
        InputError: no job, or a `summary.csv` that is another file.
    """
    rows: list[tuple[str, str, float]] = []
    for job in sorted(p.parent for p in folder.glob("*/.hydra")):
        overrides = " ".join(map(str, read_yaml(job / ".hydra" / "overrides.yaml") or []))
        result = job / "result.json"
        score = float("nan")
        if result.is_file():
            score = json.loads(result.read_text(encoding="utf-8"))["after"].get("val/mean", score)
        rows.append((job.name, overrides, score))
    if not rows:
        raise InputError(f"{folder} holds no job")
    rows.sort(key=lambda row: -row[2] if row[2] == row[2] else np.inf)
    check_replaceable(folder / "summary.csv", b"job,overrides,val/mean", "the summary of a multirun")
    write_csv(folder / "summary.csv", ("job", "overrides", "val/mean"), rows)
    table = Table(title=f"{len(rows)} jobs, best first", title_justify="left")
    for column in ("job", "overrides", "val/mean"):
        table.add_column(column)
    for job_name, overrides, score in rows:
        table.add_row(job_name, overrides, "failed" if score != score else f"{score:.4f}")
    return table, sum(score != score for _, _, score in rows)
