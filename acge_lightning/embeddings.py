"""Embeddings that are computed once: kept by the hash of the encoder and the hash of the text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.data.base import EvaluationSet
from acge_lightning.encoder import Encoder
from acge_lightning.files import whole

_KEY = 16  # bytes of a text's hash
_ROOM = 20 * 2**30  # bytes on the disk, for the vectors of all encoders
_FOLDER = re.compile("[0-9a-f]{24}")  # of an encoder
_OF_THE_FOLDER = ("transformers_version", "_name_or_path")  # in a config, and nothing of the encoder


class Embeddings:
    """An encoder's full-size vectors of texts, from the disk where they have been computed before.

    Args:
        encoder: whose vectors.
        folder: a folder is made in it for the encoder; each call that computes something adds two files: hashes and vectors.
            None keeps them in memory only. Once all encoders' vectors take more than 20 GiB in it, those of the encoders
            that were used longest ago are deleted.
    """

    def __init__(self, encoder: Encoder, folder: str | Path | None = None):
        self.encoder = encoder
        self.hash = "" if folder is None else encoder_hash(encoder)
        self.folder = None if folder is None else Path(folder) / self.hash
        self._place: dict[bytes, tuple[np.ndarray, int]] = {}
        if self.folder is not None:
            self._read()

    def _read(self) -> None:
        if self.folder.is_dir():
            os.utime(self.folder)
        for file in sorted(self.folder.glob("*.keys.npy")):
            keys = np.load(file, allow_pickle=False).tobytes()
            vectors = np.load(file.with_name(file.name.replace(".keys.", ".vectors.")), mmap_mode="r", allow_pickle=False)
            self._place |= {keys[i * _KEY : (i + 1) * _KEY]: (vectors, i) for i in range(len(vectors))}

    def __getstate__(self) -> dict[str, Any]:
        """Of vectors that lie in a folder another process gets the folder, not the vectors: it maps the files itself."""
        return self.__dict__ | ({} if self.folder is None else {"_place": {}})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files of the folder."""
        self.__dict__ |= state
        if self.folder is not None:
            self._read()

    def of(self, found: EvaluationSet, prompts: Mapping[str, str] | None = None) -> Tensor:
        """Float32[texts, D]: of length 1, in the order of the texts, each with the prompt of its role."""
        start, parts = 0, []
        for end, role in found.roles:
            prompt = (prompts or {}).get(role)
            parts.append(self.encode(found.texts.slice(start, end - start).to_pylist(), prompt))
            start = end
        return torch.cat(parts)

    def encode(self, texts: list[str], prompt: str | None = None) -> Tensor:
        """The same for a list of texts with one prompt."""
        lead = b"" if prompt is None else self.encoder.prompts[prompt].encode() + b"\0"
        keys = [hashlib.blake2b(lead + t.encode(errors="surrogatepass"), digest_size=_KEY).digest() for t in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._place}
        if missing:
            vectors = self.encoder.encode(list(missing.values()), self.encoder.dim, prompt=prompt).numpy()
            self._keep(list(missing), vectors)
        result = np.empty((len(texts), self.encoder.dim), dtype=np.float32)
        for row, key in enumerate(keys):
            block, place = self._place[key]
            result[row] = block[place]
        return torch.from_numpy(result)

    def _keep(self, keys: list[bytes], vectors: np.ndarray) -> None:
        self._place |= {key: (vectors, i) for i, key in enumerate(keys)}
        if self.folder is None or not np.isfinite(vectors).all():  # nobody wants those of a broken encoder again
            return
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        for kind, values in (("vectors", vectors), ("keys", np.frombuffer(b"".join(keys), dtype=np.uint8))):  # keys last
            with whole(self.folder / f"{name}.{kind}.npy") as draft, draft.open("wb") as file:
                np.save(file, values, allow_pickle=False)
        self._make_room()

    def _make_room(self) -> None:
        """Delete the vectors of encoders that were used long ago, but never this one's."""
        others = [f for f in self.folder.parent.iterdir() if _FOLDER.fullmatch(f.name) and f != self.folder]
        taken = _bytes(self.folder)
        for folder in sorted(others, key=_used, reverse=True):
            taken += _bytes(folder)
            if taken > _ROOM:
                shutil.rmtree(folder, ignore_errors=True)


def _used(folder: Path) -> float:
    """When it was last; another process may have deleted it meanwhile."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.glob("*.npy"))
    except FileNotFoundError:
        return 0


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
