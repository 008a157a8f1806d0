"""Cuts a long text into passages of at most so many tokens, where a reader would: by heading, paragraph, sentence, word."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from acge_lightning.search.markdown import Heading, Section, structure

VERSION = 1  # of where texts are cut
_TOKEN_CHARACTERS = 16  # that count as a token, if no token ends within them
_LEAST = 3  # a passage is not cut before this part of its budget, as long as there is anything else
_HEADINGS = 4  # the part of the budget that the headings above a passage may take
_PARAGRAPH = re.compile(r"\n(?=[^\S\n]*\n)")
_LINE = re.compile(r"\n")
_ITEM = re.compile(r"\n(?=[ \t]*(?:[-*+>|]|\d+[.)]\s))")  # of Markdown: of a list, a table, a quote
_SENTENCE = re.compile(r"[。！？；…]++[”’」』）〉》\"')\]]*+|(?<![.!?;])[.!?;]++[\"'”’)\]]*+(?=\s)")
_WORD = re.compile(r"\s++|(?<=[，、：])")
_NO_BLANK = re.compile(r"\S")


@dataclass(frozen=True)
class Passage:
    """A part of a text: `text[start:end]`, which begins and ends with something that is no blank.

    Args:
        start: its first character.
        end: the character after it.
        path: the titles of the headings that it is under, the outermost first.
        above: those of them that stand before it in the text, as far as they find room; to be encoded with it.
    """

    start: int
    end: int
    path: tuple[str, ...] = ()
    above: tuple[str, ...] = ()


def token_ends(length: int, ends: Sequence[int] | np.ndarray) -> list[int]:
    """Where tokens end in a text, with an end after every 16 characters in which none does.

    Args:
        length: characters of the text.
        ends: ascending, of the encoder's tokens.
    """
    stops = np.asarray(ends, dtype=np.int64)
    if length and (not len(stops) or stops[-1] < length):
        stops = np.append(stops, length)
    before = np.concatenate([[0], stops])[:-1].astype(np.int64)
    counts = np.maximum(1, -(-(stops - before) // _TOKEN_CHARACTERS))
    number = np.arange(int(counts.sum())) - (counts.cumsum() - counts).repeat(counts) + 1
    return np.minimum(before.repeat(counts) + _TOKEN_CHARACTERS * number, stops.repeat(counts)).tolist()


def cut(text: str, ends: Sequence[int], budget: int, overlap: int = 0, markdown: bool = False) -> list[Passage]:
    r"""Cut a text into passages, in their order; each character that is no blank is in one of them.

    A passage ends with a paragraph, an item of a list, a sentence or a word, the first of these that does not leave it less
    than a third of its budget, else anywhere. The next one begins with a sentence, or else a word, that is in it too. In
    Markdown no passage goes over a heading, but for those with nothing between them, and fenced code stays whole if it fits.

    Args:
        text: of any length.
        ends: where its tokens end, ascending, from `token_ends`.
        budget: tokens of a passage, with the headings above it, at most.
        overlap: tokens that a passage has in common with the one before, at most; less than half of the budget.
        markdown: whether the text is Markdown.

    >>> text = "One two. Three four. Five six."
    >>> [text[p.start : p.end] for p in cut(text, [match.end() for match in re.finditer(r"\w+|\.", text)], budget=6)]
    ['One two. Three four.', 'Five six.']
    """
    sections, blocks = structure(text) if markdown else ([Section(0, len(text))], [])
    tokens = _Tokens(ends)
    breaks: _Breaks | None = None
    passages = []
    for section in sections:
        path, above, room = _headings(section, tokens, budget)
        spans = [(section.start, section.end)]
        if tokens.count(section.start, section.end) > room:
            breaks = breaks or _Breaks.of(text, blocks, tokens, budget - budget // _HEADINGS, markdown)
            spans = _spans(text, section, tokens, breaks, room, overlap)
        for start, end in spans:
            piece = text[start:end]
            if not piece.isspace() and piece:
                start, end = end - len(piece.lstrip()), start + len(piece.rstrip())
                titles = tuple(heading.title for heading in above if heading.title and heading.end <= start)
                passages.append(Passage(start, end, path, titles))
    return passages


def _headings(section: Section, tokens: _Tokens, budget: int) -> tuple[tuple[str, ...], list[Heading], int]:
    """The titles of a section's headings, the innermost ones that find room, and what they leave of the budget."""
    above: list[Heading] = []
    used = 0
    for heading in reversed(section.path):
        size = tokens.count(heading.start, heading.end) + 1
        if (used + size) * _HEADINGS > budget:
            break
        above, used = [heading, *above], used + size
    return tuple(heading.title for heading in section.path if heading.title), above, budget - used


@dataclass(frozen=True)
class _Tokens:
    """Where tokens end."""

    ends: Sequence[int]

    def count(self, start: int, end: int) -> int:
        """How many end after `start`, up to `end`."""
        return bisect_right(self.ends, end) - bisect_right(self.ends, start)

    def after(self, start: int, count: int, limit: int) -> int:
        """The last character to which there are at most so many tokens; that of one token at least, and `limit` at most."""
        number = bisect_right(self.ends, start) + count
        if number >= len(self.ends):
            return limit
        end = self.ends[number - 1]
        if self.ends[number] == end:  # several tokens of one character: all or none
            end = self.ends[max(0, bisect_left(self.ends, end) - 1)]
            end = end if end > start else self.ends[number]
        return min(end, limit)

    def before(self, end: int, count: int) -> int:
        """The first character from which there are at most so many tokens."""
        number = bisect_right(self.ends, end) - count
        return self.ends[number - 1] if number > 0 else 0


@dataclass(frozen=True)
class _Breaks:
    """Where a text may be cut.

    Args:
        levels: characters after which a paragraph, a line or a sentence ends, ascending.
        words: the same of words.
        whole: (start, end) of blocks that are not cut, ascending.
    """

    levels: tuple[list[int], ...]
    words: list[int]
    whole: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, text: str, blocks: list[tuple[int, int]], tokens: _Tokens, room: int, markdown: bool) -> _Breaks:
        """The breaks of a text; blocks stay whole that have at most `room` tokens."""
        whole = [block for block in blocks if tokens.count(*block) <= room]
        edges = [edge for block in blocks for edge in block]
        code = [block for block in blocks if tokens.count(*block) > room]
        code_lines = [match.start() for block in code for match in _LINE.finditer(text, *block)]
        starts = [block[0] for block in whole]

        def outside(positions: Iterable[int]) -> list[int]:
            """Those that are within no block, in order."""
            kept = []
            for position in sorted(set(positions)):
                block = bisect_left(starts, position) - 1  # the last that begins before
                if block < 0 or position >= whole[block][1]:
                    kept.append(position)
            return kept

        paragraphs = outside([*(match.start() for match in _PARAGRAPH.finditer(text)), *edges])
        lines = outside([*(match.start() for match in (_ITEM if markdown else _LINE).finditer(text)), *code_lines])
        sentences = outside(match.end() for match in _SENTENCE.finditer(text))
        words = outside(match.start() for match in _WORD.finditer(text))
        return cls((paragraphs, lines, sentences), words, whole)

    def last(self, lowest: int, highest: int) -> int | None:
        """The best place to end at that is not before `lowest` nor after `highest`, the last of its kind; None if none."""
        for positions in (*self.levels, self.words):
            number = bisect_right(positions, highest)
            if number and positions[number - 1] >= lowest:
                return positions[number - 1]
        return None

    def first(self, lowest: int, before: int) -> int:
        """The first place to begin at, a sentence's or else a word's, that is not before `lowest`; else `lowest` itself."""
        candidates = []
        for positions in self.levels:
            number = bisect_left(positions, lowest)
            candidates += positions[number : number + 1]
        best = min(candidates, default=before)
        if best >= before:
            number = bisect_left(self.words, lowest)
            best = self.words[number] if number < len(self.words) else before
        return best if best < before else lowest

    def block_around(self, position: int) -> tuple[int, int] | None:
        """The whole block that a position is within."""
        number = bisect_left(self.whole, (position,)) - 1
        return self.whole[number] if number >= 0 and position < self.whole[number][1] else None


def _spans(text: str, section: Section, tokens: _Tokens, breaks: _Breaks, room: int, overlap: int) -> list[tuple[int, int]]:
    """(start, end) of the passages of a section that does not fit as it is."""
    spans: list[tuple[int, int]] = []
    start = done = _after_blanks(text, section.start)
    while done < section.end:
        reach = tokens.after(start, room, section.end)
        if reach < section.end:
            reach = _end(start, done, reach, tokens, breaks, room)
        if reach <= done and start < done:  # what it has in common with the one before leaves no room for more
            start = done
            continue
        spans.append((start, reach))
        previous, start = start, reach
        start = done = min(section.end, _after_blanks(text, reach))
        if overlap:
            begin = breaks.first(max(tokens.before(reach, overlap), section.start), reach)
            if begin > previous and breaks.block_around(begin) is None:
                start = begin
    return spans


def _after_blanks(text: str, position: int) -> int:
    match = _NO_BLANK.search(text, position)
    return match.start() if match else len(text)


def _end(start: int, done: int, reach: int, tokens: _Tokens, breaks: _Breaks, room: int) -> int:
    """Where a passage from `start` ends that could go on to `reach`; the one before ended at `done`."""
    lowest = max(done + 1, tokens.after(start, room // _LEAST, reach))
    block = breaks.block_around(reach)
    limit = reach if block is None or block[0] <= start else block[0]
    end = breaks.last(lowest, limit)
    return limit if end is None else end
