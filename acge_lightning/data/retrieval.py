"""Queries with judged texts: retrieval from a corpus, and reranking of listed candidates."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from acge_lightning.data.dataset import NO_ROWS, Examples, Role, TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet, distinct_texts, judgement_rows, text_column
from acge_lightning.data.judgements import JudgedQueries, JudgementFiles, from_beir, from_rows
from acge_lightning.data.mined_negatives import MinedNegatives
from acge_lightning.data.records import DocumentRecord, TripletRecord
from acge_lightning.data.row_issues import RowIssues
from acge_lightning.data.source import Source
from acge_lightning.data.splits import files_called, is_beir
from acge_lightning.data.store import quarantine_file
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_BLOCK = 4096  # texts read together


class RetrievalDataset(TaskDataset[JudgedQueries]):
    """Retrieval: a BEIR folder (`corpus`, `queries`, `qrels/<split>.tsv`), or rows of `query, positive[, negative]`.

    A step takes one positive a query, drawn anew each epoch, and up to `negatives` of its negatives. Where queries of a batch
    share a positive, other queries' positives, drawn at random, make up for it as negatives. Texts judged positive for a query
    are never its negatives. The evaluation ranks the whole corpus; without one, all texts of the split's rows, and of rows that
    are held out also those of the rows that they were taken from.

    What published BEIR folders have is told and counted, and is no error, under `on_bad_row=raise` either, while it is at most
    `max_bad_fraction` of a file: empty texts, which stay in the evaluation, as in mteb, but nothing is learnt from them; and
    judgements of queries or documents that are not there, which are left out (trec_eval counts such a document as not found).
    Ids are read without the white space around them; one that comes twice is a bad row.

    Args:
        negatives: texts judged 0 (or listed under `negative`) that a query brings along.
        exclude_own_id: leave the document that has the query's own `_id` out of its ranking, where queries are documents
            themselves, as in BEIR's ArguAna and Quora.
        max_documents: most texts of training rows, evenly drawn, that queries of held-out rows are ranked against; None: all.
        **kwargs: as in `TaskDataset`; prompt roles are `query` and `document`.

    Attributes:
        mined: hard negatives of training rows, which all come along beside those that are listed; `RefreshNegatives` sets them.
    """

    family = "retrieval"
    held_by = "queries"
    role_names = ("query", "document")
    in_batch: ClassVar[bool] = True  # whether the positives of other queries are negatives

    def __init__(
        self,
        *args: Any,
        negatives: int = 1,
        exclude_own_id: bool = False,
        max_documents: int | None = 10_000,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if negatives < 0:
            raise InputError(f"negatives={negatives} must be 0 or more")
        self.negatives, self.exclude_own_id, self.max_documents = negatives, exclude_own_id, max_documents
        self.mined: MinedNegatives | None = None

    def _open_split(self, source: Source, role: Role) -> JudgedQueries | None:
        if not is_beir(source):
            if self.exclude_own_id:
                raise InputError(
                    f"{self.path}: exclude_own_id=true needs the ids of a BEIR folder, and rows have none: leave it out"
                )
            files = self._files(source, role)
            return from_rows(self._store(files, TripletRecord, role)) if files else None
        qrels = self._files(source / "qrels", role)
        if not qrels:
            return None
        corpus = self._store(files_called(source, "corpus"), DocumentRecord)
        queries = files_called(source, "queries")
        if not queries:
            raise InputError(f"{source} has a corpus and no queries: add queries.jsonl")
        asked = self._store(queries, DocumentRecord, role)
        return from_beir(corpus, asked, self._judgement_files(qrels), learn=role == "train")

    def _judgement_files(self, files: Sequence[Path]) -> JudgementFiles:
        name = hashlib.sha256("\n".join(str(file.resolve()) for file in files).encode()).hexdigest()[:24]
        quarantine = quarantine_file(self.cache_dir / name) if self.on_bad_row == "quarantine" else None
        return JudgementFiles(files, self.on_bad_row, RowIssues(quarantine), self.max_bad_fraction)

    def _held_out(self, train: JudgedQueries) -> dict[Role, JudgedQueries]:
        """As of every family; queries that are held out search the texts of the others too."""
        divided = super()._held_out(train)
        if "dev" in divided and train.documents is None:
            divided["dev"] = replace(divided["dev"], others=divided["train"])
        return divided

    def note(self, role: Role) -> str | None:
        """Of rows: how many documents there are. Of a corpus: how many queries have none, how many judgements are left out."""
        split = self.opened_splits[role]
        return split.note if split.corpus is not None else f"of {self.document_count(role):,} documents"

    def document_count(self, role: Role) -> int | None:
        """How many distinct documents each query of a split is ranked against; None where each has its own."""
        split = self.opened_splits[role]
        return len(self.documents(split)[0] if split.corpus is None else split.corpus[0])

    def check_scorable(self, role: Role) -> None:
        """Refuse queries that search a single document: it is always the best."""
        if self.document_count(role) == 1:
            raise InputError(f"its {role} rows have one document, which is always ranked best: give more rows")

    def _identity(self) -> Iterator[np.ndarray]:
        yield from (self.train.query_ids, self.train.offsets, self.train.text_ids, self.train.grades)

    def train_texts(self) -> Iterator[str]:
        """The queries and all documents."""
        split = self.train
        yield from split.read_queries(np.arange(len(split)))
        if split.corpus is None:
            yield from split.read_texts(np.arange(len(split.text_ids)))
        else:
            for chunk in split.corpus[0].chunks:
                yield from filter(None, chunk.to_pylist())

    def _chosen(self, positions: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positive of each query, and the negatives of all: numbers of judged texts."""
        split = self.train
        start, count = split.offsets[positions], split.positives[positions]
        positive = start + (draws * count).astype(np.int64)
        negative_counts = split.offsets[positions + 1] - start - count
        if not self.negatives or not negative_counts.any():
            return positive, NO_ROWS
        step = np.arange(self.negatives)
        offset = (draws * 2**20 % 1 * negative_counts).astype(
            np.int64
        )  # other digits of the draw, so as not to follow the positive
        turn = (offset[:, None] + step) % np.maximum(negative_counts, 1)[:, None]
        return positive, ((start + count)[:, None] + turn)[step < negative_counts[:, None]]

    def texts_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each query and the positive drawn for it (negatives that come twice are dropped from the batch instead)."""
        everything = np.arange(len(self))
        positive, _ = self._chosen(everything, draws)
        values = np.stack([self.train.query_ids, self.train.text_ids[positive]], axis=1).reshape(-1)
        return values, np.repeat(everything, 2)

    def check_learnable(self) -> None:
        """Refuse one distinct query, or queries for which every text that may come with them is a positive."""
        split = self.train
        queries, query_of = np.unique(split.query_ids, return_inverse=True)
        if len(queries) < 2:
            raise InputError(f"its {len(split)} training rows have one distinct query: check the file, and its columns")
        judged, row = split.judged_texts(np.arange(len(split)))
        query, text, right = query_of[row], split.text_ids[judged], split.grades[judged] > 0
        met = right & self.in_batch | ~right & (self.negatives > 0)
        candidates = np.unique(text[met])
        pairs = np.unique(np.stack([query, text])[:, right & np.isin(text, candidates)], axis=1)
        if np.bincount(pairs[0], minlength=len(queries)).min() == len(candidates):
            raise InputError(f"its {len(split)} training rows have no text that is wrong for a query: add negatives, or rows")
        alone = int((np.bincount(row[~right], minlength=len(split)) == 0).sum())
        if alone and not self.in_batch:
            _LOG.warning("%s: %d of %d training rows list no negative and teach nothing", self.path, alone, len(split))

    def random_negatives(self, positions: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """A positive of other queries in place of each positive that comes again, so that every query has as many negatives."""
        split = self.train
        positive, negative = self._chosen(positions, draws)
        room = len(positive) - len(np.unique(split.text_ids[positive]))
        if not room or not self.in_batch:
            return NO_ROWS
        rng = np.random.default_rng((draws[:4] * 2**53).astype(np.int64))
        drawn = self._positives[rng.integers(len(self._positives), size=4 * room)]
        _, occurrence = np.unique(split.text_ids[drawn], return_index=True)
        drawn = drawn[np.sort(occurrence)]
        return drawn[~np.isin(split.text_ids[drawn], split.text_ids[np.append(positive, negative)])][:room]

    @cached_property
    def _positives(self) -> np.ndarray:
        """One number of each distinct positive."""
        right = np.flatnonzero(self.train.grades > 0)
        return right[np.unique(self.train.text_ids[right], return_index=True)[1]]

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """Queries, one positive each, distinct negatives, and all judgements of these queries; mined negatives are judged 0."""
        split = self.train
        positive, negative = self._chosen(positions, draws)
        mined, owner = (NO_ROWS, NO_ROWS) if self.mined is None else self.mined.of(positions)
        asked = split.with_equal_text(positions)
        judged, row = split.judged_texts(asked)
        labels = np.stack([split.query_ids[asked][row], split.text_ids[judged], split.grades[judged] > 0], axis=1)
        if len(mined):
            mined_labels = [split.query_ids[positions][owner], split.candidate_ids[mined], np.zeros_like(mined)]
            labels = np.concatenate([labels, np.stack(mined_labels, axis=1)])
        columns = [split.read_queries(positions), split.read_texts(positive)]
        ids = [split.query_ids[positions], split.text_ids[positive]]
        texts, text_ids = _distinct(split, (negative, mined, random_negatives), split.text_ids[positive])
        if len(texts):
            columns.append(texts)
            ids.append(text_ids)
        roles = ("query", "document", "document")[: len(columns)]
        return Examples(tuple(columns), roles, tuple(ids), torch.from_numpy(labels.astype(np.int64)))

    def documents(self, split: JudgedQueries) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
        """What a split's queries are ranked against.

        Returns:
            Texts, Int64[documents] the number of each document's text among them (of equal ones the first), and Int64[r] the
            document that each judged text is.
        """
        if split.corpus is not None:
            return split.corpus[0], _first_equal(split.corpus[0]), split.corpus[1]
        names, document = distinct_texts(split.read_texts(np.arange(len(split.text_ids))))
        names += split.other_texts(self.max_documents)
        return text_column(names), np.arange(len(names)), document

    def own_documents(self, split: JudgedQueries) -> np.ndarray:
        """Int64[n]: the document that is left out of each query's ranking, -1 for none.

        Raises:
            InputError: there is none for any query, though `exclude_own_id` is set.
        """
        if not self.exclude_own_id:
            return np.full(len(split), -1)
        if split.own_documents is None or not np.any(split.own_documents >= 0):
            raise InputError(f"{self.path}: exclude_own_id=true, but no query has the _id of a document: leave it out")
        return split.own_documents

    def _evaluation(self, split: JudgedQueries) -> EvaluationSet:
        everything = np.arange(len(split))
        queries, asking = distinct_texts(split.read_queries(everything))
        column, text, judged = self.documents(split)
        query, own = split.judged_texts(everything)[1], self.own_documents(split)
        hiding, unjudged = np.flatnonzero(own >= 0), np.setdiff1d(np.arange(len(text)), judged)
        document = np.concatenate([judged, own[hiding], unjudged])
        grade = np.append(split.grades, np.full(len(hiding) + len(unjudged), np.nan))
        query = np.concatenate([query, hiding, np.full(len(unjudged), -1)])
        answer = len(queries) + text[document]
        judgements = judgement_rows(np.where(query < 0, answer, asking[query]), answer, grade, query, document)
        texts = pa.chunked_array([*text_column(queries).chunks, *column.chunks])
        roles = ((len(queries), "query"), (len(texts), "document"))
        return EvaluationSet(texts, roles, self.keys(split), judgements)


class RerankingDataset(RetrievalDataset):
    """Reranking: rows of `query, positive, negative`; each query's candidates are its own listed texts.

    Trains as InfoNCE in which a query sees its own negatives only.

    Args:
        negatives: texts of its list that a query brings along.
        **kwargs: as in `TaskDataset`; prompt roles are `query` and `document`.
    """

    family = "reranking"
    in_batch = False

    def __init__(self, *args: Any, negatives: int = 7, **kwargs: Any):
        super().__init__(*args, negatives=negatives, **kwargs)
        if self.exclude_own_id:
            raise InputError(
                "exclude_own_id=true is for retrieval from a corpus: candidates of reranking are listed, leave it out"
            )

    def note(self, role: Role) -> str | None:
        """How many queries have candidates of one kind only."""
        split = self.opened_splits[role]
        of_one_kind = (split.positives == 0) | (split.positives == np.diff(split.offsets))
        left_out = int(of_one_kind.sum()) + split.unanswered
        return f"{left_out} queries without both relevant and other candidates are left out" if left_out else None

    def document_count(self, role: Role) -> None:
        """None: every query has a list of its own."""

    def check_scorable(self, role: Role) -> None:
        """Refuse lists of one kind only."""
        split = self.opened_splits[role]
        if not ((split.positives > 0) & (split.positives < np.diff(split.offsets))).any():
            raise InputError(f"none of its {len(split)} {role} rows has both a positive and a negative: check their columns")

    def documents(self, split: JudgedQueries) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
        """The same: every listed candidate is a document of its own, though its text may be listed elsewhere too."""
        names, text = distinct_texts(split.read_texts(np.arange(len(split.text_ids))))
        return text_column(names), text, np.arange(len(text))


def _distinct(
    split: JudgedQueries, groups: tuple[np.ndarray, np.ndarray, np.ndarray], left_out: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Read numbers of judged texts, of candidates, and of judged texts again, each text once.

    Args:
        split: whose texts they are.
        groups: Int64[…] numbers each.
        left_out: Int64[m] hashes of texts that are not wanted.

    Returns:
        Texts, in their order, and Int64[n] their hashes.
    """
    all_ids = split.text_ids, split.candidate_ids if len(groups[1]) else NO_ROWS, split.text_ids
    ids = np.concatenate([hashes[group] for hashes, group in zip(all_ids, groups, strict=True)])
    _, occurrence = np.unique(ids, return_index=True)
    is_kept = np.zeros(len(ids), dtype=bool)
    is_kept[occurrence] = ~np.isin(ids[occurrence], left_out)
    kept = np.split(is_kept, np.cumsum([len(group) for group in groups])[:-1])
    readers = split.read_texts, split.read_candidates, split.read_texts
    chosen = [(read, group[rows]) for read, group, rows in zip(readers, groups, kept, strict=True)]
    return [text for read, numbers in chosen if len(numbers) for text in read(numbers)], ids[is_kept]


def _first_equal(texts: pa.ChunkedArray) -> np.ndarray:
    """Int64[n]: the number of the first text that equals each one, by hashes of 64 bits; texts may lie on disk."""
    digests = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        for batch in texts.chunks
        for start in range(0, len(batch), _BLOCK)
        for text in batch.slice(start, _BLOCK).to_pylist()
    )
    hashes = np.frombuffer(b"".join(digests), dtype=np.int64)
    _, first_rows, distinct = np.unique(hashes, return_index=True, return_inverse=True)
    return first_rows[distinct]
