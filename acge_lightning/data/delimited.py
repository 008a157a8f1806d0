"""Lines of csv and tsv to values: quotes that stay open, delimiters other than the comma, and where each row begins."""

from __future__ import annotations

import csv
import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

from acge_lightning.data.table import Values

_LOG = logging.getLogger(__name__)
LONGEST = 300  # lines of a row of csv
_DELIMITERS = {",": "','", ";": "';'", "\t": "tabs"}  # of csv
_SAMPLE = 200  # lines that tell the delimiter
_SAMPLE_CHARACTERS = 1_000_000
_NAMED = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)  # a first line that Excel understands
_QUOTED_TAB = re.compile(r'(?:^|(?<=\t))"[^"\t]*(?:""[^"\t]*)+"\s*(?:\t|$)')
csv.field_size_limit(2**31 - 1)


def tsv_values(lines: Iterable[str], file: Path) -> Iterator[Values]:
    """(line, values) of each line; a quote is a character like any other."""
    quoted: list[int] = []
    for number, line in enumerate(lines, 1):
        if '""' in line and _QUOTED_TAB.search(line):
            quoted.append(number)
        try:
            yield number, next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE))
        except csv.Error as error:
            yield number, error
    if quoted:
        message = "%s: %d lines, first line %d, quote a value as csv does; in .tsv a quote is a character: save it as .csv"
        _LOG.warning(message, file, len(quoted), quoted[0])


class Lines:
    """Lines of a file that can be put back, and the number of the last one taken."""

    def __init__(self, lines: Iterable[str]):
        self.number, self._lines, self._again = 0, iter(lines), deque[str]()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        """Give these again, the first one first."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


# ---- the delimiter


def take_delimiter(lines: Lines, file: Path) -> str:
    """The delimiter of a csv: a comma, unless the header and the first rows have as many values with `;` or with tabs.

    A first line `sep=;`, as Excel understands it, says it, and is taken.
    """
    sample, characters = [], 0
    for line in islice(lines, _SAMPLE):
        sample.append(line)
        characters += len(line)
        if characters > _SAMPLE_CHARACTERS:
            break
    is_whole = len(sample) < _SAMPLE and characters <= _SAMPLE_CHARACTERS
    named = _NAMED.fullmatch(sample[0]) if sample else None
    delimiter = named[1] if named else _delimiter(sample, is_whole)
    lines.put_back(sample[1:] if named else sample)
    if delimiter != ",":
        _LOG.warning("%s: its values stand between %s, and are read so", file, _DELIMITERS[delimiter])
    return delimiter


def _delimiter(sample: list[str], is_whole: bool) -> str:
    return next((delimiter for delimiter in _DELIMITERS if _fits(sample, delimiter, is_whole)), ",")


def _fits(sample: list[str], delimiter: str, is_whole: bool) -> bool:
    """Whether a delimiter makes several columns of a header, and as many of nine rows in ten."""
    try:
        rows = [row for row in csv.reader(sample, delimiter=delimiter) if any(value.strip() for value in row)]
    except csv.Error:
        return False
    if not is_whole:
        rows = rows[:-1]  # it may be cut
    widths = [len(row) for row in rows]
    return len(widths) > 1 and widths[0] > 1 and widths.count(widths[0]) >= 0.9 * len(widths)


# ---- csv


class Csv:
    """The rows of a csv of one delimiter.

    A quoted value that does not end as it should is an error of the line on which it begins. The lines that it swallowed are
    rows where each is a whole one by itself, and errors where not.
    """

    def __init__(self, lines: Lines, delimiter: str, file: Path):
        self._lines, self._delimiter, self._file = lines, delimiter, file

    def __iter__(self) -> Iterator[Values]:
        """(line on which it begins, values) of each row."""
        lines, width = self._lines, 0
        doubtful: list[int] = []
        while True:
            taken: list[str] = []
            start = lines.number + 1
            try:
                values = next(csv.reader(_taken(lines, taken), strict=True, delimiter=self._delimiter), None)
            except csv.Error as error:
                swallowed = taken[self._opened(taken) + 1 :]
                lines.put_back(swallowed)
                yield lines.number, error
                yield from self._swallowed(len(swallowed), len(taken) == LONGEST, width)
                continue
            if values is None:
                break
            yield start, values
            width = width or len(values)
            if len(taken) > 3 and width > 1 and all(line.count(self._delimiter) == width - 1 for line in taken):
                doubtful.append(start)
        if doubtful:
            message = "%s: %d rows, first line %d, hold a quoted value of lines that look like rows: check their quotes"
            _LOG.warning(message, self._file, len(doubtful), doubtful[0])

    @cached_property
    def _value(self) -> str:
        return rf'(?:"[^"\r\n]*(?:""[^"\r\n]*)*"|[^"{self._delimiter}\r\n]*)'

    @cached_property
    def _whole_row(self) -> re.Pattern[str]:
        return re.compile(rf"{self._value}(?:{self._delimiter}{self._value})*\r?\n?")

    @cached_property
    def _opens(self) -> re.Pattern[str]:
        """A line whose last value goes on."""
        return re.compile(rf'(?:{self._value}{self._delimiter})*"[^"]*(?:""[^"]*)*')

    def _swallowed(self, count: int, more: bool, width: int) -> Iterator[Values]:
        """So many lines after an open quote; with `more`, on to the line that closes it, or that opens another."""
        lines = self._lines
        for line in islice(lines, count):
            yield lines.number, self._alone(line, width)
        for line in lines if more else ():
            if self._opens.fullmatch(line):
                lines.put_back([line])
                return
            yield lines.number, self._alone(line, width)
            if line.count('"') % 2:
                return

    def _alone(self, line: str, width: int) -> list[str] | csv.Error:
        """The values of a line that is a whole row; in one column that cannot be told."""
        values = next(csv.reader([line], delimiter=self._delimiter)) if self._whole_row.fullmatch(line) else [""]
        fits = not values or len(values) == width > 1
        return values if fits else csv.Error("it follows an open quote, and is no whole row by itself")

    def _opened(self, taken: list[str]) -> int:
        """The number, from 0, of the line on which the last quoted value of some lines begins."""
        text = "".join(taken)
        starts = [value.start() for value in re.finditer(rf'(?:^|(?<={self._delimiter}))"[^"]*(?:""[^"]*)*"?', text)]
        return text.count("\n", 0, starts[-1]) if starts else 0


def _taken(lines: Lines, taken: list[str]) -> Iterator[str]:
    """The lines of a row, each put into `taken`."""
    for line in islice(lines, LONGEST):
        taken.append(line)
        yield line
    if len(taken) == LONGEST:
        raise csv.Error(f"a quoted value runs over more than {LONGEST} lines")
