"""Words of texts: which of two texts are near-equal, and which part of a text has most of a query's words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

_CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # and Japanese: no spaces between words
_RUN = re.compile(rf"(?P<chinese>[{_CHINESE}]+)|[^\W_{_CHINESE}]+")
_SENTENCE_END = re.compile(r"[。！？；…\n]+|(?<=[.!?;])\s+")
_NEAR = 0.8  # of all pairs of words that two texts have in common, for them to be near-equal
_LONG_WORD = 30  # characters
_ENOUGH = 1 / 3  # of the weight of a query's words, for a part to be chosen by them


def words(text: str) -> list[tuple[int, int, str]]:
    """(start, end, folded form) of the words of a text; of a run of Chinese each two characters that stand together.

    >>> words("How 怎么退")
    [(0, 3, 'how'), (4, 6, '怎么'), (5, 7, '么退')]
    """
    spans: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        start, end = run.span()
        is_pairs = run.lastgroup == "chinese" and end - start > 2
        spans += [(i, i + 2) for i in range(start, end - 1)] if is_pairs else [(start, end)]
    return [(start, end, unicodedata.normalize("NFKC", text[start:end]).casefold()) for start, end in spans]


def near_equal(a: frozenset[object], b: frozenset[object]) -> bool:
    """Whether two texts, as `pairs` of their words, have at least four of five pairs in common."""
    return min(len(a), len(b)) >= _NEAR * max(len(a), len(b)) and len(a & b) >= _NEAR * len(a | b)


def pairs(text: str) -> frozenset[object]:
    """The pairs of words that stand together in a text; the text itself if there are none."""
    forms = [form for _, _, form in words(text)]
    return frozenset(pairwise(forms)) or frozenset(forms) or frozenset([text.strip()])


def weights(query: str, texts: Iterable[str]) -> dict[str, float]:
    """How much each word of a query tells: log(1 + n / texts that have it), of those n in which some are."""
    forms = {form for _, _, form in words(query)}
    sets = [{form for _, _, form in words(text)} & forms for text in texts]
    return {form: math.log1p(len(sets) / max(1, sum(form in some for some in sets))) for form in sorted(forms)}


def best_part(
    text: str, weight: Mapping[str, float], width: int, nearest: Callable[[Sequence[str]], int] | None = None
) -> tuple[int, int]:
    """The part of a text that fits a query best: where its words stand together, or else what is nearest to it.

    Args:
        text: of any length.
        weight: of the query's words, from `weights`.
        width: characters of the part, at most.
        nearest: the number of the part that is nearest to the query; None takes the opening where too few of its words are.

    Returns:
        (start, end); all of the text if it is no longer.
    """
    if len(text) <= width:
        return 0, len(text)
    starts = _starts(text, width)
    matches = [(start, end, form) for start, end, form in words(text) if form in weight]
    scores = [sum(weight[form] for form in {f for s, e, f in matches if start <= s and e <= start + width}) for start in starts]
    best = max(scores)
    if best > 0 and best >= _ENOUGH * sum(weight.values()):
        start = max(start for start, score in zip(starts, scores, strict=True) if score == best)
    elif nearest is not None:
        start = starts[nearest([text[start : start + width] for start in starts])]
    else:
        start = max(start for start, score in zip(starts, scores, strict=True) if score == best) if best else 0
    start = min(some for some in starts if some >= min(start, len(text) - width))  # near the end there is room before it
    return _without_cut_words(text, start, min(len(text), start + width))


def _without_cut_words(text: str, start: int, end: int) -> tuple[int, int]:
    """A part of a text, less the piece of a word at either end; Chinese has no words to cut, and long ones are cut."""
    for word in _RUN.finditer(text):
        if word.lastgroup == "chinese" or word.end() - word.start() > _LONG_WORD:
            continue
        if word.start() < start < word.end():
            start = word.end()
        elif word.start() < end < word.end():
            end = word.start()
    return start, end


def _starts(text: str, width: int) -> list[int]:
    """Where parts may begin: with sentences, and within those that are longer than a part."""
    edges = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    starts: list[int] = []
    for start, end in pairwise(edges):
        starts += range(start, max(start + 1, end - width // 2), width // 2)
    return [start for start in starts if text[start : start + width].strip()] or [0]
