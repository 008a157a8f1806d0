"""What the seven task families share: the splits of a data set, and what a sampler and an evaluation ask of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from torch import Tensor

from acge_lightning.data.epoch import deal
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.data.made_of import made_of
from acge_lightning.data.records import Record
from acge_lightning.data.row_issues import warn_once
from acge_lightning.data.source import Source, find_source
from acge_lightning.data.splits import no_files, split_files, warn_of_left_files
from acge_lightning.data.store import MAX_BAD, OnBadRow, Store, open_store
from acge_lightning.errors import InputError

Role = Literal["train", "dev", "test"]
ROLES: tuple[Role, ...] = ("train", "dev", "test")
CACHE = "~/.cache/acge_lightning"
NO_ROWS = np.empty(0, dtype=np.int64)
_FEW_TEXTS = 50  # distinct texts that many rows share: perhaps those of another column
_SHARES = 10_000  # parts into which rows are divided by a hash, some of which are held out


class Split(Protocol):
    """The rows of one split, as a family keeps them: `Rows` or `JudgedQueries`."""

    def __len__(self) -> int:
        """Rows."""

    def select(self, positions: np.ndarray) -> Self:
        """The rows at these positions, in their order."""

    @property
    def first_ids(self) -> np.ndarray:
        """Int64[rows]: the hash of each row's first text."""

    @property
    def weights(self) -> np.ndarray | None:
        """Float64[rows], how often each is drawn; None without a column of weights."""

    def file_rows(self, positions: np.ndarray) -> np.ndarray:
        """Int64[n]: the numbers of rows among all that were read, from 0, file after file, without those left out."""


SplitT = TypeVar("SplitT", bound=Split)


@dataclass(frozen=True)
class Examples:
    """Texts of some training rows, before they become tokens.

    Args:
        columns: texts a column; the first two have one text a row, further ones any number.
        roles: a column's role (`query`, `document`, `text`): key of a task's `prompts`.
        ids: Int64[n_i] a column, hashes of the texts.
        labels: what the family's losses expect.
    """

    columns: tuple[list[str], ...]
    roles: tuple[str, ...]
    ids: tuple[np.ndarray, ...]
    labels: Tensor | None


class TaskDataset(ABC, Generic[SplitT]):
    """One data set of one task family, its rows checked and on disk.

    Args:
        path: folder with `train`, `dev` (`validation`, `valid`, `val`, `eval`) and `test` files (json, jsonl, csv, tsv, each
            also .gz, parquet or xlsx), one training file, a pattern (`data/*.csv`), a list of files, or a hub id of a data set.
        batch_size: rows a training step, over all devices.
        splits: where the splits are called otherwise, for example `{dev: held_out, test: null}`; a value may be a file.
        columns: field -> column name, for example `{text1: 问}`; well-known names are recognised (`columns.match_columns`).
        on_bad_row: `raise`, `skip` (counted and reported) or `quarantine` (also written to a file).
        max_bad_fraction: most bad rows, as a share of all, that are left out.
        max_train: most training rows, evenly drawn.
        max_dev: most evaluation rows of a split, evenly drawn.
        holdout: share of the training rows that becomes `dev` where there is none; equal texts stay together.
        prompts: role -> name of one of the encoder's prompts.
        cache_dir: where the checked rows are kept.
        weight_column: a column of the training rows (of a BEIR folder, of its queries) that says how often each is drawn, in
            proportion to it: `acge clean` writes `quality`. Rows of weight 0 do not train. None: all rows once an epoch.

    Raises:
        InputError: a value out of range, an unknown split or role; when splits are opened, files that do not fit.
    """

    family: ClassVar[str]
    held_by: ClassVar[str] = "texts"  # what a hold-out keeps together
    role_names: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
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
        weight_column: str | None = None,
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
        unknown = set(splits or {}) - set(ROLES)
        if unknown:
            raise InputError(f"splits.{min(unknown)} is unknown: choose train, dev or test")
        wrong = set(prompts or {}) - set(self.role_names)
        if wrong:
            raise InputError(f"prompts.{min(wrong)} is no role of a {self.family} text: choose from {list(self.role_names)}")
        self.path = str(path) if isinstance(path, (str, Path)) else ", ".join(map(str, path))
        self._given_path = path
        self.batch_size = batch_size
        self.splits: dict[str, str | None] = {str(role): name for role, name in (splits or {}).items()}
        self.columns = dict(columns or {})
        self.on_bad_row: OnBadRow = on_bad_row
        self.max_bad_fraction = max_bad_fraction
        self.limits: dict[Role, int | None] = {"train": max_train, "dev": max_dev, "test": max_dev}
        self.holdout = holdout
        self.prompts = dict(prompts or {})
        self.cache_dir = Path(cache_dir).expanduser()
        self.weight_column = weight_column
        self.opened_splits: dict[Role, SplitT] = {}
        self._taken: set[Path] = set()  # files of splits
        self.labels: Mapping[Any, float | None] = {}
        self.key = ""  # of these settings in a config, with a dot at its end, for messages
        self.remark = ""  # on the rows that are held out, if any should be

    # ---- splits

    def open(self) -> None:
        """Check the files and open the splits; again only if that failed.

        Raises:
            InputError: there is no file of a split, or a file does not fit.
        """
        if self.opened_splits:
            return
        source = find_source(self._given_path)
        self._taken.clear()
        opened = {role: split for role in ROLES if (split := self._open_split(source, role)) is not None}
        if "dev" not in opened and "train" in opened and self.holdout:
            opened |= self._held_out(opened["train"])
        if not opened:
            names = [self.splits.get(role, role) for role in ROLES]
            raise no_files(source, [name for name in names if name is not None])
        warn_of_left_files(source, self._taken, self.splits, self.key)
        if "train" in opened:
            opened["train"] = self._of_some_weight(opened["train"])
        self.opened_splits = {role: _limited(split, self.limits[role]) for role, split in opened.items()}

    @abstractmethod
    def _open_split(self, source: Source, role: Role) -> SplitT | None:
        """The checked rows of a split; None if it has no file."""

    def _files(self, source: Source, role: Role) -> list[Path]:
        files = split_files(source, role, self.splits, self.key)
        self._taken.update(files)
        return files

    def _store(self, files: Sequence[Path], record: type[Record], role: Role | None = None) -> Store:
        settings = self.columns, self.on_bad_row, self.cache_dir, self.max_bad_fraction, self.labels, self.key
        return open_store(files, record, *settings, self.weight_column if role == "train" else None)

    def _of_some_weight(self, train: SplitT) -> SplitT:
        """The training rows that have a weight above 0."""
        weights = train.weights
        if weights is None or weights.all():
            return train
        if not weights.any():
            raise InputError(f"{self.path}: all {len(train)} training rows have the {self.weight_column} 0: give some more")
        zero = int((weights == 0).sum())
        warn_once(f"{self.path}: {zero} of {len(train)} training rows have the {self.weight_column} 0 and do not train")
        return train.select(np.flatnonzero(weights))

    def _held_out(self, train: SplitT) -> dict[Role, SplitT]:
        """Training rows divided into train and dev by the hash of a row's first text; {} if one of them would be empty."""
        positions = train.first_ids.view(np.uint64) % np.uint64(_SHARES)
        is_dev = positions < np.uint64(round(self.holdout * _SHARES))
        if not is_dev.any() or is_dev.all():
            self.remark = self._nothing_held_out(train, positions)
            return {}
        self.remark = f"{is_dev.sum()} of {len(train)} rows are held out"
        return {"train": train.select(np.flatnonzero(~is_dev)), "dev": train.select(np.flatnonzero(is_dev))}

    def _nothing_held_out(self, train: SplitT, positions: np.ndarray) -> str:
        """Say why there is no hold-out, and which share would make one."""
        distinct = f"{len(np.unique(train.first_ids))} distinct {self.held_by}"
        taken = "none" if positions.min() >= round(self.holdout * _SHARES) else "all"
        what = f"{len(train)} rows, {distinct}: {self.key}holdout={self.holdout:g} takes {taken} of them"
        remedy = "give more rows, or a folder with a train and a dev file"
        if positions.min() == positions.max():
            return f"{what}; {remedy}"
        share = (positions.min() + 1 if taken == "none" else positions.max()) / _SHARES
        return f"{what}; {remedy}, or {self.key}holdout={share:g}"

    @property
    def train(self) -> SplitT:
        """The training rows.

        Raises:
            InputError: there is no such split.
        """
        self.open()
        if "train" not in self.opened_splits:
            raise InputError(f"{self.path} has no train split: name its file under splits.train, or give the task weight 0")
        return self.opened_splits["train"]

    @property
    def weights(self) -> np.ndarray | None:
        """Float64[training rows] above 0; None without a column of weights."""
        return self.train.weights

    @property
    def made_of(self) -> dict[str, Any] | None:
        """What the rows were made of, where `acge clean` or `acge mine` wrote them; see `made_of`."""
        return made_of(find_source(self._given_path))

    def of_training_rows(self, positions: np.ndarray) -> Self:
        """The same data set with some of its training rows."""
        part = copy(self)
        part.opened_splits = {**self.opened_splits, "train": self.train.select(positions)}
        return part

    @abstractmethod
    def train_texts(self) -> Iterator[str]:
        """All texts of the training rows."""

    def fingerprint(self) -> str:
        """A digest of the training rows: the hashes of their texts in order, their labels, and their weights, if any."""
        digest = hashlib.sha256()
        weights = self.weights
        for values in [*self._identity(), *([] if weights is None else [weights])]:
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    @abstractmethod
    def _identity(self) -> Iterator[np.ndarray]:
        """What tells the training rows from others."""

    def keys(self, split: SplitT) -> np.ndarray:
        """Int64[rows]: hashes by which the same row is recognised in another split."""
        return split.first_ids

    # ---- for the sampler

    def __len__(self) -> int:
        """Training rows."""
        return len(self.train)

    @abstractmethod
    def texts_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the texts that each training row brings into a batch: Int64[texts], and the row of each, ascending."""

    def order(
        self, rng: np.random.Generator, draws: np.ndarray, sizes: np.ndarray, drawn: np.ndarray | None = None
    ) -> np.ndarray:
        """An epoch's order of the training rows, whose consecutive runs of `sizes` are batches.

        Here a text comes twice in a batch only where it must, for it has more rows than there are batches. (By chance that
        may also happen to a text of a row that has another, more frequent one. The losses mask equal texts.)

        Args:
            rng: of the order.
            draws: Float64[n], as in `examples`.
            sizes: Int64[batches] of `batch_sizes`.
            drawn: Int64[m] the rows of this epoch, of which some may come several times; None: each row once.

        Returns:
            Int64[n] (or [m]): all of these rows; those left over stand at the end.
        """
        texts, row = self.texts_of(draws)
        _, text, count = np.unique(texts, return_inverse=True, return_counts=True)
        most_frequent_first = np.lexsort([-count[text], row])
        key = text[most_frequent_first[np.searchsorted(row, np.arange(len(self)))]]
        return deal(key, sizes, rng) if drawn is None else drawn[deal(key[drawn], sizes, rng)]

    def check_learnable(self) -> None:
        """Refuse training rows on which the family's loss is the same whatever the encoder does.

        Raises:
            InputError: which says what all rows have in common.
        """
        distinct = len(np.unique(self.texts_of(np.zeros(len(self)))[0]))
        if distinct < 2:
            raise InputError(f"its {len(self)} training rows have one distinct text: check the file, and its columns")
        if distinct < _FEW_TEXTS and distinct * 10 < len(self):
            warn_once(f"{self.path}: its {len(self)} training rows have {distinct} distinct texts: check its columns")

    def check_scorable(self, role: Role) -> None:
        """Refuse a split whose score is the same whatever the encoder does.

        Raises:
            InputError: which says what all its rows have in common.
        """

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

    # ---- for an evaluation

    def evaluation(self, role: Role) -> EvaluationSet | None:
        """The texts of a split and their labels; None if the split is absent."""
        self.open()
        return self._evaluation(self.opened_splits[role]) if role in self.opened_splits else None

    @abstractmethod
    def _evaluation(self, split: SplitT) -> EvaluationSet:
        """The texts of the rows of a split and their labels."""

    def note(self, role: Role) -> str | None:
        """What of a split cannot be scored, if anything."""
        return None

    def document_count(self, role: Role) -> int | None:
        """How many documents each query of a split is ranked against; None where there are none."""
        return None


def _limited(split: SplitT, limit: int | None) -> SplitT:
    if limit is None or len(split) <= limit:
        return split
    return split.select(np.sort(np.random.default_rng(0).permutation(len(split))[:limit]))
