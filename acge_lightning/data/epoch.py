"""How an epoch's rows are dealt to its batches: all of them, with equal texts and labels as far apart as they can be."""

from __future__ import annotations

from math import gcd

import numpy as np

_SHARE = 8  # rows of a batch come in multiples of it where the batch size does: up to eight devices have equal shares


def batch_sizes(rows: int, batch_size: int) -> np.ndarray:
    """Rows of each batch of an epoch; together they leave out fewer than eight rows, and none of fewer than a batch.

    A last batch of a few rows would have few negatives, so rows are divided evenly among as many batches as are needed. Sizes
    are at most `batch_size`, and multiples of 8 if it is (else of its greatest common divisor with 8).

    Returns:
        Int64[batches], falling.

    >>> batch_sizes(500, 64).tolist(), batch_sizes(31, 7).tolist(), batch_sizes(5, 64).tolist()
    ([64, 64, 64, 64, 64, 64, 56, 56], [7, 6, 6, 6, 6], [5])
    """
    if rows <= batch_size:
        return np.array([rows])
    share = gcd(batch_size, _SHARE)
    shares = rows // share
    return share * even_sizes(shares, -(-shares * share // batch_size))


def even_sizes(items: int, groups: int) -> np.ndarray:
    """Int64[groups] that add up to `items` and differ by one at most, the larger ones first."""
    return items // groups + (np.arange(groups) < items % groups)


def resample(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows in proportion to their weights, by systematic resampling: each as often as it should come, to less than once.

    Row i is expected e_i = count * w_i / sum(w) times, and comes floor(e_i) or ceil(e_i) times: rows of equal weights come once
    each, if as many are drawn as there are.

    Args:
        weights: Float64[n], 0 or more, one of them above it.
        count: how many are drawn.
        rng: decides on the order in which the rows lie side by side, and on where the drawing begins.

    Returns:
        Int64[count] numbers of rows, in random order.

    Reference: Kitagawa 1996 (doi 10.1080/10618600.1996.10474692). Differs: the rows lie in random order.
    """
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order] / weights.max())
    ends *= count / ends[-1]
    chosen = np.searchsorted(ends, np.arange(count) + rng.random(), side="right")
    return order[np.minimum(chosen, len(order) - 1)]


def expected_distinct(weights: np.ndarray, count: int, kept: float) -> float:
    """How many different rows `resample` is expected to draw, if a share of what it draws is kept at random."""
    expected = weights / weights.max()
    expected = expected * (count / expected.sum())
    whole = np.floor(expected)
    missed = (1 - kept) ** whole * (1 - (expected - whole) * kept)
    return float((1 - missed).sum())


def deal(keys: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of rows whose consecutive runs of `sizes` are batches that each have an even share of every key.

    No two rows of a key are in one batch as long as it has no more rows than there are batches; of a more frequent key each
    batch has as many as of any other batch, give or take one (a few more where the sizes differ).

    Args:
        keys: Any[n], what makes rows alike: the hash of a text, a label.
        sizes: Int64[batches], falling, whose sum is n or a little less.
        rng: decides on the order of keys, on the batches of a key, and on the rows left over, which stand at the end.

    Returns:
        Int64[n], all rows.
    """
    rows, left_over = np.split(rng.permutation(len(keys)), [sizes.sum()])
    _, key, count = np.unique(keys[rows], return_inverse=True, return_counts=True)
    turn = rng.permutation(len(count))[key]
    order = np.lexsort([turn, -count[key]])  # rows of a key side by side, frequent keys first
    batch = _dealt_in_rounds(key[order], sizes, np.arange(sizes.max()), rng)
    return np.concatenate([rows[order][np.argsort(batch, kind="stable")], left_over])


def deal_by_rank(values: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `deal`, for Float[n] values: each batch has values from the whole range, evenly spaced by rank."""
    rows, left_over = np.split(rng.permutation(len(values)), [sizes.sum()])
    ranked = rows[np.argsort(values[rows], kind="stable")]
    whole, most = sizes.min(), sizes.max()  # the rounds that only larger batches take part in lie among the others
    rounds = np.argsort(np.append((np.arange(whole) + 0.5) / whole, (np.arange(most - whole) + 0.5) / max(1, most - whole)))
    batch = _dealt_in_rounds(np.arange(len(ranked)), sizes, rounds, rng)
    return np.concatenate([ranked[np.argsort(batch, kind="stable")], left_over])


def _dealt_in_rounds(key: np.ndarray, sizes: np.ndarray, rounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The batch of each row, dealt like cards: round k gives a row to each batch of more than k rows, in random order.

    Where a key's rows go on from the round before, the batches that have fewest of them come first.
    """
    batch = np.empty(len(key), dtype=np.int64)
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    first_of_key = np.repeat(starts, np.diff(np.append(starts, len(key))))
    dealt = 0
    for k in rounds.tolist():
        takers = rng.permutation(np.flatnonzero(sizes > k))
        if first_of_key[dealt] < dealt:
            held = np.bincount(batch[first_of_key[dealt] : dealt], minlength=len(sizes))
            takers = takers[np.argsort(held[takers], kind="stable")]
        batch[dealt : dealt + len(takers)] = takers
        dealt += len(takers)
    return batch
