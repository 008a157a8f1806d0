"""Which stages of a funnel are the fastest that still find what exact search finds: measured, not guessed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from acge_lightning.adaptive.funnel import Array, FunnelIndex, Hits, Judgements
from acge_lightning.adaptive.rows import Key
from acge_lightning.adaptive.stages import Stage, label
from acge_lightning.adaptive.vectors import BLOCK, prefix
from acge_lightning.errors import InputError
from acge_lightning.files import write_text
from acge_lightning.ranking import ndcg

Measure = Literal["ndcg", "recall"]
Funnel = tuple[Stage, ...]
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

    stages: Funnel
    ndcg: float
    recall: float
    share: float
    seconds: float
    speedup: float


@dataclass(frozen=True)
class Tuned:
    """What `tune` tried and took.

    Args:
        chosen: the fastest that keeps the target share; exact search at full dim if none of the others does.
        points: all that were tried, in their order.
    """

    chosen: Point
    points: list[Point]

    def write(self, file: str | Path) -> Path:
        """As `funnel.json`, which `acge report` draws when it lies in the folder of a run."""
        points = [
            {"label": label(p.stages), "recall": p.recall, "speedup": p.speedup, "ndcg": p.ndcg, "share": p.share}
            | {"seconds": p.seconds, "chosen": p is self.chosen}
            for p in self.points
        ]
        write_text(file, json.dumps({"points": points}, indent=2, ensure_ascii=False) + "\n")
        return Path(file)

    def draw(self, file: str | Path) -> Path:
        """The points with their Pareto front, as a picture; needs matplotlib."""
        from acge_lightning.drawing import save_figure
        from acge_lightning.figures import figures
        from acge_lightning.runs import Run

        shown = [{"label": label(p.stages), "recall": p.recall, "speedup": p.speedup} for p in self.points]
        (figure,) = figures([Run("funnels", Path(file).parent, funnel=shown)]).values()
        return save_figure(figure, Path(file), 200)


def tune(
    index: FunnelIndex,
    queries: Array | Sequence[str],
    judgements: Judgements | None = None,
    *,
    k: int = 10,
    target: float = 0.99,
    measure: Measure = "ndcg",
    batch: int = 64,
    candidates: Iterable[Sequence[Stage]] | None = None,
    made: dict[Any, Any] | None = None,
    progress: bool = False,
) -> Tuned:
    """Gives the index the fastest stages that keep `target` of the quality of exact search at its last stage.

    Candidates that differ in their shortlists alone are tried from the shortest on, until one reaches the target or takes
    longer than another that did.

    Args:
        index: its last stage has all dims and stays as it is.
        queries: Float[q, D] or texts, kept aside: the share holds for queries like these.
        judgements: for each query, id (or number) of a row -> grade; by default the full-dim top k of each query, graded 1.
        k: hits that are judged.
        target: share of the full-dim nDCG@k, or of its recall.
        measure: `ndcg`, or `recall`: the share of the full-dim top k that is found.
        batch: queries searched for at a time when time is measured.
        candidates: funnels to try; by default the trained prefixes up to a quarter of the dims, in several stores, exact or by
            FAISS if the index is large.
        made: keeps the stages' stores and indexes between calls, and what they found for the same queries, for another `batch`
            or `target`.
        progress: show a progress bar.

    Returns:
        What was tried, and the choice, which the index has from now on.

    Raises:
        InputError: no queries, other numbers of judgements, an unknown measure, an index that keeps no full-dim vectors.
    """
    _check(index, target, measure, batch)
    made = {} if made is None else made
    truth = _Truth(index, queries, judgements, k, made)
    exact = truth.exact_point(batch)
    points, fastest = [exact], exact
    families = _families(_candidates(index, k) if candidates is None else [tuple(c) for c in candidates])
    for family in _shown(families, progress):
        for stages in family:
            tried = index.restaged(stages, made)
            points.append(truth.point(tried, measure, batch, exact.seconds))
            if points[-1].seconds > fastest.seconds:
                break
            if points[-1].share >= target:
                fastest = points[-1]
                break
    best = index.restaged(fastest.stages, made)
    index.stages, index.parts = best.stages, best.parts
    return Tuned(fastest, points)


def _check(index: FunnelIndex, target: float, measure: str, batch: int) -> None:
    if len(index) == 0:
        raise InputError("the index is empty: add vectors or texts before tuning it")
    if measure not in ("ndcg", "recall"):
        raise InputError(f"measure={measure!r} is unknown: choose ndcg or recall")
    if not 0 < target <= 1 or batch < 1:
        raise InputError(f"target={target} must be above 0 and at most 1, and batch={batch} at least 1")
    if index.stages[-1].dim != index.dim or (len(index.stages) == 1 and index.stages[0].index != "exact"):
        raise InputError(f"the index keeps no vectors of all {index.dim} dims to compare with: end its stages with {index.dim}")


def _candidates(index: FunnelIndex, k: int) -> Iterator[Funnel]:
    """Trained prefixes up to a quarter of the dims; with a middle stage of four times the first where there is one."""
    last = index.stages[-1]
    known = [d for d in sorted(index.matryoshka_dims) if d < index.dim]
    large = len(index) >= _LARGE
    firsts = [("int8", "ivf"), ("fp16", "hnsw")] if large and _has_faiss() else [("fp32", "exact")]
    for dim in [d for d in known if d <= index.dim // 4] or known[:1]:
        middles = [(), *[(Stage(d, 4 * k, "int8"),) for d in known if d >= 4 * dim][:1]]
        for store, kind in firsts:
            for middle in middles:
                for times in _SHORTLISTS:
                    yield (Stage(dim, times * k, store, kind), *(replace(m, shortlist=min(4, times) * k) for m in middle), last)


def _has_faiss() -> bool:
    from importlib.util import find_spec

    return find_spec("faiss") is not None


def _families(candidates: Iterable[Funnel]) -> list[list[Funnel]]:
    """Funnels that differ in their shortlists alone, the shortest first."""
    families: dict[Funnel, list[Funnel]] = {}
    for stages in candidates:
        families.setdefault(tuple(replace(s, shortlist=1) for s in stages), []).append(stages)
    return [sorted(family, key=lambda f: [s.shortlist for s in f]) for family in families.values()]


def _shown(families: list[list[Funnel]], progress: bool) -> Iterable[list[Funnel]]:
    if not progress:
        return families
    from acge_lightning.terminal import track

    return track(families, "tune", "kinds of funnels")


class _Truth:
    """Held-aside queries, what exact search finds for them, and what is judged right."""

    def __init__(self, index: FunnelIndex, queries: Any, judgements: Judgements | None, k: int, made: dict[Any, Any]):
        self.index, self.k, self.made = index, k, made
        self.queries = index._vectors([queries] if isinstance(queries, str) else queries, "query", False)
        index._check(self.queries, "query")
        if len(self.queries) == 0:
            raise InputError("there are no queries to tune with: give some like those that will be asked")
        if judgements is not None and len(judgements) != len(self.queries):
            raise InputError(f"{len(judgements)} judgements for {len(self.queries)} queries: give one mapping a query")
        self.mark = blake2b(self.queries.numpy().tobytes()).hexdigest()
        found = self.hits(index.restaged(index.stages[-1:]))
        self.top, self.exact_ids = found.rows, found.ids
        self.grades = [dict.fromkeys(ids, 1.0) for ids in found.ids] if judgements is None else judgements
        self.full = mean_ndcg(found.ids, self.grades, k)
        if not self.full > 0:
            raise InputError("no judged row is among the hits of exact search: check that judgements name the index's ids")

    def hits(self, index: FunnelIndex) -> Hits:
        """What the index finds for the queries."""
        key = (self.mark, self.k, index.stages)
        if key not in self.made:
            self.made[key] = index.search(self.queries, self.k)
        return self.made[key]

    def exact_point(self, batch: int) -> Point:
        """Comparing all rows at full dim: timed over one block in fp32, as time grows with the rows."""
        part = self.index.parts[-1]
        _, block = next(part.blocks(4 * BLOCK))
        block = block.contiguous()
        queries = prefix(self.queries[:batch], self.index.dim)
        seconds = _seconds(lambda: (queries @ block.T).topk(min(self.k, len(block))))
        each = seconds * len(part) / len(block) / len(queries)
        return Point(self.index.stages[-1:], self.full, 1.0, 1.0, each, 1.0)

    def point(self, index: FunnelIndex, measure: Measure, batch: int, exact: float) -> Point:
        """Quality over all queries, time over batches of them."""
        found = self.hits(index)
        value = mean_ndcg(found.ids, self.grades, self.k)
        both = (self.top[:, :, None] == found.rows[:, None]) & (self.top[:, :, None] >= 0)
        recall = float(both.any(2).sum() / (self.top >= 0).sum())
        batches = self.queries.split(batch)[: -(-_TIMED // batch)]
        batches = [part for part in batches if len(part) == len(batches[0])]
        seconds = _seconds(lambda: [index.search(part, self.k) for part in batches]) / (len(batches) * len(batches[0]))
        share = recall if measure == "recall" else value / self.full
        return Point(index.stages, value, recall, share, seconds, exact / seconds)


def _seconds(job: Any) -> float:
    """The median of some runs, after one that is not counted."""
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
