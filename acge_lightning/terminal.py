"""Print to the terminal: text of files, names and errors is shown as it is, and never obeyed.

The package prints through this module only (a test checks it). A text may hold sequences that move the cursor, set the
clipboard or reverse the direction of reading, and words in brackets that rich takes for markup.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console as _Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_T = TypeVar("_T")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but line breaks and tabs
    "\u202a-\u202e\u2066-\u2069"  # marks that change the direction of reading
    "\u2028\u2029\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # other separators, half surrogate pairs, tags
)


def visible(text: str) -> str:
    r"""Write out the characters of a text that a terminal obeys, and nobody sees; line breaks and tabs stay.

    >>> print(visible("a\x1b[2Jb\u202e [bold]"))
    a\x1b[2Jb\u202e [bold]
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    r"""Write out line breaks too, beside what `visible` does: a name that has one cannot pass for a message of its own.

    >>> print(one_line("a\nerror: b"))
    a\nerror: b
    """
    return visible(str(text)).replace("\n", "\\n")


def shortened(text: str, length: int = 20) -> str:
    """Cut a text to at most so many characters, the last of them an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def highlighted(text: str, spans: Iterable[tuple[int, int]], style: str = "bold green") -> Text:
    """Make a text of rich in which parts have a style, as it is on a terminal; `visible` is applied to it.

    Args:
        text: to be shown.
        spans: (start, end) of the parts; they may overlap.
        style: as rich calls it.
    """
    styled = bytearray(len(text))
    for start, end in spans:
        styled[start:end] = b"\1" * len(styled[start:end])
    shown = Text()
    for has_style, characters in groupby(zip(text, styled, strict=True), key=lambda character: character[1]):
        shown.append(visible("".join(character for character, _ in characters)), style if has_style else None)
    return shown


def show_json(value: Any) -> None:
    """Print plain data as JSON in a line; what a terminal would obey is escaped, and where it has no UTF-8 all but ASCII."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").startswith("utf")
    line = json.dumps(value, ensure_ascii=not is_utf8, allow_nan=False)
    show(_UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], line))


class Console(_Console):
    """A console of rich without markup and emoji in strings, and with `visible` applied to them."""

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of a string: rich does it for each line, cell, head and title."""
        return super().render_str(visible(text), **options)


def show(*items: Any, stderr: bool = False, style: str | None = None) -> None:
    """Print tables and lines; None is skipped. Not for rich's own `Text`, which `visible` is not applied to.

    Args:
        items: what is printed.
        stderr: to the standard error.
        style: of rich, for example `bold red`; only a terminal shows it.
    """
    console = _console(stderr)
    for item in items:
        if item is not None:
            console.print(item, soft_wrap=isinstance(item, str), style=style)  # a path must not be broken


def _console(stderr: bool) -> Console:
    """Make the console of a stream; one that is no terminal has lines wide enough for a table."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=max(100, console.width))


class ProgressBar:
    """Shows the progress of long work on the standard error: a bar, counts, the rate and the remaining time.

    On a terminal it moves; elsewhere only its end is shown. Used as a context.

    Args:
        name: of the work.
        unit: what is counted.
        total: the number of units; None if unknown.
        shown: False for no bar; lines are printed all the same.
    """

    def __init__(self, name: str, unit: str, total: float | None = None, shown: bool = True):
        name_column, time_column = (
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        columns = name_column, BarColumn(20), MofNCompleteColumn(), TextColumn(unit), _Rate(), time_column
        self._progress = Progress(*columns, console=_console(stderr=True), disable=not shown)
        self._task = self._progress.add_task(one_line(name), total=total)

    def __enter__(self) -> ProgressBar:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop the bar, and leave it on the terminal."""
        self._progress.stop()

    def advance(self, count: float = 1) -> None:
        """Count further units as done."""
        self._progress.advance(self._task, count)

    def rename(self, name: str) -> None:
        """Change the name that is shown."""
        self._progress.update(self._task, description=one_line(name))

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(one_line(text), soft_wrap=True)


class _Rate(ProgressColumn):
    """Shows units a second, or seconds a unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def track(
    items: Iterable[_T], name: str, unit: str, total: float | None = None, size: Callable[[_T], float] = lambda item: 1
) -> Iterator[_T]:
    """Yield the items, with a `ProgressBar` that shows how many are done.

    Args:
        items: what is worked on.
        name: of the work.
        unit: what is counted.
        total: the number of units; by default the length of `items`, if it has one.
        size: the units of an item.
    """
    with ProgressBar(name, unit, total if total is not None else length_hint(items) or None) as progress:
        for item in items:
            yield item
            progress.advance(size(item))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return visible(super().getMessage())


def make_logs_visible() -> None:
    """Apply `visible` to the messages of all loggers, also of libraries; for programs, which own their process."""
    logging.setLogRecordFactory(_Record)


def end(error: object) -> None:
    """End the program with a message of one line, and status 1."""
    sys.exit(f"\nerror: {one_line(error)}")
