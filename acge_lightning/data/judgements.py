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
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.data.store import Store
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_FIELDS = {"query-id", "corpus-id", "score"}  # of a judgement


@dataclass(frozen=True)
class JudgedQueries:
    """Queries and their judged texts, a `Split`; a query's texts lie together, positives first.

    Args:
        query_ids: Int64[n] hashes of the queries.
        offsets: Int64[n + 1]: the texts of query i are numbers offsets[i] … offsets[i + 1] - 1.
        text_ids: Int64[r] hashes of the judged texts.
        grades: Float64[r], above 0 for positives.
        read_queries: queries of these positions.
        read_texts: judged texts of these numbers.
        documents: all documents, if there are more than the judged ones.
        document_rows: Int64[r]: which of all documents each judged text is.
        unanswered: queries that were left out because no judged text is a positive.
        unmatched: judgements that were left out because their query or document is not there.
        own_documents: Int64[n]: the document that has the query's `_id`, -1 where none has; None without ids.
        others: further queries of the same files, whose judged texts are searched too.
        weights: Float64[n] of the queries; None without a column of weights.
    """

    query_ids: np.ndarray
    offsets: np.ndarray
    text_ids: np.ndarray
    grades: np.ndarray
    read_queries: Callable[[np.ndarray], list[str]]
    read_texts: Callable[[np.ndarray], list[str]]
    documents: Store | None = None
    document_rows: np.ndarray | None = None
    unanswered: int = 0
    unmatched: int = 0
    own_documents: np.ndarray | None = None
    others: JudgedQueries | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def first_ids(self) -> np.ndarray:
        """Int64[n]: hashes of the queries."""
        return self.query_ids

    def file_rows(self, positions: np.ndarray) -> np.ndarray:
        """The positions: queries are counted as they are, since no row of a file is one query's alone."""
        return positions

    @property
    def corpus(self) -> tuple[pa.ChunkedArray, np.ndarray] | None:
        """The texts of all documents, on disk, and `document_rows`; None if the judged texts are all there are."""
        if self.documents is None or self.document_rows is None:
            return None
        return self.documents.column("text"), self.document_rows

    @property
    def note(self) -> str | None:
        """What was left out, if anything."""
        left_out = [
            (self.unanswered, "queries without a relevant document are left out"),
            (self.unmatched, "judgements of texts that are not there are left out"),
        ]
        return "; ".join(f"{count} {what}" for count, what in left_out if count) or None

    @cached_property
    def positives(self) -> np.ndarray:
        """Int64[n]: how many positives each query has."""
        return np.add.reduceat((self.grades > 0).astype(np.int64), self.offsets[:-1])

    @cached_property
    def candidate_ids(self) -> np.ndarray:
        """Int64[c]: hashes of what negatives may be mined from: of all documents, or else of the judged texts, by number."""
        return self.text_ids if self.documents is None else self.documents.ids()[0]

    def read_candidates(self, numbers: np.ndarray) -> list[str]:
        """The candidates of these numbers."""
        if self.documents is None:
            return self.read_texts(numbers)
        return [row["text"] for row in self.documents.take(numbers)]

    def judged_texts(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The judged texts of these queries: Int64[m] numbers of texts, and for each which of `positions` its query has."""
        lengths = np.diff(self.offsets)[positions]
        row = np.repeat(np.arange(len(positions)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.offsets[positions][row] + within, row

    def of_own_documents(self) -> JudgedQueries:
        """The queries that are documents themselves, each with that document as its only positive; none without ids."""
        own = np.full(len(self), -1) if self.own_documents is None else self.own_documents
        rows = np.flatnonzero(own >= 0)
        read = partial(_renumbered, self.read_queries, rows), partial(_renumbered, self.read_candidates, own[rows])
        ids = self.query_ids[rows], np.arange(len(rows) + 1), self.candidate_ids[own[rows]]
        return JudgedQueries(*ids, np.ones(len(rows)), *read)

    def other_texts(self, limit: int | None) -> list[str]:
        """The distinct judged texts of `others` that none of these queries judges; at most `limit`, evenly drawn."""
        if self.others is None:
            return []
        ids, numbers = np.unique(self.others.text_ids, return_index=True)
        numbers = np.sort(numbers[~np.isin(ids, self.text_ids)])
        if limit is not None and len(numbers) > limit:
            numbers = np.sort(np.random.default_rng(0).permutation(numbers)[:limit])
        return self.others.read_texts(numbers)

    @cached_property
    def _by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.query_ids, kind="stable")
        return order, self.query_ids[order]

    def with_equal_text(self, positions: np.ndarray) -> np.ndarray:
        """All queries that have the text of one of these, themselves among them."""
        order, ranked = self._by_hash
        asked = np.unique(self.query_ids[positions])
        cuts = np.searchsorted(ranked, asked), np.searchsorted(ranked, asked, side="right")
        return np.concatenate([order[:0], *(order[start:end] for start, end in zip(*cuts, strict=True))])

    def select(self, positions: np.ndarray) -> JudgedQueries:
        """Some of the queries."""
        texts, _ = self.judged_texts(positions)
        return replace(
            self,
            query_ids=self.query_ids[positions],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[positions])]),
            text_ids=self.text_ids[texts],
            grades=self.grades[texts],
            read_queries=partial(_renumbered, self.read_queries, positions),
            read_texts=partial(_renumbered, self.read_texts, texts),
            document_rows=None if self.document_rows is None else self.document_rows[texts],
            own_documents=None if self.own_documents is None else self.own_documents[positions],
            weights=None if self.weights is None else self.weights[positions],
        )


def _renumbered(read: Callable[[np.ndarray], list[str]], numbers: np.ndarray, chosen: np.ndarray) -> list[str]:
    return read(numbers[chosen])


def from_rows(store: Store) -> JudgedQueries:
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

    read = _Column(store, "query"), _Lists(store, starts)
    return JudgedQueries(values[is_query], starts, values[~is_query], grades, *read, weights=_weights(store))


def _weights(store: Store) -> np.ndarray | None:
    return store.column("weight").to_numpy() if "weight" in store.schema.names else None


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
        distinct, which = np.unique(owner, return_inverse=True)
        lists = [row["positive"] + row["negative"] for row in self.store.take(distinct)]
        return [lists[i][n] for i, n in zip(which.tolist(), (numbers - self.starts[owner]).tolist(), strict=True)]


def from_beir(corpus: Store, queries: Store, files: JudgementFiles, learn: bool) -> JudgedQueries:
    """Judgements of one split, resolved to rows of the corpus and of the queries; nothing is learnt from empty texts."""
    query, document, grade, asked = files.resolve(corpus, queries)
    if learn:
        keep = ~(_is_empty(queries)[query] | _is_empty(corpus)[document])
        query, document, grade = query[keep], document[keep], grade[keep]
        if not keep.all():
            _LOG.warning("%s: nothing is learnt from %d judgements of empty texts", files.files[0], (~keep).sum())
    order = np.lexsort([-grade, query])
    query, document, grade = query[order], document[order], grade[order]
    kept, starts = np.unique(query, return_index=True)
    answered = np.maximum.reduceat(grade, starts) > 0 if len(starts) else np.empty(0, dtype=bool)
    if not answered.any():
        raise InputError(f"{files.files[0]}: no query has a document of a grade above 0: check the score column")
    keep = np.repeat(answered, np.diff(np.append(starts, len(query))))
    query, document, grade = query[keep], document[keep], grade[keep]
    kept, starts = np.unique(query, return_index=True)
    weights = _weights(queries)
    split = JudgedQueries(
        queries.ids()[0][kept],
        np.append(starts, len(query)),
        corpus.ids()[0][document],
        grade,
        _Column(queries, "text", kept),
        _Column(corpus, "text", document),
        corpus,
        document,
        unanswered=asked - len(kept),
        unmatched=files.unmatched,
        own_documents=_rows_of(queries.column("key").take(pa.array(kept)), corpus),
        weights=None if weights is None else weights[kept],
    )
    if split.note:
        _LOG.warning("%s: %s", files.files[0], split.note)
    return split


def _is_empty(store: Store) -> np.ndarray:
    return pc.equal(pc.binary_length(store.column("text")), 0).to_numpy()


def _rows_of(keys: pa.ChunkedArray, store: Store) -> np.ndarray:
    """Int64[n]: the row of a store that has each key, -1 where none has."""
    rows = pc.index_in(keys, value_set=store.column("key").combine_chunks()).fill_null(-1)
    return rows.combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass
class JudgementFiles:
    """Lines of query-id, corpus-id, score, and what becomes of bad ones.

    A line whose query or document is not there is no error under `on_bad_row=raise` either: published sets have such lines.
    It counts as a bad row.
    """

    files: Sequence[Path]
    on_bad_row: str
    issues: RowIssues
    max_bad_fraction: float
    unmatched: int = 0

    def resolve(self, corpus: Store, queries: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Int64 rows of queries, Int64 rows of documents, Float64 grades, and how many queries the files name."""
        if self.issues.quarantine is not None:
            self.issues.quarantine.unlink(missing_ok=True)
        lines = list(self.lines())
        if not lines and not self.issues.skipped:
            raise InputError(f"{self.files[0]}: the file has no judgements: give lines of query-id, corpus-id, score")
        query, document = [line[1] for line in lines], [line[2] for line in lines]
        grade = [line[3] for line in lines]
        resolved, matched = [], np.ones(len(lines), dtype=bool)
        for store, names, plural in ((queries, query, "queries"), (corpus, document, "documents")):
            numbers = _rows_of(pa.chunked_array([pa.array(names, pa.large_string())]), store)
            for i in np.flatnonzero(matched & (numbers < 0)).tolist():
                row = {"query-id": query[i], "corpus-id": document[i], "score": grade[i]}
                self.issues.bad(*lines[i][0], row, RowError(None, f"{names[i]!r} is not among the {plural}"))
            matched &= numbers >= 0
            resolved.append(numbers)
        self.unmatched = int((~matched).sum())
        self.issues.report(self.files[0], int(matched.sum()), self.max_bad_fraction)
        return resolved[0][matched], resolved[1][matched], np.array(grade, dtype=np.float64)[matched], len(set(query))

    def lines(self) -> Iterator[tuple[tuple[Path, int], str, str, float]]:
        """(File and line, query, document, grade) of each judgement."""
        for file in self.files:
            for line, row in rows(file, _FIELDS):
                try:
                    if isinstance(row, RowError):
                        raise row
                    query, document, grade = _judgement(row)
                except RowError as error:
                    if self.on_bad_row == "raise":
                        remedy = "" if "on_bad_row" in str(error) else ": mend it, or on_bad_row=skip"
                        raise InputError(f"{file}, line {line}: {error}{remedy}") from None
                    self.issues.bad(file, line, row, error)
                else:
                    self.issues.spaced += query != str(row["query-id"]) or document != str(row["corpus-id"])
                    yield (file, line), query, document, grade


def _judgement(row: dict[str, Any]) -> tuple[str, str, float]:
    """The names of a query and a document, and a grade."""
    if not row.keys() >= _FIELDS:
        raise RowError(None, f"has {sorted(row)}, not query-id, corpus-id and score: mend the header line")
    return identifier(row["query-id"], "query-id"), identifier(row["corpus-id"], "corpus-id"), number(row, "score")
