"""Search that begins with a short prefix of the embeddings and ends with the whole one."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.search import ann
from acge_lightning.search.rows import Key, Rows
from acge_lightning.search.stages import Stage, check_stages, default_stages, label
from acge_lightning.search.vectors import BLOCK, Vectors, prefix

if TYPE_CHECKING:
    from acge_lightning.encoder.encoder import Encoder
    from acge_lightning.search.tune import Tuned

_LOG = logging.getLogger(__name__)
Array = np.ndarray | Tensor
_TOGETHER = 4096  # queries that are searched for together
_NAMED = 10  # texts that a warning names
Judgements = Sequence[Mapping[Key, float]]


@dataclass(frozen=True)
class Hits:
    """What a search found.

    Args:
        scores: Float32[q, h] cosines at the last stage, falling; -inf where an approximate first stage found fewer.
        rows: Int64[q, h] numbers of rows, -1 where it found fewer.
        ids: for each query the ids of its rows: those given, or else the rows' numbers.
        seconds: of each stage, for all queries together.
    """

    scores: np.ndarray
    rows: np.ndarray
    ids: list[list[Key]]
    seconds: list[float]


@dataclass(eq=False)
class FunnelIndex:
    """Adaptive retrieval: each stage compares a longer prefix of the embedding with fewer rows.

    Stage 1 ranks all rows by cos(q[:d_1], x[:d_1]) and hands the best s_1 on; stage i ranks those handed to it by
    cos(q[:d_i], x[:d_i]). The hits are the last stage's, with its cosines. Prefixes are normalised after they were cut.

    Make one with `build`, `from_texts` or `load`.

    Args:
        dim: D, of the vectors that it takes.
        stages: from the shortest prefix to the longest.
        matryoshka_dims: the prefix sizes that the encoder was trained for.
        encoder: of texts, to be indexed and to be searched for; None if only vectors are.
        prompts: role (query, document) -> name of one of the encoder's prompts.
        note: plain data that is saved with it.

    Raises:
        InputError: stages that make no funnel, or a prefix size that the encoder was not trained for.

    Reference: Kusupati et al. 2022 (arXiv 2205.13147), section 4.3, "adaptive retrieval"; here with one store a stage, and with
    stages that `tune` chooses by measured time.

    >>> vectors = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    >>> stages = [Stage(8, shortlist=20), Stage(32)]
    >>> index = FunnelIndex.build(vectors, stages, matryoshka_dims=[8, 32])
    >>> index.search(vectors[[7]], k=3).rows[0, 0].item()
    7
    """

    dim: int
    stages: tuple[Stage, ...]
    matryoshka_dims: tuple[int, ...] = ()
    force: bool = False
    encoder: Encoder | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = check_stages(self.stages, self.dim, self.matryoshka_dims, self.force)
        self.parts: list[Any] = [ann.new(self.stages[0]), *(Vectors(s.dim, s.store) for s in self.stages[1:])]
        self.rows = Rows()

    @classmethod
    def build(
        cls,
        vectors: Array,
        stages: Sequence[Stage] | None = None,
        *,
        ids: Sequence[Key] | None = None,
        texts: Sequence[str] | None = None,
        matryoshka_dims: Collection[int] = (),
        force: bool = False,
    ) -> FunnelIndex:
        """From vectors.

        Args:
            vectors: Float[n, D] of any length; also a memory map, which is read in blocks.
            stages: by default the shortest trained prefix, a middle one and all dims; without trained prefixes all dims.
            ids: n distinct words, or n distinct whole numbers; by default rows are numbered.
            texts: n texts that are stored, to be shown.
            matryoshka_dims: the prefix sizes that the encoder was trained for.
            force: also take prefixes that it was not trained for.

        Raises:
            InputError: a vector that is not finite or has no direction, ids that are not distinct, other numbers of ids.
        """
        if vectors.ndim != 2:
            raise InputError(f"vectors of shape {tuple(vectors.shape)} are no table: give Float[n, D]")
        trained = tuple(matryoshka_dims)
        stages = default_stages(vectors.shape[1], trained) if stages is None else tuple(stages)
        index = cls(vectors.shape[1], stages, trained, force)
        index.add(vectors, ids=ids, texts=texts)
        return index

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        encoder: Encoder,
        stages: Sequence[Stage] | None = None,
        *,
        ids: Sequence[Key] | None = None,
        prompts: Mapping[str, str] | None = None,
        force: bool = False,
        progress: bool = False,
    ) -> FunnelIndex:
        """From texts, which are stored; the arguments are those of `build`, the trained prefixes the encoder's.

        Texts to which the encoder gives no direction (none of their tokens says anything) are left out, and a warning names
        them; without `ids`, a text's id is its number among `texts` then.
        """
        stages = default_stages(encoder.dim, encoder.matryoshka_dims) if stages is None else tuple(stages)
        index = cls(encoder.dim, stages, tuple(encoder.matryoshka_dims), force, encoder, dict(prompts or {}))
        index.add(texts, ids=ids, progress=progress)
        return index

    def __len__(self) -> int:
        return len(self.parts[-1])

    @property
    def nbytes(self) -> list[int]:
        """Bytes of each stage; all but an index of FAISS may lie on disk."""
        return [part.nbytes for part in self.parts]

    def add(
        self,
        items: Array | Sequence[str],
        *,
        ids: Sequence[Key] | None = None,
        texts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> None:
        """More rows, Float[m, D] or m texts; all of them or, on an error, none.

        Texts to which the encoder gives no direction are left out, as in `from_texts`; where rows have no ids, and so no other
        number than their own, they are an error, and so are vectors without direction.
        """
        given = not isinstance(items, (np.ndarray, Tensor))
        if given:
            texts = list(items) if texts is None else texts
        vectors = self._vectors(items, "document", progress)
        if given and (ids is not None or len(self) == 0):
            vectors, ids, texts = self._with_direction(vectors, ids, texts)
        rows = self.rows.extended(len(self), len(vectors), ids, texts)
        self._check(vectors, "row")
        self.parts = [part.extended(vectors) for part in reversed(self.parts)][::-1]  # FAISS's last, as it changes in place
        self.rows = rows

    def has_direction(self, vectors: Tensor) -> Tensor:
        """Whether vectors are not zero at the shortest prefix: Float[n, D] -> Bool[n]."""
        return (vectors[:, : self.stages[0].dim] != 0).any(1)

    def _with_direction(
        self, vectors: Tensor, ids: Sequence[Key] | None, texts: Sequence[str]
    ) -> tuple[Tensor, Sequence[Key] | None, Sequence[str]]:
        """Vectors, ids and texts of those that have one; a warning names the others."""
        kept = self.has_direction(vectors)
        if kept.all() or not len(vectors) == len(texts) == len(texts if ids is None else ids):
            return vectors, ids, texts
        if not kept.any():
            raise InputError(f"none of {len(texts)} texts has a direction: the encoder knows none of their tokens")
        ids = range(len(texts)) if ids is None else ids
        others = (~kept).nonzero()[:, 0].tolist()
        named = ", ".join(str(ids[i]) for i in others[:_NAMED]) + (" …" if len(others) > _NAMED else "")
        _LOG.warning("%d of %d texts have no direction and are left out: %s", len(others), len(texts), named)
        rows = kept.nonzero()[:, 0].tolist()
        return vectors[kept], [ids[i] for i in rows], [texts[i] for i in rows]

    def search(self, queries: Array | str | Sequence[str], k: int = 10) -> Hits:
        """The `k` rows nearest to each query, or all rows if there are fewer.

        Args:
            queries: Float[q, D] of any length, or texts.
            k: number of hits.

        Raises:
            InputError: an empty index, vectors of other dims, not finite or without direction, texts without an encoder.
        """
        if type(k) is not int or k < 1:
            raise InputError(f"k={k!r} must be a whole number of at least 1")
        if len(self) == 0:
            raise InputError("the index is empty: add vectors or texts before searching it")
        vectors = self._vectors([queries] if isinstance(queries, str) else queries, "query", False)
        self._check(vectors, "query")
        parts = [self._funnel(part, min(k, len(self))) for part in vectors.split(_TOGETHER)]
        scores, rows = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        seconds = [sum(times) for times in zip(*(part[2] for part in parts), strict=True)]
        order = np.lexsort((rows, -scores))
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return Hits(scores, rows, self.rows.ids_of(rows), seconds)

    @torch.inference_mode()
    def _funnel(self, vectors: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
        seconds, rows = [], None
        for stage, part in zip(self.stages, self.parts, strict=True):
            start = time.perf_counter()
            queries = prefix(vectors, stage.dim)
            count = k if stage is self.stages[-1] else max(k, stage.shortlist)
            if rows is None:
                scores, rows = part.nearest(queries, min(count, len(self)))
            else:
                scores, order = part.compare(queries, rows).topk(min(count, rows.shape[1]))
                rows = rows.gather(1, order)
            seconds.append(time.perf_counter() - start)
        scores = scores.masked_fill(rows < 0, -torch.inf)
        return scores.numpy(), rows.numpy(), seconds

    def tune(
        self, queries: Array | Sequence[str], judgements: Sequence[Mapping[Key, float]] | None = None, **how: Any
    ) -> Tuned:
        """Take the fastest stages that keep a share of the quality of exact search at the last stage; see `tune.tune`."""
        from acge_lightning.search.tune import tune

        return tune(self, queries, judgements, **how)

    def restaged(self, stages: Sequence[Stage], made: dict[Any, Any] | None = None) -> FunnelIndex:
        """The same rows under other stages, whose prefixes are cut from the last stage's vectors.

        Args:
            stages: the last as it is now.
            made: parts made before, by dim, store and index; what is made is added.
        """
        if stages[-1] != self.stages[-1]:
            raise InputError(f"the last stage is {self.stages[-1].label}, and stays so: {label(stages)} changes it")
        made = {} if made is None else made
        new = FunnelIndex(self.dim, tuple(stages), self.matryoshka_dims, self.force, self.encoder, self.prompts, self.note)
        for old, part in zip(self.stages, self.parts, strict=True):
            made.setdefault((old.dim, old.store, old.index), part)
        for place, stage in enumerate(new.stages):
            key = stage.dim, stage.store, stage.index
            if key not in made:
                made[key] = self._recut(new.parts[place])
            part = made[key]
            new.parts[place] = ann.Faiss(stage, part.index) if isinstance(part, ann.Faiss) else part
        new.rows = self.rows
        return new

    def _recut(self, part: Any) -> Any:
        longest = max(part.stage.dim if isinstance(part, ann.Faiss) else part.dim, 1)
        whole = torch.empty(len(self), longest)
        for start, block in self._last().blocks():
            whole[start : start + len(block)] = block[:, :longest]
        return part.extended(whole)

    def _last(self) -> Vectors:
        if not isinstance(self.parts[-1], Vectors):
            raise InputError(
                "the only stage is an index of faiss, from which no vectors are read: add a last stage without index"
            )
        return self.parts[-1]

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder; the index that is there stays whole until the new one is."""
        from acge_lightning.search.storage import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None, verify: bool = True) -> FunnelIndex:
        """Read what `save` wrote; the vectors stay on disk until they are compared.

        Args:
            folder: of the index.
            encoder: the one that it was built with, if texts are added or searched for.
            verify: compare the digests of all files, not only their sizes.

        Raises:
            InputError: no index there, a file that is cut or damaged, an encoder of other dims.
        """
        from acge_lightning.search.storage import load

        return load(Path(folder), encoder, verify)

    def _vectors(self, items: Array | Sequence[str], role: str, progress: bool) -> Tensor:
        if isinstance(items, np.ndarray):
            items = _tensor(items)
        if not isinstance(items, Tensor):
            if self.encoder is None:
                raise InputError("texts need an encoder: give one to load or from_texts, or give vectors")
            items = self.encoder.encode(list(items), self.dim, prompt=self.prompts.get(role), progress=progress)
        if items.ndim != 2 or items.shape[1] != self.dim:
            raise InputError(f"vectors of shape {tuple(items.shape)} do not fit: this index takes Float[n, {self.dim}]")
        return items

    def _check(self, vectors: Tensor, kind: str) -> None:
        """All finite, and none zero at the shortest prefix."""
        shortest = self.stages[0].dim
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            checks = {
                "is NaN or infinite somewhere": ~block.isfinite().all(1),
                f"is zero in its first {shortest} dims": ~self.has_direction(block),
            }
            for what, wrong in checks.items():
                if wrong.any():
                    place = start + int(wrong.nonzero()[0])
                    raise InputError(f"{kind} {place} {what} and has no direction: leave it out, or mend what made it")


def _tensor(items: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        try:
            return torch.from_numpy(items)
        except TypeError as error:
            raise InputError(f"vectors of {items.dtype} are no numbers that fit: give Float[n, D]") from error
