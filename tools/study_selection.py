"""Asks whether training on the best rows, or beginning with them, needs fewer steps: on clean rows, and with wrong ones.

The training queries of medical_qa and cmrc2018, a row each, train a static encoder by `acge train`; with `--noise .2` a fifth
of the rows of each get the positive of another row. `acge clean` measures the rows (`steps.consistency`, by TF-IDF). Four ways,
all with the vocabulary that `all` learns from its rows, so that they begin with the same vectors:

    all          every row
    selected     without the pairs whose positive ranks below the best 2 % of the pool
    weighted     drawn by `quality`
    curriculum   drawn by it, from the best half on, all rows after half of the steps

    python tools/study_selection.py [--data DIR] [--seeds 0 1 2] [--steps 240] [--every 30] [--noise 0 0.2]
                                    [--ways all selected curriculum]

Every `--every` steps the dev splits are scored (nDCG@10, mean of both); `steps` is when a way first reaches the score that
`all` has at its end, of the same seed. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SETS = ("medical_qa", "cmrc2018")
WAYS = ("all", "selected", "weighted", "curriculum")
CONSOLE = Console(stderr=True)
ACGE = str(Path(sys.executable).with_name("acge"))


def pairs(folder: Path) -> list[dict[str, Any]]:
    """The training queries of a BEIR folder with one of their positives each."""
    texts = {}
    for name in ("queries", "corpus"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts |= {(name, row["_id"]): row["text"] for row in map(json.loads, lines)}
    with (folder / "qrels/train.tsv").open(encoding="utf-8", newline="") as lines:
        judged = [row for row in csv.DictReader(lines, delimiter="\t") if float(row["score"]) > 0]
    first = {row["query-id"]: row["corpus-id"] for row in reversed(judged)}
    return [{"query": texts["queries", q], "positive": [texts["corpus", d]]} for q, d in first.items()]


def with_noise(rows: list[dict[str, Any]], share: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of which a share have the positive of another one."""
    moved = rng.permutation(len(rows))[: round(share * len(rows))]
    positives = {int(row): rows[other]["positive"] for row, other in zip(moved, np.roll(moved, 1), strict=True)}
    return [row | {"positive": positives.get(i, row["positive"])} for i, row in enumerate(rows)]


def run(words: list[str], log: Path) -> None:
    """Run a command; its output goes to a file, which is shown if it fails."""
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run([ACGE, *words], stdout=lines, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{log.read_text(encoding='utf-8')[-2000:]}")


def prepare(data: Path, folder: Path, noise: float, seed: int) -> None:
    """Write the rows of a noise level, measured (`scored`) and selected."""
    rng = np.random.default_rng(seed)
    for name in SETS:
        file = folder / "rows" / "triplet" / name / "train.jsonl"
        file.parent.mkdir(parents=True)
        rows = with_noise(pairs(data / "retrieval" / name), noise, rng)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    source = [f"{folder / 'rows'}", "steps.leaks=null", "steps.duplicates=null", "steps.repair=null", "quality=quality"]
    for name, share in (("scored", 1), ("selected", 0.02)):
        run(["clean", *source, f"out={folder / name}", f"steps.consistency={{share: {share}}}"], folder / f"{name}.log")
    for name in SETS:
        config = folder / "conf" / "task" / f"{name}_rows.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"defaults: [{{family@{name}_rows.data: retrieval}}]\n{name}_rows:\n  data: {{path: '???', holdout: 0}}\n",
            encoding="utf-8",
        )


def train(data: Path, folder: Path, way: str, seed: int, steps: int, every: int) -> dict[int, float]:
    """Train one way: the dev score by the step."""
    out, rows = folder / f"{way}{seed}", folder / ("selected" if way == "selected" else "scored") / "triplet"
    words = ["train", "--config-dir", str(folder / "conf"), "encoder=static", "optim=adamw_static_low"]
    words += [f"task=[{','.join((*SETS, *(f'{name}_rows' for name in SETS)))}]", f"paths.data_dir={data}", f"seed={seed}"]
    words += [f"+task.{name}.weight=0" for name in SETS]
    words += [f"task.{name}_rows.data.path={rows / name}" for name in SETS]
    if way in ("weighted", "curriculum"):
        words += [f"task.{name}_rows.data.weight_column=quality" for name in SETS]
    if way != "all":
        words.append(f"encoder.tokenizer={folder / f'all{seed}' / 'export'}")
    if way == "curriculum":
        words.append(f"mixture.curriculum={{start: 0.5, steps: {steps // 2}}}")
    words += [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", f"trainer.val_check_interval={every}"]
    words += ["trainer.check_val_every_n_epoch=null", f"paths.output_dir={out}", f"paths.cache_dir={folder / 'cache'}"]
    run(words, folder / f"{way}{seed}.log")
    with (out / "csv" / "version_0" / "metrics.csv").open(encoding="utf-8", newline="") as lines:
        logged = list(csv.DictReader(lines))
    return {int(row["step"]) + 1: float(row["val/mean"]) for row in logged if row.get("val/mean")}


def steps_to(dev: Mapping[int, float], score: float) -> int | None:
    """The step at which a score is first reached; None if it never is."""
    return min((step for step, value in dev.items() if step > 1 and value >= score), default=None)


def main() -> None:
    """Train all ways for each noise level and seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ACGE_DATA", "../shared/data")).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="all among them")
    options = parser.parse_args()
    ways = [way for way in WAYS if way == "all" or way in options.ways]
    results: dict[str, Any] = {}
    for noise in options.noise:
        runs: dict[str, list[dict[int, float]]] = {way: [] for way in ways}
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                prepare(options.data, folder, noise, seed)
                for way in ways:
                    runs[way].append(train(options.data, folder, way, seed, options.steps, options.every))
                    CONSOLE.print(f"noise {noise:g}, seed {seed}, {way}: {runs[way][-1]}")
        results[f"{noise:g}"] = runs
    show(results, options.steps)


def show(results: Mapping[str, dict[str, list[dict[int, float]]]], last: int) -> None:
    """Print the table and the line of JSON."""
    table = Table(title="Steps to the dev score that all rows have at the end")
    for name in ("noise", "way", "steps, a seed each", "nDCG@10 at the end", "best"):
        table.add_column(name)
    steps: dict[str, dict[str, list[int | None]]] = {}
    for noise, runs in results.items():
        scores = [dev[last] for dev in runs["all"]]
        steps[noise] = {way: [steps_to(*pair) for pair in zip(done, scores, strict=True)] for way, done in runs.items()}
        for way, done in runs.items():
            values = [dev[last] for dev in done], [max(dev.values()) for dev in done]
            spread = [f"{np.mean(value):.4f} ± {np.std(value, ddof=len(value) > 1):.4f}" for value in values]
            table.add_row(noise, way, ", ".join(map(str, steps[noise][way])), *spread)
    Console().print(table)
    print(json.dumps({"steps_to_all": steps}))


if __name__ == "__main__":
    main()
