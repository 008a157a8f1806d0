"""A digest of an encoder: the same for encoders that give the same vectors for the same texts."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import torch

from acge_lightning.encoder.encoder import Encoder

_OF_THE_FOLDER = ("transformers_version", "_name_or_path")  # in a config, and nothing of the encoder


def encoder_hash(encoder: Encoder) -> str:
    """A digest of all that decides on an encoder's vectors: weights, tokenizer, longest text, pooling."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    tokenize, config = encoder.tokenize, getattr(encoder.backbone, "config", None)
    settings = [
        *map(_plain, (encoder.pooling, tokenize.max_length, tokenize.special_tokens)),
        _plain_tokenizer(tokenize.tokenizer.backend_tokenizer.to_str()),
        _plain({} if config is None else {k: v for k, v in config.to_dict().items() if k not in _OF_THE_FOLDER}),
        _plain(None if encoder.dense is None else type(encoder.dense.activation).__name__),
    ]
    digest.update(f"[{', '.join(settings)}]".encode())
    return digest.hexdigest()[:24]


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@lru_cache(maxsize=2)  # a vocabulary takes longer than the weights
def _plain_tokenizer(text: str) -> str:
    return _plain(json.loads(text) | {"truncation": None, "padding": None})
