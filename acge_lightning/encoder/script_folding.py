"""A normaliser for tokenizers that writes traditional Chinese characters as simplified ones, so that both give the same tokens.

`tokenizers` has one normaliser that maps many characters fast: SentencePiece's `Precompiled`. Its table is a double array in
the units of the library darts-clone, then the replacements, each ended by a zero byte; this module writes such a table.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import Any

from tokenizers import normalizers

from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra

_IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2A6E0))  # first and last + 1 of Unicode's blocks
_LEAF_BELOW, _VALUE = 1 << 8, 1 << 31  # flags of a unit
_MOST_UNITS = 1 << 21  # what a unit's offset can reach


def simplified() -> normalizers.Normalizer:
    """A normaliser from traditional to simplified characters, one by one, as OpenCC maps them out of context.

    Raises:
        InputError: without the package opencc.

    >>> simplified().normalize_str("漢語繁體字")
    '汉语繁体字'
    """
    with naming_extra("fold_scripts=true needs"):
        from opencc import OpenCC
    characters = [chr(code) for first, end in _IDEOGRAPHS for code in range(first, end)]
    mapped = zip(characters, OpenCC("t2s").convert("\n".join(characters)).split("\n"), strict=True)
    return normalizers.Precompiled(character_map({a: b for a, b in mapped if a != b}))


def character_map(replacements: Mapping[str, str]) -> bytes:
    """The table of `Precompiled` that replaces each key by its value.

    Args:
        replacements: single characters (`Precompiled` looks up one at a time) and what is put for them.

    Raises:
        InputError: no keys, a key that is not one character, a zero character, or more keys than a table can hold.
    """
    wrong = [key for key, value in replacements.items() if len(key) != 1 or "\0" in key + value]
    if wrong or not replacements:
        raise InputError(f"a character map takes single characters, none of them \\0: not {wrong[0] if wrong else ''!r}")
    values, start = {}, 0
    for key, value in replacements.items():
        values[key.encode()] = start
        start += len(value.encode()) + 1
    array = _double_array(values)
    units = struct.pack(f"<{len(array)}I", *array)
    texts = b"".join(value.encode() + b"\0" for value in replacements.values())
    return struct.pack("<I", len(units)) + units + texts


def _double_array(values: Mapping[bytes, int]) -> list[int]:
    """The units of a double array with these values.

    The children of the unit at i, one a byte that can follow, lie at base ^ byte; the unit keeps i ^ base. A unit that ends a
    key has a further child for byte 0, whose unit is the key's value.
    """
    units = {0: 0}
    used_bases: set[int] = set()
    waiting, free = deque([(0, _tree(values))]), 1
    while waiting:
        position, node = waiting.popleft()
        while free in units:
            free += 1
        bases = (slot ^ min(node) for slot in count(free))
        base = next(base for base in bases if base not in used_bases and not any(base ^ byte in units for byte in node))
        used_bases.add(base)
        units[position] |= (position ^ base) << 10 | (_LEAF_BELOW if 0 in node else 0)
        units |= {base ^ byte: byte if byte else child | _VALUE for byte, child in node.items()}
        waiting.extend((base ^ byte, child) for byte, child in node.items() if byte)
    if max(units) >= _MOST_UNITS:
        raise InputError("these are more characters than a map can hold: leave some out")
    return [units.get(i, 0) for i in range(-(-(max(units) + 1) // 256) * 256)]


def _tree(values: Mapping[bytes, int]) -> dict[int, Any]:
    """Byte -> the same of what can follow it; 0 -> the value of the key that ends there."""
    tree: dict[int, Any] = {}
    for key, value in values.items():
        node = tree
        for byte in key:
            node = node.setdefault(byte, {})
        node[0] = value
    return tree
