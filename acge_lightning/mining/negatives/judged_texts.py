"""Queries, texts and judgements of several data sets as one, in which equal texts are one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from acge_lightning.data.judgements import JudgedQueries
from acge_lightning.data.records import text_id
from acge_lightning.errors import check_unicode
from acge_lightning.mining.negatives.rules import Reason
from acge_lightning.mining.negatives.shortlist import Exclusions, Positives
from acge_lightning.mining.normalise import text_keys

Keys = Callable[[Sequence[str]], Iterable[Hashable]]


@dataclass(frozen=True)
class JudgedTexts:
    """What hard negatives are mined for, and among.

    Args:
        queries: distinct ones.
        texts: distinct ones, those that are candidates first.
        candidate_count: how many of them are.
        positives: of each query.
        listed: Int64[l, 2] pairs of a query and a text that is listed as its negative, and is no positive as far as is known.
        exclusions: what is known of the queries and the texts.
        left_out: how many empty texts, and listed negatives that are known positives, are left out.
    """

    queries: list[str]
    texts: list[str]
    candidate_count: int
    positives: Positives
    listed: np.ndarray
    exclusions: Exclusions
    left_out: dict[str, int]

    def select(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> tuple[JudgedTexts, np.ndarray]:
        """Take some of the queries, with all that is known of them.

        Args:
            queries: Int64[q] rows.
            candidates: Int64[c] rows of the texts that are candidates still; the positives of the queries are too. Listed
                negatives that are none are left out. None: all.

        Returns:
            The selection, in which candidates keep their order, and Int64[t] the row here of each of its texts.
        """
        own_positives, pairs = self.positives.select(queries), self.exclusions.positives
        pairs = pairs[np.isin(pairs[:, 0], self.exclusions.query_keys[queries])]
        kept = np.arange(self.candidate_count) if candidates is None else np.union1d(candidates, own_positives.texts)
        count = len(kept)
        kept = np.append(kept, np.setdiff1d(pairs[:, 1], kept))
        new_query, new_text = np.full(len(self.queries), -1), np.full(len(self.texts) + 1, -1)  # the last of texts is none
        new_query[queries], new_text[kept] = np.arange(len(queries)), np.arange(len(kept))
        own_texts = new_text[self.exclusions.own_texts[queries]]

        def renumbered(listed: np.ndarray) -> np.ndarray:
            listed = np.stack([new_query[listed[:, 0]], new_text[listed[:, 1]]], axis=1)
            return listed[(listed >= 0).all(1) & (listed[:, 1] < count)]

        exclusions = Exclusions(
            self.exclusions.query_keys[queries],
            self.exclusions.text_keys[kept],
            np.where(own_texts < count, own_texts, -1),
            np.stack([pairs[:, 0], new_text[pairs[:, 1]]], axis=1),
            renumbered(self.exclusions.listed),
            self.exclusions.query_ids[queries],
            self.exclusions.text_ids[kept],
        )
        selection = JudgedTexts(
            [self.queries[i] for i in queries.tolist()],
            [self.texts[i] for i in kept.tolist()],
            count,
            Positives(own_positives.offsets, new_text[own_positives.texts]),
            renumbered(self.listed),
            exclusions,
            self.left_out,
        )
        return selection, kept


def combine_judgements(
    splits: Sequence[JudgedQueries],
    other_splits: Sequence[JudgedQueries] = (),
    more_texts: Iterable[str] = (),
    keys: Keys = text_keys,
) -> JudgedTexts:
    """Bring judgements together.

    Args:
        splits: whose queries are mined for; their documents, or else their judged texts, are the candidates.
        other_splits: further judgements, whose positives are never negatives of the same query.
        more_texts: further candidates.
        keys: of texts: equal ones are variants of each other.

    Raises:
        InputError: one of `more_texts` has half a surrogate pair.
    """
    numbers = _Numbers()
    pairs = [_pairs(split, numbers) for split in splits]
    more_texts = list(more_texts)
    for i, further in enumerate(more_texts):
        check_unicode(further, f"more_texts[{i}]")
    numbers.of(more_texts)
    candidate_count = len(numbers.texts)
    queries: dict[str, int] = {}
    asked = [np.array([queries.setdefault(q, len(queries)) for q in _queries(split)], dtype=np.int64) for split in splits]
    positive = _joined([(query[row[good]], text[good]) for query, (row, text, good) in zip(asked, pairs, strict=True)])
    listed = _joined([(query[row[~good]], text[~good]) for query, (row, text, good) in zip(asked, pairs, strict=True)])

    key_number: dict[Hashable, int] = {}
    query_keys = _numbered(keys(list(queries)), key_number)
    known_positive = [np.stack([query_keys[positive[:, 0]], positive[:, 1]], axis=1)]
    for split in other_splits:
        row, text, good = _pairs(split, numbers)
        split_keys = _numbered(keys(_queries(split)), key_number)
        known_positive.append(np.stack([split_keys[row[good]], text[good]], axis=1))
    own = np.array([numbers.texts.get(query, -1) for query in queries], dtype=np.int64)
    exclusions = Exclusions(
        query_keys,
        _numbered(keys(list(numbers.texts)), key_number),
        np.where(own < candidate_count, own, -1),
        np.concatenate(known_positive),
        listed,
        np.array([text_id(query) for query in queries], dtype=np.int64),
        np.array([text_id(text) for text in numbers.texts], dtype=np.int64),
    )
    is_negative = exclusions.reasons(listed[:, 0], listed[:, 1:])[:, 0] == Reason.LISTED
    left_out = {"empty texts": numbers.empty, "listed negatives that are known positives": int((~is_negative).sum())}
    rows = np.argsort(positive[:, 0], kind="stable")
    offsets = np.append(0, np.cumsum(np.bincount(positive[:, 0], minlength=len(queries))))
    positives = Positives(offsets, positive[rows, 1])
    return JudgedTexts(
        list(queries), list(numbers.texts), candidate_count, positives, listed[is_negative], exclusions, left_out
    )


class _Numbers:
    """The numbers of distinct texts, in the order in which they come; an empty one has none."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.empty = 0

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Int64[n]; -1 for an empty text."""
        self.empty += sum(not text for text in texts)
        number = self.texts.setdefault
        return np.array([number(text, len(self.texts)) if text else -1 for text in texts], dtype=np.int64)


def _queries(split: JudgedQueries) -> list[str]:
    return split.read_queries(np.arange(len(split)))


def _pairs(split: JudgedQueries, numbers: _Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The judgements of a split: Int64[r] positions of queries, Int64[r] numbers of texts, Bool[r] whether positive."""
    if split.corpus is None:
        text = numbers.of(split.read_texts(np.arange(len(split.text_ids))))
    else:
        column, document = split.corpus
        text = np.concatenate([numbers.of(chunk.to_pylist()) for chunk in column.chunks])[document]
    row = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    there = text >= 0
    return row[there], text[there], split.grades[there] > 0


def _joined(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Int64[n, 2]: distinct pairs, in the order in which they come."""
    joined = np.concatenate([np.empty((0, 2), dtype=np.int64), *(np.stack(pair, axis=1) for pair in pairs)])
    _, first_rows = np.unique(joined, axis=0, return_index=True)
    return joined[np.sort(first_rows)]


def _numbered(keys: Iterable[Hashable], number: dict[Hashable, int]) -> np.ndarray:
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
