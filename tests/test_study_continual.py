"""How the continual study searches and chooses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from study_continual import OWN, Setting, best, old_index, settings, spread


def run(gain, forgetting):
    """As in forgetting.json; the test split would choose otherwise."""
    return {"dev": {"measures": {"gain": gain, "forgetting": forgetting}}, "measures": {"gain": 0.0, "forgetting": -gain}}


@pytest.mark.parametrize("strategy", OWN)
def test_every_strategy_is_tried_at_every_pair_and_number(strategy):
    found = settings(strategy, [(1e-3, 1), (1e-4, 3)])
    values = next(iter(OWN[strategy].values()), [None])
    assert len(found) == len({s.label() for s in found}) == 2 * len(values)
    assert {(s.rate, s.epochs) for s in found} == {(1e-3, 1), (1e-4, 3)}


def test_the_winner_forgets_least_of_those_that_keep_the_gain():
    weak, middle, strong = (Setting("ewc", 1e-3, 1, (("strength", s),)) for s in (0.1, 1.0, 10.0))
    found = {weak: run(0.10, 0.09), middle: run(0.096, 0.04), strong: run(0.05, 0.0)}
    assert best(found, 0.10) == middle
    assert best(found, 0.05) == strong
    assert best(found, 0.20) == weak


def test_old_index_is_that_of_the_first_stage_and_the_last_queries():
    rows = [("base", "base", 0.9), ("base", "new", 0.5), ("base", "new", 0.7), ("new", "new", 0.8)]
    entries = [{"task": "t", "documents": d, "queries": q, "recall": r} for d, q, r in rows]
    assert old_index({"tasks": ["base", "new"], "old_index": entries}) == pytest.approx(0.6)


def test_spread_is_the_standard_deviation_of_a_sample():
    assert spread([0.1, 0.2, 0.3]) == [0.2, 0.1]
    assert spread([0.1]) == [0.1, None]
