"""Splits whose rows are texts with a label or without one, and what the families of such rows share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from acge_lightning.data.dataset import Role, TaskDataset
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.records import Record, text_id
from acge_lightning.data.source import Source
from acge_lightning.data.store import Store
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_BLOCK = 4096  # rows read together


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a store: a `Split`.

    Args:
        store: where they lie.
        row_numbers: Int64[n]: which rows of it.
    """

    store: Store
    row_numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.row_numbers)

    def select(self, positions: np.ndarray) -> Rows:
        """Some of the rows."""
        return replace(self, row_numbers=self.row_numbers[positions])

    def take(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows at these positions."""
        return self.store.take(self.row_numbers[np.asarray(positions, dtype=np.int64)])

    def all(self) -> list[dict[str, Any]]:
        """All rows, in memory."""
        return self.store.take(self.row_numbers)

    def column(self, name: str) -> np.ndarray:
        """A column of the chosen rows, in memory."""
        return self.store.column(name).take(pa.array(self.row_numbers)).to_numpy()

    @property
    def first_ids(self) -> np.ndarray:
        """Int64[n]: the hash of each row's first text."""
        values, offsets = self.store.ids()
        return values[offsets[:-1]][self.row_numbers]

    @property
    def weights(self) -> np.ndarray | None:
        """Float64[n]; None without a column of weights."""
        return self.column("weight") if "weight" in self.store.schema.names else None

    def file_rows(self, positions: np.ndarray) -> np.ndarray:
        """Int64[m]: the numbers of rows among all that were read."""
        return self.row_numbers[positions]


class RowDataset(TaskDataset[Rows]):
    """A data set whose splits are files of rows. Arguments as in `TaskDataset`."""

    record: ClassVar[type[Record]]

    def _open_split(self, source: Source, role: Role) -> Rows | None:
        files = self._files(source, role)
        if not files:
            return None
        store = self._store(files, self.record, role)
        return Rows(store, np.arange(len(store)))

    def train_texts(self) -> Iterator[str]:
        """All texts of the training rows."""
        for start in range(0, len(self), _BLOCK):
            for row in self.train.take(np.arange(start, min(start + _BLOCK, len(self)))):
                yield from (row[name] for name in ("text", "text1", "text2") if name in row)

    def _identity(self) -> Iterator[np.ndarray]:
        yield from self.texts_of(np.zeros(len(self)))
        for name in {"score", "label"} & {field.name for field in fields(self.record)}:
            values = self.train.column(name)
            yield np.array([text_id(word) for word in values]) if values.dtype == object else values

    def texts_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all texts of each training row, whatever the draws."""
        values, offsets = self.train.store.ids()
        lengths = np.diff(offsets)[self.train.row_numbers]
        starts = offsets[self.train.row_numbers]
        row = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return values[starts[row] + within], row

    def check_labels(self, labels: np.ndarray, name: str) -> None:
        """Refuse Any[n] labels that are all the same; warn if too few differ for every batch to have two.

        Raises:
            InputError: one distinct label.
        """
        values, counts = np.unique(labels, return_counts=True)
        if len(values) < 2:
            raise InputError(f"its {len(labels)} training rows all have the {name} {values[0]}: rows of another one are needed")
        minority, batches = len(labels) - counts.max(), len(batch_sizes(len(labels), self.batch_size))
        if minority < batches:
            _LOG.warning(
                "%s: only %d of %d training rows have another %s than %s, so %d of %d batches of an epoch teach nothing: raise "
                "batch_size, or add such rows",
                self.path, minority, len(labels), name, values[counts.argmax()], batches - minority, batches,
            )  # fmt: skip

    def check_one_label(self, role: Role, name: str) -> None:
        """Refuse a split whose rows all have one label.

        Raises:
            InputError: one distinct label.
        """
        values, counts = np.unique(self.opened_splits[role].column(name), return_counts=True)
        if len(values) < 2:
            raise InputError(f"its {counts[0]} {role} rows all have the {name} {values[0]}: give rows with others too")
