"""Stored prefixes: they are cut, normalised, kept as fp32, fp16, int8 or signs, and compared with queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from acge_lightning.search.stages import Store

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8, "binary": torch.uint8}
BLOCK = 16_384  # rows that are packed or compared together
_COMPARED_FLOATS = 1 << 21  # of shortlists that are compared together: what the caches hold
_SCORE_FLOATS = 1 << 22  # scores that are in memory together
_GROUP = 16  # rows; the best row of each group is looked at first
_BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def prefix(vectors: Tensor, dim: int) -> Tensor:
    """Cut vectors of any length, then normalise them: Float[n, D] -> Float32[n, dim]."""
    cut = vectors[:, :dim]
    cut = cut if cut.dtype == torch.float64 else cut.float()
    return normalize((cut / cut.abs().amax(1, keepdim=True)).float(), dim=1)


@dataclass
class _Buffer:
    """Memory for rows, of which the first `used` are taken and the others are free."""

    codes: Tensor
    scale: Tensor | None
    used: int


class Vectors:
    """Rows of one prefix size in one kind of store.

    `int8`: code = round(127 v / max|v|), with a scale a row that gives the decoded row length 1.
    `binary`: the sign of each dimension, a bit each, decoded as ±1 / sqrt(dim).

    Args:
        dim: of the prefix.
        store: `fp32`, `fp16`, `int8` or `binary`.
        codes: Any[n, dim], or UInt8[n, dim / 8] signs; none by default.
        scale: Float32[n] of int8 rows.
    """

    def __init__(self, dim: int, store: Store, codes: Tensor | None = None, scale: Tensor | None = None):
        self.dim, self.store = dim, store
        width = dim // 8 if store == "binary" else dim
        self.codes = torch.empty(0, width, dtype=_DTYPE[store]) if codes is None else codes
        self.scale = torch.empty(0) if scale is None and store == "int8" else scale
        self._buffer: _Buffer | None = None  # whose first rows these are

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays to be saved, by name: `codes`, and `scale` of int8."""
        scale = {} if self.scale is None else {"scale": self.scale.numpy()}
        return {"codes": self.codes.numpy(), **scale}

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(array.nbytes for array in self.arrays.values())

    def extended(self, vectors: Tensor) -> Vectors:
        """These rows and, after them, the prefixes of Float[m, D], in memory; codes that come from a file are read.

        Rows are copied only when the buffer that they share is full, to one that is twice as large: n rows cost O(n), however
        many are added at a time.
        """
        old_count, count = len(self), len(self) + len(vectors)
        buffer = self._buffer
        if buffer is None or buffer.used != old_count or len(buffer.codes) < count:  # or others have taken what is free
            buffer = self._copied(count if old_count == 0 else max(count, 2 * old_count))
        for start in range(0, len(vectors), BLOCK):
            codes, scale = self._pack(prefix(vectors[start : start + BLOCK], self.dim))
            target = slice(old_count + start, old_count + start + len(codes))
            buffer.codes[target] = codes
            if buffer.scale is not None and scale is not None:
                buffer.scale[target] = scale
        buffer.used = count
        extended = Vectors(self.dim, self.store, buffer.codes[:count], None if buffer.scale is None else buffer.scale[:count])
        extended._buffer = buffer
        return extended

    def _copied(self, size: int) -> _Buffer:
        """A buffer for `size` rows, with these in it."""
        buffer = _Buffer(self.codes.new_empty(size, self.codes.shape[1]), None, len(self))
        buffer.codes[: len(self)] = self.codes
        if self.scale is not None:
            buffer.scale = torch.empty(size)
            buffer.scale[: len(self)] = self.scale
        return buffer

    def _pack(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes of Float32[n, dim] of length 1, and their scales if they are int8."""
        if self.store == "int8":
            codes = (vectors * (127 / vectors.abs().amax(1, keepdim=True))).round()
            return codes.to(torch.int8), 1 / codes.norm(dim=1)
        if self.store == "binary":
            bits = (vectors > 0).view(len(vectors), -1, 8).to(torch.uint8)
            return (bits * _BITS).sum(2, dtype=torch.uint8), None
        return vectors.to(self.codes.dtype), None

    def _decoded(self, codes: Tensor) -> Tensor:
        """Codes of any shape, the last axis a row's -> Float32, int8 without its scale."""
        if self.store != "binary":
            return codes.float()
        signs = (codes[..., None] & _BITS) != 0
        return (signs.flatten(-2).float() * 2 - 1) / self.dim**0.5

    def blocks(self, rows: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """All rows as Float32[rows, dim] of length 1, each block with the index of its first row."""
        for start in range(0, len(self), rows):
            block = self._decoded(self.codes[start : start + rows])
            yield start, block if self.scale is None else block * self.scale[start : start + rows, None]

    def compare(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Cosines of queries with rows of their own.

        Args:
            queries: Float32[q, dim] of length 1.
            rows: Int64[q, s], -1 where there is none.

        Returns:
            Float32[q, s]; -inf where there is no row.
        """
        step = max(1, _COMPARED_FLOATS // (rows.shape[1] * self.dim))
        if len(queries) > step:
            blocks = zip(queries.split(step), rows.split(step), strict=True)
            return torch.cat([self.compare(*block) for block in blocks])
        indices = rows.clamp(min=0)
        vectors = self._decoded(self.codes.index_select(0, indices.view(-1))).view(*rows.shape, self.dim)
        scores = torch.bmm(vectors, queries[:, :, None])[:, :, 0]
        if self.scale is not None:
            scores *= self.scale[indices]
        return scores.masked_fill_(rows < 0, -torch.inf)

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` of all rows that have the largest cosines, the best first.

        Args:
            queries: Float32[q, dim] of length 1.
            count: of rows for each query; all rows if there are fewer.

        Returns:
            Float32[q, count] cosines, Int64[q, count] row indices.
        """
        if self.scale is not None and len(self) and len(queries) and torch.backends.mkldnn.is_available():
            blocks = [
                self._nearest_int8(block, self.scale, count) for block in queries.split(max(1, _SCORE_FLOATS // len(self)))
            ]
            return torch.cat([scores for scores, _ in blocks]), torch.cat([rows for _, rows in blocks])
        scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start, block in self.blocks():
            best = (queries @ block.T).topk(min(count, len(block)))
            scores, rows = torch.cat([scores, best.values], 1), torch.cat([rows, best.indices + start], 1)
            if scores.shape[1] > count:
                scores, order = scores.topk(count)
                rows = rows.gather(1, order)
        return scores, rows

    def _nearest_int8(self, queries: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, by products of integers: a query is two digits of 8 and 7 bits, off by 2^-15 of its largest element."""
        q, n = len(queries), len(self)
        unit = queries.abs().amax(1).clamp(min=1e-30) / (127 * 128)
        fine = (queries / unit[:, None]).round()
        high = (fine / 128).round()
        digits = torch.cat([high, fine - 128 * high]).to(torch.int8).T.contiguous()
        groups = -(-n // _GROUP)
        scores = torch.empty(groups * _GROUP, q)
        scores[n:] = -torch.inf
        step = max(4096, (1 << 18) // q)
        for start in range(0, n, step):
            products = torch._int_mm(self.codes[start : start + step], digits)
            block = scores[start : start + len(products)]
            block.copy_(products[:, :q]).mul_(128)
            block.add_(products[:, q:]).mul_(scale[start : start + step, None])
        best_groups = scores.view(groups, _GROUP, q).amax(1).T.topk(min(count, groups)).indices  # the best rows are in these
        rows = (best_groups[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)
        values = scores.T.gather(1, rows)
        values, order = values.topk(min(count, n))
        return values * unit[:, None], rows.gather(1, order)
