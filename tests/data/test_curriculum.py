"""A curriculum of quality: the share of the best rows by the step, against loops, and batches that resume exactly."""

import json
import logging
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sampler import Task, shown

from acge_lightning.data import MixtureDataModule, PairDataModule, PairDataset
from acge_lightning.data.curriculum import Curriculum, best_rows
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError

WEIGHTS = np.random.default_rng(0).permutation(np.linspace(0.5, 1, 80))


def sampler(curriculum=None, weights=WEIGHTS, seed=0, **others):
    return TaskBatchSampler({"a": Task(range(len(weights)), 8, weights), **others}, seed=seed, curriculum=curriculum)


# ---- the share


@given(st.floats(0.01, 1), st.integers(1, 500), st.integers(0, 1200))
def test_the_share_grows_in_a_line(start, steps, step):
    curriculum = Curriculum(start, steps)
    line = min(1.0, start + (1 - start) * step / steps)
    share = curriculum.share(curriculum.stage(step))
    assert line - (1 - start) / 20 - 1e-9 <= share <= line + 1e-9
    assert (share == 1) == (step >= steps) or start + (1 - start) * 0.95 >= 1 - 1e-12
    stage = curriculum.stage(step)
    assert curriculum.begin(stage) <= step
    assert curriculum.stage(curriculum.begin(stage)) == stage
    assert curriculum.begin(stage) == 0 or curriculum.stage(curriculum.begin(stage) - 1) < stage


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999, 1.0])
def test_the_best_rows(share):
    weights = np.random.default_rng(1).choice([1.0, 2.0, 3.0], 50)
    chosen = best_rows(weights, share, 4, np.random.default_rng(5))
    assert len(chosen) == max(4, math.ceil(share * 50))
    rest = np.setdiff1d(np.arange(50), chosen)
    assert len(rest) == 0 or weights[chosen].min() >= weights[rest].max()
    smaller = best_rows(weights, share / 2, 4, np.random.default_rng(5))
    assert np.isin(smaller, chosen).all()
    ties = [best_rows(np.ones(50), 0.3, 4, np.random.default_rng(seed)).tolist() for seed in (5, 5, 6)]
    assert ties[0] == ties[1] != ties[2]  # not the first rows of the file


# ---- the batches


def test_batches_are_of_the_best_rows_of_the_step():
    curriculum = Curriculum(0.3, 60)
    drawn = sampler(curriculum)
    order = np.argsort(-WEIGHTS)
    for step in range(100):
        allowed = order[: math.ceil(curriculum.share(curriculum.stage(step)) * 80)]
        assert np.isin(drawn[step].positions, allowed).all(), step
    assert len({row for step in range(60, 100) for row in drawn[step].positions.tolist()}) == 80


def test_a_stage_goes_through_its_rows_in_proportion():
    """One stage of 40 batches, whose best 24 rows make epochs of three batches; then all rows in epochs of ten."""
    weights = np.where(np.arange(80) < 24, 2.0 + np.arange(80) % 2, 0.5)
    drawn = sampler(Curriculum(0.3, 800), weights)
    total = np.zeros(80)
    for number in range(13):
        rows = Counter(np.concatenate([drawn[3 * number + i].positions for i in range(3)]).tolist())
        for row in range(24):
            expected = 24 * weights[row] / weights[:24].sum()
            assert int(expected) <= rows[row] <= int(expected) + 1
            total[row] += rows[row]
    assert not total[24:].any()
    later = np.zeros(80)
    for step in range(800, 1000):
        later[drawn[step].positions] += 1
    expected = 200 * 8 * weights / weights.sum()
    assert np.abs(later - expected).max() <= 20  # of 20 epochs, each off by less than one
    assert later[24:].sum() == pytest.approx(expected[24:].sum(), rel=0.1)


def test_a_run_that_continues_sees_what_it_would_have_seen():
    def made(seed=0):
        return sampler(Curriculum(0.2, 90), seed=seed, b=Task(range(40), 4), c=Task(range(33), 4, np.linspace(1, 2, 33)))

    in_turn = [shown(batch) for batch in map(made().__getitem__, range(130))]
    for start in (0, 1, 44, 45, 89, 90, 91, 129):
        later = made()
        assert [shown(later[step]) for step in range(start, min(start + 6, 130))] == in_turn[start : start + 6]
    one = made()
    for step in np.random.default_rng(0).permutation(130).tolist():
        assert shown(one[step]) == in_turn[step]
    assert [shown(batch) for batch in map(made(1).__getitem__, range(130))] != in_turn


def test_tasks_without_weights_and_the_schedule_stay_as_they_are():
    plain, growing = (sampler(curriculum, b=Task(range(40), 4)) for curriculum in (None, Curriculum(0.3, 30)))
    assert growing.counts == plain.counts
    for step in range(80):
        assert growing[step].task == plain[step].task
        if plain[step].task == "b":
            assert shown(growing[step]) == shown(plain[step])


def test_batches_have_their_sizes_however_few_the_best_rows_are():
    drawn = sampler(Curriculum(0.001, 20))
    for step in range(30):
        rows = max(8, math.ceil(drawn.curriculum.share(drawn.curriculum.stage(step)) * 80))
        assert len(drawn[step].positions) in batch_sizes(rows, 8)


# ---- settings


@pytest.fixture
def make(tmp_path):
    """Pairs of these weights, their labels 0 and 1 in turn."""

    def made(weights, weight_column="quality"):
        rows = [{"text1": f"a{i}", "text2": f"b{i}", "label": i % 2, "quality": w} for i, w in enumerate(weights)]
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return PairDataset(path, batch_size=8, holdout=0.0, cache_dir=tmp_path / "cache", weight_column=weight_column)

    return made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0, "steps": 10}, "mixture.curriculum.start=0 is no share of the rows"),
        ({"start": 1.5, "steps": 10}, "mixture.curriculum.start=1.5 is no share"),
        ({"start": float("nan"), "steps": 10}, "mixture.curriculum.start=nan is no share"),
        ({"start": 0.3, "steps": 0}, "mixture.curriculum.steps=0 must be a whole number of at least 1"),
        ({"start": 0.3, "steps": 2.5}, "mixture.curriculum.steps=2.5 must be a whole number"),
        ({"start": 0.3, "steps": float("inf")}, "mixture.curriculum.steps=inf must be a whole number"),
        ({"start": "much", "steps": 3}, "mixture.curriculum.start='much' is no share"),
        ({"start": 0.3}, r"mixture.curriculum has \['start'\]: give {start: 0.3, steps: 1000}, or null for none"),
        ({"start": 0.3, "steps": 10, "end": 1}, r"mixture.curriculum has \['end', 'start', 'steps'\]"),
    ],
)
def test_wrong_settings_are_named(make, settings, message):
    with pytest.raises(InputError, match=message):
        MixtureDataModule({"a": make([1, 2, 3])}, curriculum=settings)


def test_a_curriculum_needs_weights(make):
    data = MixtureDataModule({"a": make([1, 2, 3], weight_column=None)}, curriculum={"start": 0.3, "steps": 10})
    with pytest.raises(InputError, match=r"mixture\.curriculum needs rows with weights: name their column"):
        data.setup()


def test_best_rows_of_one_label_are_refused(make):
    data = make([2.0 - i % 2 for i in range(40)])  # all of label 0 are better
    with pytest.raises(
        InputError, match=r"task a has nothing to learn where the curriculum begins: its 20 training rows all have"
    ):
        MixtureDataModule({"a": data}, curriculum={"start": 0.5, "steps": 10}).setup()
    mixture = MixtureDataModule({"a": data}, curriculum={"start": 0.6, "steps": 10})
    assert len(mixture.sampler) == 5
    assert len(data) == 40


def loaded(tmp_path, **trainer):
    """Pairs with weights under a curriculum of 20 steps, as if a trainer had taken them."""
    data = PairDataModule(tmp_path / "train.jsonl", 8, holdout=0.0, cache_dir=tmp_path / "cache", weight_column="quality")
    mixture = MixtureDataModule({"a": data}, curriculum={"start": 0.3, "steps": 20})
    defaults = {"global_step": 0, "global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1, "max_steps": -1}
    mixture.trainer = SimpleNamespace(**defaults | {"max_epochs": -1} | trainer)
    mixture.bind(static(train_vocabulary(["ab0123456789"] * 3, vocab_size=60), dim=8))
    return mixture


def test_loaders_go_on_where_a_run_stopped(tmp_path, make):
    make([1 + i / 40 for i in range(40)])
    in_turn = []
    for start in range(0, 30, 5):  # rounds of five batches
        in_turn += list(loaded(tmp_path, global_step=start).train_dataloader())
    for step in (0, 3, 13, 19, 22):
        resumed = next(iter(loaded(tmp_path, global_step=step).train_dataloader()))
        for ids, expected in zip(resumed.ids, in_turn[step].ids, strict=True):
            assert ids.tolist() == expected.tolist()
    devices = [list(loaded(tmp_path, global_rank=rank, world_size=2).train_dataloader()) for rank in (0, 1)]
    for whole, *shares in zip(in_turn[:5], *devices, strict=True):
        assert sorted(whole.ids[0].tolist()) == sorted(id_ for share in shares for id_ in share.ids[0].tolist())


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "told"),
    [
        (9, -1, "9 batches, with 58 %"),
        (-1, 3, "15 batches, with 79 %"),
        (50, 1, "5 batches, with 44 %"),
        (20, None, None),
        (-1, -1, None),
    ],
)
def test_a_run_that_ends_before_its_curriculum_is_told(tmp_path, make, caplog, max_steps, max_epochs, told):
    make([1 + i / 40 for i in range(40)])
    mixture = loaded(tmp_path, max_steps=max_steps, max_epochs=max_epochs)
    with caplog.at_level(logging.WARNING):
        mixture.train_dataloader()
    assert (f"mixture.curriculum: the run ends after {told} of the rows" in caplog.text) == (told is not None)
    assert ("mixture.curriculum" in caplog.text) == (told is not None)
