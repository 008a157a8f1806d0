"""Which rows have equal keys: keys as numbers, and pairs of them in either order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Keys = Sequence[str] | np.ndarray


def numbered(keys: Keys) -> np.ndarray:
    """Number keys so that equal ones have the same number.

    Args:
        keys: texts, or Int64[n] hashes of them.

    Returns:
        Int64[n], from 0.

    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    if isinstance(keys, np.ndarray) and keys.dtype != object:
        return np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(keys))


def numbered_pairs(keys1: Keys, keys2: Keys) -> np.ndarray:
    """Number pairs of keys so that equal pairs have the same number, in either order.

    >>> numbered_pairs(["a", "b", "a"], ["b", "a", "a"]).tolist()
    [1, 1, 0]
    """
    both = numbered(np.concatenate([keys1, keys2]) if isinstance(keys1, np.ndarray) else [*keys1, *keys2])
    sides = np.sort(both.reshape(2, -1), axis=0)
    return numbered(sides[0] * (len(both) + 1) + sides[1])
