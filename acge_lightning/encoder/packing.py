"""Packed texts, one after the other in a row of tokens without padding: where each begins and ends, and its vector.

`attention: packed` is one more attention of transformers beside `sdpa` and `eager`. A model that has it takes a chunk of texts
as one row of tokens; everything but attention then works on real tokens only, and attention sees texts of like length together.
The attention itself is in `packed_attention.py`, which loads transformers' models; nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = "packed"
MODEL_TYPES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")  # those that the tests compare with padding
_MASK_SWITCHES = ("is_decoder", "add_cross_attention", "is_causal")  # switches by which a token sees less than its whole text
_LENGTH_GAP = 8  # tokens; the lengths of short texts that are attended together differ by no more
_SHORT_TEXT = 48  # tokens; from there on only texts of one length are attended together: padding costs more than a call
_ENOUGH_TEXTS = 8  # of one length: they are attended together without any other, for the same reason


def fits(config: PreTrainedConfig) -> bool:
    """Whether the model of a config can take texts packed: its architecture is known, and every token sees its whole text."""
    return config.model_type in MODEL_TYPES and not any(getattr(config, switch, False) for switch in _MASK_SWITCHES)


def is_packed(backbone: nn.Module) -> TypeGuard[PreTrainedModel]:
    """Whether a backbone takes texts packed."""
    return getattr(getattr(backbone, "config", None), "_attn_implementation", None) == PACKED


def compile_backbone(backbone: nn.Module) -> None:
    """Compile a backbone in place, for any shape, over padded rows: compilers want a fixed number of packed texts."""
    if is_packed(backbone):
        backbone.set_attn_implementation("sdpa")
    backbone.compile(dynamic=True)


@dataclass(frozen=True)
class Group:
    """Neighbouring texts of like length within a packed row, which are attended together.

    Args:
        tokens: where they are in the row.
        texts: how many there are.
        width: tokens of the longest.
        slots: Int64[tokens], the slot of each among texts x width; None if nothing is padded.
        real: Bool[texts, 1, 1, width], False on padding; None if nothing is padded.
    """

    tokens: slice
    texts: int
    width: int
    slots: Tensor | None
    real: Tensor | None


class Segments:
    """Where the texts of a packed row begin and end.

    Args:
        lengths: Int64[n] on the CPU, all above 0; attention pads least where they are sorted.
        device: of the tokens.
    """

    def __init__(self, lengths: Tensor, device: torch.device):
        self.lengths, self.device = lengths, device
        self.longest = int(lengths.max())
        self.bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int().to(device)
        self.groups = list(self._groups())

    def _groups(self) -> Iterator[Group]:
        """The groups in order; a run is the neighbouring texts of one length."""
        lengths, counts = (x.tolist() for x in self.lengths.unique_consecutive(return_counts=True))
        text_start = token_start = run = 0
        while run < len(lengths):
            shortest = longest = lengths[run]
            texts, tokens, gap = counts[run], shortest * counts[run], _LENGTH_GAP if shortest < _SHORT_TEXT else 0
            for length, count in zip(lengths[run + 1 :], counts[run + 1 :], strict=True):
                if max(longest, length) - min(shortest, length) > gap or max(counts[run], count) >= _ENOUGH_TEXTS:
                    break
                shortest, longest = min(shortest, length), max(longest, length)
                texts, tokens = texts + count, tokens + length * count
                run += 1
            slots = real = None
            if shortest < longest:
                mask = torch.arange(longest) < self.lengths[text_start : text_start + texts, None]
                slots = mask.flatten().nonzero().flatten().to(self.device)
                real = mask[:, None, None].to(self.device)
            yield Group(slice(token_start, token_start + tokens), texts, longest, slots, real)
            text_start, token_start, run = text_start + texts, token_start + tokens, run + 1

    def positions(self) -> Tensor:
        """Int64[tokens]: the position of each token within its text, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return (torch.arange(int(self.lengths.sum())) - starts.repeat_interleave(self.lengths)).to(self.device)

    def positions_after(self, ids: Tensor, padding: int) -> Tensor:
        """Int64[tokens]: RoBERTa's positions, which begin after the padding index; a padding token in a text has that index."""
        real = ids != padding
        counts = real.cumsum(0)
        counts_before = torch.cat([counts.new_zeros(1), counts])[self.bounds[:-1].long()]
        return torch.where(real, counts - counts_before.repeat_interleave(self.lengths.to(self.device)) + padding, padding)


def packed_states(backbone: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """A packed backbone's vectors of the tokens of all texts: Int64[tokens], Int64[n] (CPU) -> Float[tokens, d]."""
    segments = Segments(lengths, ids.device)
    padding = getattr(getattr(backbone.embeddings, "position_embeddings", None), "padding_idx", None)
    positions = segments.positions() if padding is None else segments.positions_after(ids, padding)
    return backbone(input_ids=ids[None], position_ids=positions[None], segments=segments).last_hidden_state[0]


def pool_packed(hidden: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """One vector a text: what `encoder.pool` gives for the same texts padded.

    Args:
        hidden: Float[tokens, d].
        lengths: Int64[n] of the texts, all above 0, on the CPU.
        mode: `mean` (accumulated in fp32), `cls` or `last`.

    Returns:
        Float[n, d], of the dtype of `hidden`.
    """
    ends = lengths.cumsum(0)
    if mode == "mean":
        precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        all_rows = torch.arange(len(hidden), device=hidden.device)
        return embedding_bag(all_rows, precise, (ends - lengths).to(hidden.device), mode="mean").to(hidden.dtype)
    return hidden[(ends - lengths if mode == "cls" else ends - 1).to(hidden.device)]
