"""Search that begins with a short prefix of the embeddings and ends with the whole one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.search.rows import Key, Rows
from acge_lightning.search.staged import StagedVectors
from acge_lightning.search.stages import Stage, check_stages, default_stages
from acge_lightning.search.storage import SavedIndex, read_index, write_index
from acge_lightning.search.tune import Judgements, Measure, Stages, Tuned, choose_stages, default_candidates
from acge_lightning.search.vectors import BLOCK

if TYPE_CHECKING:
    from acge_lightning.encoder.encoder import Encoder

_LOG = logging.getLogger(__name__)
Array = np.ndarray | Tensor
_MOST_NAMED = 10  # texts that a warning names


@dataclass(frozen=True)
class Hits:
    """What a search found.

    Args:
        scores: Float32[q, h] cosines at the last stage, falling; -inf where an approximate first stage found fewer.
        rows: Int64[q, h] row indices, -1 where it found fewer.
        ids: for each query the ids of its rows: those given, or else the row indices.
        seconds: of each stage, for all queries together.
    """

    scores: np.ndarray
    rows: np.ndarray
    ids: list[list[Key]]
    seconds: list[float]


class FunnelIndex:
    """Adaptive retrieval: each stage compares a longer prefix of the embedding with fewer rows.

    Stage 1 ranks all rows by cos(q[:d_1], x[:d_1]) and hands the best s_1 on; stage i ranks those handed to it by
    cos(q[:d_i], x[:d_i]). The hits are the last stage's, with its cosines. Prefixes are normalised after they were cut.

    Make one with `build`, `from_texts` or `load`.

    Args:
        dim: D, of the vectors that it takes.
        stages: from the shortest prefix to the longest.
        matryoshka_dims: the prefix sizes that the encoder was trained for.
        force: also take prefixes that it was not trained for.
        encoder: of texts, to be indexed and to be searched for; None if only vectors are.
        prompts: role (query, document) -> name of one of the encoder's prompts.
        note: plain data that is saved with it.

    Attributes:
        vectors: the stores of all stages.
        rows: the ids and texts.

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

    def __init__(
        self,
        dim: int,
        stages: Sequence[Stage],
        matryoshka_dims: Collection[int] = (),
        force: bool = False,
        encoder: Encoder | None = None,
        prompts: Mapping[str, str] | None = None,
        note: dict[str, Any] | None = None,
    ):
        self.dim, self.matryoshka_dims, self.force = dim, tuple(matryoshka_dims), force
        self.encoder, self.prompts, self.note = encoder, dict(prompts or {}), dict(note or {})
        self.vectors = StagedVectors(check_stages(stages, dim, self.matryoshka_dims, force))
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
        """Build an index of vectors.

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
        dim = vectors.shape[1]
        index = cls(dim, default_stages(dim, matryoshka_dims) if stages is None else stages, matryoshka_dims, force)
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
        """Build an index of texts, which are stored; the trained prefixes are the encoder's.

        Texts to which the encoder gives no direction (none of their tokens says anything) are left out, and a warning names
        them; without `ids`, a text's id is its number among `texts` then.

        Args:
            texts: n texts.
            encoder: of the texts, and of queries that are texts.
            stages: by default the shortest trained prefix, a middle one and all dims; without trained prefixes all dims.
            ids: n distinct words, or n distinct whole numbers; by default rows are numbered.
            prompts: role (query, document) -> name of one of the encoder's prompts.
            force: also take prefixes that the encoder was not trained for.
            progress: show a progress bar.

        Raises:
            InputError: no text has a direction, ids that are not distinct, other numbers of ids.
        """
        stages = default_stages(encoder.dim, encoder.matryoshka_dims) if stages is None else stages
        index = cls(encoder.dim, stages, encoder.matryoshka_dims, force, encoder, prompts)
        index.add(texts, ids=ids, progress=progress)
        return index

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, from the shortest prefix to the longest."""
        return self.vectors.stages

    @property
    def nbytes(self) -> list[int]:
        """Bytes of each stage; all but an index of FAISS may lie on disk."""
        return self.vectors.nbytes

    def add(
        self,
        items: Array | Sequence[str],
        *,
        ids: Sequence[Key] | None = None,
        texts: Sequence[str] | None = None,
        notes: Sequence[str] | None = None,
        progress: bool = False,
    ) -> None:
        """Add rows, Float[m, D] or m texts; all of them or, on an error, none.

        Texts to which the encoder gives no direction are left out, as in `from_texts`; where rows have no ids, and so no other
        number than their own, they are an error, and so are vectors without direction.

        Args:
            items: Float[m, D] of any length, or m texts.
            ids: m ids of the kind that the index has; None if it has none.
            texts: m texts that are stored with vectors; None if the index has none.
            notes: m texts of any other kind that are stored with vectors; None if the index has none.
            progress: show a progress bar.

        Raises:
            InputError: vectors that do not fit or have no direction, ids that are not distinct, other numbers of ids or texts.
        """
        are_texts = not isinstance(items, (np.ndarray, Tensor))
        if are_texts:
            texts = list(items) if texts is None else texts
        vectors = self._encoded(items, "document", progress)
        if are_texts and texts is not None and (ids is not None or len(self) == 0):
            vectors, ids, texts = self._with_direction(vectors, ids, texts)
        rows = self.rows.extended(len(self), len(vectors), ids, texts, notes)
        self._check_direction(vectors, "row")
        self.vectors, self.rows = self.vectors.extended(vectors), rows

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
        dropped = (~kept).nonzero()[:, 0].tolist()
        examples = ", ".join(str(ids[i]) for i in dropped[:_MOST_NAMED]) + (" …" if len(dropped) > _MOST_NAMED else "")
        _LOG.warning("%d of %d texts have no direction and are left out: %s", len(dropped), len(texts), examples)
        kept_indices = kept.nonzero()[:, 0].tolist()
        return vectors[kept], [ids[i] for i in kept_indices], [texts[i] for i in kept_indices]

    def search(self, queries: Array | str | Sequence[str], k: int = 10) -> Hits:
        """Find the `k` rows nearest to each query, or all rows if there are fewer.

        Args:
            queries: Float[q, D] of any length, a text, or texts.
            k: number of hits.

        Raises:
            InputError: an empty index, vectors of other dims, not finite or without direction, texts without an encoder.
        """
        if type(k) is not int or k < 1:
            raise InputError(f"k={k!r} must be a whole number of at least 1")
        if len(self) == 0:
            raise InputError("the index is empty: add vectors or texts before searching it")
        scores, rows, seconds = self.vectors.nearest(self._query_vectors(queries), k)
        return Hits(scores, rows, self.rows.ids_of(rows), seconds)

    def tune(
        self,
        queries: Array | str | Sequence[str],
        judgements: Judgements | None = None,
        *,
        k: int = 10,
        target: float = 0.99,
        measure: Measure = "ndcg",
        batch: int = 64,
        candidates: Iterable[Sequence[Stage]] | None = None,
        cache: dict[Any, Any] | None = None,
        progress: bool = False,
    ) -> Tuned:
        """Take the fastest stages that keep `target` of the quality of exact search at the last stage.

        Candidates that differ in their shortlists alone are tried from the shortest on, until one reaches the target or takes
        longer than another that did. The last stage must have all dims, and stays as it is.

        Args:
            queries: Float[q, D] or texts, kept aside: the share holds for queries like these.
            judgements: for each query, id (or index) of a row -> grade; by default the full-dim top k of each query, graded 1.
            k: hits that are judged.
            target: share of the full-dim nDCG@k, or of its recall.
            measure: `ndcg`, or `recall`: the share of the full-dim top k that is found.
            batch: queries searched for at a time when time is measured.
            candidates: stages to try; by default the trained prefixes up to a quarter of the dims, in several stores, exact or
                by FAISS if the index is large.
            cache: keeps the stages' stores and indexes between calls, and what they found for the same queries, for another
                `batch` or `target`.
            progress: show a progress bar.

        Returns:
            What was tried, and the choice, which the index has from now on.

        Raises:
            InputError: no queries, other numbers of judgements, an unknown measure, an index that keeps no full-dim vectors.
        """
        vectors, cache = self._query_vectors(queries), {} if cache is None else cache
        if candidates is None:
            checked: Iterable[Stages] = default_candidates(self.stages[-1], self.matryoshka_dims, len(self), k)
        else:
            checked = [check_stages(stages, self.dim, self.matryoshka_dims, self.force) for stages in candidates]
        tuned = choose_stages(
            self.vectors,
            self.rows,
            vectors,
            judgements,
            checked,
            k=k,
            target=target,
            measure=measure,
            batch=batch,
            cache=cache,
            progress=progress,
        )
        self.vectors = self.vectors.restaged(tuned.chosen.stages, cache)
        return tuned

    def restaged(self, stages: Sequence[Stage]) -> FunnelIndex:
        """The same rows under other stages, whose prefixes are cut from the last stage's vectors.

        Args:
            stages: the last as it is now.

        Raises:
            InputError: another last stage, or stages that make no funnel.
        """
        index = FunnelIndex(self.dim, stages, self.matryoshka_dims, self.force, self.encoder, self.prompts, self.note)
        index.vectors, index.rows = self.vectors.restaged(index.stages), self.rows
        return index

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder; the index that is there stays whole until the new one is.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        saved = SavedIndex(
            self.dim, self.matryoshka_dims, self.force, self.prompts, self.note, vectors=self.vectors, rows=self.rows
        )
        return write_index(Path(folder), saved)

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
        saved = read_index(Path(folder), verify)
        if encoder is not None and (encoder.dim, tuple(encoder.matryoshka_dims)) != (saved.dim, saved.matryoshka_dims):
            raise InputError(
                f"{folder} was built with an encoder of {saved.dim} dims, trained for {list(saved.matryoshka_dims)}; this one "
                f"has {encoder.dim}, trained for {list(encoder.matryoshka_dims)}: give the same one, or build the index again"
            )
        stages = saved.vectors.stages
        index = cls(saved.dim, stages, saved.matryoshka_dims, saved.force, encoder, saved.prompts, saved.note)
        index.vectors, index.rows = saved.vectors, saved.rows
        return index

    def _query_vectors(self, queries: Array | str | Sequence[str]) -> Tensor:
        vectors = self._encoded([queries] if isinstance(queries, str) else queries, "query", False)
        self._check_direction(vectors, "query")
        return vectors

    def _encoded(self, items: Array | Sequence[str], role: str, progress: bool) -> Tensor:
        """Float[n, D] of vectors or texts."""
        if isinstance(items, np.ndarray):
            items = _tensor(items)
        if not isinstance(items, Tensor):
            if self.encoder is None:
                raise InputError("texts need an encoder: give one to load or from_texts, or give vectors")
            items = self.encoder.encode(list(items), self.dim, prompt=self.prompts.get(role), progress=progress)
        if items.ndim != 2 or items.shape[1] != self.dim:
            raise InputError(f"vectors of shape {tuple(items.shape)} do not fit: this index takes Float[n, {self.dim}]")
        return items

    def _check_direction(self, vectors: Tensor, kind: str) -> None:
        """An error unless all are finite, and none is zero at the shortest prefix."""
        shortest = self.stages[0].dim
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            checks = {
                "is NaN or infinite somewhere": ~block.isfinite().all(1),
                f"is zero in its first {shortest} dims": ~self.has_direction(block),
            }
            for problem, wrong in checks.items():
                if wrong.any():
                    index = start + int(wrong.nonzero()[0])
                    raise InputError(f"{kind} {index} {problem} and has no direction: leave it out, or mend what made it")


def _tensor(items: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        try:
            return torch.from_numpy(items)
        except TypeError as error:
            raise InputError(f"vectors of {items.dtype} are no numbers that fit: give Float[n, D]") from error
