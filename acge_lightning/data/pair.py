"""Pairs of texts with a label: semantic similarity (graded) and pair classification (0 or 1)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from acge_lightning.data.base import NO_ROWS, EvaluationSet, Examples, Rows, TaskDataModule, as_column, judgements, numbered
from acge_lightning.data.epoch import deal_by_rank
from acge_lightning.data.records import PairRecord, ScoredPairRecord
from acge_lightning.losses.contrastive import CoSENT
from acge_lightning.metrics.task_metrics import AveragePrecision, Spearman


class STSDataModule(TaskDataModule):
    """Semantic textual similarity: `text1, text2`, and `score` (any scale, higher is closer) or a binary `label`.

    Every batch holds labels from the whole range, which `CoSENT` needs. Arguments as in `TaskDataModule`.

    YAML::

        stsb_zh:
          data: {_target_: acge_lightning.data.STSDataModule, path: "${paths.data_dir}/sts/stsb_zh", batch_size: 64}
    """

    family = "sts"
    record = ScoredPairRecord
    default_loss = CoSENT
    default_metric = Spearman
    label: ClassVar[str] = "score"

    def keys(self, part: Rows) -> np.ndarray:
        """The same for a pair in either order."""
        values, _ = part.store.ids()
        pairs = values.reshape(-1, 2)[part.numbers]
        return pairs.sum(1) ^ (pairs[:, 0] * pairs[:, 1])

    def order(self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Batches that each take evenly spaced ranks of the label; texts may come several times, which `CoSENT` minds not."""
        return deal_by_rank(self.train.column(self.label), sizes, rng)

    def check_learnable(self) -> None:
        """Refuse one distinct text, or pairs that all have one label: `CoSENT` is 0 for them."""
        super().check_learnable()
        self.check_labels(self.train.column(self.label), self.label)

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """Both texts of each pair, and the label."""
        rows = self.train.take(positions)
        ids = np.array([row["ids"] for row in rows], dtype=np.int64).reshape(-1, 2)
        labels = torch.tensor([float(row[self.label]) for row in rows])
        columns = [row["text1"] for row in rows], [row["text2"] for row in rows]
        return Examples(columns, ("text", "text"), (ids[:, 0], ids[:, 1]), labels)

    def _evaluation(self, part: Rows) -> EvaluationSet:
        rows = part.take(np.arange(len(part)))
        texts, of = numbered([row[name] for row in rows for name in ("text1", "text2")])
        value = np.array([row[self.label] for row in rows], dtype=np.float64)
        labels = judgements(of[0::2], of[1::2], value)
        return EvaluationSet(as_column(texts), ((len(texts), "text"),), labels, self.keys(part))


class PairDataModule(STSDataModule):
    """Pair classification: `text1, text2, label` (0 or 1; entailment and contradiction count as 1 and 0, neutral is left out).

    Arguments as in `TaskDataModule`.

    YAML::

        snli_zh:
          data: {_target_: acge_lightning.data.PairDataModule, path: "${paths.data_dir}/pair/snli_zh", batch_size: 64}
    """

    family = "pair"
    record = PairRecord
    default_metric = AveragePrecision
    label = "label"
