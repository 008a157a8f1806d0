"""What workers do for `acge mine`: embed blocks of texts, score blocks of pairs; each worker loads a model once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.mining.engine.matrices import column_of, matrix_of
from acge_lightning.mining.engine.shards import Run
from acge_lightning.mining.negatives.scorers import CrossEncoder, blocks_of_pairs
from acge_lightning.zoo.pretrained import load


class BlockEncoder:
    """Embeds blocks of texts in workers.

    Args:
        run: what works on shards.
        model: as `load` takes it.
        device: of each worker's encoder; None: the CPU.
        weights: the hash of the encoder.
    """

    def __init__(self, run: Run, model: str, device: str | None, weights: str):
        self._run, self._settings = run, {"model": str(model), "device": device, "weights": weights}

    def __call__(self, blocks: Iterable[list[str]], prompt: str | None) -> Iterator[np.ndarray]:
        """Yield Float32[texts, D] of each block."""
        tables = (pa.table({"text": pa.array(block, pa.large_string())}) for block in blocks)
        for table in self._run(embed_table, tables, prompt=prompt, **self._settings):
            yield matrix_of(table["vector"], np.float32)


class BlockScorer:
    """Scores pairs by a cross-encoder, block by block, in workers.

    Args:
        run: what works on shards.
        folder: of the cross-encoder.
        device: of each worker's; None: the CPU.
        weights: its hash.
    """

    def __init__(self, run: Run, folder: str | Path, device: str | None, weights: str):
        self._run, self._settings = run, {"folder": str(folder), "device": device, "weights": weights}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Score pairs of a query and a text, as `CrossEncoder` does: Float32[m]."""
        result, blocks = np.empty(len(pairs), dtype=np.float32), list(blocks_of_pairs(pairs))
        sides = ([pairs[row] for row in rows.tolist()] for rows in blocks)
        tables = (pa.table(dict(zip(("query", "text"), zip(*block, strict=True), strict=True))) for block in sides)
        for rows, table in zip(blocks, self._run(score_table, tables, **self._settings), strict=True):
            result[rows] = table["score"].to_numpy()
        return result


def embed_table(table: pa.Table, model: str, device: str | None, weights: str, prompt: str | None) -> pa.Table:
    """Embed a block of texts: `text` -> `vector`."""
    encoder = _encoder(model, device, weights)
    return pa.table({"vector": column_of(encoder.encode(table["text"].to_pylist(), encoder.dim, prompt=prompt).numpy())})


def score_table(table: pa.Table, folder: str, device: str | None, weights: str) -> pa.Table:
    """Score a block of pairs: `query` and `text` -> `score`."""
    pairs = list(zip(table["query"].to_pylist(), table["text"].to_pylist(), strict=True))
    return pa.table({"score": _cross_encoder(folder, device, weights)(pairs)})


@lru_cache(maxsize=2)
def _encoder(model: str, device: str | None, weights: str) -> Encoder:
    encoder = load(model, device=device)
    _check(model, encoder_hash(encoder), weights)
    return encoder


@lru_cache(maxsize=1)
def _cross_encoder(folder: str, device: str | None, weights: str) -> CrossEncoder:
    encoder = CrossEncoder(folder, device)
    _check(folder, encoder.hash, weights)
    return encoder


def _check(model: str, weights: str, expected: str) -> None:
    if weights != expected:
        raise InputError(f"{model} has changed since the run began: start it again")
