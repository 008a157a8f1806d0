"""Pairs of texts with a label: semantic similarity (graded) and pair classification (0 or 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from acge_lightning.data.dataset import NO_ROWS, Examples, Role
from acge_lightning.data.epoch import deal_by_rank
from acge_lightning.data.evaluation_set import EvaluationSet, distinct_texts, judgement_rows, text_column
from acge_lightning.data.records import PairRecord, Record, ScoredPairRecord
from acge_lightning.data.row_issues import warn_once
from acge_lightning.data.rows import RowDataset, Rows
from acge_lightning.errors import InputError


class STSDataset(RowDataset):
    """Semantic textual similarity: `text1, text2`, and `score` (any scale, higher is closer) or a binary `label`.

    Every batch holds labels from the whole range, which `CoSENT` needs: of scores it sees the order only.

    Args:
        labels: what a word of the label (or score) column counts as; null leaves such rows out. Many are understood without:
            0, 1, 相似, 不相似, 是, 否, yes, no, entailment, neutral, contradiction …
        **kwargs: as in `TaskDataset`.

    YAML::

        mine:
          data:
            _target_: acge_lightning.data.PairDataModule
            path: pairs.csv
            labels: {基本一致: 1, 说不清: null, 无关: 0}
    """

    family = "sts"
    record: ClassVar[type[Record]] = ScoredPairRecord
    label: ClassVar[str] = "score"
    held_by = "texts in text1"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *args: Any,
        labels: Mapping[Any, float | None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(path, *args, **kwargs)
        for word, value in (labels or {}).items():
            if isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
                raise InputError(f"{self.key}labels.{word}={value!r} must be a number, such as 1 or 0, or null to leave it out")
        self.labels = dict(labels or {})

    def open(self) -> None:
        """Open the splits, and name the scale of the training scores."""
        super().open()
        if "train" in self.opened_splits:
            scores = self.opened_splits["train"].column(self.label)
            if not np.isin(scores, (0, 1)).all():
                warn_once(f"{self.path}: its scores are {scores.min():g} to {scores.max():g}: only their order counts")

    def keys(self, split: Rows) -> np.ndarray:
        """The same for a pair in either order."""
        values, _ = split.store.ids()
        pairs = values.reshape(-1, 2)[split.row_numbers]
        return pairs.sum(1) ^ (pairs[:, 0] * pairs[:, 1])

    def order(
        self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray, drawn: np.ndarray | None = None
    ) -> np.ndarray:
        """Batches that each take evenly spaced ranks of the label; texts may come several times, which `CoSENT` minds not."""
        values = self.train.column(self.label)
        return deal_by_rank(values, sizes, rng) if drawn is None else drawn[deal_by_rank(values[drawn], sizes, rng)]

    def check_learnable(self) -> None:
        """Refuse one distinct text, or pairs that all have one label: `CoSENT` is 0 for them."""
        super().check_learnable()
        self.check_labels(self.train.column(self.label), self.label)

    def check_scorable(self, role: Role) -> None:
        """Refuse a split of one label: there is nothing to rank."""
        self.check_one_label(role, self.label)

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """Both texts of each pair, and the label."""
        rows = self.train.take(positions)
        ids = np.array([row["ids"] for row in rows], dtype=np.int64).reshape(-1, 2)
        labels = torch.tensor([float(row[self.label]) for row in rows])
        columns = [row["text1"] for row in rows], [row["text2"] for row in rows]
        return Examples(columns, ("text", "text"), (ids[:, 0], ids[:, 1]), labels)

    def _evaluation(self, split: Rows) -> EvaluationSet:
        rows = split.all()
        texts, numbers = distinct_texts([row[name] for row in rows for name in ("text1", "text2")])
        judgements = judgement_rows(numbers[0::2], numbers[1::2], np.array([row[self.label] for row in rows]))
        return EvaluationSet(text_column(texts), ((len(texts), "text"),), self.keys(split), judgements)


class PairDataset(STSDataset):
    """Pair classification: `text1, text2, label` (0 or 1; entailment and contradiction count as 1 and 0, neutral is left out).

    Arguments as in `STSDataset`.
    """

    family = "pair"
    record = PairRecord
    label = "label"
