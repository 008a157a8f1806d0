"""YAML files that anyone may have written: plain data, refused where a few bytes would become gigabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from acge_lightning.errors import InputError

LARGEST = 1 << 18  # characters of a file, also once every alias is written out
_DEEPEST = 50  # levels
_LONGEST = 400  # characters of a number or a date: the time to read one grows with their square
_NAME, _DOTS = re.compile(r"\.*[\w-]+(?:[.\[\]]+[\w-]+)*"), re.compile(r"[.\[\]]+")  # of a key within an interpolation


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


def explodes(data: Any) -> bool:
    """Whether a config, with its interpolations written out, would be larger than any file may be.

    Of a part of a config, absolute names may begin with its place in the whole. Names that are interpolated themselves are not
    followed.

    Args:
        data: plain data, nothing resolved.
    """
    values: dict[tuple[str, ...], Any] = {}
    known: dict[tuple[str, ...], int] = {}

    def collect(place: tuple[str, ...], value: Any) -> None:
        values[place] = value
        for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            collect((*place, str(key)), part)

    def size(place: tuple[str, ...]) -> int:
        if place not in known:
            known[place] = 0  # of one that leads to itself, which is an error elsewhere
            value = values[place]
            if isinstance(value, (dict, list)):
                parts = [(*place, str(key)) for key in (value if isinstance(value, dict) else range(len(value)))]
                known[place] = sum(map(size, parts))
            else:
                found = (next((c for c in keys if c in values), None) for keys in _named(str(value), place))
                known[place] = len(str(value)) + sum(size(target) for target in found if target is not None)
        return known[place]

    try:
        collect((), data)
        return size(()) > LARGEST
    except RecursionError:
        return True


def _named(text: str, place: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    """For each name within a text's interpolations the keys that it may be that of, the likeliest first.

    Args:
        text: the value.
        place: its key, by which `${.a}` and `${..a}` are understood.
    """
    for name in _NAME.findall(text[text.find("${") :]) if "${" in text else ():
        path = name.lstrip(".")
        parts, up = tuple(part for part in _DOTS.split(path) if part), len(name) - len(path)
        yield [(*place[: max(0, len(place) - up)], *parts)] if up else [parts[i:] for i in range(len(parts))]
