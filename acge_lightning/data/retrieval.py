"""Queries with judged texts: retrieval from a corpus, and reranking of listed candidates."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from acge_lightning.data.base import NO_ROWS, EvaluationSet, Examples, TaskDataModule, as_column, numbered
from acge_lightning.data.judged import Judged, Judgements, from_beir, from_rows
from acge_lightning.data.readers import is_beir, split_files
from acge_lightning.data.records import DocumentRecord, TripletRecord
from acge_lightning.data.store import Left, aside
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import InfoNCE
from acge_lightning.metrics.task_metrics import Reranking, Retrieval

_LOG = logging.getLogger(__name__)
_BLOCK = 4096  # texts read together


class RetrievalDataModule(TaskDataModule):
    """Retrieval: a BEIR folder (`corpus`, `queries`, `qrels/<split>.tsv`), or rows of `query, positive[, negative]`.

    A step takes one positive a query, drawn anew each epoch, and up to `negatives` of its negatives. Where queries of a batch
    share a positive, other queries' positives, drawn at random, make up for it as negatives. Texts judged positive for a query
    are never its negatives. The evaluation ranks the whole corpus; without one, all texts of the split's rows.

    What published BEIR folders have is told and counted, and is no error, under `on_bad_row=raise` either, while it is at most
    `max_bad_fraction` of a file: empty texts, which stay in the evaluation, as in mteb, but nothing is learnt from them; and
    judgements of queries or documents that are not there, which are left out (trec_eval counts such a document as not found).
    Ids are read without the white space around them; one that comes twice is a bad row.

    Args:
        negatives: texts judged 0 (or listed under `negative`) that a query brings along.
        exclude_own_id: leave the document that has the query's own `_id` out of its ranking, where queries are documents
            themselves, as in BEIR's ArguAna and Quora.
        **others: as in `TaskDataModule`; prompt roles are `query` and `document`.

    YAML::

        medical_qa:
          data: {_target_: acge_lightning.data.RetrievalDataModule, path: "${paths.data_dir}/retrieval/medical_qa"}
    """

    family = "retrieval"
    record = TripletRecord
    default_loss = InfoNCE
    default_metric = Retrieval
    role_names = ("query", "document")
    in_batch: ClassVar[bool] = True  # whether the positives of other queries are negatives

    def __init__(self, *args: Any, negatives: int = 1, exclude_own_id: bool = False, **others: Any):
        super().__init__(*args, **others)
        if negatives < 0:
            raise InputError(f"negatives={negatives} must be 0 or more")
        self.negatives, self.exclude_own_id = negatives, exclude_own_id

    def _open(self, source: Path, role: str) -> Judged | None:
        if not is_beir(source):
            if self.exclude_own_id:
                raise InputError(
                    f"{source}: exclude_own_id=true needs the ids of a BEIR folder, and rows have none: leave it out"
                )
            files = self._files(source, role)
            return from_rows(self._store(files, TripletRecord)) if files else None
        qrels = self._files(source / "qrels", role)
        if not qrels:
            return None
        corpus = self._store(split_files(source, "corpus"), DocumentRecord)
        queries = split_files(source, "queries")
        if not queries:
            raise InputError(f"{source} has a corpus and no queries: add queries.jsonl")
        return from_beir(corpus, self._store(queries, DocumentRecord), self._judgements(qrels), learn=role == "train")

    def _judgements(self, files: Sequence[Path]) -> Judgements:
        name = hashlib.sha256("\n".join(str(file.resolve()) for file in files).encode()).hexdigest()[:24]
        away = aside(Path(self.cache_dir).expanduser() / name) if self.on_bad_row == "quarantine" else None
        return Judgements(files, self.on_bad_row, Left(away), self.max_bad_fraction)

    def _select(self, part: Judged, positions: np.ndarray) -> Judged:
        return part.select(positions)

    def note(self, role: str) -> str | None:
        """How many queries have no relevant document, and how many judgements name what is not there."""
        return self.parts[role].note

    def first_ids(self, part: Judged) -> np.ndarray:
        """Int64[n] hashes of the queries."""
        return part.queries

    def file_rows(self, positions: np.ndarray) -> np.ndarray:
        """The places of queries among the training queries, from 0."""
        return positions

    def _identity(self) -> Iterator[np.ndarray]:
        part: Judged = self.train
        yield from (part.queries, part.offsets, part.ids, part.grades)

    def train_texts(self) -> Iterator[str]:
        """The queries and all documents."""
        part: Judged = self.train
        yield from part.read_queries(np.arange(len(part)))
        if part.corpus is None:
            yield from part.read_texts(np.arange(len(part.ids)))
        else:
            for chunk in part.corpus[0].chunks:
                yield from filter(None, chunk.to_pylist())

    def _chosen(self, positions: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positive of each query, and the negatives of all: numbers of judged texts."""
        part: Judged = self.train
        start, count = part.offsets[positions], part.positives[positions]
        positive = start + (draws * count).astype(np.int64)
        others = part.offsets[positions + 1] - start - count
        if not self.negatives or not others.any():
            return positive, NO_ROWS
        step = np.arange(self.negatives)
        first = (draws * 2**20 % 1 * others).astype(np.int64)  # other digits of the draw, so as not to follow the positive
        turn = (first[:, None] + step) % np.maximum(others, 1)[:, None]
        return positive, ((start + count)[:, None] + turn)[step < others[:, None]]

    def texts_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each query and the positive drawn for it (negatives that come twice are dropped from the batch instead)."""
        everything = np.arange(len(self))
        positive, _ = self._chosen(everything, draws)
        values = np.stack([self.train.queries, self.train.ids[positive]], axis=1).reshape(-1)
        return values, np.repeat(everything, 2)

    def check_learnable(self) -> None:
        """Refuse one distinct query, or queries for which every text that may come with them is a positive."""
        part: Judged = self.train
        queries, query_of = np.unique(part.queries, return_inverse=True)
        if len(queries) < 2:
            raise InputError(f"its {len(part)} training rows have one distinct query: check the file, and its columns")
        judged, row = part.of(np.arange(len(part)))
        query, text, right = query_of[row], part.ids[judged], part.grades[judged] > 0
        met = right & self.in_batch | ~right & (self.negatives > 0)
        candidates = np.unique(text[met])
        known = np.unique(np.stack([query, text])[:, right & np.isin(text, candidates)], axis=1)
        if np.bincount(known[0], minlength=len(queries)).min() == len(candidates):
            raise InputError(f"its {len(part)} training rows have no text that is wrong for a query: add negatives, or rows")
        alone = int((np.bincount(row[~right], minlength=len(part)) == 0).sum())
        if alone and not self.in_batch:
            _LOG.warning("%s: %d of %d training rows list no negative and teach nothing", self.path, alone, len(part))

    def random_negatives(self, positions: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """A positive of other queries in place of each positive that comes again, so that every query has as many negatives."""
        part: Judged = self.train
        positive, negative = self._chosen(positions, draws)
        room = len(positive) - len(np.unique(part.ids[positive]))
        if not room or not self.in_batch:
            return NO_ROWS
        rng = np.random.default_rng((draws[:4] * 2**53).astype(np.int64))
        drawn = self._positives[rng.integers(len(self._positives), size=4 * room)]
        _, first = np.unique(part.ids[drawn], return_index=True)
        drawn = drawn[np.sort(first)]
        return drawn[~np.isin(part.ids[drawn], part.ids[np.append(positive, negative)])][:room]

    @cached_property
    def _positives(self) -> np.ndarray:
        """One number of each distinct positive."""
        right = np.flatnonzero(self.train.grades > 0)
        return right[np.unique(self.train.ids[right], return_index=True)[1]]

    def examples(self, positions: np.ndarray, draws: np.ndarray, random_negatives: np.ndarray = NO_ROWS) -> Examples:
        """Queries, one positive each, distinct negatives, and all judgements of these queries."""
        part: Judged = self.train
        positive, negative = self._chosen(positions, draws)
        negative = np.append(negative, random_negatives)
        _, first = np.unique(part.ids[negative], return_index=True)
        negative = negative[np.sort(first)]
        negative = negative[~np.isin(part.ids[negative], part.ids[positive])]
        asked = part.alike(positions)
        judged, row = part.of(asked)
        labels = np.stack([part.queries[asked][row], part.ids[judged], part.grades[judged] > 0], axis=1)
        columns = [part.read_queries(positions), part.read_texts(positive)]
        ids = [part.queries[positions], part.ids[positive]]
        if len(negative):
            columns.append(part.read_texts(negative))
            ids.append(part.ids[negative])
        roles = ("query", "document", "document")[: len(columns)]
        return Examples(tuple(columns), roles, tuple(ids), torch.from_numpy(labels.astype(np.int64)))

    def documents(self, part: Judged) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
        """What a split's queries are ranked against.

        Returns:
            Texts, Int64[documents] the number of each document's text among them (of equal ones the first), and Int64[r] the
            document that each judged text is.
        """
        if part.corpus is not None:
            return part.corpus[0], _first_equal(part.corpus[0]), part.corpus[1]
        names, document = numbered(part.read_texts(np.arange(len(part.ids))))
        return as_column(names), np.arange(len(names)), document

    def own_documents(self, part: Judged) -> np.ndarray:
        """Int64[n]: the document that is left out of each query's ranking, -1 for none.

        Raises:
            InputError: there is none for any query, though `exclude_own_id` is set.
        """
        if not self.exclude_own_id:
            return np.full(len(part), -1)
        if not (part.own >= 0).any():
            raise InputError(f"{self.path}: exclude_own_id=true, but no query has the _id of a document: leave it out")
        return part.own

    def _evaluation(self, part: Judged) -> EvaluationSet:
        everything = np.arange(len(part))
        queries, asking = numbered(part.read_queries(everything))
        column, text, judged = self.documents(part)
        query, own = part.of(everything)[1], self.own_documents(part)
        hiding, unjudged = np.flatnonzero(own >= 0), np.setdiff1d(np.arange(len(text)), judged)
        document = np.concatenate([judged, own[hiding], unjudged])
        grade = np.append(part.grades, np.full(len(hiding) + len(unjudged), np.nan))
        query = np.concatenate([query, hiding, np.full(len(unjudged), -1)])
        answer = len(queries) + text[document]
        lines = [np.where(query < 0, answer, asking[query]), answer, grade, query, document]
        texts = pa.chunked_array([*as_column(queries).chunks, *column.chunks])
        roles = ((len(queries), "query"), (len(texts), "document"))
        return EvaluationSet(texts, roles, torch.from_numpy(np.stack(lines, axis=1).astype(np.float64)), self.keys(part))


class RerankingDataModule(RetrievalDataModule):
    """Reranking: rows of `query, positive, negative`; each query's candidates are its own listed texts.

    Trains as InfoNCE in which a query sees its own negatives only.

    Args:
        negatives: texts of its list that a query brings along.
        **others: as in `TaskDataModule`; prompt roles are `query` and `document`.

    YAML::

        qbqtc_ltr:
          data: {_target_: acge_lightning.data.RerankingDataModule, path: "${paths.data_dir}/reranking/qbqtc_ltr",
                 batch_size: 16, negatives: 7}
    """

    family = "reranking"
    default_loss = staticmethod(partial(InfoNCE, in_batch=False))
    default_metric = Reranking
    in_batch = False

    def __init__(self, *args: Any, negatives: int = 7, **others: Any):
        super().__init__(*args, negatives=negatives, **others)
        if self.exclude_own_id:
            raise InputError(
                "exclude_own_id=true is for retrieval from a corpus: candidates of reranking are listed, leave it out"
            )

    def note(self, role: str) -> str | None:
        """How many queries have candidates of one kind only."""
        part: Judged = self.parts[role]
        left = int(np.sum((part.positives == 0) | (part.positives == np.diff(part.offsets)))) + part.unanswered
        return f"{left} queries without both relevant and other candidates are left out" if left else None

    def documents(self, part: Judged) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
        """The same: every listed candidate is a document of its own, though its text may be listed elsewhere too."""
        names, text = numbered(part.read_texts(np.arange(len(part.ids))))
        return as_column(names), text, np.arange(len(text))


def _first_equal(texts: pa.ChunkedArray) -> np.ndarray:
    """Int64[n]: the place of the first text that equals each one, by hashes of 64 bits; texts may lie on disk."""
    digests = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        for batch in texts.chunks
        for start in range(0, len(batch), _BLOCK)
        for text in batch.slice(start, _BLOCK).to_pylist()
    )
    _, first, of = np.unique(np.frombuffer(b"".join(digests), dtype=np.int64), return_index=True, return_inverse=True)
    return first[of]
