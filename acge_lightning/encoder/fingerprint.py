"""Computes a digest of an encoder, equal for encoders that give the same vectors for the same texts."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import torch

from acge_lightning.encoder.encoder import Encoder

_FOLDER_KEYS = ("transformers_version", "_name_or_path")  # of a config; they do not change the vectors


def encoder_hash(encoder: Encoder) -> str:
    """24 hexadecimal digits of all that decides on an encoder's vectors: weights, tokenizer, longest text, pooling."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    tokenize, config = encoder.tokenize, getattr(encoder.backbone, "config", None)
    settings = [
        *map(_canonical_json, (encoder.pooling, tokenize.max_length, tokenize.special_tokens)),
        _tokenizer_json(tokenize.tokenizer.backend_tokenizer.to_str()),
        _canonical_json({} if config is None else {k: v for k, v in config.to_dict().items() if k not in _FOLDER_KEYS}),
        _canonical_json(None if encoder.dense is None else type(encoder.dense.activation).__name__),
    ]
    digest.update(f"[{', '.join(settings)}]".encode())
    return digest.hexdigest()[:24]


def _canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@lru_cache(maxsize=2)  # parsing a vocabulary takes longer than hashing the weights
def _tokenizer_json(text: str) -> str:
    return _canonical_json(json.loads(text) | {"truncation": None, "padding": None})
