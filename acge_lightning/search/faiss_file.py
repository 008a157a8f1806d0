"""Checks a file of FAISS before FAISS reads it: a stranger's may name rows, links and sizes that are not there.

FAISS allocates what a file asks for, and follows the links between its rows without a look at where they lead. So a file is
read twice: here, where each number must be the one that the stage and the number of rows call for, and nothing may be left
over; then by FAISS. The kinds of files are those that `first.Faiss` makes, in the layout that FAISS 1.8 to 1.15 write.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from acge_lightning.search.stages import Stage

LINKS = 16  # neighbours of a row in an hnsw; twice as many at its bottom
_DTYPE = {"fp32": "<f4", "fp16": "<f2", "int8": "u1"}  # of the code of a dim
_QUANTIZER_TYPE = {"fp16": 4, "int8": 0}  # FAISS's QT_fp16 and QT_8bit
_MOST_EFFORT = 100_000  # efConstruction, of 40


class DamagedError(ValueError):
    """A file that says what cannot be."""


def check(file: Path, stage: Stage, rows: int) -> None:
    """Check that a file holds so many rows of a stage, and nothing else.

    Raises:
        DamagedError: what does not fit.
    """
    reader = _Reader(np.memmap(file, dtype=np.uint8, mode="r"))
    _check_index(reader, stage, stage.index, rows)
    if reader.position != len(reader.data):
        raise DamagedError(f"{len(reader.data) - reader.position:,} bytes are left over")


class _Reader:
    """Reads the numbers of a file one after the other."""

    def __init__(self, data: np.ndarray):
        self.data, self.position = data, 0

    def take(self, count: int, dtype: str) -> np.ndarray:
        """The next `count` numbers."""
        size = count * np.dtype(dtype).itemsize
        if size > len(self.data) - self.position:
            raise DamagedError(f"it is cut, or asks for {count:,} numbers at byte {self.position:,}")
        self.position += size
        return self.data[self.position - size : self.position].view(dtype)

    def one(self, form: str) -> Any:
        """The next number, in a form of `struct`."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form), "u1").tobytes())[0]

    def vector(self, dtype: str) -> np.ndarray:
        """The next vector, which begins with the count of its numbers."""
        return self.take(self.one("Q"), dtype)

    def expect(self, form: str, value: Any, what: str) -> None:
        """An error unless the next number is this one."""
        actual = self.one(form)
        if actual != value:
            raise DamagedError(f"{what} is {actual}, not {value}")


def _check_index(file: _Reader, stage: Stage, kind: str, rows: int) -> None:
    binary, flat = stage.store == "binary", {"fp32": "IxFI", "binary": "IBxF"}.get(stage.store, "IxSQ")
    graph = {"fp32": "IHNf", "binary": "IBHf"}.get(stage.store, "IHNs")
    lists = {"fp32": "IwFl", "binary": "IBwF"}.get(stage.store, "IwSq")
    name = {"flat": flat, "hnsw": graph, "ivf": lists}[kind].encode()
    if (actual := file.take(4, "u1").tobytes()) != name:
        raise DamagedError(f"it is of the kind {actual!r}, not {name!r}")
    file.expect("i", stage.dim, "its number of dims")
    if binary:
        file.expect("i", stage.dim // 8, "the bytes of a row")
    file.expect("q", rows, "its number of rows")
    if not binary:
        file.take(16, "u1")  # not used
    file.expect("B", 1, "whether it is trained")
    file.expect("i", int(binary), "its metric")
    if kind == "hnsw":
        _check_graph(file, rows)
        _check_index(file, stage, "flat", rows)
    elif kind == "ivf":
        _check_lists(file, stage, rows)
    else:
        if stage.store in _QUANTIZER_TYPE:
            _check_quantizer(file, stage)
        _check_codes(file.vector(_row_form(stage)[0] if stage.store == "fp32" else "u1"), stage, rows)


def _row_form(stage: Stage) -> tuple[str, int]:
    """The dtype and the count of the numbers of a row."""
    return ("u1", stage.dim // 8) if stage.store == "binary" else (_DTYPE[stage.store], stage.dim)


def _check_codes(codes: np.ndarray, stage: Stage, rows: int) -> None:
    """Check that there are as many codes as the rows have, all finite."""
    dtype, width = _row_form(stage)
    if codes.nbytes != rows * width * np.dtype(dtype).itemsize:
        raise DamagedError(f"{codes.nbytes:,} bytes are no {rows:,} rows")
    _check_finite(codes.view(dtype))


def _check_finite(values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not all(
        np.isfinite(block).all() for block in np.array_split(values, 1 + len(values) // 2**20)
    ):
        raise DamagedError("a number is NaN or infinite")


def _check_quantizer(file: _Reader, stage: Stage) -> None:
    file.expect("i", _QUANTIZER_TYPE[stage.store], "the kind of its codes")
    file.take(2, "<i4")  # how the range was learnt
    file.expect("Q", stage.dim, "the number of dims of its codes")
    file.expect("Q", stage.dim * np.dtype(_DTYPE[stage.store]).itemsize, "the bytes of a row")
    learnt = file.vector("<f4")
    if len(learnt) != (2 * stage.dim if stage.store == "int8" else 0):
        raise DamagedError(f"{len(learnt)} numbers were learnt for its codes")
    _check_finite(learnt)


def _check_graph(file: _Reader, rows: int) -> None:
    """Check a graph of an hnsw: its rows are at 1 level or more, and its links at a level lead to rows that are at it too."""
    _check_finite(level_chances := file.vector("<f8"))
    ends, levels, offsets, links = (file.vector(dtype) for dtype in ("<i4", "<i4", "<u8", "<i4"))
    entry, top, effort = (file.one("i") for _ in range(3))
    file.take(2, "<i4")  # efSearch, which comes with a call, and what is not used
    if not 0 < effort <= _MOST_EFFORT:
        raise DamagedError(f"its efConstruction is {effort}")
    if not 0 < len(level_chances) < 64 or ends.tolist() != [0, *(LINKS * (2 + i) for i in range(len(level_chances)))]:
        raise DamagedError("a row has another number of links")
    if len(levels) != rows or levels.min() < 1 or levels.max() > len(level_chances):
        raise DamagedError("a row is at a level that is not there")
    if len(offsets) != rows + 1 or offsets[0] != 0 or not np.array_equal(np.diff(offsets.astype(np.int64)), ends[levels]):
        raise DamagedError("the links of a row begin where those of others are")
    if len(links) != offsets[-1] or links.min() < -1 or links.max() >= rows:
        raise DamagedError("a link leads to a row that is not there")
    if not 0 <= entry < rows or not top == levels.max() - 1 == levels[entry] - 1:
        raise DamagedError(f"the search begins at row {entry}, which is not at the top")
    for level in range(1, top + 1):
        starts = offsets[:-1][levels > level].astype(np.int64)
        linked = links[starts[:, None] + np.arange(ends[level], ends[level + 1])]
        if (levels[linked[linked >= 0]] <= level).any():
            raise DamagedError(f"a link at level {level} leads to a row that is not there")


def _check_lists(file: _Reader, stage: Stage, rows: int) -> None:
    """Check the lists of an ivf: each row is in one of them, once."""
    count, probes = file.one("Q"), file.one("Q")
    if not 0 < probes <= count <= len(file.data):
        raise DamagedError(f"it searches {probes} of {count} lists")
    _check_index(file, Stage(stage.dim, store="binary" if stage.store == "binary" else "fp32"), "flat", count)  # their centres
    file.expect("B", 0, "its map of rows")
    file.expect("Q", 0, "the size of its map of rows")
    dtype, width = _row_form(stage)
    size = width * np.dtype(dtype).itemsize
    if stage.store in _QUANTIZER_TYPE:
        _check_quantizer(file, stage)
        file.expect("Q", size, "the bytes of a row")
        file.expect("B", 1, "whether codes are of differences")
    sizes = _read_list_sizes(file, count, size)
    listed = np.zeros(rows, dtype=bool)
    for length in sizes.tolist():
        _check_codes(file.take(length * size, "u1"), stage, length)
        ids = file.take(length, "<i8")
        if length and not 0 <= ids.min() <= ids.max() < rows:
            raise DamagedError("a list holds a row that is not there")
        listed[ids] = True
    if sizes.sum() != rows or not listed.all():
        raise DamagedError("a row is in no list, or in several")


def _read_list_sizes(file: _Reader, count: int, size: int) -> np.ndarray:
    """How many rows each list holds."""
    if (actual := file.take(4, "u1").tobytes()) != b"ilar":
        raise DamagedError(f"its lists are of the kind {actual!r}")
    file.expect("Q", count, "its number of lists")
    file.expect("Q", size, "the bytes of a row")
    kind, sizes = file.take(4, "u1").tobytes(), file.vector("<u8")
    if kind == b"sprs":  # (list, size) of those that are not empty
        if len(sizes) % 2 or (len(sizes) and sizes[::2].max() >= count):
            raise DamagedError("a list is not there")
        pairs, sizes = sizes.reshape(-1, 2), np.zeros(count, "<u8")
        sizes[pairs[:, 0].astype(np.int64)] = pairs[:, 1]
    elif kind != b"full":
        raise DamagedError(f"the sizes of its lists are of the kind {kind!r}")
    if len(sizes) != count or (len(sizes) and int(sizes.max()) > len(file.data)):
        raise DamagedError("a list has a size that it cannot have")
    return sizes.astype(np.int64)
