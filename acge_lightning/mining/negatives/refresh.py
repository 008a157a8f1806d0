"""Mine the hard negatives of training rows again and again, as an encoder learns: what stays the same is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from acge_lightning.data.judgements import JudgedQueries
from acge_lightning.data.mined_negatives import MinedNegatives
from acge_lightning.mining.negatives.judged_texts import JudgedTexts, combine_judgements
from acge_lightning.mining.negatives.miner import Progress, mine
from acge_lightning.mining.negatives.neighbours import DenseNeighbours
from acge_lightning.mining.negatives.rules import Reason, Rules

Encode = Callable[[list[str], str], np.ndarray]  # texts of a role (query, document) -> Float32[n, D] of length 1
_TEXTS = 4096  # that are embedded at once by each process


@dataclass(frozen=True)
class Share:
    """The part of this process in work that several do together.

    Args:
        rank: its number.
        world: how many there are.
        add: adds up an array over all of them.
    """

    rank: int = 0
    world: int = 1
    add: Callable[[np.ndarray], np.ndarray] = lambda array: array


@dataclass(frozen=True)
class RowQueries:
    """The training rows of a data set as queries, with all that is judged of them, before anything is embedded.

    Args:
        judged: their queries and texts.
        queries: Int64[rows] which of the queries each row asks.
        numbers: Int64[c] the number (see `JudgedQueries.candidate_ids`) of each candidate.
    """

    judged: JudgedTexts
    queries: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class RefreshCounts:
    """What was mined.

    Args:
        queries: that were mined for.
        texts: that were embedded for it, queries left out.
        negatives: of all queries.
        without: queries that have none.
        removed: Int64[reasons] candidates that fell to each `Reason`.
    """

    queries: int
    texts: int
    negatives: int
    without: int
    removed: np.ndarray

    def __add__(self, other: RefreshCounts) -> RefreshCounts:
        """Those of two data sets together."""
        return RefreshCounts(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def __str__(self) -> str:
        """Say them in a line."""
        said = [f"{self.negatives:,} hard negatives of {self.queries:,} queries", f"{self.without:,} queries have none"]
        if self.removed.any():
            counted = [f"{reason.words} {self.removed[reason]:,}" for reason in Reason if self.removed[reason]]
            said.append(f"candidates left out: {', '.join(counted)}")
        return "; ".join(said)


def row_queries(split: JudgedQueries, others: Sequence[JudgedQueries] = ()) -> RowQueries:
    """Gather what is judged of training rows, by themselves and elsewhere.

    Args:
        split: the training rows. Candidates are the documents of their corpus, or else their judged texts.
        others: further judgements, of other splits and data sets, whose positives are never negatives of the same query.
    """
    judged = combine_judgements([split], [replace(other, documents=None, document_rows=None) for other in others])
    query = {text: i for i, text in enumerate(judged.queries)}
    queries = np.array([query[text] for text in split.read_queries(np.arange(len(split)))], dtype=np.int64)
    number: dict[str, int] = {}
    if split.corpus is None:
        texts = split.read_texts(np.arange(len(split.text_ids)))
    else:
        texts = [text for chunk in split.corpus[0].chunks for text in chunk.to_pylist()]
    for i, text in enumerate(texts):
        number.setdefault(text, i)
    numbers = np.array([number[text] for text in judged.texts[: judged.candidate_count]], dtype=np.int64)
    return RowQueries(judged, queries, numbers)


def mine_rows(
    source: RowQueries,
    rows: np.ndarray,
    encode: Encode,
    rules: Rules,
    candidates: np.ndarray | None = None,
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> tuple[MinedNegatives, RefreshCounts]:
    """Mine the negatives of some rows, as `mine` does; several processes share the embedding and the search.

    Args:
        source: of `row_queries`.
        rows: Int64[m] training rows, ascending.
        encode: the encoder as it is now.
        rules: what makes a negative.
        candidates: Int64[c] rows of the texts that may be negatives; the positives of the rows may be too. None: all.
        share: the part of this process; all have the same result. None: it is alone.
        progress: is told of texts that are embedded.

    Raises:
        InputError: vectors that are not finite, or `range_min` passes over all texts.
    """
    share = share or Share()
    queries, query_of_row = np.unique(source.queries[rows], return_inverse=True)
    judged, kept = source.judged.select(queries, candidates)
    texts = judged.texts[: judged.candidate_count]
    query_vectors = _embedded(judged.queries, "query", encode, share, progress)
    text_vectors = _embedded(texts, "document", encode, share, progress)
    neighbours = DenseNeighbours(query_vectors, text_vectors)  # refuses on all processes alike what is not finite
    chosen = np.zeros((len(queries), rules.negatives), dtype=np.int64)
    removed = np.zeros(len(Reason), dtype=np.int64)
    own = np.arange(len(queries))[share.rank :: share.world]
    if len(own):
        if share.world > 1:
            judged, neighbours = judged.select(own)[0], DenseNeighbours(query_vectors[own], text_vectors)
        mined = mine(judged, neighbours, rules)
        chosen[own], removed = mined.texts + 1, mined.removed.sum(0)
    chosen, removed = share.add(chosen) - 1, share.add(removed)
    numbers = np.where(chosen < 0, -1, source.numbers[kept[np.maximum(chosen, 0)]])
    counts = (chosen >= 0).sum(1)
    counted = RefreshCounts(len(queries), len(texts), int(counts.sum()), int((counts == 0).sum()), removed)
    return MinedNegatives(rows, numbers[query_of_row]), counted


def _embedded(texts: Sequence[str], role: str, encode: Encode, share: Share, progress: Progress) -> np.ndarray:
    """Float32[n, D]: each process embeds its part of a block of texts, the longest texts first."""
    order = np.array(sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True), dtype=np.int64)
    blocks = []
    for start in range(0, len(order), _TEXTS * share.world):
        block = order[start : start + _TEXTS * share.world]
        own = encode([texts[i] for i in block[share.rank :: share.world].tolist()], role)
        vectors = np.zeros((len(block), own.shape[1]), dtype=np.float32)
        vectors[share.rank :: share.world] = own
        blocks.append(share.add(vectors))
        progress(len(block))
    result = np.concatenate(blocks)
    result[order] = result.copy()
    return result
