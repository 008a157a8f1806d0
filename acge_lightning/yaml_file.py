"""YAML files that anyone may have written: plain data, refused where a few bytes would become gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from acge_lightning.errors import InputError

LARGEST = 1 << 18  # characters of a file, also once every alias is written out
_DEEPEST = 50  # levels
_LONGEST = 400  # characters of a number or a date: the time to read one grows with their square


def read_yaml(file: str | Path) -> Any:
    """The plain data of a file; None for an empty one.

    Raises:
        InputError: it is not there, no YAML, or refused as in `checked_text`.
    """
    return _document(file, _text(file))


def checked_text(file: str | Path) -> str:
    """The text of a file that any YAML reader can take.

    Raises:
        InputError: it is not there, no YAML of plain data, too large or too deep, itself or with its aliases written out.
    """
    text = _text(file)
    _document(file, text)
    return text


def _text(file: str | Path) -> str:
    if not Path(file).is_file():
        raise InputError(f"{file} is no file: check the path")
    try:
        with open(file, encoding="utf-8") as lines:
            text = lines.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if len(text) > LARGEST:
        raise InputError(f"{file} is refused: a YAML file here has at most {LARGEST:,} characters")
    return text


def _document(file: str | Path, text: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _measure(node, {})[0] > LARGEST:
            raise InputError(f"its aliases, written out, make more than {LARGEST:,} characters")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{file}{line} is no YAML of plain data: {' '.join(str(error.problem).split())}") from error
    except RecursionError:
        raise InputError(f"{file} is refused: it has more than {_DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise InputError(f"{file} is refused: {' '.join(str(error).split())}") from error


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Characters and levels of a node with every alias written out; what was measured before is not measured again."""
    if id(node) not in known:
        known[id(node)] = (LARGEST + 1, 1)  # of an alias to what it stands in
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        elif not parts and len(node.value) > _LONGEST and node.tag != "tag:yaml.org,2002:str":
            raise InputError(f"line {node.start_mark.line + 1} has a number of {len(node.value):,} characters")
        sizes = [_measure(part, known) for part in parts]
        levels = 1 + max((level for _, level in sizes), default=0)
        if levels > _DEEPEST:
            raise InputError(f"it has more than {_DEEPEST} levels")
        known[id(node)] = 1 + sum(size for size, _ in sizes) + (0 if parts else len(node.value)), levels
    return known[id(node)]
