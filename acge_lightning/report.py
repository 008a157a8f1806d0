"""What a run shows at its end: scores before and after, example searches, and where its outputs are."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.encoder import Encoder, similarity
from acge_lightning.errors import InputError

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


def searches(encoder: Encoder, mixture: MixtureDataModule, count: int = 3, hits: int = 3) -> Table | None:
    """A few dev queries and what the encoder finds for them in the corpus; None without a retrieval task."""
    for name, data in mixture.tasks.items():
        found = mixture.evaluation(name, "dev") if data.family == "retrieval" else None
        if found is None:
            continue
        boundary = found.roles[0][0]
        chosen = np.linspace(0, boundary - 1, min(count, boundary)).round().astype(int)
        queries = [found.texts[int(i)].as_py() for i in chosen]
        documents = found.texts.slice(boundary).to_pylist()
        prompts = data.prompts
        vectors = encoder.encode(queries, prompt=prompts.get("query"))
        scores = similarity(vectors, encoder.encode(documents, prompt=prompts.get("document")))
        answers = {(int(i), int(j)) for i, j, grade in found.labels.tolist() if grade > 0}
        table = Table(title=f"Searches in {len(documents)} documents of {name}", title_justify="left")
        for column in ("query", "cosine", "hit", "right"):
            table.add_column(column)
        for row, query in enumerate(queries):
            best = scores[row].topk(min(hits, len(documents)))
            for place, (value, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                right = "✓" if (int(chosen[row]), boundary + i) in answers else ""
                end = place == len(best.indices) - 1
                table.add_row(_cut(query) if place == 0 else "", f"{value:.3f}", _cut(documents[i]), right, end_section=end)
        return table
    return None


def _cut(text: str) -> Text:
    return Text(text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…")  # no markup: texts may hold brackets


def show(*parts: object) -> None:
    """Print tables and lines to the terminal."""
    console = Console()
    console = Console(width=max(100, console.width)) if not console.is_terminal else console
    for part in parts:
        if part is not None:
            console.print(part, soft_wrap=isinstance(part, str))  # a path must not be broken


def write_result(folder: Path, before: Scores, after: Scores, output: Path) -> None:
    """`result.json` of a run: its scores, and where its model is."""
    result = {"before": dict(before), "after": dict(after), "output": str(output)}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def summarise(folder: Path) -> tuple[Table, int]:
    """One line for every job of a multirun, best first; also written to `summary.csv`.

    Args:
        folder: of the multirun; each job's folder holds `result.json` and `.hydra/overrides.yaml`.

    Returns:
        The table, and how many jobs left no result.
    """
    import yaml

    rows: list[tuple[str, str, float]] = []
    for job in sorted(p.parent for p in folder.glob("*/.hydra")):
        overrides = " ".join(yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or [])
        result = job / "result.json"
        score = float("nan")
        if result.is_file():
            score = json.loads(result.read_text(encoding="utf-8"))["after"].get("val/mean", score)
        rows.append((job.name, overrides, score))
    if not rows:
        raise InputError(f"{folder} holds no job")
    rows.sort(key=lambda row: -row[2] if row[2] == row[2] else np.inf)
    _write_csv(folder / "summary.csv", rows)
    table = Table(title=f"{len(rows)} jobs, best first", title_justify="left")
    for column in ("job", "overrides", "val/mean"):
        table.add_column(column)
    for job_name, overrides, score in rows:
        table.add_row(job_name, Text(overrides), "failed" if score != score else f"{score:.4f}")
    return table, sum(score != score for _, _, score in rows)


def _write_csv(file: Path, rows: Sequence[tuple[str, str, float]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("job", "overrides", "val/mean"), *rows])
