"""Answers to queries: the nearest passages, near-equal ones as one, each with the part of it that fits best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acge_lightning.encoder.encoder import StaticBackbone
from acge_lightning.errors import InputError, check_unicode
from acge_lightning.search.cutting import Place
from acge_lightning.search.funnel import FunnelIndex
from acge_lightning.search.passage_index import place_of
from acge_lightning.search.words import best_part, near_equal, pairs, weights

SHOWN = 200  # characters of a passage that are shown
_MOST = 4096  # rows that are looked through for hits that are no near-equals


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Args:
        score: its cosine with the query.
        place: where it stands.
        text: of it.
        part: (start, end) of what of it fits the query best.
        like_it: places of further hits that are near-equal.
    """

    score: float
    place: Place
    text: str
    part: tuple[int, int]
    like_it: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The hits of a query, the best first, and the seconds that it took by step."""

    query: str
    hits: tuple[Hit, ...]
    seconds: dict[str, float]


def answer(index: FunnelIndex, query: str, k: int) -> Answer:
    """Find the `k` best passages that are not near-equal, or fewer if there are no more.

    Args:
        index: from `passage_index.build`, or loaded, with its encoder.
        query: a text.
        k: hits.

    Raises:
        InputError: a query with bytes that are not UTF-8, or without direction; no whole number of hits.
    """
    encoder = index.encoder
    if encoder is None:
        raise InputError("queries need an encoder: give one to load")
    check_unicode(query, "the query")
    start = time.perf_counter()
    vector = encoder.encode(query, index.dim, prompt=index.prompts.get("query"))
    encoded = time.perf_counter()
    if not index.has_direction(vector).all():
        raise InputError("the encoder knows none of its tokens: ask in other words")
    found, seconds = _distinct(index, vector, k)
    searched = time.perf_counter()
    weight = weights(query, [text for _, text, _ in found])
    nearest = _nearest_part(index, vector)
    hits = tuple(
        Hit(score, places[0], text, best_part(text, weight, SHOWN, nearest), tuple(places[1:])) for score, text, places in found
    )
    shown = time.perf_counter()
    return Answer(query, hits, {"encode": encoded - start, **seconds, "show": shown - searched})


def _distinct(index: FunnelIndex, vector: Tensor, k: int) -> tuple[list[tuple[float, str, list[Place]]], dict[str, float]]:
    """(score, text, places) of the best k groups of near-equal passages; more are looked through until there are k."""
    count = k
    while True:
        hits = index.search(vector, count)
        rows = hits.rows[0][hits.rows[0] >= 0]
        groups = _grouped(index, rows, hits.scores[0].tolist())
        if len(groups) >= k or len(rows) < count or count >= max(_MOST, k):
            break
        count = min(max(_MOST, k), 2 * count)
    seconds = {stage.label: spent for stage, spent in zip(index.stages, hits.seconds, strict=True)}
    return groups[:k], seconds


def _grouped(index: FunnelIndex, rows: np.ndarray, scores: Sequence[float]) -> list[tuple[float, str, list[Place]]]:
    """Groups of rows whose texts are near-equal, in the order of their best."""
    groups: list[tuple[float, str, list[Place]]] = []
    sets: list[frozenset[object]] = []
    number_of: dict[str, int] = {}
    texts, notes = index.rows.column("text", rows), index.rows.column("note", rows)
    for text, note, score in zip(texts, notes, scores, strict=False):
        number = number_of.get(text)
        if number is None:
            own = pairs(text)
            number = next((i for i, other in enumerate(sets) if near_equal(own, other)), len(sets))
            number_of[text] = number
        if number == len(groups):
            groups.append((score, text, []))
            sets.append(own)
        groups[number][2].append(place_of(note))
    return groups


def _nearest_part(index: FunnelIndex, vector: Tensor) -> Callable[[Sequence[str]], int] | None:
    """What finds the part nearest to a query; None for an encoder that would take long for it."""
    encoder = index.encoder
    if encoder is None or not (isinstance(encoder.backbone, StaticBackbone) or encoder.device.type != "cpu"):
        return None

    def nearest(parts: Sequence[str]) -> int:
        vectors = encoder.encode(parts, index.dim, prompt=index.prompts.get("document"))
        return int(torch.argmax(vectors @ vector[0]))

    return nearest
