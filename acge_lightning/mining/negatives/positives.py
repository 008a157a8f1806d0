"""Positives for text without labels: a title and its body, passages that follow each other, a heading and its section."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

Pair = tuple[str, str]
_SHORTEST = 2  # characters of a query or a text


def titles_and_bodies(documents: Iterable[Pair]) -> Iterator[Pair]:
    """Pair each title with its body, as `query` and `positive`; those of which one is empty, or both are equal, make none.

    Args:
        documents: (title, body).

    >>> list(titles_and_bodies([("退货", "七天内可以退货。"), ("", "无题"), ("同", "同")]))
    [('退货', '七天内可以退货。')]
    """
    for title, body in documents:
        yield from _pair(title, body)


def neighbouring_passages(documents: Iterable[Sequence[str]]) -> Iterator[Pair]:
    """Pair each passage of a document with the next one (Izacard et al. 2022 draw two spans of a document; these are whole).

    Args:
        documents: passages of each, in their order.

    >>> list(neighbouring_passages([["one sentence", "two of them", "three"], ["alone"]]))
    [('one sentence', 'two of them'), ('two of them', 'three')]
    """
    for passages in documents:
        for one, following in pairwise(passages):
            yield from _pair(one, following)


def headings_and_sections(passages: Iterable[tuple[Sequence[str], str]]) -> Iterator[Pair]:
    """Pair the headings above a text with the text, the outermost first and joined by " > ", as the index of passages does.

    Args:
        passages: (headings, text); `Place.path` of `acge_lightning.search` and the passage's text are such.

    >>> list(headings_and_sections([(("售后", "退货"), "七天内可以退货。"), ((), "no heading")]))
    [('售后 > 退货', '七天内可以退货。')]
    """
    for headings, text in passages:
        yield from _pair(" > ".join(headings), text)


def _pair(query: str, text: str) -> Iterator[Pair]:
    query, text = query.strip(), text.strip()
    if min(len(query), len(text)) >= _SHORTEST and query != text:
        yield query, text
