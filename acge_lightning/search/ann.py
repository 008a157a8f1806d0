"""The store of the first stage, which sees all rows: they are compared one by one, or by an index of FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra
from acge_lightning.search.faiss_file import LINKS, DamagedError, check
from acge_lightning.search.stages import Stage
from acge_lightning.search.vectors import BLOCK, Vectors, prefix

_FACTORY = {"fp32": "Flat", "fp16": "SQfp16", "int8": "SQ8"}
_ROWS_A_LIST = 39  # the fewest that FAISS wants to learn a list of an ivf from
_MOST_LISTS = 4096


class FirstStage(Protocol):
    """What a funnel needs of the store of its first stage."""

    nbytes: int

    def __len__(self) -> int: ...

    def extended(self, vectors: Tensor) -> FirstStage:
        """These rows and, after them, the prefixes of Float[m, D]."""

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Scores Float32[q, count], falling, and rows Int64[q, count], -1 where fewer are found."""


def empty_store(stage: Stage) -> Vectors | Faiss:
    """A store of a stage without rows.

    Raises:
        InputError: the stage has an index of FAISS, which is not installed.
    """
    return Vectors(stage.dim, stage.store) if stage.index == "exact" else Faiss(stage)


def import_faiss() -> Any:
    """The module `faiss`.

    Raises:
        InputError: it is not installed.
    """
    with naming_extra("this first stage needs", ", or index: exact"):
        import faiss
    return faiss


class Faiss:
    """An index of FAISS over the prefixes, by inner product; by Hamming distance of the signs if they are stored as binary.

    An ivf learns its lists, and int8 codes their range, from the rows that come first.

    Args:
        stage: its dim, store, index and effort.
        index: of FAISS, with rows; a new one by default.
    """

    def __init__(self, stage: Stage, index: Any = None):
        self.stage, self.index = stage, index
        self._parameters_of_effort: tuple[int, Any] = (0, None)  # the last ones
        import_faiss()

    def __len__(self) -> int:
        return 0 if self.index is None else self.index.ntotal

    @property
    def nbytes(self) -> int:
        """Bytes of the index as it is written."""
        if self.index is None:
            return 0
        counter = _ByteCounter()
        write = import_faiss().write_index_binary if self.stage.store == "binary" else import_faiss().write_index
        write(self.index, import_faiss().PyCallbackIOWriter(counter, 1 << 24))
        return counter.count

    def extended(self, vectors: Tensor) -> Faiss:
        """Add the prefixes of Float[m, D] after its rows, in place."""
        if len(vectors) == 0:
            return self
        if self.index is None:
            self.index = self._new_index(len(vectors))
            step = max(1, len(vectors) // (_MOST_LISTS * _ROWS_A_LIST))
            self.index.train(self._codes(vectors[::step]))
        for start in range(0, len(vectors), BLOCK):
            self.index.add(self._codes(vectors[start : start + BLOCK]))
        return self

    def _new_index(self, row_count: int) -> Any:
        """An index of FAISS without rows, for so many."""
        lists = min(_MOST_LISTS, int(2 * row_count**0.5), max(1, row_count // _ROWS_A_LIST))
        kind = {"flat": "", "hnsw": f"HNSW{LINKS}", "ivf": f"IVF{lists}"}[self.stage.index]
        if self.stage.store == "binary":
            return import_faiss().index_binary_factory(self.stage.dim, f"B{kind or 'Flat'}")
        name = ",".join(filter(None, (kind, _FACTORY[self.stage.store])))
        return import_faiss().index_factory(self.stage.dim, name, import_faiss().METRIC_INNER_PRODUCT)

    def _codes(self, vectors: Tensor) -> np.ndarray:
        if self.stage.store == "binary":
            return Vectors(self.stage.dim, "binary").extended(vectors).codes.numpy()
        return prefix(vectors, self.stage.dim).numpy()

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `FirstStage.nearest`; the scores of signs are negated Hamming distances."""
        codes = queries.numpy() if self.stage.store != "binary" else self._codes(queries)
        scores, rows = self.index.search(codes, count, **self._parameters(count))
        scores = torch.from_numpy(scores)
        return -scores.float() if self.stage.store == "binary" else scores, torch.from_numpy(rows)

    def _parameters(self, count: int) -> dict[str, Any]:
        """The effort, which FAISS takes as an object with a call, and binary indexes as an attribute."""
        kind, effort = self.stage.index, self.stage.effort
        if kind == "flat":
            return {}
        lists = self.index.nlist if kind == "ivf" else 0
        effort = min(effort or max(1, lists // 32), lists) if lists else min(max(effort or 0, count), len(self))
        if self.stage.store == "binary":
            if kind == "ivf":
                self.index.nprobe = effort
            else:
                self.index.hnsw.efSearch = effort
            return {}
        if self._parameters_of_effort[0] != effort:
            parameters = import_faiss().SearchParametersIVF if kind == "ivf" else import_faiss().SearchParametersHNSW
            self._parameters_of_effort = effort, parameters(**{"nprobe" if kind == "ivf" else "efSearch": effort})
        return {"params": self._parameters_of_effort[1]}

    def write(self, file: Path) -> None:
        """Write it as a file of FAISS."""
        write = import_faiss().write_index_binary if self.stage.store == "binary" else import_faiss().write_index
        write(self.index, str(file))

    @classmethod
    def read(cls, stage: Stage, file: Path, row_count: int) -> Faiss:
        """Read a file of FAISS, which is checked first, to its last link: FAISS itself believes what a file says.

        Raises:
            InputError: it is no such file, or holds something else than so many rows of the stage.
        """
        module = import_faiss()
        read = module.read_index_binary if stage.store == "binary" else module.read_index
        try:
            check(file, stage, row_count)
            return cls(stage, read(str(file)))
        except (DamagedError, OSError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{file} cannot be read as {stage.label} ({reason}): copy the index again, or build it again")


class _ByteCounter:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, data: bytes) -> None:
        self.count += len(data)
