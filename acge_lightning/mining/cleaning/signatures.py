"""MinHash signatures of texts, and the pairs that share a piece of them, which may be alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.lazy import naming_extra
from acge_lightning.mining.engine.matrices import column_of, matrix_of
from acge_lightning.mining.engine.shards import Run, in_process, tables
from acge_lightning.mining.normalise import spans

PERMUTATIONS, ROWS = 128, 3  # values of a signature; values of a band
BANDS = PERMUTATIONS // ROWS
BINS = 32  # of the histogram of a text's characters
_CHUNK = 1_000  # rows that are worked on at once: what rensa returns as lists then stays in the cache
_SMALL = 16  # rows of a bucket whose pairs are all candidates
_NEXT = 3  # rows that follow in a larger bucket with which a row is a candidate
_SEED = 27
_LAST_SEPARATOR = 0x1F  # control characters, which no key has, stand between texts, and make no 2-gram
_MERGE_AT = 8_000_000  # pairs that are held before those of several bands become one
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


@dataclass(frozen=True)
class Signatures:
    """What candidates are found by.

    Args:
        bands: UInt32[42, n] hash of 3 values each of a row's MinHash signature.
        lengths: Int64[n] characters.
        histograms: UInt8[n, 32] how many characters fall into each bin, 255 at most.
        has_grams: Bool[n] whether the text has a 2-gram; without one it is no candidate.
    """

    bands: np.ndarray
    lengths: np.ndarray
    histograms: np.ndarray
    has_grams: np.ndarray

    def table(self) -> pa.Table:
        """Write them as a table of n rows."""
        bands, histograms = column_of(self.bands.T), column_of(self.histograms)
        return pa.table({"bands": bands, "lengths": self.lengths, "histograms": histograms, "has_grams": self.has_grams})

    @classmethod
    def of_tables(cls, tables: Iterable[pa.Table], count: int) -> Signatures:
        """Read them from tables of `count` rows together."""
        bands, histograms = np.empty((BANDS, count), np.uint32), np.empty((count, BINS), np.uint8)
        lengths, has_grams = np.empty(count, np.int64), np.empty(count, bool)
        start = 0
        for table in tables:
            rows = slice(start, start + len(table))
            bands[:, rows] = matrix_of(table["bands"], np.uint32).T
            histograms[rows] = matrix_of(table["histograms"], np.uint8)
            lengths[rows], has_grams[rows] = table["lengths"].to_numpy(), table["has_grams"].to_numpy()
            start = rows.stop
        return cls(bands, lengths, histograms, has_grams)


def signatures(keys: pa.LargeStringArray, run: Run = in_process) -> Signatures:
    """Compute MinHash signatures over character 2-grams.

    Reference: Broder 1997, by rensa's R-MinHash (Dahlgaard et al. 2017, Fast Similarity Sketching), 128 values.

    Args:
        keys: n texts. Control characters in them stand between sides, and are in no 2-gram.
        run: what works on shards of them.

    Raises:
        InputError: rensa is not installed.
    """
    return Signatures.of_tables(run(signature_table, tables(pa.table({"key": keys}))), len(keys))


def signature_table(table: pa.Table) -> pa.Table:
    """Compute the signatures of a shard of keys: a table with `key` -> one of `Signatures`."""
    keys = table["key"].combine_chunks()
    count = len(keys)
    bands, histograms = np.empty((BANDS, count), np.uint32), np.empty((count, BINS), np.uint8)
    lengths, grams = np.empty(count, np.int64), np.empty(count, np.int64)
    for start, end in spans(pc.binary_length(keys).to_numpy(), _CHUNK):
        rows = slice(start, end)
        codes, lengths[rows] = code_points(keys[rows])
        histograms[rows] = _histograms(codes, lengths[rows])
        tokens, grams[rows] = _two_grams(codes, lengths[rows])
        bands[:, rows] = _bands(tokens, grams[rows])
    return Signatures(bands, lengths, histograms, grams > 0).table()


def candidates(found: Signatures) -> np.ndarray:
    """Pair the rows that share a band.

    The rows of a bucket (of one value of a band) are ordered by length. In a bucket of more than 16, a row is paired with the
    3 that follow only, so that pairs are at most in proportion to rows, whatever the texts.

    Returns:
        Int64[m, 2] rows, a < b, each pair once, without those whose lengths or characters rule out a similarity of .8.
    """
    order = np.argsort(found.lengths, kind="stable")
    order = order[found.has_grams[order]]
    lengths, pairs, held = found.lengths[order], [np.empty(0, np.uint64)], 0
    for band in found.bands:
        values = np.sort((band[order].astype(np.uint64) << np.uint64(32)) | np.arange(len(order), dtype=np.uint64))
        a, b = _bucket_pairs(values)
        near = lengths[a] >= 0.8 * lengths[b]
        pairs.append(_encoded(order[a[near]], order[b[near]]))
        held += len(pairs[-1])
        if held > _MERGE_AT:
            pairs = [distinct(np.concatenate(pairs))]
            held = len(pairs[0]) // 2
    return _plausible(_decoded(distinct(np.concatenate(pairs))), found, found)


def candidates_between(rows: Signatures, others: Signatures, limit: int = 16) -> np.ndarray:
    """Pair rows with other rows that share a band.

    Args:
        rows: signatures of n texts.
        others: of m texts.
        limit: with how many longer others of a bucket a row is paired, and with how many shorter: those nearest in length.

    Returns:
        Int64[p, 2] row and other row, each pair once, without those whose lengths or characters rule out a similarity of .8.
    """
    order = np.argsort(others.lengths, kind="stable")
    order = order[others.has_grams[order]]
    own = np.flatnonzero(rows.has_grams)
    ranks = np.searchsorted(others.lengths[order], rows.lengths[own]).astype(np.uint64)
    pairs = [np.empty(0, np.uint64)]
    for band, other_band in zip(rows.bands, others.bands, strict=True):
        values = np.sort((other_band[order].astype(np.uint64) << np.uint64(32)) | np.arange(len(order), dtype=np.uint64))
        hashes = band[own].astype(np.uint64)
        at = np.searchsorted(values, (hashes << np.uint64(32)) | ranks)
        for step in (1, -1):
            left = np.arange(len(own))
            for distance in range(limit):
                place = at[left] + (distance if step > 0 else -1 - distance)
                inside = (place >= 0) & (place < len(values))
                left, place = left[inside], place[inside]
                same = (values[place] >> np.uint64(32)) == hashes[left]
                left, place = left[same], place[same]
                if not len(left):
                    break
                pairs.append(_encoded(own[left], order[(values[place] & np.uint64(0xFFFFFFFF)).astype(np.int64)], sort=False))
        pairs = [distinct(np.concatenate(pairs))]
    return _plausible(_decoded(pairs[0]), rows, others)


def code_points(keys: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Read texts as numbers: UInt32[sum of lengths] code points of all texts, one after the other, and Int64[n] lengths."""
    texts = keys.to_pylist()
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), lengths


def grams(codes: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash the n-grams of texts that hold no control character.

    Args:
        codes: as `code_points` returns them.
        lengths: likewise.
        size: characters of an n-gram.

    Returns:
        UInt64[m] hashes, Int64[m] the position of each n-gram in `codes`, Int64[m] the text that each is of.
    """
    if len(codes) < size:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    text = np.repeat(np.arange(len(lengths)), lengths)
    end = len(codes) - size + 1
    valid = text[:end] == text[size - 1 :]
    hashes = np.zeros(end, np.uint64)
    for offset in range(size):
        valid &= codes[offset : offset + end] > _LAST_SEPARATOR
        hashes *= _MULTIPLIERS[0]
        hashes += codes[offset : offset + end]
    hashes = hashes[valid]
    for multiplier in _MULTIPLIERS[1:]:
        hashes ^= hashes >> np.uint64(31)
        hashes *= multiplier
    return hashes ^ (hashes >> np.uint64(31)), np.flatnonzero(valid), text[:end][valid]


def distinct(values: np.ndarray) -> np.ndarray:
    """Sort values, each once. `np.unique` of NumPy 2.4 hashes them instead, which takes thirty times longer on pairs."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]]


def _two_grams(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of 2-grams, text after text, and how many each text has."""
    hashes, _, text = grams(codes, lengths, 2)
    return hashes, np.bincount(text, minlength=len(lengths))


def _bands(tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with naming_extra("near duplicates need"):
        from rensa import RMinHash
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets, PERMUTATIONS, _SEED).to_rows()
    flat = np.fromiter(chain.from_iterable(digests), np.uint64, len(digests) * PERMUTATIONS)
    values = flat.reshape(-1, PERMUTATIONS)[:, : BANDS * ROWS].reshape(-1, BANDS, ROWS)
    mixed = np.zeros(values.shape[:2], np.uint64)
    for row in range(ROWS):
        mixed = (mixed ^ values[:, :, row]) * _MULTIPLIERS[row]
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32).T


def _histograms(codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    text = np.repeat(np.arange(len(lengths)), lengths)
    bins = (codes * np.uint32(0x9E3779B1)) >> np.uint32(27)
    counts = np.bincount(text * BINS + bins, minlength=len(lengths) * BINS)
    return np.minimum(counts, 255).reshape(-1, BINS)


def _bucket_pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of sorted values (hash, position) with the same hash, as positions; the second one is the later."""
    hashes = (values >> np.uint64(32)).astype(np.uint32)
    left = np.flatnonzero(hashes[1:] == hashes[:-1])
    bucket = np.cumsum(np.diff(left, prepend=-2) > 1) - 1
    size = (np.bincount(bucket, minlength=1) + 1)[bucket]
    pairs = [(left, left + 1)]
    for distance in range(2, _SMALL):
        inside = left + distance < len(hashes)
        if distance > _NEXT:
            inside &= size <= _SMALL
        left, size = left[inside], size[inside]
        inside = hashes[left] == hashes[left + distance]
        left, size = left[inside], size[inside]
        if not len(left):
            break
        pairs.append((left, left + distance))
    positions = [values[np.concatenate(places)] & np.uint64(0xFFFFFFFF) for places in zip(*pairs, strict=True)]
    return positions[0].astype(np.int64), positions[1].astype(np.int64)


def _encoded(a: np.ndarray, b: np.ndarray, sort: bool = True) -> np.ndarray:
    a, b = (np.minimum(a, b), np.maximum(a, b)) if sort else (a, b)
    return (a.astype(np.uint64) << np.uint64(32)) | b.astype(np.uint64)


def _decoded(pairs: np.ndarray) -> np.ndarray:
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _plausible(pairs: np.ndarray, rows: Signatures, others: Signatures) -> np.ndarray:
    """The pairs whose lengths and characters allow a similarity of .8, by a lower bound of the Levenshtein distance.

    A row's two sides may differ by .2 of the longer side each, which is .25 of the longer row at most.
    """
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), 500_000):
        a, b = pairs[start : start + 500_000].T
        lengths = rows.lengths[a], others.lengths[b]
        longer = np.maximum(*lengths)
        difference = rows.histograms[a].astype(np.int16) - others.histograms[b]
        more, less = np.maximum(difference, 0).sum(1), np.maximum(-difference, 0).sum(1)
        kept.append(
            pairs[start : start + 500_000][(np.maximum(more, less) <= 0.25 * longer) & (np.minimum(*lengths) >= 0.75 * longer)]
        )
    return np.concatenate(kept)
