"""Show what the commands are and what they take: from the table of commands and the comments of their YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from acge_lightning import __version__
from acge_lightning.commands.usage import HELP_FLAGS, USAGE
from acge_lightning.config.folder import config_dir
from acge_lightning.config.targets import closest
from acge_lightning.errors import InputError
from acge_lightning.terminal import show

_LINE = re.compile(r"( *)([\w.]+):(?: +([^#\s][^#]*?))?(?: +# (.*))?")
_GROUP = re.compile(r"  - (?:optional )?(\w+): (.*?)(?: +# (.*))?")
_LONGEST = 16  # characters of a value that is shown
_NO_GROUPS = ("paths",)  # that have one choice


def show_overview() -> None:
    """Print a line for each command."""
    show("usage: acge COMMAND [key=value …]\n", _columns((name, usage.summary) for name, usage in USAGE.items()))
    show("\nacge COMMAND --help shows what it takes, acge --version the version; for tab completion, in ~/.bashrc:")
    show('eval "$(acge -sc install=bash)"')


def show_version() -> None:
    """Print the version of the package."""
    show(f"acge {__version__}")


def show_help(name: str, words: Sequence[str]) -> None:
    """Print how a command is used: its keys with their comments, its groups, examples; or the choices of a group.

    Args:
        name: of the command.
        words: those after it; one after `--help` is the name of a group, and asks for its choices.
    """
    usage, folder = USAGE[name], config_dir()
    file = folder / f"{name}.yaml"
    groups = _groups(file) if file.is_file() else {}
    last = words[-1]
    if groups and re.fullmatch(r"\w+", last) and words[-2:-1] and words[-2] in HELP_FLAGS:
        show_choices(name, last, folder, groups)
        return
    show(f"usage: {usage.line(name)}\n")
    if not file.is_file():
        show(f"{usage.summary[:1].upper()}{usage.summary[1:]}.")
        return
    show(_purpose(file), "\nkeys:", _columns(_keys(file)))
    if groups:
        rows = ((_setting(group, value), _group_note(folder / group, note)) for group, (value, note) in groups.items())
        show(f"\nchoices of files in conf/ (acge {name} --help {next(iter(groups))} lists the first of these):", _columns(rows))
    show("\nexamples:", *(f"  {line}" for line in usage.examples))
    show(f"\nEverything that can be set, with its value: acge {name} --cfg job")


def show_choices(name: str, group: str, folder: Path, groups: dict[str, Any]) -> None:
    """Print the choices of a group, each with the comment that its YAML begins with."""
    if group not in groups:
        near = closest(group, groups)
        remedy = f"did you mean {near}?" if near else f"choose one of {', '.join(groups)}"
        raise InputError(f"acge {name} has no group {group}: {remedy}")
    files = sorted((folder / group).glob("*.yaml"))
    show(f"{group}=", _columns((file.stem, _comment(file)) for file in files))


def _columns(rows: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for left, right in rows:
        table.add_row(f"  {left}", right)
    return table


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _setting(key: str, value: str) -> str:
    """Write a key with its value, unless it has none or a long one."""
    if len(value) > _LONGEST:
        value = f"{value[:1]}…{value[-1:]}"
    return key if value in ("", "???") else f"{key}={value}"


def _comment(file: Path) -> str:
    """Read the comment that a YAML file begins with, as one line; the header for Hydra is none."""
    words = []
    for line in _lines(file):
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words.append(line.lstrip("# "))
    return " ".join(words)


def _purpose(file: Path) -> str:
    """Read what a command does from its YAML: the comment at its top, without the command that it may begin with."""
    text = re.sub(r"^`[^`]*`: ", "", _comment(file))
    return text[:1].upper() + text[1:]


def _groups(file: Path) -> dict[str, tuple[str, str]]:
    """Read the groups of a config's defaults list: name -> (its choice, its comment)."""
    matches = [match for line in _lines(file) if (match := _GROUP.fullmatch(line))]
    groups = {match[1]: (match[2], match[3] or "") for match in matches if match[1] not in _NO_GROUPS}
    return {"experiment": ("…", ""), **groups} if file.stem == "train" else groups


def _group_note(folder: Path, note: str) -> str:
    count = len(list(folder.glob("*.yaml")))
    return ", ".join(filter(None, [note, f"{count} choices"]))


def _keys(file: Path) -> Iterator[tuple[str, str]]:
    """Read the keys at the top, and those below that have a comment, but none of Hydra: (key or key=value, comment)."""
    path: list[str] = []
    for line in _lines(file):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        path = [*path[: len(match[1]) // 2], match[2]]
        if path[0] not in ("hydra", "defaults") and (match[4] or (len(path) == 1 and match[3])):
            yield _setting(".".join(path), match[3] or ""), match[4] or ""
