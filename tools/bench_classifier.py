"""Measures how many dims an adaptive classifier reads, and what it loses to one probe on all dims of the same vectors.

    python tools/bench_classifier.py [--model PATH] [--data DIR] [--sets NAME …] [--seeds N] [--most N] [--budget SHARE]

Both sides learn from the training texts of a data set, at most so many, and are scored on its test texts. The cascade tunes
itself on training texts, held out in folds that the seed draws, to lose the least within a mean dimension (a little less than
an eighth of all, since test texts differ), or with `--tolerance` to read the least. Both use the same logistic regression,
whose C is the best for all dims on held-out training texts. Without a model, one of 1792 dims is trained first. Ends with one
JSON line: points of accuracy lost against all dims, and mean dims, means over seeds, with the worst seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

from acge_lightning.classify import AdaptiveClassifier
from acge_lightning.embed.cache import Embeddings
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.longtail import Texts
from acge_lightning.zoo.pretrained import load

ROOT = Path(__file__).parents[1]
SETS = ["tnews", "online_shopping", "weibo_emotion_usual", "cic_intent", "chnsenticorp"]
FOLDS = 10  # with fewer, the probes that are judged learn from clearly less than those that are used
PENALTIES = (1.0, 10.0)
CONSOLE = Console(stderr=True)


def trained_encoder(data: Path) -> Path:
    """Folder of an encoder of 1792 dims, trained if it is not there."""
    folder = ROOT / "outputs" / "bench_classifier"
    if not (folder / "export").is_dir():
        CONSOLE.print("training an encoder of 1792 dims")
        command = [sys.executable, "train.py", "+experiment=zh_matryoshka", "trainer.max_steps=1500", "callbacks.progress=null"]
        command += [f"paths.data_dir={data.resolve()}", f"paths.output_dir={folder}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "export"


def best_probe(vectors: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """The probe whose C does best at all dims on held-out training texts."""
    fit, held_out, fit_labels, held_out_labels = train_test_split(vectors, labels, test_size=0.2, random_state=0)
    probes = [LogisticRegression(C=c, max_iter=200) for c in PENALTIES]
    return max(probes, key=lambda probe: probe.fit(fit, fit_labels).score(held_out, held_out_labels))


def measure(texts: Texts, embeddings: Embeddings, dims: list[int], args: argparse.Namespace) -> dict[str, Any]:
    rows = np.sort(np.random.default_rng(0).permutation(len(texts.train))[: args.most])
    vectors, labels = embeddings.encode([texts.train[i] for i in rows]).numpy(), texts.train_labels[rows]
    test_vectors = embeddings.encode(texts.test).numpy()
    probe = best_probe(normalize(vectors), labels)
    probe.fit(normalize(vectors), labels)
    full = float((probe.predict(normalize(test_vectors)) == texts.test_labels).mean())
    accuracies, means = [], []
    for seed in range(args.seeds):
        budget, tolerance = (args.budget, 0.0) if args.tolerance is None else (None, args.tolerance)
        cascade = AdaptiveClassifier(dims, probe, tolerance, budget=budget, validation=FOLDS, random_state=seed)
        cascade.fit(vectors, labels)
        predictions, dims_read = cascade.predict_with_dims(test_vectors)
        accuracies.append(float((predictions == texts.test_labels).mean()))
        means.append(float(dims_read.mean()))
    return {
        "learnt_from": len(vectors),
        "tested": len(test_vectors),
        "C": probe.C,
        "full": round(full, 4),
        "adaptive": round(statistics.mean(accuracies), 4),
        "points_lost": round(100 * (full - statistics.mean(accuracies)), 3),
        "points_lost_worst": round(100 * (full - min(accuracies)), 3),
        "mean_dim": round(statistics.mean(means), 1),
        "mean_dim_worst": round(max(means), 1),
        "dims_share": round(statistics.mean(means) / vectors.shape[1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an encoder")
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", ROOT.parent / "shared" / "data"), type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=10_000, help="training texts of a data set")
    parser.add_argument("--budget", type=float, default=0.115, help="mean dims, as a share of all")
    parser.add_argument("--tolerance", type=float, help="of lost accuracy, in place of the budget")
    parser.add_argument("--dims", nargs="+", type=int, help="the encoder's Matryoshka dims by default")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    encoder = load(str(args.model or trained_encoder(args.data)))
    dims = sorted({*(args.dims or encoder.matryoshka_dims), encoder.dim})
    cache = ROOT / "outputs" / "cache"
    embeddings, results = Embeddings(encoder, cache / "embeddings"), {}
    for dataset in find(args.data, args.sets):
        texts = Texts.from_dataset(dataset, cache)
        results[dataset.name] = measure(texts, embeddings, dims, args)
        CONSOLE.print(f"{dataset.name}: {results[dataset.name]}", soft_wrap=True)
    table = Table(title=f"Adaptive classifier and probe on all {encoder.dim} dims, {args.seeds} seeds", title_justify="left")
    keys = list(next(iter(results.values())))
    for column in ("data set", *keys):
        table.add_column(column)
    for name, row in results.items():
        table.add_row(name, *(str(row[key]) for key in keys))
    CONSOLE.print(table)
    settings = {"seeds": args.seeds, "budget": args.budget, "tolerance": args.tolerance}
    print(json.dumps({"dim": encoder.dim, "dims": dims, **settings, "sets": results}))


if __name__ == "__main__":
    main()
