"""What is shown on the terminal: text of files, names and errors is shown as it is, and never obeyed.

Whatever the package prints goes through here (a test holds it to that). A text may hold sequences that move the cursor, set the
clipboard or turn around what is read, and words in brackets that rich takes for markup.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console as _Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_T = TypeVar("_T")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but line breaks and tabs
    "\u202a-\u202e\u2066-\u2069"  # what turns the direction of reading around
    "\u2028\u2029\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # other separators, half surrogate pairs, tags
)


def visible(text: str) -> str:
    r"""The text with all that a terminal obeys, and nobody sees, written out; line breaks and tabs stay.

    >>> print(visible("a\x1b[2Jb\u202e [bold]"))
    a\x1b[2Jb\u202e [bold]
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    r"""As `visible`, with line breaks written out too: a name that holds one cannot pass for a message of its own.

    >>> print(one_line("a\nerror: b"))
    a\nerror: b
    """
    return visible(str(text)).replace("\n", "\\n")


class Console(_Console):
    """Of rich, for whom strings are no markup, no emoji, and hold nothing that a terminal obeys."""

    def __init__(self, **how: Any):
        super().__init__(**how, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Where rich makes a text of each string: of a line, a cell, a head, a title."""
        return super().render_str(visible(text), **how)


def show(*parts: Any, stderr: bool = False) -> None:
    """Print tables and lines; None is left out. Not for rich's own `Text`, whose contents are taken as they are."""
    console = _console(stderr)
    for part in parts:
        if part is not None:
            console.print(part, soft_wrap=isinstance(part, str))  # a path must not be broken


def _console(stderr: bool) -> Console:
    """Of a terminal; of a file with lines that are not too short for a table."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=max(100, console.width))


class ProgressBar:
    """How much of some long work is done, on the standard error: a bar, counts, the rate and the time that is left.

    On a terminal it moves; elsewhere only how it ended is shown. Used as a context.

    Args:
        name: of the work.
        unit: what is counted.
        total: how many there are; None where nobody knows.
        shown: False for no bar; lines are printed all the same.
    """

    def __init__(self, name: str, unit: str, total: float | None = None, shown: bool = True):
        name_column, left = TextColumn("{task.description}", markup=False), TimeRemainingColumn(elapsed_when_finished=True)
        columns = name_column, BarColumn(20), MofNCompleteColumn(), TextColumn(unit), _Rate(), left
        self._progress = Progress(*columns, console=_console(stderr=True), disable=not shown)
        self._task = self._progress.add_task(one_line(name), total=total)

    def __enter__(self) -> ProgressBar:
        """Show it."""
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave it as it is by then."""
        self._progress.stop()

    def advance(self, count: float = 1) -> None:
        """So many more are done."""
        self._progress.advance(self._task, count)

    def rename(self, name: str) -> None:
        """Another part of the work has begun."""
        self._progress.update(self._task, description=one_line(name))

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(one_line(text), soft_wrap=True)


class _Rate(ProgressColumn):
    """Units a second, or seconds a unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def track(
    items: Iterable[_T], name: str, unit: str, total: float | None = None, size: Callable[[_T], float] = lambda item: 1
) -> Iterator[_T]:
    """The items, with a `ProgressBar` that shows how many are done.

    Args:
        items: what is worked on.
        name: of the work.
        unit: what is counted.
        total: how many there are; by default the length of `items`, if it has one.
        size: for how many an item counts.
    """
    with ProgressBar(name, unit, total if total is not None else length_hint(items) or None) as progress:
        for item in items:
            yield item
            progress.advance(size(item))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return visible(super().getMessage())


def make_logs_visible() -> None:
    """Let the messages of all loggers, also of libraries, go through `visible`; for programs, which own their process."""
    logging.setLogRecordFactory(_Record)


def end(error: object) -> None:
    """End the program with a message of one line, and status 1."""
    sys.exit(f"\nerror: {one_line(error)}")
