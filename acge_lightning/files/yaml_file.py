"""Read YAML files that anyone may have written: plain data only, and none that expands to gigabytes."""

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
    """Read the plain data of a file; None for an empty one.

    Raises:
        InputError: it is not there, no YAML of plain data, or refused as in `checked_text`.
    """
    with _file_named_in_errors(file):
        loader = yaml.SafeLoader(_text(file))
        node = _checked_node(loader)
        return None if node is None else loader.construct_document(node)


def checked_text(file: str | Path) -> str:
    """Read the text of a file, and check that any YAML reader can take it.

    Raises:
        InputError: it is not there, no YAML, too large or too deep, itself or with its aliases written out.
    """
    with _file_named_in_errors(file):
        text = _text(file)
        _checked_node(yaml.SafeLoader(text))
    return text


@contextmanager
def _file_named_in_errors(file: str | Path) -> Iterator[None]:
    """Turn the errors of any reader into an InputError of one line that names the file."""
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


def _checked_node(loader: yaml.SafeLoader) -> yaml.Node | None:
    node = loader.get_single_node()
    if node is not None and _expanded_size(node, {})[0] > LARGEST:
        raise InputError(f"refused, for its aliases, written out, make more than {LARGEST:,} characters")
    return node


def _expanded_size(node: yaml.Node, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Count characters and levels of a node with every alias written out.

    Args:
        node: of a YAML file.
        sizes: id of a node -> its characters and levels, of the nodes that have been counted.
    """
    if id(node) not in sizes:
        sizes[id(node)] = (LARGEST + 1, 1)  # if an alias refers to a node that contains it
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        elif not children and len(node.value) > _LONGEST and node.tag != "tag:yaml.org,2002:str":
            raise InputError(f"refused, for line {node.start_mark.line + 1} has a number of {len(node.value):,} characters")
        expanded = [_expanded_size(child, sizes) for child in children]
        levels = 1 + max((level for _, level in expanded), default=0)
        if levels > _DEEPEST:
            raise InputError(f"refused, for it has more than {_DEEPEST} levels")
        sizes[id(node)] = 1 + sum(size for size, _ in expanded) + (0 if children else len(node.value)), levels
    return sizes[id(node)]


def explodes(data: Any) -> bool:
    """Tell whether a config, with its interpolations written out, would be larger than any file may be.

    Names that are interpolated themselves are not followed.

    Args:
        data: plain data of a config or a node of one, nothing resolved; absolute names in a node may begin with its path.
    """
    values: dict[tuple[str, ...], Any] = {}
    sizes: dict[tuple[str, ...], int] = {}

    def collect(path: tuple[str, ...], value: Any) -> None:
        values[path] = value
        for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            collect((*path, str(key)), child)

    def size(path: tuple[str, ...]) -> int:
        if path not in sizes:
            sizes[path] = 0  # if it refers to itself, which is an error elsewhere
            value = values[path]
            if isinstance(value, (dict, list)):
                child_paths = [(*path, str(key)) for key in (value if isinstance(value, dict) else range(len(value)))]
                sizes[path] = sum(map(size, child_paths))
            else:
                targets = (next((c for c in keys if c in values), None) for keys in _possible_targets(str(value), path))
                sizes[path] = len(str(value)) + sum(size(target) for target in targets if target is not None)
        return sizes[path]

    try:
        collect((), data)
        return size(()) > LARGEST
    except RecursionError:
        return True


def _possible_targets(text: str, path: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    """Yield, for each name within a text's interpolations, the paths of the values that it may refer to, the likeliest first.

    Args:
        text: the value.
        path: the keys that lead to the value; `${.a}` and `${..a}` are relative to it.
    """
    for name in _NAME.findall(text[text.find("${") :]) if "${" in text else ():
        absolute = name.lstrip(".")
        keys, levels_up = tuple(key for key in _DOTS.split(absolute) if key), len(name) - len(absolute)
        if levels_up:
            yield [(*path[: max(0, len(path) - levels_up)], *keys)]
        else:
            yield [keys[i:] for i in range(len(keys))]
