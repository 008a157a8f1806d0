"""Attention over texts that lie one after the other, without padding.

`attention: packed` is one more attention of transformers beside `sdpa` and `eager`. A model that has it takes a chunk of texts
as one row of tokens; everything but attention then works on real tokens only, and attention sees texts of like length together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, embedding_bag, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from acge_lightning.encoder.dropout import dropout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PACKED = "packed"
MODEL_TYPES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")  # those that the tests compare with padding
_OTHER_MASKS = ("is_decoder", "add_cross_attention", "is_causal")  # switches by which a token sees less than its whole text
_ALIKE = 8  # short texts that are attended together differ by so many tokens at most
_SHORT = 48  # tokens; of longer texts only those of one length are attended together, as padding costs more than a call
_FEW = 8  # texts: where so many have one length, they are attended together without any other, for the same reason


def fits(config: PreTrainedConfig) -> bool:
    """Whether the model of a config can take texts packed: its architecture is known, and every token sees its whole text."""
    return config.model_type in MODEL_TYPES and not any(getattr(config, switch, False) for switch in _OTHER_MASKS)


def is_packed(backbone: nn.Module) -> bool:
    """Whether a backbone takes texts packed."""
    return getattr(getattr(backbone, "config", None), "_attn_implementation", None) == PACKED


def compile_backbone(backbone: nn.Module) -> None:
    """`torch.compile` in place, for any shape, over padded rows: the number of texts of a packed row is not for a compiler."""
    if is_packed(backbone):
        backbone.set_attn_implementation("sdpa")
    backbone.compile(dynamic=True)


@dataclass(frozen=True)
class _Group:
    """Neighbouring texts of like length within a packed row."""

    tokens: slice
    texts: int
    width: int
    slots: Tensor | None  # Int64[tokens]: the slot of each among texts x width; None if nothing is padded
    real: Tensor | None  # Bool[texts, 1, 1, width]


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

    def _groups(self) -> Iterator[_Group]:
        lengths, counts = (x.tolist() for x in self.lengths.unique_consecutive(return_counts=True))
        first_text = first_token = run = 0
        while run < len(lengths):
            low = high = lengths[run]
            texts, tokens, alike = counts[run], low * counts[run], _ALIKE if low < _SHORT else 0
            for size, count in zip(lengths[run + 1 :], counts[run + 1 :], strict=True):
                if max(high, size) - min(low, size) > alike or max(counts[run], count) >= _FEW:
                    break
                low, high, texts, tokens = min(low, size), max(high, size), texts + count, tokens + size * count
                run += 1
            slots = real = None
            if low < high:
                mask = torch.arange(high) < self.lengths[first_text : first_text + texts, None]
                slots = mask.flatten().nonzero().flatten().to(self.device)
                real = mask[:, None, None].to(self.device)
            yield _Group(slice(first_token, first_token + tokens), texts, high, slots, real)
            first_text, first_token, run = first_text + texts, first_token + tokens, run + 1

    def positions(self) -> Tensor:
        """Int64[tokens]: the position of each token within its text, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return (torch.arange(int(self.lengths.sum())) - starts.repeat_interleave(self.lengths)).to(self.device)

    def positions_after(self, ids: Tensor, padding: int) -> Tensor:
        """Int64[tokens]: RoBERTa's positions, which begin after the padding index; a padding token in a text has that index."""
        real = ids != padding
        count = real.cumsum(0)
        before = torch.cat([count.new_zeros(1), count])[self.bounds[:-1].long()]
        return torch.where(real, count - before.repeat_interleave(self.lengths.to(self.device)) + padding, padding)


def packed_states(backbone: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """A packed backbone's vectors of the tokens of all texts: Int64[tokens], Int64[n] (CPU) -> Float[tokens, d]."""
    segments = Segments(lengths, ids.device)
    padding = getattr(getattr(backbone.embeddings, "position_embeddings", None), "padding_idx", None)
    positions = segments.positions() if padding is None else segments.positions_after(ids, padding)
    return backbone(input_ids=ids[None], position_ids=positions[None], segments=segments).last_hidden_state[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each text's tokens attend to each other; without `segments`, transformers' own attention over padded rows.

    Args:
        module: the attention layer (transformers' convention; only the padded path looks at it).
        query: Float[1, heads, tokens, d].
        key: of the same shape.
        value: of the same shape.
        attention_mask: only for padded rows.
        segments: the texts.
        dropout: share of attention weights that are dropped.
        scaling: of the scores, 1/sqrt(d) by default.
        **kwargs: what else a model passes, for the padded path.

    Returns:
        Float[1, tokens, heads, d], and None in place of weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # Float[tokens, heads, d]
    if not dropout and _has_kernel(query.device, query.dtype, query.shape[-1]):
        return _attend_in_one(segments, *rows, scaling)[None], None
    return torch.cat([_attend(group, *rows, dropout, scaling) for group in segments.groups])[None], None


def _has_kernel(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether `_attend_in_one` can work: on NVIDIA's Ampere and later, in half precision, with heads of up to 256 dims."""
    half = dtype in (torch.bfloat16, torch.float16) and size <= 256 and size % 8 == 0
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_in_one(segments: Segments, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attention of all texts by one kernel, which knows neither dropout nor fp32: Float[tokens, heads, d] -> the same."""
    bounds, longest = segments.bounds, segments.longest
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scaling)


def _attend(group: _Group, query: Tensor, key: Tensor, value: Tensor, p: float, scaling: float | None) -> Tensor:
    """Attention of a group of texts: Float[tokens, heads, d] -> Float[tokens of the group, heads, d]."""
    query, key, value = (_padded(x[group.tokens], group).transpose(1, 2) for x in (query, key, value))
    if p and query.device.type == "cpu":  # where torch has no kernel of its own for it, and a slow dropout
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if group.real is not None:
            scores = scores.masked_fill(~group.real, -torch.inf)
        result = dropout(scores.softmax(-1), p) @ value
    else:
        result = scaled_dot_product_attention(query, key, value, attn_mask=group.real, dropout_p=p, scale=scaling)
    result = result.transpose(1, 2).flatten(0, 1)
    if group.slots is None:
        return result
    return embedding(group.slots, result.flatten(1)).view(-1, *result.shape[1:])  # whose backward is faster than indexing's


def _padded(tokens: Tensor, group: _Group) -> Tensor:
    """Float[tokens of the group, heads, d] -> Float[texts, width, heads, d]."""
    shape = (group.texts, group.width, *tokens.shape[1:])
    if group.slots is None:
        return tokens.reshape(shape)
    return tokens.new_zeros(group.texts * group.width, *tokens.shape[1:]).index_copy_(0, group.slots, tokens).view(shape)


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
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        every = torch.arange(len(hidden), device=hidden.device)
        return embedding_bag(every, wide, (ends - lengths).to(hidden.device), mode="mean").to(hidden.dtype)
    return hidden[(ends - lengths if mode == "cls" else ends - 1).to(hidden.device)]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
