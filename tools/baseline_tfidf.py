"""Scores TF-IDF (character 1-2-grams) on the evaluation splits of a config's tasks, with the metrics that training uses.

    python tools/baseline_tfidf.py +experiment=quickstart
    python tools/baseline_tfidf.py +experiment=zh_multitask paths.data_dir=DIR [split=test]

Frequencies are learnt from the training texts and the texts of the split. Ends with one JSON line.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from acge_lightning.commands.single_run import make_tasks
from acge_lightning.config.sources import config_dir
from acge_lightning.data import MixtureDataModule
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.metrics.task_metrics import EmbeddingMetric
from acge_lightning.report.tables import score_table
from acge_lightning.terminal import show, track


def score(evaluation_set: EvaluationSet, texts: list[str], metric: EmbeddingMetric) -> dict[str, float]:
    """A task's scores from TF-IDF vectors."""
    split_texts = evaluation_set.texts.to_pylist()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), dtype=np.float32).fit(texts + split_texts)
    matrix = vectorizer.transform(split_texts)
    matrix = matrix[:, matrix.getnnz(axis=0) > 0]  # terms that no text of the split has change nothing
    dense = matrix.toarray() if evaluation_set.classes is None else rotate(matrix)
    metric.update(torch.from_numpy(dense), torch.arange(len(split_texts)), evaluation_set.labels)
    return metric.compute()


def rotate(matrix: csr_matrix) -> np.ndarray:
    """Rows with the same dot products in no more dims than there are rows: the same to a linear probe and to k-means."""
    values, vectors = np.linalg.eigh((matrix @ matrix.T).toarray().astype(np.float64))
    return (vectors * np.sqrt(values.clip(min=0))).astype(np.float32)


def main(overrides: list[str]) -> None:
    """Score every task that has the split."""
    split = next((option.partition("=")[2] for option in overrides if option.startswith("split=")), "dev")
    overrides = [option for option in overrides if not option.startswith("split=")]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, "paths.output_dir=."])
    tasks = make_tasks(cfg)
    mixture = MixtureDataModule({n: t.data for n, t in tasks.items()}, {n: t.weight for n, t in tasks.items()})
    prefix = "val" if split == "dev" else split
    scores: dict[str, float] = {}
    families: dict[str, list[float]] = {}
    for name in track([n for n in mixture.evaluated(split) if tasks[n].evaluation_metric()], "TF-IDF", "tasks"):
        data = tasks[name].data
        texts = list(data.train_texts()) if "train" in data.opened_splits else []
        metric = tasks[name].evaluation_metric()
        values = score(mixture.evaluation(name, split), texts, metric)
        scores |= {f"{prefix}/{name}/{key}": value for key, value in values.items()}
        families.setdefault(data.family, []).append(values[metric.main])
    means = {family: sum(scored) / len(scored) for family, scored in families.items()}
    scores |= {f"{prefix}/{family}": value for family, value in means.items()}
    scores[f"{prefix}/mean"] = sum(means.values()) / len(means)
    show(score_table({}, scores))
    print(json.dumps({"baseline": "tfidf-char-1-2", "scores": {key: round(value, 4) for key, value in scores.items()}}))


if __name__ == "__main__":
    main(sys.argv[1:])
