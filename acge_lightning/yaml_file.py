"""YAML files that anyone may have written: plain data, refused where a few bytes would become gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        InputError: it is not there, no YAML of plain data, or refused as in `checked_text`.
    """
    with _naming(file):
        loader = yaml.SafeLoader(_text(file))
        node = _measured(loader)
        return None if node is None else loader.construct_document(node)


def checked_text(file: str | Path) -> str:
    """The text of a file that any YAML reader can take.

    Raises:
        InputError: it is not there, no YAML, too large or too deep, itself or with its aliases written out.
    """
    with _naming(file):
        text = _text(file)
        _measured(yaml.SafeLoader(text))
    return text


@contextmanager
def _naming(file: str | Path) -> Iterator[None]:
    """What any reader says against a file, in one line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{file}: {line}{' '.join(str(error.problem).split())}: it must be YAML of plain data") from error
    except RecursionError:
        raise InputError(f"{file}: refused, for it has more than {_DEEPEST} levels") from None
    except (yaml.YAMLError, OSError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from error


def _text(file: str | Path) -> str:
    if not Path(file).is_file():
        raise InputError("there is no such file: check the path")
    with open(file, encoding="utf-8") as lines:
        text = lines.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise InputError(f"refused, for a YAML file here has at most {LARGEST:,} characters")
    return text


def _measured(loader: yaml.SafeLoader) -> yaml.Node | None:
    node = loader.get_single_node()
    if node is not None and _measure(node, {})[0] > LARGEST:
        raise InputError(f"refused, for its aliases, written out, make more than {LARGEST:,} characters")
    return node


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Characters and levels of a node with every alias written out; what was measured before is not measured again."""
    if id(node) not in known:
        known[id(node)] = (LARGEST + 1, 1)  # of an alias to what it stands in
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        elif not parts and len(node.value) > _LONGEST and node.tag != "tag:yaml.org,2002:str":
            raise InputError(f"refused, for line {node.start_mark.line + 1} has a number of {len(node.value):,} characters")
        sizes = [_measure(part, known) for part in parts]
        levels = 1 + max((level for _, level in sizes), default=0)
        if levels > _DEEPEST:
            raise InputError(f"refused, for it has more than {_DEEPEST} levels")
        known[id(node)] = 1 + sum(size for size, _ in sizes) + (0 if parts else len(node.value)), levels
    return known[id(node)]
