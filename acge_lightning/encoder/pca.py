"""Turns an encoder's axes to the principal components of some texts: shorter embeddings without training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from acge_lightning.encoder.encoder import Dense, Encoder, evaluation_mode
from acge_lightning.encoder.vocabulary import repeatable, texts_at
from acge_lightning.errors import InputError


def rotate_to_components(encoder: Encoder, texts: Sequence[str]) -> Encoder:
    """An encoder whose dims are the principal components of the embeddings of some texts, the strongest first.

    e' = W (e - mean), with the eigenvectors of the covariance as rows of W. The map is folded into the Dense head, so the
    result is an encoder like any other, to be exported and cut to any number of dims. Matryoshka training has to beat its
    prefixes. The components are those of the embeddings before normalisation, as the head gives them.

    Args:
        encoder: without a head, or with one whose activation is the identity; it is left as it is.
        texts: at least as many as the embedding has dims, of the kind that will be encoded; none of an evaluation.

    Returns:
        An encoder of the same size, in the mode of the old one; every one of its dims may be cut at.

    Raises:
        InputError: too few texts, or a head that is not linear.

    Reference: Jolliffe 2002, Principal Component Analysis.
    """
    if len(texts) < encoder.dim:
        raise InputError(f"{len(texts)} texts do not determine {encoder.dim} components: give at least {encoder.dim}")
    if encoder.dense is not None and not isinstance(encoder.dense.activation, nn.Identity):
        name = type(encoder.dense.activation).__name__
        raise InputError(f"the encoder's head ends in {name}: components can be folded into a linear head only")
    mean, components = _components(encoder, texts)
    rotated = copy.deepcopy(encoder)
    weight, bias = torch.eye(encoder.dim, dtype=torch.double), torch.zeros(encoder.dim, dtype=torch.double)
    if encoder.dense is not None:
        linear = encoder.dense.linear
        weight = linear.weight.detach().cpu().double()
        bias = bias if linear.bias is None else linear.bias.detach().cpu().double()
    head = Dense(weight.shape[1], encoder.dim)
    with torch.no_grad():
        head.linear.weight.copy_(components @ weight)
        head.linear.bias.copy_(components @ (bias - mean))
    rotated.dense = head.to(encoder.device, next(encoder.parameters()).dtype)
    rotated.matryoshka_dims = ()
    return rotated


def sample_texts(texts: Iterable[str], count: int) -> list[str]:
    """At most `count` distinct texts, evenly spaced, in their order.

    The texts are iterated over twice, and 8 bytes of each are kept; of a generator, all are (`vocabulary.Texts` avoids it).

    >>> sample_texts("abcabdef", 3)
    ['a', 'c', 'e']
    """
    texts = repeatable(texts)
    rows = np.unique(np.fromiter(map(_hash, texts), dtype=np.uint64), return_index=True)[1]
    return texts_at(texts, np.sort(rows)[:: max(1, -(-len(rows) // count))].tolist())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


@torch.no_grad()
def _components(encoder: Encoder, texts: Sequence[str], block: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean Float64[D] and components Float64[D, D], strongest first, of the texts' embeddings, block by block."""
    total = torch.zeros(encoder.dim, dtype=torch.double)
    squares = torch.zeros(encoder.dim, encoder.dim, dtype=torch.double)
    with evaluation_mode(encoder):
        for start in range(0, len(texts), block):
            vectors = encoder(encoder.tokenize(texts[start : start + block]).to(encoder.device)).cpu().double()
            total += vectors.sum(0)
            squares += vectors.T @ vectors
    mean = total / len(texts)
    covariance = squares / len(texts) - torch.outer(mean, mean)
    return mean, torch.linalg.eigh(covariance).eigenvectors.T.flip(0)
