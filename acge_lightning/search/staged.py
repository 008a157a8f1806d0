"""The vectors of an index, kept once for each stage, and searched from the shortest prefix to the longest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.search.ann import Faiss, empty_store
from acge_lightning.search.stages import Stage, label
from acge_lightning.search.vectors import Vectors, prefix

_QUERY_BATCH = 4096  # queries that are searched for together


class StagedVectors:
    """The same rows in a store for each stage.

    Args:
        stages: from the shortest prefix to the longest, as `check_stages` returns them.
        stores: one for each stage, with the same rows; empty ones by default.
    """

    def __init__(self, stages: Sequence[Stage], stores: Sequence[Vectors | Faiss] | None = None):
        self.stages = tuple(stages)
        self.stores = [empty_store(stage) for stage in stages] if stores is None else list(stores)

    def __len__(self) -> int:
        return len(self.stores[-1])

    @property
    def nbytes(self) -> list[int]:
        """Bytes of each store; all but an index of FAISS may lie on disk."""
        return [store.nbytes for store in self.stores]

    @property
    def longest(self) -> Vectors:
        """The store of the last stage.

        Raises:
            InputError: the only stage is an index of FAISS.
        """
        if not isinstance(self.stores[-1], Vectors):
            raise InputError(
                "the only stage is an index of faiss, from which no vectors are read: add a last stage without index"
            )
        return self.stores[-1]

    def extended(self, vectors: Tensor) -> StagedVectors:
        """These rows and, after them, Float[m, D]; an index of FAISS changes in place, so it is extended after the others."""
        return StagedVectors(self.stages, [store.extended(vectors) for store in reversed(self.stores)][::-1])

    def nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """The `k` rows nearest to each query, or all rows if there are fewer.

        Args:
            queries: Float[q, D] of any length.
            k: number of hits.

        Returns:
            Float32[q, h] cosines at the last stage, falling, and -inf where an approximate first stage found fewer;
            Int64[q, h] row indices, ascending where cosines are equal, and -1 where it found fewer;
            the seconds of each stage, for all queries together.
        """
        k = min(k, len(self))
        batches = [self._nearest(batch, k) for batch in queries.split(_QUERY_BATCH)]
        scores, rows = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        seconds = [sum(stage_seconds) for stage_seconds in zip(*(batch[2] for batch in batches), strict=True)]
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), seconds

    @torch.inference_mode()
    def _nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
        counts = [*(max(k, stage.shortlist) for stage in self.stages[:-1]), k]
        start = time.perf_counter()
        scores, rows = self.stores[0].nearest(prefix(queries, self.stages[0].dim), min(counts[0], len(self)))
        seconds = [time.perf_counter() - start]
        later_stores = cast(list[Vectors], self.stores[1:])  # FAISS has the first stage only
        for stage, store, count in zip(self.stages[1:], later_stores, counts[1:], strict=True):
            start = time.perf_counter()
            scores, order = store.compare(prefix(queries, stage.dim), rows).topk(min(count, rows.shape[1]))
            rows = rows.gather(1, order)
            seconds.append(time.perf_counter() - start)
        return scores.masked_fill(rows < 0, -torch.inf).numpy(), rows.numpy(), seconds

    def restaged(self, stages: Sequence[Stage], cache: dict[Any, Any] | None = None) -> StagedVectors:
        """The same rows under other stages, whose prefixes are cut from the vectors of the last stage.

        Args:
            stages: the last is the last of now.
            cache: stores made before, by dim, store and index; those made now are added.

        Raises:
            InputError: another last stage.
        """
        if stages[-1] != self.stages[-1]:
            raise InputError(f"the last stage is {self.stages[-1].label}, and stays so: {label(stages)} changes it")
        cache = {} if cache is None else cache
        for stage, store in zip(self.stages, self.stores, strict=True):
            cache.setdefault((stage.dim, stage.store, stage.index), store)
        return StagedVectors(stages, [self._restored(stage, cache) for stage in stages])

    def _restored(self, stage: Stage, cache: dict[Any, Any]) -> Vectors | Faiss:
        """The store of a stage, from the cache or else made."""
        key = stage.dim, stage.store, stage.index
        if key not in cache:
            prefixes = torch.empty(len(self), stage.dim)
            for start, block in self.longest.blocks():
                prefixes[start : start + len(block)] = block[:, : stage.dim]
            cache[key] = empty_store(stage).extended(prefixes)
        store = cache[key]
        return Faiss(stage, store.index) if isinstance(store, Faiss) else store  # its effort may be another
