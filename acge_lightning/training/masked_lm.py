"""Masked-language-model pre-training: trains a fresh backbone on plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acge_lightning.data.batch import EvaluationBatch, TextBatch
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder, StaticBackbone
from acge_lightning.encoder.packing import is_packed, packed_states
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import save_backbone
from acge_lightning.training.optim import Optim
from acge_lightning.training.optimized_module import OptimizedModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_DEV = "there is no text to validate on: set data.holdout above 0, for example 0.01"


class MaskedLanguageModule(OptimizedModule):
    """Hides a share of the tokens and lets the backbone guess them.

    Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay. Special tokens are never chosen. Logs
    `train/loss`, `val/loss` (cross-entropy a hidden token, in nats) and `val/mean`, the share of hidden tokens guessed right.
    Trains the backbone only: pooling and Dense head are left to what follows. Needs data of the unlabelled family.

    Args:
        encoder: of which the backbone is trained; its tokenizer needs a mask token.
        tasks: name -> task of unlabelled text.
        masking: share of tokens to guess (0.15 in BERT; 0.3 to 0.4 learns faster, Wettig et al. 2023, arXiv 2202.08005).
        optim: optimizer and learning-rate schedule.
        batch_tokens: tokens encoded together; the encoder's own choice for its device by default.
        matryoshka: must be None; only `EmbeddingModule` has prefixes to train.
        config: plain values that are kept in checkpoints.

    Reference: Devlin et al. 2019 (arXiv 1810.04805). Differs: no next-sentence task, masks drawn anew at every step.

    YAML::

        module: {_target_: acge_lightning.training.MaskedLanguageModule, masking: 0.3}
    """

    special: Tensor

    def __init__(
        self,
        encoder: Encoder,
        tasks: Mapping[str, Task],
        masking: float = 0.15,
        optim: Optim | None = None,
        batch_tokens: int | None = None,
        matryoshka: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        tokenizer = encoder.tokenize.tokenizer
        if isinstance(encoder.backbone, StaticBackbone):
            raise InputError("a static encoder sees each token alone and cannot guess hidden ones: choose encoder=bert_mini")
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token: learn one with vocabulary.kind=wordpiece")
        if matryoshka and matryoshka.get("dims"):
            raise InputError("masked-LM pre-training has no embedding to cut: set matryoshka to null")
        if not 0 < masking < 1:
            raise InputError(f"module.masking={masking} is no share of the tokens: give 0.15 to 0.4")
        labelled = [name for name, task in tasks.items() if task.data.family != "unlabelled"]
        if labelled:
            raise InputError(f"task {labelled[0]!r} is not of the unlabelled family: pre-training reads plain text only")
        self.save_hyperparameters({"config": dict(config or {})})
        self.encoder = encoder
        if encoder.dense is not None:
            encoder.dense.requires_grad_(False)  # no guess reaches it
        self.tasks = dict(tasks)
        self.masking, self.optim, self.batch_tokens = masking, optim or Optim(), batch_tokens
        rows, width = self._token_table().shape  # may exceed the tokens, differ from hidden_size
        self.transform = nn.Sequential(nn.Linear(encoder.hidden_size, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.register_buffer("special", torch.tensor(sorted(tokenizer.all_special_ids)), persistent=False)
        self._totals = torch.zeros(3, dtype=torch.double)

    # ---- the task

    def _token_table(self) -> Tensor:
        """The weight of the token embedding, Float[rows, width]."""
        backbone = cast("PreTrainedModel", self.encoder.backbone)  # a static one is refused
        return cast(Tensor, backbone.get_input_embeddings().weight)

    def guess(self, tokens: Tokens, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hide tokens and guess them: the sum of their cross-entropies, how many were guessed right, and how many there are."""
        total = torch.zeros(3, device=tokens.ids.device)
        for ids, chosen, states in self._states(tokens, generator):
            logits = (self.transform(states) @ self._token_table().T + self.bias).float()
            loss = cross_entropy(logits, ids[chosen], reduction="sum")
            right = (logits.argmax(-1) == ids[chosen]).sum()
            total = total + torch.stack([loss, right.to(loss), loss.new_tensor(len(states))])
        return total[0], total[1], total[2]

    def _states(self, tokens: Tokens, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The ids, which of them are hidden, and the backbone's vectors of these, chunk by chunk."""
        backbone = self.encoder.backbone
        packed = is_packed(backbone) and bool(tokens.lengths.all())
        for rows in tokens.chunks(self.batch_tokens or self.encoder.batch_tokens, packed):
            if packed:
                chunk = tokens.select(rows)
                ids, mask = chunk.ids, torch.ones_like(chunk.ids)
            else:
                ids, mask = tokens.padded(rows, self.encoder.tokenize.pad_id)
            hidden, chosen = self.hide(ids, mask, generator)
            if packed:
                states = packed_states(backbone, hidden, chunk.lengths)
            else:
                states = backbone(input_ids=hidden, attention_mask=mask).last_hidden_state
            yield ids, chosen, states[chosen]

    def hide(self, input_ids: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Hide some tokens, at least one: the new ids and which are hidden, Int64 and Bool of the shape of `input_ids`."""

        def draw() -> Tensor:
            device = input_ids.device if generator is None else generator.device
            return torch.rand(input_ids.shape, generator=generator, device=device).to(input_ids.device)

        selection, treatment, replacement = draw(), draw(), draw()
        eligible = (mask == 1) & ~torch.isin(input_ids, self.special)
        chosen = eligible & (selection < self.masking)
        if not chosen.any():
            chosen = eligible & (selection == selection.masked_fill(~eligible, 2.0).min())
        tokenizer = self.encoder.tokenize.tokenizer
        random_ids = (replacement * len(tokenizer)).long()
        hidden = torch.where(chosen & (treatment < 0.8), tokenizer.mask_token_id, input_ids)
        return torch.where(chosen & (treatment >= 0.9), random_ids, hidden), chosen

    # ---- Lightning

    def setup(self, stage: str) -> None:
        """Check that there is text to validate on: without any, Lightning would leave the validation out and say nothing."""
        super().setup(stage)
        for task in self.tasks.values():
            task.data.open()
        if self.trainer.limit_val_batches and not any("dev" in task.data.opened_splits for task in self.tasks.values()):
            raise InputError(_NO_DEV)

    def training_step(self, batch: TextBatch) -> Tensor:
        """The mean cross-entropy of the hidden tokens."""
        loss, _, count = self.guess(batch.columns[0])
        loss = loss / count.clamp(min=1)
        self.log("train/loss", loss, batch_size=len(batch))
        self.history.add(batch.task, loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._totals = torch.zeros(3, dtype=torch.double)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Guess tokens; the same ones are hidden every time."""
        generator = torch.Generator().manual_seed(batch_idx)
        self._totals += torch.stack(self.guess(batch.tokens, generator)).double().cpu()

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the share of right guesses."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log the same of the test splits."""
        self._score("test")

    def _score(self, prefix: str) -> None:
        loss, right, count = self._totals.tolist()
        if not count:
            raise InputError(_NO_DEV)
        self.log(f"{prefix}/loss", loss / count, sync_dist=True)
        self.log(f"{prefix}/mean", right / count, prog_bar=True, sync_dist=True)

    def save(self, folder: Path, provenance: Mapping[str, Any], earlier_rows: Sequence[np.ndarray] = ()) -> Path:
        """Write the backbone and its tokenizer as a transformers folder, `folder`/backbone: a start for training, no encoder.

        `provenance`, plain data on how it was made, is its `training.json`.
        """
        return save_backbone(self.encoder, folder / "backbone", provenance)
