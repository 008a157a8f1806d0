"""Mine hard negatives of judged texts: search by blocks of queries, deeper where too few candidates may be negatives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.hard_negatives import HardNegatives, Judge, choose_negatives
from acge_lightning.mining.negatives.judged_texts import JudgedTexts
from acge_lightning.mining.negatives.near_texts import NearTexts
from acge_lightning.mining.negatives.neighbours import Neighbours
from acge_lightning.mining.negatives.rules import Reason, Rules
from acge_lightning.mining.negatives.shortlist import Exclusions, Shortlist, rank_candidates
from acge_lightning.mining.normalise import text_keys

Scorer = Callable[[list[tuple[str, str]]], np.ndarray]  # (query, text) -> Float32[m]
Compute = Callable[[Iterable[list[str]], str | None], Iterator[np.ndarray]]
Progress = Callable[[int], object]  # is told how many more are done
_QUERIES = 1024  # of a block
_PAIRS = 2**14  # that a second scorer is given at once, about
_TEXTS = 1024  # that are embedded, and kept, at once
_COMPARED = 2**20  # pairs of texts that are compared at once, about
_SPARE = 4  # candidates beyond those that are known to fall out


def mine(
    judged: JudgedTexts,
    neighbours: Neighbours,
    rules: Rules,
    scorer: Scorer | None = None,
    progress: Progress = lambda count: None,
) -> HardNegatives:
    """Mine the hard negatives of all queries.

    Args:
        judged: queries, texts, and what is known of them.
        neighbours: of the queries, among the first `candidate_count` texts.
        rules: what makes a negative.
        scorer: second scorer; it gets the pairs of many queries at a time.
        progress: is told of queries that are done.

    Returns:
        Their negatives, in the order of the queries.

    Raises:
        InputError: `range_min` passes over all texts.
    """
    if judged.candidate_count <= rules.range_min:
        raise InputError(f"range_min={rules.range_min} passes over all {judged.candidate_count} texts: lower it")
    is_near = None if rules.near is None else _near_judge(judged, rules.near)
    second = None if scorer is None else _text_judge(judged, scorer)
    width = rules.negatives if rules.rank_by == "model" else rules.range_max - rules.range_min
    size = _QUERIES if scorer is None else min(_QUERIES, max(1, _PAIRS // width))
    blocks = []
    for start in range(0, len(judged.queries), size):
        queries = np.arange(start, min(start + size, len(judged.queries)))
        positives = judged.positives.select(queries)
        positive_scores = neighbours.scores(queries[positives.owners], positives.texts)
        listed = _shortlist(queries, neighbours, judged.exclusions, rules.range_max)
        blocks.append(choose_negatives(queries, listed, positives, positive_scores, judged.exclusions, rules, is_near, second))
        progress(len(queries))
    return HardNegatives(
        np.concatenate([block.texts for block in blocks]),
        np.concatenate([block.scores for block in blocks]),
        np.concatenate([block.positive_scores for block in blocks]),
        np.concatenate([block.removed for block in blocks]),
    )


def _shortlist(queries: np.ndarray, neighbours: Neighbours, exclusions: Exclusions, range_max: int) -> Shortlist:
    """The shortlists of some queries, each searched as deep as it takes."""
    shape = len(queries), range_max
    result = Shortlist(
        np.full(shape, -1, dtype=np.int64),
        np.full(shape, -np.inf, dtype=np.float32),
        np.zeros((len(queries), len(Reason)), dtype=np.int64),
        np.zeros(len(queries), dtype=bool),
    )
    depth = range_max + np.diff(exclusions.positives_of(queries).offsets) + _SPARE
    left = np.arange(len(queries))
    while len(left):
        level = np.ceil(np.log2(depth[left]))  # those of about the same depth are searched together
        rows = left[level == level.min()]
        k = int(min(depth[rows].max(), len(neighbours)))
        candidates, scores = neighbours.nearest(queries[rows], k)
        listed = rank_candidates(queries[rows], candidates, scores, exclusions, range_max)
        for values, new in zip(vars(result).values(), vars(listed).values(), strict=True):
            values[rows] = new
        depth[rows] = 2 * k
        left = np.setdiff1d(left, rows[listed.complete | (candidates[:, -1] < 0) | (k == len(neighbours))])
    return result


def _near_judge(judged: JudgedTexts, least: float) -> Judge:
    """Whether texts nearly equal a positive of their queries."""
    texts = NearTexts(text_keys(judged.texts), least)

    def is_near(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        result = np.zeros(len(queries), dtype=bool)
        ends = np.cumsum(np.diff(judged.exclusions.positives_of(queries).offsets))
        for rows in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(ends // _COMPARED)) + 1):
            positives = judged.exclusions.positives_of(queries[rows])
            near = texts.pairs(candidates[rows][positives.owners], positives.texts)
            result[rows[positives.owners[near]]] = True
        return result

    return is_near


def _text_judge(judged: JudgedTexts, scorer: Scorer) -> Judge:
    """The second scorer's scores of pairs of rows."""

    def scores(queries: np.ndarray, texts: np.ndarray) -> np.ndarray:
        pairs = zip(queries.tolist(), texts.tolist(), strict=True)
        return scorer([(judged.queries[query], judged.texts[text]) for query, text in pairs])

    return scores


def embedded(
    embeddings: Embeddings,
    texts: Sequence[str],
    prompt: str | None = None,
    progress: Progress = lambda count: None,
    compute: Compute | None = None,
) -> np.ndarray:
    """Embed texts in blocks that are kept one by one, so that a run that was killed goes on with the next: Float32[n, D].

    Which texts make a block depends on the texts alone, and so do the vectors, whatever computes them.

    Args:
        embeddings: of the encoder, with a folder.
        texts: in any order; the longest are embedded first.
        prompt: name of one of the encoder's prompts.
        progress: is told of texts that are done.
        compute: embeds blocks elsewhere: lists of texts, and the prompt -> Float32[texts, D] of each list, in order.
    """
    distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
    row_of = {text: row for row, text in enumerate(distinct)}
    vectors = np.empty((len(distinct), embeddings.encoder.dim), dtype=np.float32)
    if compute is not None:
        _embed_elsewhere(embeddings, _blocks(distinct), prompt, progress, compute)
    for block in _blocks(distinct):
        rows = slice(row_of[block[0]], row_of[block[0]] + len(block))
        vectors[rows] = embeddings.encode(block, prompt).numpy()
        if compute is None:
            progress(len(block))
    progress(len(texts) - len(distinct))
    return vectors[[row_of[text] for text in texts]] if len(texts) else vectors


def _embed_elsewhere(
    embeddings: Embeddings, blocks: list[list[str]], prompt: str | None, progress: Progress, compute: Compute
) -> None:
    """Have the texts of each block embedded whose vectors are not there, and keep the vectors."""
    asked: deque[list[str]] = deque()

    def missing() -> Iterator[list[str]]:
        for block in blocks:
            texts = embeddings.missing(block, prompt)
            progress(len(block) - len(texts))
            if texts:
                asked.append(texts)
                yield texts

    for vectors in compute(missing(), prompt):
        texts = asked.popleft()
        embeddings.add(texts, vectors, prompt)
        progress(len(texts))


def _blocks(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
