"""Grow a transformer from a static encoder: it begins with that encoder's vectors, and learns context from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.encoder import Encoder, StaticBackbone
from acge_lightning.encoder.vocabulary import SPECIAL
from acge_lightning.errors import InputError
from acge_lightning.zoo.pretrained import from_pretrained

_ROOM = 0.9  # share of a token's squared length that the longest static vector may take
_MULTIPLE = 64  # of which the hidden size is one


def grow(
    path: str | Path,
    dim: int | None = None,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    intermediate_size: int | None = None,
    positions: int = 1024,
    max_length: int | None = None,
    dense: int | None = None,
    gradient_checkpointing: bool = False,
    attention: str | None = None,
) -> Encoder:
    """A BERT whose vectors are at first those of a static encoder, of any text that fits.

    Contrastive training of a static encoder takes minutes, and of a small transformer from random weights hours to come as
    far. Here the transformer begins there. BERT normalises each token's vector to mean 0 and one length, which would lose that
    a static token's length says how much it counts: so each static vector, scaled, gets two more coordinates, which make its
    mean 0 and its length √h, and layer normalisation leaves it alone. Positions, token types and the outputs of all layers
    begin at 0, so that a layer passes its input on; they learn from the first step. A Dense head from h to the static
    encoder's dims drops the two coordinates. [CLS] and [SEP] have none but these two: they do not change a mean's direction.
    There is no dropout: it would drop both of a [CLS] now and then, where layer normalisation makes gradients infinite.

    Args:
        path: of a static encoder without a Dense head: folder, name of `models()` or hub id.
        dim: how many of its dims to begin with, counted from the first; all by default. Of a Matryoshka encoder they are good.
        num_hidden_layers: of the BERT.
        num_attention_heads: of each; they divide the hidden size, which is a multiple of 64 above `dim` (254 gives 256).
        intermediate_size: of the feed-forward parts; four times the hidden size by default.
        positions: most tokens of a text that it can be used for.
        max_length: most tokens of a text now, all positions by default; training on shorter texts is faster.
        dense: size of the embedding, `dim` by default. The dims beyond are combinations of the first, and
            leave the cosines as they are if they are as many or more; prefixes of a larger embedding keep more of it.
        gradient_checkpointing: as in `from_pretrained`.
        attention: as in `from_pretrained`.

    Raises:
        InputError: as of `load`; an encoder that is not static, or has a Dense head; a `dim` that it lacks or above `dense`.

    YAML::

        encoder: {_target_: acge_lightning.zoo.grow, path: FOLDER, num_hidden_layers: 6}
    """
    source = from_pretrained(path)
    if not isinstance(source.backbone, StaticBackbone):
        raise InputError(f"{path} is a transformer already: grow makes one of a static encoder")
    if source.dense is not None:
        raise InputError(f"{path} has a Dense head: grow needs a static encoder without one")
    static = source.backbone.embedding.weight.detach()
    dims = static.shape[1]
    dim = dims if dim is None else dim
    if not 1 <= dim <= dims:
        raise InputError(f"dim={dim} cannot be taken of the {dims} dims of {path}: give 1 to {dims}")
    dense = dim if dense is None else dense
    if dense < dim:
        raise InputError(f"dense={dense} is less than the {dim} dims it begins with: give {dim} or more")
    hidden_size = -(-(dim + 2) // _MULTIPLE) * _MULTIPLE
    tokenizer = _with_special_tokens(source.tokenize.tokenizer)
    config = {
        "model_type": "bert",
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size or 4 * hidden_size,
        "max_position_embeddings": positions,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    encoder = transformer(
        tokenizer,
        config,
        max_length=positions if max_length is None else max_length,
        dense=dense,
        gradient_checkpointing=gradient_checkpointing,
        attention=attention,
        prompts=source.prompts,
    )
    _begin_with(encoder, static[:, :dim])
    trained = [size for size in source.matryoshka_dims or () if size < dim]
    encoder.matryoshka_dims = tuple(dict.fromkeys([dense, dim, *trained])) if trained or dense > dim else ()
    return encoder


@torch.no_grad()
def _begin_with(encoder: Encoder, static: Tensor) -> None:
    """Set the weights of a fresh BERT with a Dense head so that its vectors are those of a static encoder: Float[tokens, d]."""
    assert encoder.dense is not None
    backbone: Any = encoder.backbone
    tokenizer, head, dim = encoder.tokenize.tokenizer, encoder.dense.linear, static.shape[1]
    table = torch.zeros(len(tokenizer), dim)
    table[: len(static)] = static[: len(tokenizer)]
    table[tokenizer.all_special_ids] = 0
    backbone.embeddings.word_embeddings.weight.copy_(normalised_table(table, encoder.hidden_size))
    outputs = [part for layer in backbone.encoder.layer for part in (layer.attention.output.dense, layer.output.dense)]
    for part in (backbone.embeddings.position_embeddings, backbone.embeddings.token_type_embeddings, *outputs):
        for parameter in part.parameters():
            parameter.zero_()
    further = head.out_features - dim
    rows = [torch.eye(dim), *([nn.init.orthogonal_(torch.empty(further, dim))] if further else [])]
    head.weight.zero_()[:, :dim] = torch.cat(rows)
    head.bias.zero_()


def normalised_table(table: Tensor, hidden_size: int) -> Tensor:
    """Vectors of mean 0 and length √h whose first coordinates are those given, scaled all alike.

    Args:
        table: Float[tokens, d].
        hidden_size: h, d + 2 or more.

    Returns:
        Float32[tokens, h]: d scaled coordinates, zeros, and two that make up for sum and length; layer normalisation leaves it
        as it is.

    >>> x = normalised_table(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), 4)
    >>> [abs(round(float(v), 4)) for v in (x[0].mean(), x[0].pow(2).mean(), x[0, 0] / x[0, 1])]
    [0.0, 1.0, 3.0]
    """
    exact = table.double()
    squares, sums = exact.pow(2).sum(1), exact.sum(1)
    largest = float((squares + sums.pow(2) / 2).max())  # what a token needs of the squared length h
    scale = (_ROOM * hidden_size / largest) ** 0.5 if largest > 0 else 1.0
    exact, squares, sums = exact * scale, squares * scale**2, sums * scale
    root = (2 * (hidden_size - squares) - sums.pow(2)).sqrt()
    result = torch.zeros(len(table), hidden_size, dtype=torch.double)
    result[:, : table.shape[1]] = exact
    result[:, -2], result[:, -1] = (root - sums) / 2, (-root - sums) / 2
    return result.float()


def _with_special_tokens(tokenizer: Any) -> PreTrainedTokenizerFast:
    """A static encoder's tokenizer with [CLS] and [SEP] around a text, and a mask token for pre-training."""
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.add_special_tokens(list(SPECIAL.values()))  # those that it lacks; the others keep their ids
    around = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=around
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
