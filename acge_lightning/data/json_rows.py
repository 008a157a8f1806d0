"""JSON to rows: an object a line, or one list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from acge_lightning.data.encoding import encoding_of, open_text
from acge_lightning.data.records import RowError
from acge_lightning.data.table import NumberedRow
from acge_lightning.errors import InputError

_START = 65_536  # characters that tell the form
_PIECE = 2**20  # characters that are read together
LONGEST = 2**26  # characters of an item of a list
_SPACE = re.compile(r"[ \t\r\n]*")
_LIST = re.compile(r"\s*\[\s*(?:[{\]]|\Z)")
_PANDAS = "df.to_json(FILE, orient='records', lines=True, force_ascii=False)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_object)
_LENIENT = json.JSONDecoder()


def json_rows(file: Path, span: tuple[int, int | None] | None = None) -> Iterator[NumberedRow]:
    """(line on which it begins, row) of each object: one a line, or those of one list, which may run over lines.

    Args:
        file: of JSON.
        span: lines that are read, from 0 and before the end, of a file of one object a line.

    Raises:
        InputError: a list that is no JSON from some line on, columns in place of rows, an object that runs over lines.
    """
    with open_text(file) as text:
        start = text.read(_START)
    with open_text(file) as text:
        if _LIST.match(start):
            yield from _Items(text, file)
            return
        if _runs_over_lines(start):
            remedy = "write each on one line, jq -c . FILE, or all in one list [{…}, {…}]"
            raise InputError(f"{file}: an object runs over several lines: {remedy}")
        first, last = span or (0, None)
        yield from _line_rows(islice(enumerate(text, 1), first, last), file)


def is_lines(file: Path) -> bool:
    """Tell whether a file of JSON has an object a line, not a list of them."""
    with open_text(file) as text:
        return _LIST.match(text.read(_START)) is None


def _runs_over_lines(start: str) -> bool:
    """Whether the first object does not end on its line, and the next line goes on with it."""
    lines = [line.strip() for line in start.split("\n") if line.strip()][:2]
    return len(lines) == 2 and lines[0][0] == "{" and lines[0][-1] in "{[," and lines[1][0] in '"]}[0123456789'


def _line_rows(lines: Iterable[tuple[int, str]], file: Path) -> Iterator[NumberedRow]:
    for number, line in lines:
        if line.isspace():
            continue
        undecodable = _undecodable(line, file)
        if undecodable is not None:
            yield number, undecodable
            continue
        try:
            row = _JSON.decode(line)
        except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
            yield number, RowError(None, f"is not JSON ({error}): write one object a line, or on_bad_row=skip")
        else:
            if number == 1 and _has_columns(row):
                raise InputError(f"{file}, line 1: it holds columns, not a row: write one object a row, in pandas {_PANDAS}")
            yield number, _checked(row, "write {…} a line")


def _undecodable(text: str, file: Path) -> RowError | None:
    """What is wrong with a text of bytes that do not fit the file's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        encoding = encoding_of(file).removesuffix("-sig")
        byte = len(text[: error.start].encode(encoding)) + 1
        return RowError(None, f"is not valid {encoding.upper()} (byte {byte}): mend its encoding, or on_bad_row=skip")
    return None


def _has_columns(row: Any) -> bool:
    """Whether a value is an object of columns, as pandas writes it by default."""
    return isinstance(row, dict) and bool(row) and all(isinstance(value, (dict, list)) for value in row.values())


def _checked(row: Any, remedy: str) -> dict[str, Any] | RowError:
    return row if isinstance(row, dict) else RowError(None, f"holds {row!r:.40}, not an object: {remedy}, or on_bad_row=skip")


class _Items:
    """The items of a list of JSON, of which a piece at a time is in memory."""

    def __init__(self, text: IO[str], file: Path):
        self._text, self._file = text, file
        self._buffer, self._position, self._line = "", 0, 1

    def __iter__(self) -> Iterator[NumberedRow]:
        """(line on which it begins, row) of each."""
        self._next_letter()
        self._position += 1  # the bracket that opens the list
        letter = self._next_letter()
        self._position += letter == "]"
        while letter != "]":
            self._next_letter()
            yield self._line, self._item()
            letter = self._next_letter()
            self._position += 1
            if letter not in (",", "]"):
                problem = f"has {letter!r} after an item" if letter else "ends before the list does"
                raise self._error(f"{problem}: it may be incomplete, copy it again, or mend it there")
        if self._next_letter():
            raise self._error("goes on after the end of the list: write one list, or one object a line")

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._file}, line {self._line}: {problem}")

    def _next_letter(self) -> str:
        """Pass over white space; the next character, which is not taken, or nothing at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            assert space is not None
            self._go_to(space.end())
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_on():
                return ""

    def _go_to(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _read_on(self) -> bool:
        """As much again as there is in memory, so that a long item is not parsed too often."""
        piece = self._text.read(max(_PIECE, len(self._buffer) - self._position))
        if piece:
            self._buffer, self._position = self._buffer[self._position :] + piece, 0
        return bool(piece)

    def _item(self) -> dict[str, Any] | RowError:
        while True:
            try:
                row, end = self._decoded()
                if end < len(self._buffer) or not self._read_on():  # else a number may go on
                    break
            except (ValueError, RecursionError) as error:
                too_long = len(self._buffer) - self._position > LONGEST
                if too_long or isinstance(error, RecursionError) or not self._read_on():
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise self._error(f"the item that begins there is not JSON ({reason}): mend it") from None
        text = self._buffer[self._position : end]
        self._go_to(end)
        if isinstance(row, RowError):
            return row
        return _undecodable(text, self._file) or _checked(row, "write {…} an item")

    def _decoded(self) -> tuple[Any, int]:
        """The next item, and the position after it."""
        try:
            return _JSON.raw_decode(self._buffer, self._position)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # a name that comes twice
            end = _LENIENT.raw_decode(self._buffer, self._position)[1]
            return RowError(None, f"is not JSON ({error}): mend it, or on_bad_row=skip"), end
