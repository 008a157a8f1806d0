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
from acge_lightning.evaluation.leak_marks import LEGEND, Leaks, leaks_by_score, seen_text, spoilt_families
from acge_lightning.evaluation.results import mean_exception, means
from acge_lightning.evaluation.scored_rows import Record, seen_mark
from acge_lightning.files.atomic import check_replaceable, write_text
from acge_lightning.files.spreadsheet import write_csv
from acge_lightning.files.yaml_file import read_yaml
from acge_lightning.terminal import ProgressBar, shortened

if TYPE_CHECKING:
    from acge_lightning.data.evaluation_set import EvaluationSet
    from acge_lightning.data.mixture import MixtureDataModule

Scores = Mapping[str, float]
_WIDEST = 46  # characters of a query or a hit


def score_table(before: Scores, after: Scores, rows: Record | None = None, notes: Mapping[str, str] | None = None) -> Table:
    """Make a table of scores, before (if given) and after; families and the mean last.

    Args:
        before: name -> score.
        after: name -> score.
        rows: as in `result.json`: a score of rows that were seen in training gets a mark.
        notes: how a score's name begins -> what stands beside it.
    """
    table = Table(title="Scores", title_justify="left")
    table.add_column("score")
    for name in ("before", "after", "change") if before else ("score",):
        table.add_column(name, justify="right")
    if notes:
        table.add_column("")
    for key in sorted(after, key=_score_order):
        old, new, mark = before.get(key), after[key], seen_mark(key, rows or {})
        change = "" if old is None else f"{new - old:+.4f}{mark and ' †'}"
        style = "bold" if key.endswith("/mean") else None
        new_text = f"{new:.4f}{mark}"
        values = ("" if old is None else f"{old:.4f}", new_text, change) if before else (new_text,)
        if mark:
            table.caption, table.caption_justify = LEGEND, "left"
        note = [text for start, text in (notes or {}).items() if key.startswith(start)]
        table.add_row(key, *values, *note, style=style)
    return table


def _score_order(key: str) -> tuple[Any, ...]:
    """Scores of tasks first, then families, then means: of test before val, of the full size before its prefixes."""
    name, _, dim = key.partition("@")
    return name.endswith("/mean"), key.count("/") == 1, name, -int(dim) if dim.isdigit() and name.endswith("/mean") else 0, key


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
    """Make tables of scores at full size, family means at each dim, and intervals of differences; leaks stand beside them."""
    rows, names, leaky = result["rows"], [card["name"] for card in result["encoders"]], leaks_by_score(result)
    largest = {card["name"]: card["dim"] for card in result["encoders"]}
    table = Table(title="Scores at full size", title_justify="left")
    for column in ("family", "data set", "metric", *names, "remark"):
        table.add_column(column, justify="right" if column in names else "left")
    for family, name in dict.fromkeys((row["family"], row["dataset"]) for row in rows):
        dataset_rows = [row for row in rows if (row["family"], row["dataset"]) == (family, name)]
        cells = {r["encoder"]: r for r in dataset_rows if r["dim"] == largest[r["encoder"]] or r["error"]}
        remark = "; ".join(dict.fromkeys(str(r["error"] or r["note"]) for r in cells.values() if r["error"] or r["note"]))
        values = [_score_text(cells.get(n), leaky.get((n, family, name))) for n in names]
        table.add_row(family, name, dataset_rows[0]["metric"], *values, remark)
    if leaky:
        table.caption, table.caption_justify = f"{LEGEND}; below it, where it can be told, the score on the others", "left"
    return [table, _mean_table(rows, largest, leaky), *_difference_table(result["differences"])]


def _score_text(row: Mapping[str, Any] | None, leak: Mapping[str, Any] | None) -> str:
    """Write a score; one of rows that were seen in training with the mark of it, and the score on the others below."""
    if row is None or row["error"] or leak is None:
        return "" if row is None else "error" if row["error"] else _digits(row["value"])
    unseen = leak.get("unseen")
    text = f"{_digits(row['value'])} {seen_text(leak['found'], leak['rows'])}"
    return text if unseen is None else f"{text}\n{_digits(unseen)} unseen rows"


def _mean_table(rows: Sequence[Mapping[str, Any]], largest: Mapping[str, int | None], leaky: Leaks) -> Table:
    families = sorted({row["family"] for row in rows})
    table = Table(title="Means of families", title_justify="left")
    for column in ("encoder", "dim", *families, f"mean{mean_exception(families)}"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for name in largest:
        spoilt = spoilt_families(leaky, name, families)
        dims = dict.fromkeys(row["dim"] for row in rows if row["encoder"] == name and not row["error"])
        for dim in dims:
            family_means = means(rows, name, dim)
            cells = [_digits(family_means.get(f)) + (" †" if f in spoilt else "") for f in (*families, "mean")]
            table.add_row(name, "all" if dim is None else str(dim), *cells)
    return table


def _difference_table(differences: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not differences:
        return []
    table = Table(title="Differences, with a 95 % interval of a paired bootstrap", title_justify="left")
    for column in ("encoder", "against", "data set", "difference", "from", "to"):
        table.add_column(column)
    for d in differences:
        dataset, is_leaky, unseen = f"{d['family']}/{d['dataset']}", "unseen" in d, d.get("unseen")
        lines = [(dataset, d, " †" if is_leaky else "")] + ([(f"{dataset}, unseen rows", unseen, "")] if unseen else [])
        for name, numbers, mark in lines:
            clear = "bold" if not mark and (numbers["low"] > 0 or numbers["high"] < 0) else None
            values = [f"{numbers[key]:+.4f}" for key in ("difference", "low", "high")]
            table.add_row(d["encoder"], d["against"], name, values[0] + mark, *values[1:], style=clear)
    if any("unseen" in d for d in differences):
        table.caption, table.caption_justify = (
            "† one of the two was trained on some of these rows: no clean gain or loss",
            "left",
        )
    return [table]


def forgetting_tables(record: Mapping[str, Any]) -> list[Table]:
    """Make tables of each stage's scores after each stage, what was learnt and forgotten, and recall in old indexes.

    Args:
        record: the contents of `forgetting.json`.
    """
    split = str(record["split"])
    prefix = "val" if split == "dev" else split
    table = Table(title=f"{split.capitalize()} scores of each stage's tasks", title_justify="left")
    table.add_column("after")
    marks = {task: seen_mark(f"{prefix}/{task}", {prefix: record.get("rows", {})}) for task in record["tasks"]}
    for task in record["tasks"]:
        table.add_column(f"{task}{marks[task]}", justify="right")
    if any(marks.values()):
        table.caption, table.caption_justify = LEGEND, "left"
    for name, row in zip(("start", *record["tasks"]), (record["start"], *record["matrix"]), strict=True):
        table.add_row(name, *(_digits(None if value != value else value) for value in row))
    summary = Table(title=f"Learnt and forgotten, strategy {record['strategy']['name']}", title_justify="left")
    for column in ("split", *record["measures"]):
        summary.add_column(column.replace("_", " "), justify="left" if column == "split" else "right")
    for name, split_record in {split: record, "dev": record["dev"]}.items():
        mark = " †" if any(entry["seen"] for entry in split_record.get("rows", {}).values()) else ""
        values = [None if value != value else value for value in split_record["measures"].values()]
        summary.add_row(name, *(_digits(value) + mark if value is not None else "" for value in values))
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


def write_result(
    folder: Path, before: Scores, after: Scores, output: Path, rows: Record | None = None, remarks: Sequence[str] = ()
) -> None:
    """Write `result.json` of a run, which marks it as done: its scores, and where its model is; whole or not at all.

    Args:
        folder: of the run.
        before: scores before training.
        after: scores after it.
        output: the folder of the model.
        rows: which rows the scores come from, as of `scored_rows`.
        remarks: sentences on what went wrong.
    """
    check_result(folder)
    result: dict[str, Any] = {"before": dict(before), "after": dict(after), "output": str(output), "remarks": list(remarks)}
    if rows:
        result["data"] = rows
    write_text(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def summarise(folder: Path) -> tuple[list[Table], int]:
    """Make tables of the jobs of a multirun, best first, and write all of their settings to `summary.csv`.

    Args:
        folder: of the multirun; each job's folder holds `result.json` and `.hydra/overrides.yaml`.

    Returns:
        A table of the jobs with the settings that differ, and where the seed does, one of means over seeds; and how many jobs
        left no result.

    Raises:
        InputError: the folder holds no job, or a `summary.csv` that is another file.
    """
    jobs: list[tuple[str, list[str], float]] = []
    failed: set[str] = set()
    for job in sorted((p.parent for p in folder.glob("*/.hydra")), key=lambda job: (len(job.name), job.name)):
        result = job / "result.json"
        score = float("nan")
        if result.is_file():
            score = json.loads(result.read_text(encoding="utf-8"))["after"].get("val/mean", score)
        else:
            failed.add(job.name)
        jobs.append((job.name, list(map(str, read_yaml(job / ".hydra" / "overrides.yaml") or [])), score))
    if not jobs:
        raise InputError(f"{folder} holds no job")
    jobs.sort(key=lambda job: -job[2] if job[2] == job[2] else np.inf)
    check_replaceable(folder / "summary.csv", b"job,overrides,val/mean", "the summary of a multirun")
    rows = [(name, " ".join(overrides), score) for name, overrides, score in jobs]
    write_csv(folder / "summary.csv", ("job", "overrides", "val/mean"), rows)
    settings = [dict(text.lstrip("+").partition("=")[::2] for text in overrides) for _, overrides, _ in jobs]
    swept = [
        key for key in dict.fromkeys(key for job in settings for key in job) if len({job.get(key) for job in settings}) > 1
    ]
    table = Table(title=f"{len(jobs)} jobs, best first", title_justify="left")
    for column in ("job", *swept, "val/mean"):
        table.add_column(column)
    for (name, _, score), setting in zip(jobs, settings, strict=True):
        table.add_row(
            name,
            *(setting.get(key, "") for key in swept),
            "failed" if name in failed else "not scored" if score != score else f"{score:.4f}",
        )
    scores = [score for _, _, score in jobs]
    return [table, *_seed_table(settings, swept, scores)], len(failed)


def _seed_table(settings: Sequence[Mapping[str, str]], swept: Sequence[str], scores: Sequence[float]) -> list[Table]:
    """Make a table of means and standard deviations over seeds, best first; none where the seed was not swept."""
    if "seed" not in swept:
        return []
    keys = [key for key in swept if key != "seed"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for job, score in zip(settings, scores, strict=True):
        if score == score:
            groups.setdefault(tuple(job.get(key, "") for key in keys), []).append(score)
    table = Table(title="Mean ± standard deviation over seeds, best first", title_justify="left")
    for column in (*keys, "val/mean", "seeds"):
        table.add_column(column)
    for values, group in sorted(groups.items(), key=lambda item: -np.mean(item[1])):
        deviation = f" ± {np.std(group, ddof=1):.4f}" if len(group) > 1 else ""
        table.add_row(*values, f"{np.mean(group):.4f}{deviation}", str(len(group)))
    return [table] if groups else []
