"""Find training rows that an evaluation set holds: as they are, edited, or embedded in a longer text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.signatures import (
    Signatures,
    candidates_between,
    code_points,
    distinct,
    grams,
    signature_table,
    signatures,
)
from acge_lightning.mining.cleaning.similarity import NEAR, compare
from acge_lightning.mining.engine.shards import Run, in_process, tables
from acge_lightning.mining.normalise import SIDE, Texts, as_strings, spans

EXACT, EDITED, EMBEDDED = "leak, exact", "leak, edited", "leak, embedded"
_GRAM = 4  # characters
_CONTAINED = 0.3  # of the n-grams of an evaluation text
_PARTIAL = 85.0
_SHORTEST = 16  # characters of an evaluation text that is looked for within others
_RAREST = 32  # n-grams of an evaluation text that are looked for
_POSTINGS = 256  # evaluation texts that an n-gram leads to
_TRIES = 16  # evaluation texts with which a text is compared, those of which it has most
_TABLE_BITS = 24  # of a table that tells most n-grams that no evaluation text has
_LONGEST = (
    2_000  # characters of an evaluation text that are looked for; of a training text, those around where most n-grams are
)
_CHUNK = 10_000
_BATCH, _BYTES = 50_000, 20_000_000  # rows of a shard, and bytes; or pairs that are compared at once
_NUMBERS = ("rows", "gram_hashes", "bounds", "postings", "counts")


@dataclass(frozen=True)
class LeakIndex:
    """Evaluation rows, made ready for `leaks`; `leak_index` makes it.

    Args:
        keys: m, each once.
        rows: Int64[m] number of the first evaluation row that has the key.
        signatures: of the keys.
        gram_hashes: UInt64[g] ascending: n-grams that are looked for in longer texts.
        bounds: Int64[g + 1] where the evaluation keys of an n-gram begin in `postings`.
        postings: Int64[p] numbers of keys.
        counts: Int64[m] how many n-grams of a key are looked for; 0: it is not looked for within others.
    """

    keys: pa.LargeStringArray
    rows: np.ndarray
    signatures: Signatures
    gram_hashes: np.ndarray
    bounds: np.ndarray
    postings: np.ndarray
    counts: np.ndarray

    def table(self) -> pa.Table:
        """Write it as a table of one row."""
        values = {name: getattr(self, name) for name in ("keys", *_NUMBERS)}
        values |= {name: column.combine_chunks() for name, column in _columns(self.signatures.table()).items()}
        return pa.table({name: _one_list(pa.array(value)) for name, value in values.items()})

    @classmethod
    def of_table(cls, table: pa.Table) -> LeakIndex:
        """Read it."""
        values = {name: table[name].chunk(0).flatten() for name in table.column_names}
        numbers = [values[name].to_numpy() for name in _NUMBERS]
        hashed = pa.table({name: value for name, value in values.items() if name not in ("keys", *_NUMBERS)})
        return cls(values["keys"], numbers[0], Signatures.of_tables([hashed], len(values["keys"])), *numbers[1:])


def leak_index(keys: Texts, run: Run = in_process) -> LeakIndex:
    """Make evaluation rows ready for `leaks`.

    Args:
        keys: of `row_keys` for pair tasks (sts, pair), of `duplicate_keys` of texts and queries for the rest: what counts as a
            leak. Corpora do not: a document that the whole world has may be trained on. Empty keys are left alone.
        run: what works on shards: signatures.

    Raises:
        InputError: rensa is not installed.
    """
    keys = as_strings(keys)
    array = pc.dictionary_encode(keys)
    unique, number = array.dictionary, array.indices.to_numpy()
    rows = np.full(len(unique), len(keys))
    np.minimum.at(rows, number, np.arange(len(keys)))
    filled = pc.greater(pc.binary_length(unique), 0)
    unique, rows = unique.filter(filled), rows[filled.to_numpy(zero_copy_only=False)]
    return LeakIndex(unique, rows, signatures(unique, run), *_inverted(unique))


def leaks(
    keys: Texts,
    index: LeakIndex,
    unordered: bool = False,
    embedded: bool = True,
    near: float = NEAR,
    run: Run = in_process,
) -> list[Findings]:
    """Find the rows that leak evaluation rows.

    - `leak, exact`: the same key.
    - `leak, edited`: Levenshtein similarity `near` or more, or re-ordered (`compare`), of each side of a pair. Of any length: a
      row too many that is left out of training costs less than a score that is too good.
    - `leak, embedded`: an evaluation text of 16 characters or more stands in a longer text, whole or edited: the text has .3
      of its 4-grams, and rapidfuzz's `partial_ratio` is 85 or more. Of the evaluation text the first 2,000 characters count,
      and their 32 rarest 4-grams; a 4-gram leads to 256 evaluation texts at most. A text of more than 2,000 characters is
      compared where most of these 4-grams are; any text with the 16 evaluation texts of which it has most. Not for pairs.

    Args:
        keys: n, of the same kind as those of the index: of `row_keys` for pairs, of `duplicate_keys` of texts otherwise.
        index: of evaluation rows.
        unordered: whether the sides of a pair may be in the other order, as in sts and pair.
        embedded: whether to look for embedded ones.
        near: .8 or more. Sentences of a template, as those of SICK, differ by less: .9 tells which of them are copies.
        run: what works on shards.

    Returns:
        Findings that are not empty, each row in one of them, the strongest. `others` are numbers of evaluation rows, as they
        were given to `leak_index`; `values` are similarities, of embedded ones `partial_ratio` / 100.

    Raises:
        InputError: `near` is too low, or rensa or rapidfuzz is not installed.

    >>> from acge_lightning.mining.normalise import duplicate_keys
    >>> index = leak_index(duplicate_keys(["北京到上海的高铁最快需要多长时间", "你好"]))
    >>> texts = ["你好！", "北京到上海的高铁最快要多长时间呢", "客服您好，请问北京到上海的高铁最快需要多长时间？谢谢，盼复"]
    >>> for findings in leaks(duplicate_keys(texts), index):
    ...     print(findings.reason, findings.rows.tolist(), findings.others.tolist(), findings.values.round(2).tolist())
    leak, exact [0] [1] [1.0]
    leak, edited [1] [0] [0.88]
    leak, embedded [2] [0] [1.0]
    """
    if not NEAR <= near <= 1:
        raise InputError(f"near={near:g} is not between {NEAR:g} and 1: candidates are chosen for {NEAR:g} and more")
    shards = list(tables(pa.table({"key": as_strings(keys)}), _BATCH, _BYTES))
    found = run(leak_table, shards, index.table(), unordered=unordered, embedded=embedded, near=near)
    starts = np.cumsum([0, *map(len, shards)])[:-1].tolist()
    columns = {name: [np.empty(0, kind)] for name, kind in (("reason", object), ("row", int), ("other", int), ("value", float))}
    for start, table in zip(starts, found, strict=True):
        for name, parts in columns.items():
            values = table[name].to_numpy()
            parts.append(values + start if name == "row" else values)
    reason, rows, others, values = map(np.concatenate, columns.values())
    chosen = {name: reason == name for name in (EXACT, EDITED, EMBEDDED)}
    return [Findings(name, rows[where], others[where], values[where]) for name, where in chosen.items() if where.any()]


def leak_table(table: pa.Table, shared: pa.Table, unordered: bool, embedded: bool, near: float) -> pa.Table:
    """Find the leaks of a shard of keys: a table with `key`, and that of an index -> `reason`, `row`, `other`, `value`."""
    keys, index = table["key"].combine_chunks(), LeakIndex.of_table(shared)
    number = pc.index_in(keys, index.keys)
    exact = np.flatnonzero(number.is_valid().to_numpy(zero_copy_only=False))
    findings = [Findings(EXACT, exact, index.rows[number.take(pa.array(exact)).to_numpy()], np.ones(len(exact)))]
    left = np.setdiff1d(np.flatnonzero(pc.binary_length(keys).to_numpy() > 0), exact)
    findings.append(_edited(keys, left, index, unordered, near))
    if embedded:
        findings.append(_embedded(keys, np.setdiff1d(left, findings[-1].rows), index))
    reasons = np.repeat([found.reason for found in findings], [len(found) for found in findings])
    parts = zip(*((found.rows, found.others, found.values) for found in findings), strict=True)
    row, other, value = map(np.concatenate, parts)
    return pa.table({"reason": pa.array(reasons, pa.string()), "row": row, "other": other, "value": value})


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _one_list(values: pa.Array) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _edited(keys: pa.LargeStringArray, rows: np.ndarray, index: LeakIndex, unordered: bool, near: float) -> Findings:
    pairs, values = [np.empty((0, 2), np.int64)], [np.empty(0)]
    own_keys = keys.take(pa.array(rows))
    own = Signatures.of_tables([signature_table(pa.table({"key": own_keys}))], len(rows))
    for a, b in _batches(candidates_between(own, index.signatures)):
        alike = compare(own_keys.take(pa.array(a)).to_pylist(), index.keys.take(pa.array(b)).to_pylist(), unordered)
        enough = alike.similarity >= near
        pairs.append(np.stack([rows[a[enough]], b[enough]], axis=1))
        values.append(alike.similarity[enough])
    return _strongest(EDITED, np.concatenate(pairs), np.concatenate(values), index)


def _embedded(keys: pa.LargeStringArray, rows: np.ndarray, index: LeakIndex) -> Findings:
    with naming_extra("embedded leaks need"):
        from rapidfuzz.fuzz import partial_ratio
    table = np.zeros(1 << _TABLE_BITS, bool)
    table[index.gram_hashes >> np.uint64(64 - _TABLE_BITS)] = True
    pairs, values = [], []
    for start, end in spans(pc.binary_length(keys).to_numpy()[rows], _CHUNK):
        part = rows[start:end]
        part_keys = keys.take(pa.array(part))
        codes, lengths = code_points(part_keys)
        starts = np.cumsum(lengths) - lengths
        hashes, places, text = grams(codes, lengths, _GRAM)
        likely = table[hashes >> np.uint64(64 - _TABLE_BITS)]
        hashes, places, text = hashes[likely], places[likely] - starts[text[likely]], text[likely]
        for row, other in _containing(hashes, text, lengths, index):
            evaluation = index.keys[other].as_py()[:_LONGEST]
            own = slice(*np.searchsorted(text, [row, row + 1]))
            around = _window(part_keys[row].as_py(), evaluation, hashes[own], places[own])
            value = partial_ratio(evaluation, around, score_cutoff=_PARTIAL)
            if value and len(around) >= NEAR * len(evaluation):
                pairs.append((part[row], other))
                values.append(value / 100)
    return _strongest(EMBEDDED, np.array(pairs, np.int64).reshape(-1, 2), np.array(values, np.float64), index)


def _containing(hashes: np.ndarray, text: np.ndarray, lengths: np.ndarray, index: LeakIndex) -> list[tuple[int, int]]:
    """Pairs of a text and an evaluation key of whose n-grams it has enough, and which is not longer, or but little; ordered."""
    place = np.searchsorted(index.gram_hashes, hashes)
    place[place == len(index.gram_hashes)] = 0
    hit = index.gram_hashes[place] == hashes if len(index.gram_hashes) else np.zeros(len(hashes), bool)
    both = distinct((text[hit].astype(np.uint64) << np.uint64(32)) | place[hit].astype(np.uint64))
    rows, gram = (both >> np.uint64(32)).astype(np.int64), (both & np.uint64(0xFFFFFFFF)).astype(np.int64)
    counts = index.bounds[gram + 1] - index.bounds[gram]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    others = index.postings[np.repeat(index.bounds[gram], counts) + within]
    encoded = (np.repeat(rows, counts).astype(np.uint64) << np.uint64(32)) | others.astype(np.uint64)
    pairs, shared = np.unique(encoded, return_counts=True)
    rows, others = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    enough = (shared >= np.maximum(_CONTAINED * index.counts[others], 2)) & (
        lengths[rows] >= NEAR * index.signatures.lengths[others]
    )
    rows, others, share = rows[enough], others[enough], shared[enough] / index.counts[others[enough]]
    order = np.lexsort((others, -share, rows))
    rows, others = rows[order], others[order]
    most = np.arange(len(rows)) - np.searchsorted(rows, rows) < _TRIES
    return list(zip(rows[most].tolist(), others[most].tolist(), strict=True))


def _window(text: str, evaluation: str, hashes: np.ndarray, places: np.ndarray) -> str:
    """The text, or of a long one the characters around where most n-grams of the evaluation text are."""
    if len(text) <= _LONGEST:
        return text
    codes, lengths = code_points(pa.array([evaluation], pa.large_string()))
    hits = places[np.isin(hashes, grams(codes, lengths, _GRAM)[0])]
    if not len(hits):
        return ""
    best = np.argmax(np.searchsorted(hits, hits + len(evaluation)) - np.arange(len(hits)))
    return text[max(hits[best] - len(evaluation), 0) : hits[best] + 2 * len(evaluation)]


def _inverted(keys: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The last four fields of an index: an inverted index of the rarest n-grams of each key that is long enough and no pair."""
    codes, lengths = code_points(keys)
    pairs = pc.match_substring(keys, SIDE).to_numpy(zero_copy_only=False)
    hashes, places, text = grams(codes, lengths, _GRAM)
    chosen = ((lengths >= _SHORTEST) & ~pairs)[text] & (places - (np.cumsum(lengths) - lengths)[text] < _LONGEST)
    hashes, number, counts = np.unique(hashes[chosen], return_inverse=True, return_counts=True)
    both = distinct((text[chosen].astype(np.uint64) << np.uint64(32)) | number.astype(np.uint64))
    text, number = (both >> np.uint64(32)).astype(np.int64), (both & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = np.lexsort((number, counts[number], text))
    text, number = text[order], number[order]
    first = np.searchsorted(text, text)
    rarest = np.arange(len(text)) - first < _RAREST
    text, number = text[rarest], number[rarest]
    order = np.lexsort((text, number))
    text, number = text[order], number[order]
    leading = np.arange(len(number)) - np.searchsorted(number, number) < _POSTINGS
    text, number = text[leading], number[leading]
    used, counts = np.unique(number, return_counts=True)
    return hashes[used], np.concatenate([[0], np.cumsum(counts)]), text, np.bincount(text, minlength=len(keys))


def _batches(pairs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(pairs[start : start + _BATCH].T) for start in range(0, len(pairs), _BATCH)]


def _strongest(reason: str, pairs: np.ndarray, values: np.ndarray, index: LeakIndex) -> Findings:
    """Of the evaluation keys of a row, the one of the highest value, then of the lowest row."""
    others = index.rows[pairs[:, 1]]
    order = np.lexsort((others, -values, pairs[:, 0]))
    rows, first = np.unique(pairs[order, 0], return_index=True)
    return Findings(reason, rows, others[order][first], values[order][first])
