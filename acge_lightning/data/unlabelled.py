"""Plain texts, each its own positive."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import numpy as np

from acge_lightning.data.dataset import NO_ROWS, Examples
from acge_lightning.data.evaluation_set import EvaluationSet, text_column
from acge_lightning.data.records import TextRecord
from acge_lightning.data.rows import RowDataset, Rows
from acge_lightning.errors import InputError

Augment = Literal["none", "span_crop", "clause", "question", "char_delete", "char_repeat"]
_QUESTION_WORDS = ("什么", "是什么", "哪些", "哪个", "哪里", "谁", "多少", "什么时候", "为什么", "怎么", "如何")
_BETWEEN_CLAUSES = re.compile(r"[。，、；：！？…\n]+|[.,;:!?]+(?=\s|$)")
_SHORTEST_CLAUSE = 4  # characters


class UnlabelledDataset(RowDataset):
    """Unlabelled text (SimCSE): `text`. Two views of a text attract each other.

    There is nothing for `EmbeddingModule` to score; masked-LM pre-training scores a `dev` split, or a `holdout`.

    Args:
        augment: how the second view is made. `none`: the same text, so the views differ by dropout only; `span_crop`: a
            contiguous part of it (50 to 90 % of the characters); `clause`: one of its clauses, as a query for it (inverse cloze
            task, Lee et al. 2019, arXiv 1906.00300, which mostly takes it out of the text); `question`: the same, and of every
            other one a part (15 to 50 % of the characters) is asked for by a Chinese question word; `char_delete`: a tenth of
            the characters removed; `char_repeat`: up to a third of them doubled (ESimCSE, Wu et al. 2021, arXiv 2109.04380,
            by character).
        neighbours: how many texts that follow each other in the file go into a batch together. Where a file's texts stand in
            the order of their documents, the other passages of its document are hard negatives of a passage's clause, which
            cost no further texts.
        **kwargs: as in `TaskDataset`.
    """

    family = "unlabelled"
    record = TextRecord

    def __init__(self, *args: Any, augment: Augment = "none", neighbours: int = 1, holdout: float = 0.0, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "holdout": holdout})
        if augment not in get_args(Augment):
            raise InputError(f"augment={augment!r} is unknown: choose from {list(get_args(Augment))}")
        if not 1 <= neighbours <= self.batch_size:
            raise InputError(f"neighbours={neighbours} do not fit batch_size={self.batch_size}: give 1 to {self.batch_size}")
        self.augment: Augment = augment
        self.neighbours = neighbours

    def order(
        self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray, drawn: np.ndarray | None = None
    ) -> np.ndarray:
        """As of `TaskDataset`; with `neighbours` above 1, runs of so many rows in random order, equal texts or not."""
        if self.neighbours == 1:
            return super().order(rng, draws, sizes, drawn)
        rows = np.arange(len(self)) if drawn is None else np.sort(drawn)
        first = int(rng.integers(self.neighbours))  # rows of the first run, which an epoch begins elsewhere
        runs = np.split(rows, np.arange(first, len(rows), self.neighbours))
        return np.concatenate([runs[i] for i in rng.permutation(len(runs))])

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """Each text and its second view."""
        rows = self.train.take(positions)
        texts = [row["text"] for row in rows]
        ids = np.array([row["ids"][0] for row in rows], dtype=np.int64)
        views = [view(text, self.augment, draw) for text, draw in zip(texts, draws.tolist(), strict=True)]
        return Examples((texts, views), ("text", "text"), (ids, ids), None)

    def _evaluation(self, split: Rows) -> EvaluationSet:
        texts = text_column([row["text"] for row in split.all()])
        return EvaluationSet(texts, ((len(texts), "text"),), self.keys(split))


def view(text: str, augment: Augment, draw: float) -> str:
    """Another view of a text; `draw` in [0, 1) decides which.

    >>> view("今天天气很好我们去公园", "span_crop", 0.5) in "今天天气很好我们去公园"
    True
    """
    if augment == "none" or len(text) < 4:
        return text
    rng = np.random.default_rng(int(draw * 2**53))
    if augment in ("clause", "question"):
        clauses = [part.strip() for part in _BETWEEN_CLAUSES.split(text) if len(part.strip()) >= _SHORTEST_CLAUSE]
        if len(clauses) > 1:
            clause = clauses[int(rng.integers(len(clauses)))]
            return _question(clause, rng) if augment == "question" and rng.random() < 0.5 else clause
    if augment in ("span_crop", "clause", "question"):  # also of a text with one clause
        size = max(2, round(len(text) * rng.uniform(0.5, 0.9)))
        start = int(rng.integers(0, len(text) - size + 1))
        return text[start : start + size].strip() or text
    chosen = np.zeros(len(text), dtype=bool)
    count = max(1, len(text) // 10) if augment == "char_delete" else int(rng.integers(1, max(2, len(text) // 3) + 1))
    chosen[rng.choice(len(text), count, replace=False)] = True
    if augment == "char_delete":
        return "".join(c for c, drop in zip(text, chosen, strict=True) if not drop).strip() or text
    return "".join(c * (1 + twice) for c, twice in zip(text, chosen.tolist(), strict=True))


def _question(clause: str, rng: np.random.Generator) -> str:
    """A clause with a question word in place of a part of it."""
    size = max(2, round(len(clause) * rng.uniform(0.15, 0.5)))
    start = int(rng.integers(0, len(clause) - size + 1))
    return f"{clause[:start]}{_QUESTION_WORDS[int(rng.integers(len(_QUESTION_WORDS)))]}{clause[start + size :]}？"
