"""Losses by task, in little memory: compared with plain lists."""

import numpy as np
import pytest
import torch

from acge_lightning.training.loss_history import LossHistory


def filled(losses, task="sts"):
    history = LossHistory()
    for value in losses:
        history.add(task, torch.tensor(value))
    return history


@pytest.mark.parametrize("steps", [100, 119, 640, 3001])
def test_ends_are_means_of_a_fifth_of_the_steps(steps):
    losses = np.random.default_rng(steps).normal(5, 1, steps).astype(np.float32)
    first, last, error = filled(losses).ends()["sts"]
    width = 2 ** int(np.ceil(np.log2(steps / 40)))  # steps of a bin: whole ones only are looked at
    bins = losses[: steps // width * width].reshape(-1, width).mean(1)
    fifth = len(bins) // 5
    assert first == pytest.approx(bins[:fifth].mean(), rel=1e-6)
    assert last == pytest.approx(bins[-fifth:].mean(), rel=1e-6)
    assert error == pytest.approx(np.sqrt((bins[:fifth].var(ddof=1) + bins[-fifth:].var(ddof=1)) / fifth), rel=1e-5)
    assert 0.15 * steps < fifth * width <= 0.2 * steps


def test_a_few_steps_say_nothing():
    assert filled(np.ones(99)).ends() == {}


@pytest.mark.parametrize("steps", [10, 50, 500])
def test_the_smoothed_loss_is_a_weighted_mean_of_all_steps(steps):
    losses = np.random.default_rng(0).normal(5, 1, steps).astype(np.float32)
    weights = 0.98 ** np.arange(steps)[::-1]
    assert filled(losses).smoothed()["sts"] == pytest.approx(np.average(losses, weights=weights), rel=1e-6)


def test_tasks_are_kept_apart():
    history = LossHistory()
    for step in range(400):
        history.add("large" if step % 2 else "small", torch.tensor(46.6 if step % 2 else 0.34))
    assert history.smoothed() == {"small": pytest.approx(0.34), "large": pytest.approx(46.6)}
    assert {task: first for task, (first, _, _) in history.ends().items()} == pytest.approx(history.smoothed())


@pytest.mark.parametrize("cut", [7, 41, 160])
def test_one_that_goes_on_from_its_state_ends_the_same(cut):
    losses = np.random.default_rng(1).normal(5, 1, 333).astype(np.float32)
    whole, rest = filled(losses), LossHistory()
    rest.load_state_dict(filled(losses[:cut]).state_dict())
    for value in losses[cut:]:
        rest.add("sts", torch.tensor(value))
    assert rest.state_dict() == whole.state_dict()
