"""Embeddings that are computed once: kept by the hash of the encoder and the hash of the text."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import sweep, whole

_LOG = logging.getLogger(__name__)
_KEY, _CHECK = 16, 8  # bytes of a text's hash, and of the digest of that hash and the vector
_HEAD = np.dtype([("key", f"V{_KEY}"), ("check", f"V{_CHECK}")])
_MAX_BYTES = 20 * 2**30  # bytes on the disk, for the vectors of all encoders
_FOLDER = re.compile("[0-9a-f]{24}")  # the name of an encoder's
_SUFFIXES = (".vectors", ".npy")  # the latter of an earlier version


class Embeddings:
    """An encoder's full-size vectors of texts, from the disk where they have been computed before.

    What lies on the disk saves time and no more: a file that is damaged is deleted and its vectors are computed again, a
    disk that is full or cannot be written is done without; a warning says so.

    Args:
        encoder: whose vectors.
        folder: a folder is made in it for the encoder; each call that computes something adds a file of hashes and vectors.
            None keeps them in memory only. Once all encoders' vectors take more than 20 GiB in it, those of the encoders
            that were used longest ago are deleted.
    """

    def __init__(self, encoder: Encoder, folder: str | Path | None = None):
        self.encoder = encoder
        self.hash = "" if folder is None else encoder_hash(encoder)
        self.folder = None if folder is None else Path(folder) / self.hash
        self._by_key: dict[bytes, tuple[_Block, int]] = {}
        if self.folder is not None:
            self._read(self.folder)

    def _read(self, folder: Path) -> None:
        with suppress(OSError):  # one that cannot be written
            os.utime(folder)
        for file in folder.glob("*.npy"):  # of an earlier version, without checks
            with suppress(OSError):
                file.unlink()
        for file in sorted(folder.glob("*.vectors")):
            try:
                block = _Block.read(file, self.encoder.dim)
            except FileNotFoundError:  # another process made room
                continue
            except (OSError, ValueError) as error:
                _drop(file, error)
                continue
            self._by_key |= {key: (block, i) for i, key in enumerate(block.keys)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out vectors that lie in a folder: another process gets the folder, and maps the files itself."""
        return self.__dict__ | ({} if self.folder is None else {"_by_key": {}})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files of the folder."""
        self.__dict__ |= state
        if self.folder is not None:
            self._read(self.folder)

    def encode_set(self, evaluation_set: EvaluationSet, prompts: Mapping[str, str] | None = None) -> Tensor:
        """Embed the texts of a set: Float32[texts, D], of length 1, in their order, each with the prompt of its role."""
        start, vectors = 0, []
        for end, role in evaluation_set.roles:
            prompt = (prompts or {}).get(role)
            vectors.append(self.encode(evaluation_set.texts.slice(start, end - start).to_pylist(), prompt))
            start = end
        return torch.cat(vectors)

    def encode(self, texts: list[str], prompt: str | None = None) -> Tensor:
        """Embed a list of texts with one prompt: Float32[texts, D], of length 1."""
        keys = self._keys(texts, prompt)
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        result = np.empty((len(texts), self.encoder.dim), dtype=np.float32)
        missing = []
        for key, positions in rows.items():
            vector = self._vector(key)
            if vector is None:
                missing.append(key)
            else:
                result[positions] = vector
        if missing:
            new_texts = [texts[rows[key][0]] for key in missing]
            vectors = self.encoder.encode(new_texts, self.encoder.dim, prompt=prompt).numpy()
            for key, vector in zip(missing, vectors, strict=True):
                result[rows[key]] = vector
            self._keep(missing, vectors)
        return torch.from_numpy(result)

    def missing(self, texts: list[str], prompt: str | None = None) -> list[str]:
        """List the texts, each once, whose vectors are not there: `encode` would compute them, together."""
        text_of = dict(zip(self._keys(texts, prompt), texts, strict=True))
        return [text for key, text in text_of.items() if self._vector(key) is None]

    def add(self, texts: list[str], vectors: np.ndarray, prompt: str | None = None) -> None:
        """Keep vectors that the same encoder has computed elsewhere: Float32[texts, D], of length 1."""
        self._keep(self._keys(texts, prompt), np.ascontiguousarray(vectors, dtype=np.float32))

    def _keys(self, texts: list[str], prompt: str | None) -> list[bytes]:
        prefix = b"" if prompt is None else self.encoder.prompts[prompt].encode() + b"\0"
        return [hashlib.blake2b(prefix + t.encode(errors="surrogatepass"), digest_size=_KEY).digest() for t in texts]

    def _vector(self, key: bytes) -> np.ndarray | None:
        """The vector of a key, if there is one and it is what was written; else its file is dropped."""
        if key not in self._by_key:
            return None
        block, row = self._by_key[key]
        if block.is_whole(row):
            return block.vectors[row]
        if block.file is not None:
            _drop(block.file, "a vector is not the one that was written")
        self._by_key = {other: entry for other, entry in self._by_key.items() if entry[0] is not block}
        return None

    def _keep(self, keys: list[bytes], vectors: np.ndarray) -> None:
        block = _Block(keys, vectors)
        self._by_key |= {key: (block, i) for i, key in enumerate(keys)}
        if self.folder is None or not np.isfinite(vectors).all():  # those of a broken encoder are not kept
            return
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        try:
            with whole(self.folder / f"{name}.vectors") as draft:
                block.write(draft)
            sweep(self.folder)
            self._make_room(self.folder)
        except (OSError, InputError) as error:
            _LOG.warning("embeddings are not kept for the next time: %s", error)

    @staticmethod
    def _make_room(own_folder: Path) -> None:
        """Delete the vectors of the encoders that were used longest ago, but never those of this one."""
        folders = [f for f in own_folder.parent.iterdir() if _FOLDER.fullmatch(f.name) and f != own_folder]
        total = _bytes(own_folder)
        for folder in sorted(folders, key=_last_used, reverse=True):
            total += _bytes(folder)
            if total > _MAX_BYTES:
                sweep(folder)
                for file in _files(folder):
                    with suppress(OSError):  # on Windows, of one that another process has open
                        file.unlink(missing_ok=True)
                with suppress(OSError):  # it holds other files
                    folder.rmdir()


@dataclass(frozen=True, eq=False)
class _Block:
    """Some vectors and the keys of their texts; a file of them holds keys and checks as NumPy writes them, then the vectors.

    Args:
        keys: hashes of texts.
        vectors: Float32[n, D], in memory or mapped.
        file: where they lie; None if they have been computed here.
        checks: the digest of each key and its vector, of what lies in a file.
    """

    keys: list[bytes]
    vectors: np.ndarray
    file: Path | None = None
    checks: list[bytes] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path, dim: int) -> _Block:
        """Map the vectors of a file; a ValueError or OSError if it is damaged."""
        with file.open("rb") as content:
            try:
                head = np.load(content, allow_pickle=False)
            except (EOFError, ValueError, MemoryError):
                raise ValueError("it does not begin with an array of NumPy's") from None
            start = content.tell()
        if head.dtype != _HEAD or head.ndim != 1:
            raise ValueError("it holds no hashes of texts")
        if file.stat().st_size != start + 4 * len(head) * dim:
            raise ValueError(f"it does not hold {len(head)} vectors of {dim} dims")
        vectors = np.memmap(file, np.float32, "r", start, (len(head), dim))
        return cls(head["key"].tolist(), vectors, file, head["check"].tolist())

    def write(self, file: Path) -> None:
        """Write keys, checks and vectors to a file."""
        head = np.empty(len(self.keys), dtype=_HEAD)
        head["key"] = np.frombuffer(b"".join(self.keys), dtype=_HEAD["key"])
        checks = b"".join(_check(key, vector) for key, vector in zip(self.keys, self.vectors, strict=True))
        head["check"] = np.frombuffer(checks, dtype=_HEAD["check"])
        with file.open("wb") as content:
            np.save(content, head, allow_pickle=False)
            content.write(np.ascontiguousarray(self.vectors, dtype=np.float32).data)

    def is_whole(self, row: int) -> bool:
        """Whether a vector is the one that was written for its key."""
        return self.file is None or _check(self.keys[row], self.vectors[row]) == self.checks[row]


def _check(key: bytes, vector: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(vector).data, digest_size=_CHECK, key=key).digest()


def _drop(file: Path, reason: object) -> None:
    _LOG.warning("%s is damaged (%s): it is deleted, and its embeddings are computed again", file, reason)
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _last_used(folder: Path) -> float:
    """When a folder was last used; 0 if another process has deleted it meanwhile."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*") if file.name.endswith(_SUFFIXES)]


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in _files(folder))
    except OSError:
        return 0
