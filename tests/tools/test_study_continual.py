"""How the continual study searches and chooses."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from study_continual import SCENARIOS, Setting, best, old_index, settings, spread

CONF = Path(__file__).parents[2] / "conf"


def run(gain, forgetting):
    """As in forgetting.json; the test split would choose otherwise."""
    return {"dev": {"measures": {"gain": gain, "forgetting": forgetting}}, "measures": {"gain": 0.0, "forgetting": -gain}}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("strategy", ["none", "l2sp", "ewc", "ewc_online", "ewc_replay", "replay", "merge"])
def test_every_strategy_is_tried_at_every_pair_and_number(name, strategy):
    found = settings(SCENARIOS[name], strategy, [(1e-3, 1), (1e-4, 3)])
    values = next(iter(SCENARIOS[name].hyperparameters()[strategy].values()), [None])
    assert len(found) == len({s.label() for s in found}) == 2 * len(values)
    assert {(s.rate, s.epochs) for s in found} == {(1e-3, 1), (1e-4, 3)}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("strategy", ["none", "l2sp", "ewc", "ewc_online", "ewc_replay", "replay", "merge"])
def test_every_run_composes_into_stages(name, strategy, tmp_path):
    options = [option.format(model=tmp_path) for option in SCENARIOS[name].options]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("train", [*options, f"strategy={strategy}", f"paths.data_dir={tmp_path}", "logger=none"])
    stages = config.stages
    assert next(iter(stages)) == SCENARIOS[name].first_stage
    assert stages[SCENARIOS[name].first_stage].train is False
    assert {task for stage in stages.values() for task in stage.task} == set(config.task)


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
