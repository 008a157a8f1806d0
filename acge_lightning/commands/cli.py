"""Run the command line: `acge train …`, `acge evaluate …`, `acge models`. A command is loaded when it is called."""

from __future__ import annotations

import sys

from acge_lightning.terminal import show

HYDRA_COMMANDS = ("train", "evaluate", "longtail", "vocabulary", "report", "pca", "search", "fisher")  # over conf/<name>.yaml
COMMANDS = (*HYDRA_COMMANDS, "models")


def call(name: str, words: int) -> None:
    """Run a command.

    Args:
        name: one of `COMMANDS`.
        words: how many of `sys.argv` start it; the others are its arguments.
    """
    if name == "models":
        from acge_lightning.commands import models

        models.run()
    else:
        from acge_lightning.commands.program import program

        program(name)(words)


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        wrong = f"unknown command {name!r}\n" if name and name not in ("-h", "--help") else ""
        show(f"{wrong}usage: acge {{{','.join(COMMANDS)}}} [key=value …]   (acge train --help shows the config)")
        sys.exit(2 if wrong or not name else 0)
    call(name, 2)
