"""Find rows that stand in a data set twice: exact copies by key, re-ordered ones, and those with a few edits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.signatures import candidates, signatures
from acge_lightning.mining.cleaning.similarity import compare
from acge_lightning.mining.engine.shards import Run, in_process
from acge_lightning.mining.normalise import Texts, as_strings

_BATCH = 20_000  # pairs that are compared at once
_TRIES = 16  # rows kept for the sake of a row's neighbours, with which that row is compared
EXACT, REORDERED, NEAR, NEAR_SHORT = "exact duplicate", "re-ordered duplicate", "near duplicate", "near duplicate, short"


def near_duplicates(
    keys: Texts,
    labels: Sequence[object] | np.ndarray | pa.Array | None = None,
    priority: np.ndarray | None = None,
    unordered: bool = False,
    run: Run = in_process,
) -> list[Findings]:
    r"""Find exact, re-ordered and near duplicates; what they name as `others` stays.

    Rows are gone through by priority, then by number. A row is a duplicate if it is alike (`compare`) to a row that stays: not
    of one that is itself dropped, so no chain of small edits ends in texts that have nothing in common. Candidates are those
    that share a band of a MinHash signature, and the rows that their own likes are duplicates of. Of rows with other labels
    none is a duplicate: whether they contradict is another question.

    Args:
        keys: n of `duplicate_keys` or `row_keys`, of one kind. Rows with an empty key are left alone.
        labels: n, of any kind that can be compared; None: they do not count.
        priority: Float[n] the row of the highest stays; None: the first one does.
        unordered: whether the sides of a pair may be in the other order, as in sts and pair.
        run: what works on shards: signatures, and comparisons of pairs.

    Returns:
        Findings that are not empty, each row in one of them: `exact duplicate`; `re-ordered duplicate`; `near duplicate`; and
        `near duplicate, short`, to be reported, not dropped, as below 16 characters one word changes the meaning. `values` are
        similarities.

    Raises:
        InputError: rensa or rapidfuzz is not installed.

    >>> from acge_lightning.mining.normalise import duplicate_keys
    >>> texts = ["今天天气很好，我们一起去公园散步吧", "好的", "今天天气很好，我们一起去公园里散步吧", "好的！", "好的"]
    >>> for findings in near_duplicates(duplicate_keys(texts)):
    ...     print(findings.reason, findings.rows.tolist(), findings.others.tolist(), findings.values.round(2).tolist())
    exact duplicate [3, 4] [1, 1] [1.0, 1.0]
    near duplicate [2] [0] [0.94]
    """
    keys = as_strings(keys)
    rank = _ranks(len(keys), priority)
    label = None if labels is None else _numbered(labels)
    exact = _exact(keys, label, rank)
    left = np.setdiff1d(np.flatnonzero(pc.binary_length(keys).to_numpy() > 0), exact.rows)
    left = left[np.argsort(rank[left])]  # from here on numbers are places in this order
    left_keys = keys.take(pa.array(left))
    pairs = candidates(signatures(left_keys, run))
    if label is not None:
        pairs = pairs[label[left[pairs[:, 0]]] == label[left[pairs[:, 1]]]]
    edges = _edges(left_keys, pairs, unordered, run)
    dropped, reported = _keep(left_keys, edges, None if label is None else label[left], unordered)
    return _findings(exact, dropped, reported, left)


def _ranks(count: int, priority: np.ndarray | None) -> np.ndarray:
    order = np.arange(count) if priority is None else np.argsort(-np.asarray(priority, np.float64), kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return rank


def _numbered(values: Sequence[object] | np.ndarray | pa.Array) -> np.ndarray:
    """Int64[n] the same number for the same value."""
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    encoded = pc.dictionary_encode(array, null_encoding="encode")
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy().astype(np.int64)


def _exact(keys: pa.LargeStringArray, label: np.ndarray | None, rank: np.ndarray) -> Findings:
    number = _numbered(keys)
    if label is not None:
        number = number * (label.max(initial=0) + 1) + label
    order = np.lexsort((rank, number))
    is_new = np.concatenate([[True], number[order][1:] != number[order][:-1]])[: len(order)]
    kept = np.empty(len(keys), np.int64)
    kept[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    rows = np.flatnonzero((kept != np.arange(len(keys))) & (pc.binary_length(keys).to_numpy() > 0))
    return Findings(EXACT, rows, kept[rows], np.ones(len(rows)))


def _edges(keys: pa.LargeStringArray, pairs: np.ndarray, unordered: bool, run: Run) -> np.ndarray:
    """Pairs that are alike: Float64[m, 5] later one, earlier one, similarity, whether re-ordered, whether short."""
    parts = [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
    edges = [np.empty((0, 5))]
    compared = run(alike_table, (_compared(keys, part) for part in parts), unordered=unordered)
    for part, alike in zip(parts, compared, strict=True):
        columns = [part[:, 1], part[:, 0], *(alike[name].to_numpy() for name in alike.column_names)]
        edges.append(np.stack(columns, axis=1)[columns[2] > 0])
    return np.concatenate(edges)


def _compared(keys: pa.LargeStringArray, pairs: np.ndarray) -> pa.Table:
    """Write pairs as a table of one column: their first keys, then their second ones, each distinct key once."""
    rows, places = np.unique(pairs.T, return_inverse=True)
    return pa.table({"keys": pa.DictionaryArray.from_arrays(places.reshape(-1).astype(np.int32), keys.take(pa.array(rows)))})


def alike_table(table: pa.Table, unordered: bool) -> pa.Table:
    """Compare a shard of pairs: a column of first keys, then second ones -> a table of `Alike`."""
    keys = table["keys"].combine_chunks()
    texts, numbers = keys.dictionary.to_pylist(), keys.indices.to_pylist()
    half = len(numbers) // 2
    alike = compare([texts[i] for i in numbers[:half]], [texts[i] for i in numbers[half:]], unordered)
    return pa.table({"similarity": alike.similarity, "reordered": alike.reordered, "short": alike.short})


Edge = tuple[int, float, bool]  # the row that stays, similarity, whether re-ordered


def _keep(
    keys: pa.LargeStringArray, edges: np.ndarray, label: np.ndarray | None, unordered: bool
) -> tuple[dict[int, Edge], dict[int, Edge]]:
    """Go through rows in order: which ones are dropped, and which ones would be if they were longer; for which row each."""
    dropped: dict[int, Edge] = {}
    reported: dict[int, Edge] = {}
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    bounds = np.flatnonzero(np.diff(edges[:, 0], prepend=-1, append=-2)).tolist()
    for start, end in pairwise(bounds):
        row = int(edges[start, 0])
        nearest = sorted(
            ((int(b), s, bool(r), bool(short)) for _, b, s, r, short in edges[start:end].tolist()), key=_by_similarity
        )
        direct = {b for b, *_ in nearest}
        kept_for = [dropped[b][0] for b, *_, short in nearest if b in dropped and not short]
        tries = [b for b in dict.fromkeys(kept_for) if b not in direct and (label is None or label[b] == label[row])][:_TRIES]
        nearest = [edge for edge in nearest if edge[0] not in dropped]
        if not any(not short for *_, short in nearest) and tries:
            alike = compare([keys[row].as_py()] * len(tries), keys.take(pa.array(tries)).to_pylist(), unordered)
            more = zip(tries, *(values.tolist() for values in alike), strict=True)
            nearest = sorted([*nearest, *(edge for edge in more if edge[1] > 0)], key=_by_similarity)
        for table, is_short in ((dropped, False), (reported, True)):
            if row not in dropped and (edge := next((e for e in nearest if e[3] == is_short), None)):
                table[row] = edge[:3]
    return dropped, reported


def _by_similarity(edge: tuple[int, float, bool, bool]) -> tuple[float, int]:
    return -edge[1], edge[0]


def _findings(exact: Findings, dropped: dict[int, Edge], reported: dict[int, Edge], rows: np.ndarray) -> list[Findings]:
    """Findings in numbers of rows. A copy of a row that is itself dropped is dropped for the same row as that one."""
    dropped_for = {int(rows[row]): (int(rows[other]), *rest) for row, (other, *rest) in dropped.items()}
    of_dropped = np.isin(exact.others, np.fromiter(dropped_for, np.int64, len(dropped_for)))
    copies = zip(exact.rows[of_dropped].tolist(), exact.others[of_dropped].tolist(), strict=True)
    dropped_for |= {row: dropped_for[other] for row, other in copies}
    kept = ~of_dropped
    findings = [Findings(EXACT, exact.rows[kept], exact.others[kept], exact.values[kept])]
    tables = {
        REORDERED: {row: edge for row, edge in dropped_for.items() if edge[2]},
        NEAR: {row: edge for row, edge in dropped_for.items() if not edge[2]},
        NEAR_SHORT: {int(rows[row]): (int(rows[other]), *rest) for row, (other, *rest) in reported.items()},
    }
    for reason, table in tables.items():
        numbers = np.array(sorted(table), np.int64)
        others = np.array([table[row][0] for row in numbers.tolist()], np.int64)
        findings.append(Findings(reason, numbers, others, np.array([table[row][1] for row in numbers.tolist()])))
    return [found for found in findings if len(found)]
