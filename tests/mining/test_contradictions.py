"""Rows of one pair or text with two labels: against a plain loop over all rows of a key."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.opposite_labels import contradictions

KEYS = st.lists(st.sampled_from("abc"), max_size=14)


def grouped(keys):
    groups = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups.values()


def expected_labels(keys, labels):
    """{row: row it clashes with} by counting votes."""
    listed = {}
    for rows in grouped(keys):
        (word, most), *others = Counter(labels[row] for row in rows).most_common()
        right = [row for row in rows if labels[row] == word] if most * 2 > len(rows) else []
        for row in rows if others else ():
            if row not in right:
                listed[row] = right[0] if right else next(r for r in rows if labels[r] != labels[row])
    return listed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_labels_follow_the_votes(data):
    keys = data.draw(KEYS)
    labels = [data.draw(st.sampled_from("xyz")) for _ in keys]
    findings = contradictions(keys, None, labels)
    expected = expected_labels(keys, labels)
    assert dict(zip(findings.rows.tolist(), findings.others.tolist(), strict=True)) == expected
    for row, value in zip(findings.rows.tolist(), findings.values.tolist(), strict=True):
        same = [labels[r] for r, key in enumerate(keys) if key == keys[row]]
        assert value == pytest.approx(same.count(labels[row]) / len(same))
    hashes = np.array([hash(key) for key in keys], dtype=np.int64)
    assert contradictions(hashes, None, labels).rows.tolist() == sorted(expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scores_that_lie_apart(data):
    keys = data.draw(KEYS)
    scores = [float(data.draw(st.integers(0, 10))) for _ in keys]
    findings = contradictions(keys, None, scores, margin=2)
    expected = set()
    for rows in grouped(keys):
        windows = [[row for row in rows if 0 <= scores[row] - scores[low] <= 2] for low in rows]
        best = max(windows, key=lambda window: (len(window), -min(scores[row] for row in window)))
        right = best if len(best) * 2 > len(rows) else []
        for row in rows:
            expected |= {row for other in right or rows if row not in right and abs(scores[row] - scores[other]) > 2}
    assert findings.rows.tolist() == sorted(expected)
    for row, other, value in zip(findings.rows.tolist(), findings.others.tolist(), findings.values.tolist(), strict=True):
        assert keys[row] == keys[other]
        assert value == abs(scores[row] - scores[other]) > 2


def test_planted_ones_are_all_found_among_real_looking_pairs():
    rng = random.Random(0)
    pairs = [(f"text {i}", f"other {i}") for i in range(3000)]
    rows = [(one, two, i % 2) for i, (one, two) in enumerate(pairs)]
    planted = rng.sample(range(3000), 150)
    for i in planted:  # the other label, in either order of the texts
        one, two, label = rows[i]
        rows.append((two, one, 1 - label) if i % 3 else (one, two, 1 - label))
    rows += [(two, one, label) for one, two, label in rows[:500] if rng.random() < 0.5]  # copies agree
    keys1, keys2, labels = zip(*rows, strict=True)
    findings = contradictions(keys1, keys2, labels)
    assert len({keys1[row] + keys2[row] for row in findings.rows} | {keys2[row] + keys1[row] for row in findings.rows}) >= 300
    touched = {frozenset((keys1[row], keys2[row])) for row in findings.rows}
    assert touched == {frozenset(pairs[i]) for i in planted}  # recall and precision 1
    for row, other in zip(findings.rows, findings.others, strict=True):
        assert frozenset((keys1[row], keys2[row])) == frozenset((keys1[other], keys2[other]))
        assert labels[row] != labels[other]


def test_a_pair_has_no_order_and_words_of_a_label_no_case():
    labels = ["Yes", "ｙes", "no", 1.0, "1"]
    findings = contradictions(["a", "b", "a", "c", "d"], ["b", "a", "b", "d", "c"], labels)
    assert (findings.rows.tolist(), findings.others.tolist()) == ([2], [0])
    assert findings.values.tolist() == [pytest.approx(1 / 3)]


def test_a_text_paired_with_itself_and_lone_surrogates():
    findings = contradictions(["a\ud800", "a", "a\ud800"], ["a\ud800", "a", "a\ud800"], [0, 1, 1])
    assert (findings.rows.tolist(), findings.others.tolist()) == ([0, 2], [2, 0])


def test_ten_thousand_equal_rows():
    assert len(contradictions(["a"] * 10_000, None, ["x"] * 10_000)) == 0
    half = contradictions(["a"] * 10_000, None, ["x", "y"] * 5000)
    assert half.rows.tolist() == list(range(10_000))
    assert half.others.tolist() == [1, 0] * 5000
    one = contradictions(["a"] * 10_000, None, [0.0] * 9_999 + [5.0], margin=1)
    assert (one.rows.tolist(), one.others.tolist(), one.values.tolist()) == ([9_999], [0], [5.0])


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows(rows):
    for options in ({}, {"margin": 1}):
        assert len(contradictions(["a"] * rows, ["b"] * rows, [1.0] * rows, **options)) == 0
        assert len(contradictions(np.zeros(rows, np.int64), None, [1.0] * rows, **options)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["b", "c"], [1]), "there are 1 and 2 keys or labels: give each row its own"),
        ((["a"], None, [1, 2]), "there are 1 and 2 keys or labels"),
        ((["a", "a"], None, [1, None]), "row 1 has no label: leave out rows without one"),
        ((["a", "a"], None, [float("nan"), 1]), "row 0 has no label"),
        ((["a"], None, ["much"], 1), "with a margin, labels must be numbers: could not convert string to float: 'much'"),
        ((["a"], None, [float("inf")], 1), "the score of row 0 is inf, not a finite number"),
        ((["a"], None, [1.0], -1), "margin=-1 must be 0 or more"),
        ((["a"], None, [1.0], float("nan")), "margin=nan must be 0 or more"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        contradictions(*arguments)
