"""Markdown as far as cutting needs it: headings, the sections that they open, and blocks that stay whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from acge_lightning.terminal import shortened

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_HASHES = re.compile(r" {0,3}(#{1,6})(?=\s|$)|(#{2,6})(?=[^#\s])")  # many write ##标题
_UNDERLINE = re.compile(r" {0,3}(?:(=+)|-{2,})\s*$")
_NO_TITLE = re.compile(r"\s*(?:[-*+>|#]|\d+[.)]\s)|\s{4}")  # a list, a quote, a table, code
_TITLE = 80  # characters of a heading, at most


@dataclass(frozen=True)
class Heading:
    """A heading of Markdown.

    Args:
        level: 1 … 6.
        title: its words.
        start: character at which its line begins.
        end: character after it.
    """

    level: int
    title: str
    start: int
    end: int


@dataclass(frozen=True)
class Section:
    """Text under a heading, up to the next one.

    Args:
        start: character at which its heading begins; that of the one above, if nothing stands between the two.
        end: character after it.
        path: the headings that it is under, the outermost first.
    """

    start: int
    end: int
    path: tuple[Heading, ...] = ()


def structure(text: str) -> tuple[list[Section], list[tuple[int, int]]]:
    """The sections of a Markdown text, which cover all of it, and (start, end) of its front matter and fenced code.

    Code that is opened and never closed is taken for text.
    """
    lines = [(match.start(), match[0]) for match in _LINE.finditer(text)]
    headings, blocks = [], []
    unclosed: dict[str, int] = {}  # of ` and ~: the length of fence that nothing below closes
    number = end = _front_matter_end(lines)
    if end:
        blocks.append((0, _end(lines[end - 1])))
    while number < len(lines):
        start, line = lines[number]
        fence = _FENCE.match(line)
        close = _closing(lines, number, fence[1], unclosed) if fence and not ("`" in fence[1] and "`" in fence[2]) else None
        if close is not None:
            blocks.append((start, _end(lines[close])))
            number = close + 1
            continue
        heading = _heading(lines, number)
        if heading is not None:
            headings.append(heading)
        number += 1
    return _sections(text, headings), blocks


def _end(line: tuple[int, str]) -> int:
    """The character after what is written in a line."""
    return line[0] + len(line[1].rstrip())


def _front_matter_end(lines: list[tuple[int, str]]) -> int:
    """The number of the first line after the YAML that a text begins with; 0 if it does not."""
    if not lines or lines[0][1].rstrip() != "---":
        return 0
    return next((i + 1 for i, (_, line) in enumerate(lines[1:200], 1) if line.rstrip() in ("---", "...")), 0)


def _closing(lines: list[tuple[int, str]], number: int, fence: str, unclosed: dict[str, int]) -> int | None:
    """The number of the line that closes the fence of a line; None if there is none."""
    if len(fence) >= unclosed.get(fence[0], len(fence) + 1):
        return None
    for i in range(number + 1, len(lines)):
        line = lines[i][1].strip()
        if len(line) >= len(fence) and line.strip(fence[0]) == "":
            return i
    unclosed[fence[0]] = len(fence)
    return None


def _heading(lines: list[tuple[int, str]], number: int) -> Heading | None:
    """The heading of a line, or of the line that it underlines."""
    start, line = lines[number]
    hashes = _HASHES.match(line)
    if hashes:
        title = line[hashes.end() :].strip()
        bare = title.rstrip("#")
        title = bare.rstrip() if bare[-1:].isspace() or not bare else title
        return Heading(len(hashes[1] or hashes[2]), shortened(title, _TITLE), start, _end(lines[number]))
    underline = _UNDERLINE.match(line)
    above = lines[number - 1][1] if number else ""
    stands_alone = number < 2 or not lines[number - 2][1].strip()
    if underline and stands_alone and above.strip() and not _NO_TITLE.match(above) and not _UNDERLINE.match(above):
        level = 1 if underline[1] else 2
        return Heading(level, shortened(above.strip(), _TITLE), lines[number - 1][0], _end(lines[number]))
    return None


def _sections(text: str, headings: list[Heading]) -> list[Section]:
    first = headings[0].start if headings else len(text)
    sections = [Section(0, first)] if first else []
    path: list[Heading] = []
    start = None  # of a heading with nothing under it but the next one
    for heading, following in zip_longest(headings, headings[1:]):
        path = [*(other for other in path if other.level < heading.level), heading]
        start = heading.start if start is None else start
        end = len(text) if following is None else following.start
        if following is None or following.level <= heading.level or text[heading.end : end].strip():
            sections.append(Section(start, end, tuple(path)))
            start = None
    return sections
