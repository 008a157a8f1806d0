"""Make the tables that commands print, and write the result of a run."""

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
from acge_lightning.evaluation.results import mean_exception, means
from acge_lightning.files.atomic import check_replaceable, write_text
from acge_lightning.files.spreadsheet import write_csv
from acge_lightning.files.yaml_file import read_yaml
from acge_lightning.terminal import ProgressBar, shortened

if TYPE_CHECKING:
    from acge_lightning.data.evaluation_set import EvaluationSet
    from acge_lightning.data.mixture import MixtureDataModule

Scores = Mapping[str, float]
_WIDEST = 46  # characters of a query or a hit


def score_table(before: Scores, after: Scores) -> Table:
    """Make a table of scores, before (if given) and after; families and the mean last."""
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
    """Make a table of training tasks: rows, those that an epoch trains on, and the epochs that the run has trained."""
    table = Table(title="Training rows", title_justify="left")
    for column in ("task", "rows", "of an epoch", "share", "batches", "epochs"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, task in coverage.items():
        share, style = f"{100 * task.used / task.rows:.1f} %", None if task.whole else "red"
        table.add_row(name, str(task.rows), str(task.used), share, str(task.batches), f"{task.epochs:.2f}", style=style)
    return table


@contextmanager
def evaluation_progress(total: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show how many of `total` pairs of model and data set are scored, and a line for each score.

    Yields:
        A function that takes each row of an evaluation, as `show` of `evaluate` does.
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
    """Make tables of scores at full size, family means at each dim, and intervals of differences."""
    rows, names = result["rows"], [card["name"] for card in result["encoders"]]
    largest = {card["name"]: card["dim"] for card in result["encoders"]}
    table = Table(title="Scores at full size", title_justify="left")
    for column in ("family", "data set", "metric", *names, "remark"):
        table.add_column(column, justify="right" if column in names else "left")
    for family, name in dict.fromkeys((row["family"], row["dataset"]) for row in rows):
        dataset_rows = [row for row in rows if (row["family"], row["dataset"]) == (family, name)]
        cells = {r["encoder"]: r for r in dataset_rows if r["dim"] == largest[r["encoder"]] or r["error"]}
        remark = "; ".join(dict.fromkeys(str(r["error"] or r["note"]) for r in cells.values() if r["error"] or r["note"]))
        values = ["error" if n in cells and cells[n]["error"] else _digits(cells.get(n, {}).get("value")) for n in names]
        table.add_row(family, name, dataset_rows[0]["metric"], *values, remark)
    return [table, _mean_table(rows, largest), *_difference_table(result["differences"])]


def _mean_table(rows: Sequence[Mapping[str, Any]], largest: Mapping[str, int | None]) -> Table:
    families = sorted({row["family"] for row in rows})
    table = Table(title="Means of families", title_justify="left")
    for column in ("encoder", "dim", *families, f"mean{mean_exception(families)}"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for name in largest:
        dims = dict.fromkeys(row["dim"] for row in rows if row["encoder"] == name and not row["error"])
        for dim in dims:
            family_means = means(rows, name, dim)
            cells = [_digits(family_means.get(family)) for family in (*families, "mean")]
            table.add_row(name, "all" if dim is None else str(dim), *cells)
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


def forgetting_tables(record: Mapping[str, Any]) -> list[Table]:
    """Make tables of each stage's scores after each stage, what was learnt and forgotten, and recall in old indexes.

    Args:
        record: the contents of `forgetting.json`.
    """
    table = Table(title="Test scores of each stage's tasks", title_justify="left")
    for column in ("after", *record["tasks"]):
        table.add_column(column, justify="left" if column == "after" else "right")
    for name, row in zip(("start", *record["tasks"]), (record["start"], *record["matrix"]), strict=True):
        table.add_row(name, *(_digits(None if value != value else value) for value in row))
    summary = Table(title=f"Learnt and forgotten, strategy {record['strategy']['name']}", title_justify="left")
    for column in ("split", *record["measures"]):
        summary.add_column(column.replace("_", " "), justify="left" if column == "split" else "right")
    for split, split_record in (("test", record), ("dev", record["dev"])):
        summary.add_row(split, *(_digits(None if value != value else value) for value in split_record["measures"].values()))
    return [table, summary, *_index_table(record["old_index"])]


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
    """Make a table of mteb's main scores, a line for each task and a column for each encoder."""
    table = Table(title="mteb's main scores", title_justify="left")
    for column in ("task", *scores):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in dict.fromkeys(task for task_scores in scores.values() for task in task_scores):
        table.add_row(task, *(_digits(task_scores.get(task, {}).get("main_score")) for task_scores in scores.values()))
    return table


def leak_table(result: Mapping[str, Any]) -> Table | str:
    """Make a table of evaluated rows that an encoder was trained on, by its own record; a sentence if there are none."""
    errors = {leak["encoder"]: leak.get("error") or "" for leak in result["leaks"]}
    unrecorded = [card["name"] for card in result["encoders"] if card["name"] not in errors and card["dim"] is not None]
    leaks = [leak for leak in result["leaks"] if leak["found"]]
    if not leaks:
        remarks = [f"{', '.join(unrecorded)}: no record of training data"] if unrecorded else []
        remarks += [f"{name}: {error}" for name, error in errors.items() if error]
        text = f" ({'; '.join(remarks)})" if remarks else ""
        return f"Leak check: no evaluated row is among the recorded training data{text}."
    table = Table(title="Leak check: evaluated rows that are in the training data", title_justify="left", style="red")
    for column in ("encoder", "data set", "rows", "seen in training"):
        table.add_column(column)
    for leak in leaks:
        share = f"{leak['found']} ({leak['found'] / leak['rows']:.1%})"
        table.add_row(leak["encoder"], f"{leak['family']}/{leak['dataset']}", str(leak["rows"]), share)
    for name, error in errors.items():
        if error:
            table.add_row(name, "", "", error)
    return table


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def searches(encoder: Encoder, mixture: MixtureDataModule, count: int = 3, hits: int = 3) -> Table | None:
    """Search the corpus for a few dev queries, and make a table of the hits; None without a retrieval task."""
    for name, data in mixture.tasks.items():
        evaluation_set = mixture.evaluation(name, "dev") if data.family == "retrieval" else None
        if evaluation_set is not None:
            return _search_table(encoder, name, evaluation_set, data.prompts, count, hits)
    return None


def _search_table(
    encoder: Encoder, task: str, evaluation_set: EvaluationSet, prompts: Mapping[str, str], count: int, hits: int
) -> Table:
    query_count = evaluation_set.roles[0][0]
    chosen = np.linspace(0, query_count - 1, min(count, query_count)).round().astype(int).tolist()
    queries = [evaluation_set.texts[number].as_py() for number in chosen]
    documents = evaluation_set.texts.slice(query_count).to_pylist()
    vectors = encoder.encode(queries, prompt=prompts.get("query"))
    scores = similarity(vectors, encoder.encode(documents, prompt=prompts.get("document")))
    judgements = [] if evaluation_set.judgements is None else evaluation_set.judgements.tolist()
    grades = {(int(query), int(document)): grade for query, _, grade, _, document in judgements}
    table = Table(title=f"Searches in {len(documents)} documents of {task}", title_justify="left")
    for column in ("query", "cosine", "hit", "right"):
        table.add_column(column)
    for number, text, row in zip(chosen, queries, scores, strict=True):
        hidden = [document for (query, document), grade in grades.items() if query == number and math.isnan(grade)]
        row[hidden] = -math.inf
        best = row.topk(min(hits, len(documents) - len(hidden)))
        for rank, (value, document) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
            right = "✓" if grades.get((number, document), 0) > 0 else ""
            query_cell = shortened(text, _WIDEST) if rank == 1 else ""
            hit = shortened(documents[document], _WIDEST)
            table.add_row(query_cell, f"{value:.3f}", hit, right, end_section=rank == len(best.indices))
    return table


def check_result(folder: Path) -> None:
    """Refuse a folder whose `result.json` is not of a run."""
    check_replaceable(folder / "result.json", b'"before"', "the result of a run")


def write_result(folder: Path, before: Scores, after: Scores, output: Path) -> None:
    """Write `result.json` of a run, which marks it as done: its scores, and where its model is; whole or not at all."""
    check_result(folder)
    result = {"before": dict(before), "after": dict(after), "output": str(output)}
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")


def summarise(folder: Path) -> tuple[Table, int]:
    """Make a table of the jobs of a multirun, best first, and write it to `summary.csv`.

    Args:
        folder: of the multirun; each job's folder holds `result.json` and `.hydra/overrides.yaml`.

    Returns:
        The table, and how many jobs left no result.

    Raises:
        InputError: the folder holds no job, or a `summary.csv` that is another file.
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
