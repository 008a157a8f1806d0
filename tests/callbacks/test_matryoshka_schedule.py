"""Which prefixes a step trains."""

import csv

import pytest
import torch
from conftest import SAMPLE
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from acge_lightning.callbacks.matryoshka import MatryoshkaSchedule
from acge_lightning.data import MixtureDataModule, STSDataModule
from acge_lightning.data.task import Task
from acge_lightning.errors import InputError
from acge_lightning.training.embedding_module import EmbeddingModule
from acge_lightning.zoo.pretrained import load

DIMS = [16, 8, 4, 2]


def test_the_newest_stage_that_has_begun_counts():
    schedule = MatryoshkaSchedule(at={100: [16, 2], 10: [16, 8, 2]})
    assert [schedule.dims(step, DIMS) for step in (0, 9, 10, 99, 100, 5000)] == [
        *[(16, 8, 4, 2)] * 2,
        *[(16, 8, 2)] * 2,
        *[(16, 2)] * 2,
    ]


def test_coarse_to_fine_begins_with_the_shortest_and_ends_with_all():
    schedule = MatryoshkaSchedule(coarse_to_fine=10)
    found = [schedule.dims(step, [4, 16, 2, 8]) for step in range(12)]
    assert found == [(16, 2)] * 5 + [(16, 4, 2)] * 5 + [(16, 8, 4, 2)] * 2


def test_random_dims_follow_from_seed_and_step_alone():
    schedule = MatryoshkaSchedule(random=2, seed=3)
    found = [schedule.dims(step, DIMS) for step in range(200)]
    torch.manual_seed(5)
    again = [MatryoshkaSchedule(random=2, seed=3).dims(step, DIMS) for step in reversed(range(200))]
    assert found == again[::-1]
    assert all(len(set(dims)) == 3 and dims[0] == 16 for dims in found)
    counts = {dim: sum(dim in dims for dims in found) for dim in DIMS}
    assert counts[16] == 200
    assert all(100 < counts[dim] < 167 for dim in DIMS[1:]), "each in two of three steps"
    assert found != [MatryoshkaSchedule(random=2, seed=4).dims(step, DIMS) for step in range(200)]


class Watch(Callback):
    """Which dims each batch's loss was made of."""

    def __init__(self):
        self.used = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.used.append(tuple(sorted(pl_module.losses["sts"].loss_by_dim, reverse=True)))


@pytest.fixture
def fit(small_encoder, cache, tmp_path):
    """Train six steps with a callback; the module, and the dims of each batch."""

    def run(callback, dims=DIMS, **settings):
        tasks = {"sts": Task(STSDataModule(SAMPLE / "sts" / "sample_zh", batch_size=8, cache_dir=cache))}
        module = EmbeddingModule(load(small_encoder).train(), tasks, dims and {"dims": dims})
        watch = Watch()
        settings = {"logger": CSVLogger(tmp_path, "log"), "max_steps": 6, "log_every_n_steps": 1} | settings
        Trainer(
            accelerator="cpu",
            callbacks=[callback, watch],
            limit_val_batches=0,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        ).fit(module, MixtureDataModule({"sts": tasks["sts"].data}))
        return module, watch.used

    return run


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_trains_its_dims(fit, accumulate):
    schedule = MatryoshkaSchedule(random=1, seed=1)
    module, used = fit(schedule, accumulate_grad_batches=accumulate)
    assert used == [schedule.dims(step, DIMS) for step in range(6) for _ in range(accumulate)]
    assert module.losses["sts"].dims == tuple(DIMS), "all dims again after training"


def test_each_dim_is_logged_with_its_loss(fit, tmp_path):
    fit(MatryoshkaSchedule(at={0: [16, 4, 2]}))
    with open(tmp_path / "log" / "version_0" / "metrics.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/sts/loss"]]
    assert {key for key in rows[0] if "@" in key} == {f"train/sts/loss@{dim}" for dim in (16, 4, 2)}
    for row in rows:
        parts = sum(float(row[f"train/sts/loss@{dim}"]) for dim in (16, 4, 2))
        assert float(row["train/sts/loss"]) == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_dims_are_logged_whenever_the_loss_is(fit, tmp_path, accumulate):
    fit(MatryoshkaSchedule(at={0: [16, 2]}), log_every_n_steps=3, accumulate_grad_batches=accumulate)
    with open(tmp_path / "log" / "version_0" / "metrics.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/sts/loss"]]
    assert [int(row["step"]) for row in rows] == [2, 5]
    assert all(row["train/sts/loss@16"] and row["train/sts/loss@2"] for row in rows)


def test_dims_left_out_of_a_step_get_no_gradient_of_their_own(fit):
    """Under {full, 2}, the block from 4 to 8 has the gradient of the full size alone: as with these two dims throughout."""
    one, _ = fit(MatryoshkaSchedule(at={0: [16, 2]}))
    other, _ = fit(MatryoshkaSchedule(at={0: [16, 2]}), dims=[16, 2])
    for mine, theirs in zip(one.encoder.parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"random": 1, "coarse_to_fine": 3}, "exactly one"),
        ({"random": 0}, "random=0 must be at least 1"),
        ({"coarse_to_fine": -1}, "coarse_to_fine=-1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MatryoshkaSchedule(**settings)


@pytest.mark.parametrize(
    ("callback", "dims", "message"),
    [
        (MatryoshkaSchedule(random=4), DIMS, "there are 3 prefixes"),
        (MatryoshkaSchedule(at={5: [16, 3]}), DIMS, "must be some of"),
        (MatryoshkaSchedule(at={5: [8, 4]}), DIMS, "16 among them"),
        (MatryoshkaSchedule(coarse_to_fine=5), None, "set matryoshka"),
    ],
)
def test_what_the_module_does_not_have_is_refused_before_the_first_step(fit, callback, dims, message):
    with pytest.raises(InputError, match=message):
        fit(callback, dims)
