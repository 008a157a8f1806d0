"""Texts with a class: classification and clustering."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from acge_lightning.data.dataset import NO_ROWS, Examples, Role
from acge_lightning.data.epoch import deal, even_sizes
from acge_lightning.data.evaluation_set import EvaluationSet, text_column
from acge_lightning.data.records import LabelledRecord
from acge_lightning.data.row_issues import warn_once
from acge_lightning.data.rows import RowDataset, Rows
from acge_lightning.errors import InputError


class ClusteringDataset(RowDataset):
    """Clustering: `text, label`. Batches hold several texts a label, which `LabelContrast` needs.

    Args:
        per_label: texts of one label that come together in a batch.
        **kwargs: as in `TaskDataset`.
    """

    family = "clustering"
    record = LabelledRecord

    def __init__(self, *args: Any, per_label: int = 4, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if per_label < 2:
            raise InputError(f"per_label={per_label} gives a text no partner of its label: give at least 2")
        self.per_label = per_label
        self._classes: dict[str, int] = {}

    def open(self) -> None:
        """Open the splits and number the labels."""
        super().open()
        if self._classes:
            return
        columns = [split.store.column("label") for split in self.opened_splits.values()]
        words = sorted({word for column in columns for word in pc.unique(column).to_pylist()})
        self._classes = {word: i for i, word in enumerate(words)}

    @property
    def classes(self) -> list[str]:
        """The label words, in the order of their numbers."""
        return list(self._classes)

    def _class_numbers(self, labels: Iterable[str]) -> np.ndarray:
        """Int64[n] class numbers of label words."""
        return np.array([self._classes[word] for word in labels], dtype=np.int64)

    def order(
        self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray, drawn: np.ndarray | None = None
    ) -> np.ndarray:
        """Batches with a share of every label, in groups of `per_label` texts, equal texts in different groups."""
        rows = np.arange(len(self)) if drawn is None else drawn
        numbers = self._class_numbers(self.train.column("label"))[rows]
        _, label, count = np.unique(numbers, return_inverse=True, return_counts=True)
        _, text = np.unique(self.train.first_ids[rows], return_inverse=True)
        turn = rng.permutation(len(text))
        ranked = np.lexsort([turn, turn[text], label])  # rows of a label side by side, and in them those of a text
        within = np.arange(len(ranked)) - np.repeat(np.cumsum(count) - count, count)
        groups = np.maximum(1, np.minimum(-(-count // self.per_label), count // 2))  # a text alone has no partner
        group = (np.cumsum(groups) - groups)[label[ranked]] + within % groups[label[ranked]]
        label_of_group = np.repeat(np.arange(len(count)), groups)
        turn_of_group = np.argsort(deal(label_of_group, even_sizes(len(label_of_group), len(sizes)), rng))
        return rows[ranked[np.argsort(turn_of_group[group], kind="stable")]]

    def check_learnable(self) -> None:
        """Refuse one distinct text, one label, or labels that no two texts share: `LabelContrast` is 0 for them."""
        super().check_learnable()
        labels = self.train.column("label")
        self.check_labels(labels, "label")
        texts_and_labels = np.unique(np.stack([self.train.first_ids, self._class_numbers(labels)]), axis=1)
        if np.bincount(texts_and_labels[1]).max() < 2:
            raise InputError(f"its {len(self)} training rows have no two texts of one label: check the label column")

    def check_scorable(self, role: Role) -> None:
        """Refuse a split of one label: it makes one cluster, and a score of 1."""
        self.check_one_label(role, "label")

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """The texts and their class numbers."""
        rows = self.train.take(positions)
        ids = np.array([row["ids"][0] for row in rows], dtype=np.int64)
        labels = torch.from_numpy(self._class_numbers(row["label"] for row in rows))
        return Examples(([row["text"] for row in rows],), ("text",), (ids,), labels)

    def _evaluation(self, split: Rows) -> EvaluationSet:
        return self._labelled(split, NO_ROWS)

    def _labelled(self, split: Rows, draws: np.ndarray) -> EvaluationSet:
        """The texts of `split`, after the training texts that a bit of `draws` (Int64[training rows]) names."""
        shots = np.flatnonzero(draws)
        rows = (self.train.take(shots) if len(shots) else []) + split.all()
        label = self._class_numbers(row["label"] for row in rows)
        learn = np.concatenate([draws[shots], np.zeros(len(split), dtype=np.int64)])
        texts = text_column([row["text"] for row in rows])
        classes = torch.from_numpy(np.stack([label, learn], axis=1))
        return EvaluationSet(texts, ((len(rows), "text"),), self.keys(split), classes=classes)


class ClassificationDataset(ClusteringDataset):
    """Classification: `text, label`. Scored by a probe that learns from `shots` training texts a class.

    Args:
        shots: training texts a class that the probe may learn from (MTEB: 8 to 32).
        draws: how often they are drawn (MTEB: 10); the same ones as in MTEB for the same rows.
        seed: of the draws.
        **kwargs: as in `ClusteringDataset`.
    """

    family = "classification"

    def __init__(self, *args: Any, shots: int = 16, draws: int = 1, seed: int = 42, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if shots < 1:
            raise InputError(f"shots={shots} leaves the probe nothing to learn from: give at least 1")
        if not 1 <= draws <= 62:
            raise InputError(f"draws={draws} must be 1 to 62")
        self.shots, self.draws, self.seed = shots, draws, seed

    def check_scorable(self, role: Role) -> None:
        """Refuse training rows of one label, and warn of evaluation rows whose label no training row has."""
        self.check_one_label("train", "label")
        labels = self.opened_splits[role].column("label")
        strange = int((~np.isin(labels, self.train.column("label"))).sum())
        if strange:
            warn_once(f"{self.path}: {strange} of {len(labels)} {role} rows have a label that no training row has")

    def _evaluation(self, split: Rows) -> EvaluationSet:
        label = self._class_numbers(self.train.column("label"))
        order, chosen = np.arange(len(label)), np.zeros(len(label), dtype=np.int64)
        for draw in range(self.draws):
            np.random.RandomState(self.seed).shuffle(order)  # the same shuffle, of the order that the last one left
            ranked = order[np.argsort(label[order], kind="stable")]
            starts = np.concatenate([[0], np.cumsum(np.bincount(label))])[label[ranked]]
            chosen[ranked[np.arange(len(ranked)) - starts < self.shots]] |= 1 << draw
        return self._labelled(split, chosen)
