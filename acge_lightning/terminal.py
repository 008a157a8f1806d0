"""What is shown on the terminal: text of files, names and errors is shown as it is, and never obeyed.

Whatever the package prints goes through here (a test holds it to that). A text may hold sequences that move the cursor, set the
clipboard or turn around what is read, and words in brackets that rich takes for markup.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console as _Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
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
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=max(100, console.width))
    for part in parts:
        if part is not None:
            console.print(part, soft_wrap=isinstance(part, str))  # a path must not be broken


def bar(unit: str = "") -> Progress:
    """A progress bar on the standard error: a share, or so many of all units."""
    done = (MofNCompleteColumn(), TextColumn(unit)) if unit else (TaskProgressColumn(),)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), *done, TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def track(items: Iterable[_T], name: str, total: float | None = None) -> Iterator[_T]:
    """The items, with a bar that shows how many have been taken."""
    with bar() as shown:
        yield from shown.track(items, total, description=one_line(name))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return visible(super().getMessage())


def make_logs_visible() -> None:
    """Let the messages of all loggers, also of libraries, go through `visible`; for programs, which own their process."""
    logging.setLogRecordFactory(_Record)


def end(error: object) -> None:
    """End the program with a message of one line, and status 1."""
    sys.exit(f"\nerror: {one_line(error)}")
