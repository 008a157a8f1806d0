"""Rows of a data set to batches of tokens, with an encoder's tokenizer and prompts."""

from __future__ import annotations

import numpy as np
import torch

from acge_lightning.data.batch import EvaluationBatch, TextBatch
from acge_lightning.data.dataset import NO_ROWS, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.errors import InputError


class Collate:
    """Texts to tokens, with the prompts of their roles.

    Args:
        task: name.
        data: of the task.
        encoder: whose tokenizer and prompts to use.

    Raises:
        InputError: a prompt that the encoder does not have.
    """

    def __init__(self, task: str, data: TaskDataset, encoder: Encoder):
        self.task = task
        self.data = data
        self.tokenize = encoder.tokenize
        unknown = sorted(set(data.prompts.values()) - set(encoder.prompts))
        if unknown:
            raise InputError(f"task {task}: prompt {unknown[0]!r} is none of the encoder's: {sorted(encoder.prompts)}")
        self.prefix = {role: encoder.prompts[name] for role, name in data.prompts.items()}

    def tokens(self, texts: list[str], role: str) -> Tokens:
        """Token ids of texts of one role."""
        prefix = self.prefix.get(role, "")
        return self.tokenize([prefix + text for text in texts] if prefix else texts)

    def training(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> TextBatch:
        """The batch of these training rows; arguments as in `TaskDataset.examples`."""
        examples = self.data.examples(positions, draws, random_negatives)
        columns = tuple(self.tokens(texts, role) for texts, role in zip(examples.columns, examples.roles, strict=True))
        return TextBatch(self.task, columns, examples.labels, tuple(torch.from_numpy(ids) for ids in examples.ids))

    def evaluation(self, evaluation_set: EvaluationSet, start: int, end: int, with_judgements: bool) -> EvaluationBatch:
        """The batch of a set's texts from `start` to before `end`, all of one role.

        Args:
            evaluation_set: of the task.
            start: number of the first text.
            end: number after the last text.
            with_judgements: whether all judgements come with it (classes always come with their texts).
        """
        role = next(role for stop, role in evaluation_set.roles if start < stop)
        tokens = self.tokens(evaluation_set.texts.slice(start, end - start).to_pylist(), role)
        labels = None
        if evaluation_set.classes is not None:
            labels = evaluation_set.classes[start:end]
        elif evaluation_set.judgements is not None:
            labels = evaluation_set.judgements if with_judgements else evaluation_set.judgements[:0]
        return EvaluationBatch(self.task, tokens, torch.arange(start, end), labels)
