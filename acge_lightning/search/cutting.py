"""Documents to passages of the size that an encoder reads, each with the place where it stands."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.tokens import Tokenize
from acge_lightning.errors import InputError
from acge_lightning.search.documents import Document
from acge_lightning.search.passages import Passage, cut, token_ends

_T = TypeVar("_T")
LONGEST = 256  # tokens of a passage, unless the settings say otherwise
_LEAST = 8  # tokens of a passage
_OVERLAP = 8  # the part of a passage that is in the one before too, unless the settings say otherwise
_PIECE = 2**16  # characters that are tokenised in one piece
_PIECE_END = 2**12  # characters at the end of a piece in which a better end is looked for
_AT_ONCE = 2**20  # characters that are tokenised together


@dataclass(frozen=True)
class Place:
    """Where a passage stands.

    Args:
        file: its name within the source.
        line: on which it begins, from 1.
        last_line: on which it ends.
        column: character of that line, or of the value of a row, at which it begins, from 1.
        path: the headings that it is under, the outermost first.
        above: those of them that are encoded with it.
    """

    file: str
    line: int
    last_line: int
    column: int = 1
    path: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it as `file:line`, with the last line if it is another, and else with the column if it is not the first."""
        more = f"-{self.last_line}" if self.last_line > self.line else f":{self.column}" if self.column > 1 else ""
        return f"{self.file}:{self.line}{more}"


@dataclass(frozen=True)
class PlacedPassage:
    """A passage as it is indexed: its place and its text."""

    place: Place
    text: str

    @property
    def encoded(self) -> str:
        """What of it is encoded: the headings above it, then its text."""
        return f"{' > '.join(self.place.above)}\n{self.text}" if self.place.above else self.text


def check_sizes(encoder: Encoder, tokens: int | None, overlap: int | None = None, prompt: str | None = None) -> tuple[int, int]:
    """The tokens of a passage, at most what the encoder reads beside its own tokens and a prompt, and those of an overlap.

    Raises:
        InputError: more than that, too few, or an overlap that is no smaller than half of them.
    """
    tokenize = encoder.tokenize
    own = tokenize.tokenizer.num_special_tokens_to_add() if tokenize.special_tokens else 0
    room = tokenize.max_length - own - len(tokenize.tokenizer.tokenize(encoder.prompts.get(prompt or "", "")))
    if tokens is None:
        tokens = max(1, min(LONGEST, room))
    elif type(tokens) is not int or not _LEAST <= tokens <= max(_LEAST, room):
        raise InputError(f"passage_tokens={tokens!r} must be a whole number from {_LEAST} to {room}, which the encoder reads")
    if overlap is None:
        overlap = tokens // _OVERLAP
    if type(overlap) is not int or not 0 <= overlap <= tokens // 2:
        raise InputError(f"overlap_tokens={overlap!r} must be a whole number from 0 to {tokens // 2}, half of a passage")
    return tokens, overlap


def cut_documents(documents: Sequence[Document], tokenize: Tokenize, budget: int, overlap: int) -> Iterator[PlacedPassage]:
    """The passages of documents, in their order.

    Args:
        documents: from `read_documents`.
        tokenize: the encoder's.
        budget: tokens of a passage, at most.
        overlap: tokens that it has in common with the one before, at most.
    """
    for some in _groups(documents, lambda document: len(document.text)):
        long = [i for i, document in enumerate(some) if document.kind == "markdown" or not _is_short(document.text, budget)]
        ends = dict(zip(long, _token_ends(tokenize, [some[i].text for i in long]), strict=True))
        for i, document in enumerate(some):
            if i in ends:
                passages = cut(document.text, ends[i], budget, overlap, document.kind == "markdown")
            else:
                start = len(document.text) - len(document.text.lstrip())
                passages = [Passage(start, len(document.text.rstrip()))]
            yield from _placed(document, passages)


def _is_short(text: str, budget: int) -> bool:
    """Whether a text fits for certain: no token is less than a byte."""
    return len(text.encode()) <= budget


def _groups(items: Iterable[_T], size: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Items whose sizes add up to about `_AT_ONCE`."""
    group: list[_T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= _AT_ONCE:
            yield group
            group, total = [], 0
    if group:
        yield group


def _token_ends(tokenize: Tokenize, texts: Sequence[str]) -> list[list[int]]:
    """Where the tokens of texts end, ascending; long texts are tokenised in pieces."""
    pieces = [(i, start, end) for i, text in enumerate(texts) for start, end in _pieces(text)]
    ends: list[list[np.ndarray]] = [[] for _ in texts]
    for group in _groups(pieces, lambda piece: piece[2] - piece[1]):
        encoded = tokenize.tokenizer(
            [texts[i][start:end] for i, start, end in group],
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for (i, start, _), offsets in zip(group, encoded["offset_mapping"], strict=True):
            of_piece = np.array([end for _, end in offsets], dtype=np.int64)
            ends[i].append(start + np.maximum.accumulate(of_piece))
    return [token_ends(len(text), np.concatenate(of_text)) for text, of_text in zip(texts, ends, strict=True)]


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces of a text, which end with a line, a sentence or a word if they can."""
    start = 0
    while len(text) - start > _PIECE:
        limit = start + _PIECE
        stops = (text.rfind(stop, limit - _PIECE_END, limit) for stop in ("\n", "。", ". ", " "))
        end = next((stop + 1 for stop in stops if stop >= 0), limit)
        yield start, end
        start = end
    yield start, len(text)


def _placed(document: Document, passages: Sequence[Passage]) -> Iterator[PlacedPassage]:
    """Passages with their lines; those of a line or a row, with their columns."""
    text = document.text
    breaks = [match.start() for match in re.finditer("\n", text)] if document.kind == "markdown" else []
    for passage in passages:
        before = bisect_left(breaks, passage.start)
        line_start = breaks[before - 1] + 1 if before else 0
        column = passage.start - line_start + 1 if text[line_start : passage.start].strip() else 1
        line, last_line = document.line + before, document.line + bisect_left(breaks, passage.end)
        place = Place(document.file, line, last_line, column, passage.path, passage.above)
        yield PlacedPassage(place, text[passage.start : passage.end])
