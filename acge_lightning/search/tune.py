"""Which stages of a funnel are the fastest that still find what exact search finds: measured, not guessed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import write_text
from acge_lightning.metrics.ranking import ndcg
from acge_lightning.search.rows import Key, Rows
from acge_lightning.search.staged import StagedVectors
from acge_lightning.search.stages import IndexKind, Stage, Store, label
from acge_lightning.search.vectors import BLOCK, Vectors, prefix
from acge_lightning.terminal import track

Judgements = Sequence[Mapping[Key, float]]
Measure = Literal["ndcg", "recall"]
Stages = tuple[Stage, ...]
_SHORTLISTS = (2, 5, 10, 20, 40, 80, 160)  # times k
_LARGE = 20_000  # rows from which an approximate first stage is worth its making
_REPEATS = 3
_TIMED = 64  # queries, a whole batch at least


@dataclass(frozen=True)
class Point:
    """A funnel that was tried.

    Args:
        stages: of it.
        ndcg: nDCG@k of its hits.
        recall: share of the full-dim top k among its hits.
        share: of the full-dim quality that it keeps, by the measure that was asked for.
        seconds: a query.
        speedup: times faster than comparing all rows at full dim in fp32, with as many queries at a time.
    """

    stages: Stages
    ndcg: float
    recall: float
    share: float
    seconds: float
    speedup: float


@dataclass(frozen=True)
class Tuned:
    """What `FunnelIndex.tune` tried and took.

    Args:
        chosen: the fastest that keeps the target share; exact search at full dim if none of the others does.
        points: all that were tried, in their order.
    """

    chosen: Point
    points: list[Point]

    def to_rows(self) -> list[dict[str, Any]]:
        """A plain row for each point: `label`, `recall`, `speedup`, `ndcg`, `share`, `seconds`, `chosen`."""
        return [
            {"label": label(p.stages), "recall": p.recall, "speedup": p.speedup, "ndcg": p.ndcg, "share": p.share}
            | {"seconds": p.seconds, "chosen": p is self.chosen}
            for p in self.points
        ]

    def write(self, file: str | Path) -> Path:
        """Write the rows as `funnel.json`, which `acge report` draws when it lies in the folder of a run."""
        write_text(file, json.dumps({"points": self.to_rows()}, indent=2, ensure_ascii=False) + "\n")
        return Path(file)


def choose_stages(
    vectors: StagedVectors,
    rows: Rows,
    queries: Tensor,
    judgements: Judgements | None,
    candidates: Iterable[Stages],
    *,
    k: int,
    target: float,
    measure: Measure,
    batch: int,
    cache: dict[Any, Any],
    progress: bool = False,
) -> Tuned:
    """Measure the candidates and choose the fastest that keeps `target` of the quality of exact search at the last stage.

    Candidates that differ in their shortlists alone are tried from the shortest on, until one reaches the target or takes
    longer than another that did.

    Args:
        vectors: in whose last stage all dims are kept.
        rows: their ids.
        queries: Float[q, D], kept aside.
        judgements: for each query, id (or index) of a row -> grade; None: the full-dim top k of each query, graded 1.
        candidates: stages to try; the last stage of each is the last of `vectors`.
        k: hits that are judged.
        target: share of the full-dim quality.
        measure: `ndcg` or `recall`.
        batch: queries searched for at a time when time is measured.
        cache: stores and hits made before; those made now are added.
        progress: show a progress bar.

    Raises:
        InputError: no rows, no queries, another number of judgements, a setting out of range, no vectors of all dims.
    """
    _check(vectors, queries, target, measure, batch)
    trials = _Trials(vectors, rows, queries, judgements, k, cache)
    exact = trials.exact_point(batch)
    points, fastest = [exact], exact
    families = _families(candidates)
    for family in track(families, "tune", "kinds of funnels") if progress else families:
        for stages in family:
            points.append(trials.point(stages, measure, batch, exact.seconds))
            if points[-1].seconds > fastest.seconds:
                break
            if points[-1].share >= target:
                fastest = points[-1]
                break
    return Tuned(fastest, points)


def _check(vectors: StagedVectors, queries: Tensor, target: float, measure: str, batch: int) -> None:
    if len(vectors) == 0:
        raise InputError("the index is empty: add vectors or texts before tuning it")
    if measure not in ("ndcg", "recall"):
        raise InputError(f"measure={measure!r} is unknown: choose ndcg or recall")
    if not 0 < target <= 1 or batch < 1:
        raise InputError(f"target={target} must be above 0 and at most 1, and batch={batch} at least 1")
    if len(queries) == 0:
        raise InputError("there are no queries to tune with: give some like those that will be asked")
    dim = queries.shape[1]
    if vectors.stages[-1].dim != dim or not isinstance(vectors.stores[-1], Vectors):
        raise InputError(f"the index keeps no vectors of all {dim} dims to compare with: end its stages with {dim}")


def default_candidates(last: Stage, trained: Sequence[int], row_count: int, k: int) -> Iterator[Stages]:
    """Stages worth trying: trained prefixes up to a quarter of the dims, without and with a middle stage of four times the dim.

    Args:
        last: the last stage, of all dims.
        trained: the prefix sizes that the encoder was trained for.
        row_count: of the index; the first stages of a large one are approximate if FAISS is installed.
        k: hits; shortlists are multiples of it.
    """
    dims = [d for d in sorted(trained) if d < last.dim]
    approximate = row_count >= _LARGE and find_spec("faiss") is not None
    first_stages: list[tuple[Store, IndexKind]] = [("int8", "ivf"), ("fp16", "hnsw")] if approximate else [("fp32", "exact")]
    for dim in [d for d in dims if d <= last.dim // 4] or dims[:1]:
        middles = [(), *[(Stage(d, 4 * k, "int8"),) for d in dims if d >= 4 * dim][:1]]
        for store, index in first_stages:
            for middle in middles:
                for times in _SHORTLISTS:
                    yield (
                        Stage(dim, times * k, store, index),
                        *(replace(m, shortlist=min(4, times) * k) for m in middle),
                        last,
                    )


def _families(candidates: Iterable[Stages]) -> list[list[Stages]]:
    """Candidates grouped by all but their shortlists, those with the shortest first."""
    families: dict[Stages, list[Stages]] = {}
    for stages in candidates:
        families.setdefault(tuple(replace(s, shortlist=1) for s in stages), []).append(stages)
    return [sorted(family, key=lambda stages: [s.shortlist for s in stages]) for family in families.values()]


class _Trials:
    """Held-out queries, what exact search finds for them, and what is judged right."""

    def __init__(
        self,
        vectors: StagedVectors,
        rows: Rows,
        queries: Tensor,
        judgements: Judgements | None,
        k: int,
        cache: dict[Any, Any],
    ):
        self.vectors, self.rows, self.queries, self.k, self.cache = vectors, rows, queries, k, cache
        if judgements is not None and len(judgements) != len(queries):
            raise InputError(f"{len(judgements)} judgements for {len(queries)} queries: give one mapping a query")
        self.query_digest = blake2b(queries.numpy().tobytes()).hexdigest()
        self.exact_rows, exact_ids = self.hits(vectors.restaged(vectors.stages[-1:]))
        self.grades = [dict.fromkeys(ids, 1.0) for ids in exact_ids] if judgements is None else judgements
        self.exact_ndcg = mean_ndcg(exact_ids, self.grades, k)
        if not self.exact_ndcg > 0:
            raise InputError("no judged row is among the hits of exact search: check that judgements name the index's ids")

    def search(self, vectors: StagedVectors, queries: Tensor) -> tuple[np.ndarray, list[list[Key]]]:
        """Row indices Int64[q, h] and ids of the hits of some queries."""
        _, row_indices, _ = vectors.nearest(queries, self.k)
        return row_indices, self.rows.ids_of(row_indices)

    def hits(self, vectors: StagedVectors) -> tuple[np.ndarray, list[list[Key]]]:
        """The hits of all queries, from the cache where they were found before."""
        key = (self.query_digest, self.k, vectors.stages)
        if key not in self.cache:
            self.cache[key] = self.search(vectors, self.queries)
        return self.cache[key]

    def exact_point(self, batch: int) -> Point:
        """Comparing all rows at full dim: timed over one block in fp32, as time grows with the rows."""
        longest = self.vectors.longest
        _, block = next(longest.blocks(4 * BLOCK))
        block = block.contiguous()
        queries = prefix(self.queries[:batch], longest.dim)
        block_seconds = median_seconds(lambda: (queries @ block.T).topk(min(self.k, len(block))))
        seconds = block_seconds * len(longest) / len(block) / len(queries)
        return Point(self.vectors.stages[-1:], self.exact_ndcg, 1.0, 1.0, seconds, 1.0)

    def point(self, stages: Stages, measure: Measure, batch: int, exact_seconds: float) -> Point:
        """Quality over all queries, time over batches of them."""
        vectors = self.vectors.restaged(stages, self.cache)
        row_indices, ids = self.hits(vectors)
        value = mean_ndcg(ids, self.grades, self.k)
        in_both = (self.exact_rows[:, :, None] == row_indices[:, None]) & (self.exact_rows[:, :, None] >= 0)
        recall = float(in_both.any(2).sum() / (self.exact_rows >= 0).sum())
        batches = self.queries.split(batch)[: -(-_TIMED // batch)]
        batches = [queries for queries in batches if len(queries) == len(batches[0])]
        seconds = median_seconds(lambda: [self.search(vectors, queries) for queries in batches])
        seconds /= len(batches) * len(batches[0])
        share = recall if measure == "recall" else value / self.exact_ndcg
        return Point(vectors.stages, value, recall, share, seconds, exact_seconds / seconds)


def median_seconds(job: Any) -> float:
    """The median time of some runs, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            job()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def mean_ndcg(hits: Sequence[Sequence[Key]], judgements: Sequence[Mapping[Key, float]], k: int) -> float:
    """Mean nDCG@k over the queries that have a row of a grade above 0; 0 if none has.

    Args:
        hits: ids of each query's hits, the best first.
        judgements: id -> grade for each query.
        k: hits that count.

    >>> round(mean_ndcg([["a", "b"]], [{"b": 1.0}], 10), 4)
    0.6309
    """
    values = []
    for ids, grades in zip(hits, judgements, strict=True):
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
        if ideal:
            gains = [max(grades.get(row_id, 0.0), 0.0) for row_id in ids[:k]]
            values.append(float(ndcg(*(torch.tensor(row, dtype=torch.double) for row in (gains, ideal)))))
    return float(np.mean(values)) if values else 0.0
