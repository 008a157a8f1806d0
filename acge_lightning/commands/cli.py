"""Run the command line: `acge train …`, `acge evaluate …`, `acge models`. A command is loaded when it is called."""

from __future__ import annotations

import sys

from acge_lightning.commands.usage import HELP_FLAGS, USAGE
from acge_lightning.errors import InputError
from acge_lightning.terminal import end

_COMPLETION = ("-sc", "--shell-completion")


def call(name: str, words: int) -> None:
    """Run a command.

    Args:
        name: of the command, one of `USAGE`.
        words: how many of `sys.argv` start it; the others are its arguments.
    """
    typed = sys.argv[words:]
    if set(HELP_FLAGS) & set(typed):
        from acge_lightning.commands.help import show_help

        try:
            show_help(name, typed)
        except InputError as error:
            end(error)
    elif "--version" in typed:
        _show_version()
    elif set(_COMPLETION) & set(typed):
        _complete(typed)
    elif name == "models":
        from acge_lightning.commands import models

        models.run()
    else:
        from acge_lightning.commands.program import program

        program(name)(words)


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in USAGE:
        call(name, 2)
    elif name in ("", "help", *HELP_FLAGS):
        from acge_lightning.commands.help import show_overview

        show_overview()
        sys.exit(0 if name else 2)
    elif name == "--version":
        _show_version()
    elif name in _COMPLETION:
        _complete(sys.argv[1:])
    else:
        _end_unknown(name)


def _complete(words: list[str]) -> None:
    from acge_lightning.commands.completion import complete

    complete(words)


def _show_version() -> None:
    from acge_lightning.commands.help import show_version

    show_version()


def _end_unknown(name: str) -> None:
    """End the program for a command that is not there, and say which ones are close."""
    from acge_lightning.config.targets import closest
    from acge_lightning.terminal import one_line, show

    near = closest(name, USAGE)
    remedy = f"did you mean acge {near}?" if near else "acge --help lists them all"
    show(f"error: there is no command '{one_line(name)}': {remedy}", stderr=True)
    sys.exit(2)
