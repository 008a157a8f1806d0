"""A pile of training rows while it is cleaned: which rows are still kept, and why each of the others is not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.training_rows import Rows


@dataclass(frozen=True)
class Group:
    """Rows of one kind, of one data set or of several, one after the other.

    Args:
        family: of all of them, or of the first of families with the same fields.
        columns: field -> n values.
        dataset: Int32[n] a number of `Pile.rows` (or of `Pile.evaluation`).
        row: Int64[n] a row of it.
    """

    family: str
    columns: dict[str, list[Any]]
    dataset: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Reason:
    """Why a row is left out, or reported.

    Args:
        reason: in words.
        value: what was measured; NaN for nothing.
        other: the data set and the row that it clashes with; None for none.
        is_evaluation: whether that is a row of `Pile.evaluation`.
    """

    reason: str
    value: float
    other: tuple[int, int] | None
    is_evaluation: bool


@dataclass
class Pile:
    """Rows of data sets, and what has become of them.

    Args:
        rows: training rows, a data set each.
        evaluation: rows that training may not repeat, a data set each.
        kept: Bool[n] a data set: whether each row is kept.
        dropped: a data set: row -> why it is left out.
        reported: a data set: row -> what is odd about a row that is kept.
        quality: Float64[n] a data set: of each row, 1 where no step measured anything; see `mining.quality`.
    """

    rows: list[Rows]
    evaluation: list[Rows]
    kept: list[np.ndarray] = field(init=False)
    dropped: list[dict[int, Reason]] = field(init=False)
    reported: list[dict[int, Reason]] = field(init=False)
    quality: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = [np.ones(len(rows), dtype=bool) for rows in self.rows]
        self.dropped = [{} for _ in self.rows]
        self.reported = [{} for _ in self.rows]
        self.quality = [np.ones(len(rows)) for rows in self.rows]

    def groups(self, families: Sequence[Collection[str]]) -> Iterator[Group]:
        """Yield the kept rows that are looked at together.

        Args:
            families: collections of families whose data sets make one group; data sets of others are groups of their own.
        """
        left = [i for i, rows in enumerate(self.rows) if self.kept[i].any()]
        for together in families:
            numbers = [i for i in left if self.rows[i].data.family in together]
            left = [i for i in left if i not in numbers]
            if numbers:
                yield self.group(numbers)
        for number in left:
            yield self.group([number])

    def group(self, numbers: Sequence[int]) -> Group:
        """Return the kept rows of these data sets."""
        return group(self.rows, numbers, [np.flatnonzero(self.kept[i]) for i in numbers])

    def apply(self, found: Findings, rows: Group, others: Group | None = None, drop: bool = True) -> None:
        """Leave rows out, or report them.

        Args:
            found: of rows of the group.
            rows: the group.
            others: that `found.others` are rows of, evaluation rows; None: the group itself.
            drop: whether they are left out.
        """
        other_group = rows if others is None else others
        for row, other, value in zip(found.rows.tolist(), found.others.tolist(), found.values.tolist(), strict=True):
            dataset, number = int(rows.dataset[row]), int(rows.row[row])
            clash = None if other < 0 else (int(other_group.dataset[other]), int(other_group.row[other]))
            reason = Reason(found.reason, value, clash, others is not None)
            if not drop:
                self.reported[dataset].setdefault(number, reason)
            elif self.kept[dataset][number]:
                self.kept[dataset][number] = False
                self.dropped[dataset][number] = reason

    def weigh(self, quality: np.ndarray, rows: Group) -> None:
        """Multiply the quality of the rows of a group by Float64[n]."""
        for dataset in np.unique(rows.dataset):
            of_dataset = rows.dataset == dataset
            self.quality[dataset][rows.row[of_dataset]] *= quality[of_dataset]

    def counts(self, reported: bool = False) -> list[dict[str, int]]:
        """Count the rows that are left out, or only reported: for each data set, reason -> rows."""
        totals: list[dict[str, int]] = []
        for reasons in self.reported if reported else self.dropped:
            total: dict[str, int] = {}
            for reason in reasons.values():
                total[reason.reason] = total.get(reason.reason, 0) + 1
            totals.append(total)
        return totals

    def clash(self, reason: Reason) -> tuple[Rows, int] | None:
        """Return the row that a row clashes with: its data set, and its number there."""
        if reason.other is None:
            return None
        dataset, row = reason.other
        return (self.evaluation if reason.is_evaluation else self.rows)[dataset], row


def group(rows: Sequence[Rows], numbers: Sequence[int], chosen: Sequence[np.ndarray]) -> Group:
    """Join some rows of some data sets.

    Args:
        rows: of all data sets.
        numbers: of these data sets, whose families have the same fields, `label` and `score` apart.
        chosen: Int64[n] rows of each of them.
    """
    first = rows[numbers[0]]
    names = [name for name in first.columns if all(name in rows[i].columns for i in numbers)]
    picked = [(rows[i].columns, take.tolist()) for i, take in zip(numbers, chosen, strict=True)]
    columns = {name: [columns[name][row] for columns, take in picked for row in take] for name in names}
    dataset = np.repeat(np.array(numbers, np.int32), [len(take) for take in chosen])
    return Group(first.data.family, columns, dataset, np.concatenate(chosen))
