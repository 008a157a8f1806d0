"""Registers the attention `packed` with transformers, by which each text of a packed row attends to itself alone.

The import loads transformers' models, so it is made only where there is such a model.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from acge_lightning.encoder.dropout import dropout
from acge_lightning.encoder.packing import PACKED, Group, Segments


def use_packed_attention(backbone: PreTrainedModel) -> None:
    """Let a model take texts packed, in place; it must be one that `fits`."""
    backbone.set_attn_implementation(PACKED)


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
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # Float[tokens, heads, d]
    if not dropout and _has_kernel(query.device, query.dtype, query.shape[-1]):
        return _attend_all(segments, query, key, value, scaling)[None], None
    states = [_attend_group(group, query, key, value, dropout, scaling) for group in segments.groups]
    return torch.cat(states)[None], None


def _has_kernel(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether `_attend_all` can work: on NVIDIA's Ampere and later, in half precision, with heads of up to 256 dims."""
    half = dtype in (torch.bfloat16, torch.float16) and size <= 256 and size % 8 == 0
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_all(segments: Segments, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attention of all texts by one kernel, which has neither dropout nor fp32: Float[tokens, heads, d] -> the same."""
    bounds, longest = segments.bounds, segments.longest
    states = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scaling)
    return cast(Tensor, states)  # annotated as a tuple too, which it is with `return_aux` only


def _attend_group(group: Group, query: Tensor, key: Tensor, value: Tensor, p: float, scaling: float | None) -> Tensor:
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


def _padded(tokens: Tensor, group: Group) -> Tensor:
    """Float[tokens of the group, heads, d] -> Float[texts, width, heads, d]."""
    shape = (group.texts, group.width, *tokens.shape[1:])
    if group.slots is None:
        return tokens.reshape(shape)
    return tokens.new_zeros(group.texts * group.width, *tokens.shape[1:]).index_copy_(0, group.slots, tokens).view(shape)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
