"""Queries and their judged texts, from rows of lists and from BEIR folders, and what becomes of bad judgements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError, identifier, number
from acge_lightning.data.store import Left, Store
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_FIELDS = {"query-id", "corpus-id", "score"}  # of a judgement


@dataclass(frozen=True)
class Judged:
    """Queries and their judged texts; a query's texts lie together, positives first.

    Args:
        queries: Int64[n] hashes of the queries.
        offsets: Int64[n + 1]: the texts of query i are numbers offsets[i] … offsets[i + 1] - 1.
        ids: Int64[r] hashes of the judged texts.
        grades: Float64[r], above 0 for positives.
        read_queries: queries of these numbers.
        read_texts: judged texts of these numbers.
        documents: all documents, if there are more than the judged ones.
        places: Int64[r]: the place of each judged text among all documents.
        unanswered: queries that were left out because no judged text is a positive.
        unmatched: judgements that were left out because their query or document is not there.
        own: Int64[n] the place in the corpus of the document that has the query's `_id`, -1 where none has; None without ids.
    """

    queries: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    grades: np.ndarray
    read_queries: Callable[[np.ndarray], list[str]]
    read_texts: Callable[[np.ndarray], list[str]]
    documents: Store | None = None
    places: np.ndarray | None = None
    unanswered: int = 0
    unmatched: int = 0
    own: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def corpus(self) -> tuple[pa.ChunkedArray, np.ndarray] | None:
        """The texts of all documents, on disk, and `places`; None if the judged texts are all there are."""
        return None if self.documents is None else (self.documents.column("text"), self.places)

    @property
    def note(self) -> str | None:
        """What was left out, if anything."""
        left = [
            (self.unanswered, "queries without a relevant document are left out"),
            (self.unmatched, "judgements of texts that are not there are left out"),
        ]
        return "; ".join(f"{count} {what}" for count, what in left if count) or None

    @cached_property
    def positives(self) -> np.ndarray:
        """Int64[n]: how many positives each query has."""
        return np.add.reduceat((self.grades > 0).astype(np.int64), self.offsets[:-1])

    def of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The judged texts of these queries: Int64[m] numbers of texts, and for each the place of its query in `numbers`."""
        lengths = np.diff(self.offsets)[numbers]
        row = np.repeat(np.arange(len(numbers)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.offsets[numbers][row] + within, row

    @cached_property
    def _by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.queries, kind="stable")
        return order, self.queries[order]

    def alike(self, numbers: np.ndarray) -> np.ndarray:
        """All queries that have the text of one of these, themselves among them."""
        order, ranked = self._by_hash
        asked = np.unique(self.queries[numbers])
        cuts = np.searchsorted(ranked, asked), np.searchsorted(ranked, asked, side="right")
        return np.concatenate([order[:0], *(order[start:end] for start, end in zip(*cuts, strict=True))])

    def select(self, numbers: np.ndarray) -> Judged:
        """Some of the queries."""
        texts, _ = self.of(numbers)
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[numbers])])
        return replace(
            self,
            queries=self.queries[numbers],
            offsets=offsets,
            ids=self.ids[texts],
            grades=self.grades[texts],
            read_queries=partial(_renumbered, self.read_queries, numbers),
            read_texts=partial(_renumbered, self.read_texts, texts),
            places=None if self.places is None else self.places[texts],
            own=None if self.own is None else self.own[numbers],
        )


def _renumbered(read: Callable[[np.ndarray], list[str]], numbers: np.ndarray, chosen: np.ndarray) -> list[str]:
    return read(numbers[chosen])


def from_rows(store: Store) -> Judged:
    """Of rows `query, positive, negative`: each row is a query, its own texts are judged."""
    values, offsets = store.ids()
    is_query = np.zeros(len(values), dtype=bool)
    is_query[offsets[:-1]] = True
    positives = pc.list_value_length(store.column("positive")).to_numpy()
    starts = offsets[:-1] - np.arange(len(store))
    grades = np.zeros(len(values) - len(store))
    row = np.repeat(np.arange(len(store)), np.diff(offsets) - 1)
    grades[np.arange(len(row)) - starts[row] < positives[row]] = 1.0
    starts = np.append(starts, len(row))

    return Judged(values[is_query], starts, values[~is_query], grades, _Column(store, "query"), _Lists(store, starts))


@dataclass(frozen=True)
class _Column:
    """Reads a text of each of some rows; `rows` are numbered anew from 0."""

    store: Store
    name: str
    rows: np.ndarray | None = None

    def __call__(self, numbers: np.ndarray) -> list[str]:
        return [row[self.name] for row in self.store.take(numbers if self.rows is None else self.rows[numbers])]


@dataclass(frozen=True)
class _Lists:
    """Reads texts of the lists of rows; those of row i are numbered from `starts[i]`, positives first."""

    store: Store
    starts: np.ndarray

    def __call__(self, numbers: np.ndarray) -> list[str]:
        owner = np.searchsorted(self.starts, numbers, side="right") - 1
        distinct, place = np.unique(owner, return_inverse=True)
        lists = [row["positive"] + row["negative"] for row in self.store.take(distinct)]
        return [lists[i][n] for i, n in zip(place.tolist(), (numbers - self.starts[owner]).tolist(), strict=True)]


def from_beir(corpus: Store, queries: Store, judgements: Judgements, learn: bool) -> Judged:
    """Judgements of one split, resolved to places in the corpus and among the queries; nothing is learnt from empty texts."""
    query, doc, grade, asked = judgements.resolve(corpus, queries)
    if learn:
        keep = ~(_is_empty(queries)[query] | _is_empty(corpus)[doc])
        query, doc, grade = query[keep], doc[keep], grade[keep]
        if not keep.all():
            _LOG.warning("%s: nothing is learnt from %d judgements of empty texts", judgements.files[0], (~keep).sum())
    order = np.lexsort([-grade, query])
    query, doc, grade = query[order], doc[order], grade[order]
    kept, first = np.unique(query, return_index=True)
    answered = np.maximum.reduceat(grade, first) > 0 if len(first) else np.empty(0, dtype=bool)
    if not answered.any():
        raise InputError(f"{judgements.files[0]}: no query has a document of a grade above 0: check the score column")
    keep = np.repeat(answered, np.diff(np.append(first, len(query))))
    query, doc, grade = query[keep], doc[keep], grade[keep]
    kept, first = np.unique(query, return_index=True)
    part = Judged(
        queries.ids()[0][kept],
        np.append(first, len(query)),
        corpus.ids()[0][doc],
        grade,
        _Column(queries, "text", kept),
        _Column(corpus, "text", doc),
        corpus,
        doc,
        unanswered=asked - len(kept),
        unmatched=judgements.unmatched,
        own=_own(corpus.column("key"), queries.column("key").take(pa.array(kept))),
    )
    if part.note:
        _LOG.warning("%s: %s", judgements.files[0], part.note)
    return part


def _is_empty(store: Store) -> np.ndarray:
    return pc.equal(pc.binary_length(store.column("text")), 0).to_numpy()


def _own(corpus: pa.ChunkedArray, queries: pa.ChunkedArray) -> np.ndarray:
    found = pc.index_in(queries, value_set=corpus.combine_chunks())
    return found.fill_null(-1).combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass
class Judgements:
    """Lines of query-id, corpus-id, score, and what becomes of bad ones.

    A line whose query or document is not there is no error under `on_bad_row=raise` either: published sets have such lines.
    It counts as a bad row.
    """

    files: Sequence[Path]
    on_bad_row: str
    left: Left
    max_bad_fraction: float
    unmatched: int = 0

    def resolve(self, corpus: Store, queries: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Int64 rows of queries, Int64 rows of documents, Float64 grades, and how many queries the files name."""
        if self.left.aside is not None:
            self.left.aside.unlink(missing_ok=True)
        lines = list(self._lines())
        if not lines and not self.left.skipped:
            raise InputError(f"{self.files[0]}: the file has no judgements: give lines of query-id, corpus-id, score")
        where, query, doc, grade = zip(*lines, strict=True) if lines else ((), (), (), ())
        places, known = [], np.ones(len(lines), dtype=bool)
        for store, names, plural in ((queries, query, "queries"), (corpus, doc, "documents")):
            found = pc.index_in(pa.array(names, pa.large_string()), value_set=store.column("key").combine_chunks())
            place = found.fill_null(-1).to_numpy().astype(np.int64)
            for i in np.flatnonzero(known & (place < 0)).tolist():
                row = {"query-id": query[i], "corpus-id": doc[i], "score": grade[i]}
                self.left.bad(*where[i], row, RowError(None, f"{names[i]!r} is not among the {plural}"))
            known &= place >= 0
            places.append(place)
        self.unmatched = int((~known).sum())
        self.left.report(self.files[0], int(known.sum()), self.max_bad_fraction)
        return places[0][known], places[1][known], np.array(grade, dtype=np.float64)[known], len(set(query))

    def _lines(self) -> Iterator[tuple[tuple[Path, int], str, str, float]]:
        for file in self.files:
            for line, row in rows(file, _FIELDS):
                try:
                    query, doc, grade = _judgement(row)
                except RowError as error:
                    if self.on_bad_row == "raise":
                        remedy = "" if "on_bad_row" in str(error) else ": mend it, or on_bad_row=skip"
                        raise InputError(f"{file}, line {line}: {error}{remedy}") from None
                    self.left.bad(file, line, row, error)
                else:
                    self.left.spaced += query != str(row["query-id"]) or doc != str(row["corpus-id"])
                    yield (file, line), query, doc, grade


def _judgement(row: dict[str, Any] | RowError) -> tuple[str, str, float]:
    """The names of a query and a document, and a grade."""
    if isinstance(row, RowError):
        raise row
    if not row.keys() >= _FIELDS:
        raise RowError(None, f"has {sorted(row)}, not query-id, corpus-id and score: mend the header line")
    return identifier(row["query-id"], "query-id"), identifier(row["corpus-id"], "corpus-id"), number(row, "score")
