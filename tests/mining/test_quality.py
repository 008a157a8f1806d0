"""One score a row: against the formula written as a loop."""

import math

import numpy as np
import pytest

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.consistency import Ranks
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.label_noise import LabelConfidence
from acge_lightning.mining.cleaning.weights import quality


def confidence(given, largest):
    return LabelConfidence(np.array(given), np.array(largest), np.full(len(given), None, dtype=object))


def listing(*rows):
    return Findings("near duplicate", np.array(rows, dtype=np.int64), np.full(len(rows), -1), np.ones(len(rows)))


def test_the_formula():
    rng = np.random.default_rng(0)
    given = np.where(rng.random(50) < 0.2, np.nan, rng.random(50))
    largest = np.maximum(given, rng.random(50))
    one, two = (Ranks(rng.integers(1, size + 1, 50).astype(float), np.zeros(50), size) for size in (10, 80))
    reports = [listing(*np.flatnonzero(rng.random(50) < 0.3)) for _ in range(3)]
    scores = quality(50, confidence(given, largest), [one, two], reports)
    for row in range(50):
        label = 1 if math.isnan(given[row]) else given[row] / largest[row]
        near = max(1 - (one.ranks[row] - 1) / 10, 1 - (two.ranks[row] - 1) / 80)
        expected = max(0.001, label * near * 0.5 ** sum(row in report.rows for report in reports))
        assert scores[row] == pytest.approx(expected, rel=1e-12)
    assert ((scores > 0) & (scores <= 1)).all()


def test_rows_that_nothing_speaks_against_have_1():
    assert quality(3).tolist() == [1, 1, 1]
    assert quality(0).tolist() == []
    likely = confidence([0.4, math.nan], [0.4, math.nan])
    assert quality(2, likely, [Ranks(np.ones(2), np.zeros(2), 0)], [listing()]).tolist() == [1, 1]
    assert quality(1, confidence([0.0], [1.0])).tolist() == [0.001]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": confidence([1.0], [1.0])}, "there are 2 rows and 1 label confidences"),
        ({"ranks": [Ranks(np.ones(3), np.ones(3), 5)]}, "there are 2 rows and 3 ranks"),
        ({"reported": [listing(0, 2)]}, "near duplicate: row 2 is not among the 2 rows"),
    ],
)
def test_results_of_other_rows_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        quality(2, **options)
