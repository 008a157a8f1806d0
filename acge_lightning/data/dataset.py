"""What the seven task families share: splits on disk, subsets, and the questions a sampler and a mixture ask."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from acge_lightning.data.epoch import batch_sizes, deal
from acge_lightning.data.readers import SUFFIXES, locate, split_files
from acge_lightning.data.records import Record, text_id
from acge_lightning.data.store import MAX_BAD, OnBadRow, Store, open_store
from acge_lightning.errors import InputError
from acge_lightning.metrics import EmbeddingMetric

_LOG = logging.getLogger(__name__)
Role = Literal["train", "dev", "test"]
CACHE = "~/.cache/acge_lightning"
_BLOCK = 4096  # rows read together
NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Examples:
    """Texts of some training rows, before they become tokens.

    Args:
        columns: texts a column; the first two have one text a row, further ones any number.
        prompts: a column's role (`query`, `document`, `text`): key of a task's `prompts`.
        ids: Int64[n_i] a column, hashes of the texts.
        labels: what the family's losses expect.
    """

    columns: tuple[list[str], ...]
    roles: tuple[str, ...]
    ids: tuple[np.ndarray, ...]
    labels: Tensor | None


@dataclass(frozen=True)
class EvaluationSet:
    """Numbered texts and labels that a metric of `acge_lightning.metrics` scores.

    Args:
        texts: the number of a text is its place here; may lie on disk.
        roles: (first number after, role) for runs of texts of one role.
        labels: Float64[r, 3] or Float64[r, 5] judgements, or Int64[texts, 2] classes, as in `acge_lightning.metrics`.
        keys: Int64[rows] hashes by which a row is found again in training data.
    """

    texts: pa.ChunkedArray
    roles: tuple[tuple[int, str], ...]
    labels: Tensor
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a store."""

    store: Store
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows at these positions."""
        return self.store.take(self.numbers[np.asarray(positions, dtype=np.int64)])

    def column(self, name: str) -> np.ndarray:
        """A column of the chosen rows, in memory."""
        return self.store.column(name).take(pa.array(self.numbers)).to_numpy()


class TaskDataModule(LightningDataModule, ABC):
    """One data set of one task family; also trains alone, as a mixture of one.

    Args:
        path: folder with `train`, `dev`, `test` files (jsonl, csv, tsv, each also .gz, or parquet), one training file, or a
            hub id of a data set.
        batch_size: rows a training step, over all devices.
        splits: where the splits are called otherwise, for example `{dev: validation, test: null}`; a value may be a file.
        columns: field -> column name, where the files differ, for example `{text1: sentence1}`.
        on_bad_row: `raise`, `skip` (counted and reported) or `quarantine` (also written to a file).
        max_bad_fraction: most bad rows, as a share of all, that are left out.
        max_train: most training rows, evenly drawn.
        max_dev: most evaluation rows of a split, evenly drawn.
        holdout: share of the training rows that becomes `dev` where there is none; equal texts stay together.
        prompts: role -> name of one of the encoder's prompts.
        cache_dir: where the checked rows are kept.
    """

    family: ClassVar[str]
    record: ClassVar[type[Record]]
    default_loss: ClassVar[Callable[[], nn.Module]]
    default_metric: ClassVar[type[EmbeddingMetric] | None]
    role_names: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 64,
        splits: Mapping[Role, str | None] | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: OnBadRow = "raise",
        max_bad_fraction: float = MAX_BAD,
        max_train: int | None = None,
        max_dev: int | None = None,
        holdout: float = 0.1,
        prompts: Mapping[str, str] | None = None,
        cache_dir: str | Path = CACHE,
    ):
        super().__init__()
        if batch_size < 2:
            raise InputError(f"batch_size={batch_size} leaves nothing to contrast: give at least 2")
        if not 0 <= max_bad_fraction <= 1:
            raise InputError(f"max_bad_fraction={max_bad_fraction} is no share of the rows: give 0 to 1")
        if not 0 <= holdout < 1:
            raise InputError(f"holdout={holdout} is no share of the rows: give 0 to 0.9")
        for name, limit in (("max_train", max_train), ("max_dev", max_dev)):
            if limit is not None and limit < 1:
                raise InputError(f"{name}={limit} leaves no rows: give at least 1, or null for all")
        unknown = set(splits or {}) - {"train", "dev", "test"}
        if unknown:
            raise InputError(f"splits.{min(unknown)} is unknown: choose train, dev or test")
        wrong = set(prompts or {}) - set(self.role_names)
        if wrong:
            raise InputError(f"prompts.{min(wrong)} is no role of a {self.family} text: choose from {list(self.role_names)}")
        self.path = str(path)
        self.batch_size = batch_size
        self.splits = {"train": "train", "dev": "dev", "test": "test"} | dict(splits or {})
        self.columns = dict(columns or {})
        self.on_bad_row: OnBadRow = on_bad_row
        self.max_bad_fraction = max_bad_fraction
        self.limits = {"train": max_train, "dev": max_dev, "test": max_dev}
        self.holdout = holdout
        self.prompts = dict(prompts or {})
        self.cache_dir = Path(cache_dir).expanduser()
        self.parts: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which has no trainer."""
        return vars(self) | {"trainer": None}

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Check the files and open the splits; again only if that failed."""
        if self.parts:
            return
        source = locate(self.path)
        found = {role: self._open(source, role) for role in ("train", "dev", "test")}
        if found["dev"] is None and self.holdout and found["train"] is not None:
            found["train"], found["dev"] = self._hold_out(found["train"])
        parts = {role: self._limited(part, self.limits[role]) for role, part in found.items() if part is not None}
        if not parts:
            known = ", ".join(str(name) for name in self.splits.values() if name is not None)
            raise InputError(f"{source} has no file of a split ({known}): name its files with `splits`")
        self.parts = parts

    def _files(self, source: Path, role: str) -> list[Path]:
        name = self.splits[role]
        if name is None:
            return []
        if str(name).endswith(SUFFIXES):
            file = (source if source.is_dir() else source.parent) / name
            if not file.is_file():
                raise InputError(f"splits.{role}={name}: there is no file {file}")
            return [file]
        if source.is_file():
            return [source] if role == "train" else []
        return split_files(source, str(name))

    def _store(self, files: Sequence[Path], record: type[Record]) -> Store:
        return open_store(files, record, self.columns, self.on_bad_row, self.cache_dir, self.max_bad_fraction)

    def _open(self, source: Path, role: str) -> Any:
        files = self._files(source, role)
        if not files:
            return None
        store = self._store(files, self.record)
        return Rows(store, np.arange(len(store)))

    def _hold_out(self, part: Any) -> tuple[Any, Any]:
        """Train and dev parts, divided by the hash of a row's first text."""
        keys = self.first_ids(part).view(np.uint64) % np.uint64(10_000)
        dev = keys < np.uint64(round(self.holdout * 10_000))
        if not dev.any() or dev.all():
            return part, None
        return self._select(part, np.flatnonzero(~dev)), self._select(part, np.flatnonzero(dev))

    def _limited(self, part: Any, limit: int | None) -> Any:
        if limit is None or len(part) <= limit:
            return part
        return self._select(part, np.sort(np.random.default_rng(0).permutation(len(part))[:limit]))

    def _select(self, part: Any, positions: np.ndarray) -> Any:
        return Rows(part.store, part.numbers[positions])

    @property
    def train(self) -> Any:
        """The training rows.

        Raises:
            InputError: there is no such split.
        """
        self.setup()
        if "train" not in self.parts:
            raise InputError(f"{self.path} has no train split: name its file under splits.train, or give the task weight 0")
        return self.parts["train"]

    def train_texts(self) -> Iterator[str]:
        """All texts of the training rows."""
        for start in range(0, len(self), _BLOCK):
            for row in self.train.take(np.arange(start, min(start + _BLOCK, len(self)))):
                yield from (row[name] for name in ("text", "text1", "text2") if name in row)

    def file_rows(self, positions: np.ndarray) -> np.ndarray:
        """The places of training rows among all rows that were read, from 0, file after file, without those left out."""
        return self.train.numbers[positions]

    def fingerprint(self) -> str:
        """A digest of the training rows: the hashes of their texts in order, and their labels."""
        digest = hashlib.sha256()
        for values in self._identity():
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _identity(self) -> Iterator[np.ndarray]:
        yield from self.texts_of(np.zeros(len(self)))
        for name in {"score", "label"} & {field.name for field in fields(self.record)}:
            values = self.train.column(name)
            yield np.array([text_id(word) for word in values]) if values.dtype == object else values

    # ---- for the sampler

    def __len__(self) -> int:
        """Training rows."""
        return len(self.train)

    def first_ids(self, part: Any) -> np.ndarray:
        """Int64[rows]: hash of each row's first text."""
        values, offsets = part.store.ids()
        return values[offsets[:-1]][part.numbers]

    def keys(self, part: Any) -> np.ndarray:
        """Int64[rows]: hash by which the same row is known in another split."""
        return self.first_ids(part)

    def texts_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the texts that each training row brings into a batch: Int64[texts], and the row of each, ascending."""
        values, offsets = self.train.store.ids()
        lengths = np.diff(offsets)[self.train.numbers]
        starts = offsets[self.train.numbers]
        row = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return values[starts[row] + within], row

    def order(self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """An epoch's order of the training rows, whose consecutive runs of `sizes` are batches.

        Here a text comes twice in a batch only where it must, for it has more rows than there are batches. (By chance that
        may also happen to a text of a row that has another, more frequent one. The losses mask equal texts.)

        Args:
            rng: of the order.
            draws: Float64[n], as in `examples`.
            sizes: Int64[batches] of `batch_sizes`.

        Returns:
            Int64[n]: all rows; those left over stand at the end.
        """
        texts, row = self.texts_of(draws)
        _, text, count = np.unique(texts, return_inverse=True, return_counts=True)
        most_frequent_first = np.lexsort([-count[text], row])
        return deal(text[most_frequent_first[np.searchsorted(row, np.arange(len(self)))]], sizes, rng)

    def check_learnable(self) -> None:
        """Refuse training rows on which the family's loss is the same whatever the encoder does.

        Raises:
            InputError: which says what all rows have in common.
        """
        if len(np.unique(self.texts_of(np.zeros(len(self)))[0])) < 2:
            raise InputError(f"its {len(self)} training rows have one distinct text: check the file, and its columns")

    def check_labels(self, labels: np.ndarray, name: str) -> None:
        """Refuse Any[n] labels that are all the same; warn if too few differ for every batch to have two.

        Raises:
            InputError: one distinct label.
        """
        values, counts = np.unique(labels, return_counts=True)
        if len(values) < 2:
            raise InputError(f"its {len(labels)} training rows all have the {name} {values[0]}: rows of another one are needed")
        others, batches = len(labels) - counts.max(), len(batch_sizes(len(labels), self.batch_size))
        if others < batches:
            _LOG.warning(
                "%s: only %d of %d training rows have another %s than %s, so %d of %d batches of an epoch teach nothing: raise "
                "batch_size, or add such rows",
                self.path, others, len(labels), name, values[counts.argmax()], batches - others, batches,
            )  # fmt: skip

    def random_negatives(self, positions: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Further texts for a batch of these rows, of all devices together: Int64[m] numbers of texts; here none."""
        return NO_ROWS

    @abstractmethod
    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """The texts of these training rows.

        Args:
            positions: Int64[n] rows.
            draws: Float64[n] in [0, 1), one a row and epoch: all the randomness there is.
            random_negatives: Int64[m] numbers of texts that come along.
        """

    def evaluation(self, role: Role) -> EvaluationSet | None:
        """The texts of a split and their labels; None if the split is absent."""
        self.setup()
        return self._evaluation(self.parts[role]) if role in self.parts else None

    @abstractmethod
    def _evaluation(self, part: Any) -> EvaluationSet:
        """The texts of the rows of a split and their labels."""

    def note(self, role: Role) -> str | None:
        """What of a split cannot be scored, if anything."""
        return None

    # ---- for a trainer, alone

    def _alone(self) -> LightningDataModule:
        from acge_lightning.data.mixture import MixtureDataModule

        mixture = MixtureDataModule({self.family: self})
        mixture.trainer = self.trainer
        mixture.setup()
        return mixture

    def train_dataloader(self) -> DataLoader:
        """Batches of this task only."""
        return self._alone().train_dataloader()

    def val_dataloader(self) -> list[DataLoader]:
        """The dev split."""
        return self._alone().val_dataloader()

    def test_dataloader(self) -> list[DataLoader]:
        """The test split."""
        return self._alone().test_dataloader()


def numbered(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct texts in the order of their first place, and the number of each given text.

    >>> numbered(["b", "a", "b"])
    (['b', 'a'], array([0, 1, 0]))
    """
    number: dict[str, int] = {}
    of = np.array([number.setdefault(text, len(number)) for text in texts], dtype=np.int64)
    return list(number), of


def as_column(texts: Sequence[str]) -> pa.ChunkedArray:
    """Texts as an Arrow column."""
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def judgements(first: np.ndarray, second: np.ndarray, value: np.ndarray) -> Tensor:
    """Float64[r, 3] from three columns."""
    return torch.from_numpy(np.stack([first, second, value], axis=1).astype(np.float64))
