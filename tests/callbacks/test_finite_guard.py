"""Numbers that are not finite stop a run within a step; lack of memory gives advice."""

import random
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from acge_lightning.callbacks.finite_guard import Guard, memory_advice
from acge_lightning.callbacks.randomness import StepRandomness
from acge_lightning.data import MixtureDataModule, RetrievalDataModule, STSDataModule
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.training.checkpoint import SafeCheckpointIO, newest, read
from acge_lightning.training.embedding_module import EmbeddingModule
from acge_lightning.training.optim import Optim

BAD_STEP, SAVED_EVERY = 5, 2


class Spoil(Callback):
    """Puts a value into a loss, a gradient or a weight at a step (the second batch of it, when two are accumulated)."""

    def __init__(self, where, value, step=BAD_STEP):
        self.where, self.value, self.step, self.batch, self.last = where, value, step, None, None

    def now(self, trainer, where):
        return self.where == where and trainer.global_step == self.step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.batch = batch  # the last one of the step
        last_of_step = trainer.accumulate_grad_batches == 1 or self.last == trainer.global_step
        module.spoil = self.value if last_of_step and self.now(trainer, "loss") else 0.0
        self.last = trainer.global_step

    def on_after_backward(self, trainer, module):
        if self.now(trainer, "gradient"):
            list(module.parameters())[-1].grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer, module, *args):
        if self.where == "weight" and trainer.global_step == self.step + 1:
            with torch.no_grad():
                list(module.parameters())[-1].view(-1)[0] = self.value


class Spoilt(EmbeddingModule):
    spoil = 0.0

    def training_step(self, batch):
        return super().training_step(batch) + self.spoil


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(folder, tmp_path):
    def make(*callbacks, **others):
        data = {
            "sts": STSDataModule("sample:sts/sample_zh", batch_size=8, max_train=200, cache_dir=folder),
            "search": RetrievalDataModule("sample:retrieval/sample_zh", batch_size=8, max_train=100, cache_dir=folder),
        }
        mixture = MixtureDataModule(data)
        tokenizer = train_vocabulary(["今天天气很好，我们去公园。", "怎么退货？"] * 3, "bpe", 200)
        torch.manual_seed(0)
        optim = Optim(partial(torch.optim.AdamW, lr=1e-3), schedule="constant")
        module = Spoilt(static(tokenizer, dim=16), {name: Task(d) for name, d in data.items()}, optim=optim)
        keep = ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=SAVED_EVERY, save_top_k=-1, save_last=True)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=12,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[SafeCheckpointIO()],
            callbacks=[*callbacks, keep],
            **others,
        )
        return trainer, module, mixture

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_stops_within_the_step_and_names_the_batch(where, value, accumulate, make, tmp_path):
    spoil = Spoil(where, value)
    trainer, module, mixture = make(spoil, Guard(), accumulate_grad_batches=accumulate, gradient_clip_val=1.0)
    with pytest.raises(InputError, match=f"step {BAD_STEP}: the {where}.* is not finite") as caught:
        trainer.fit(module, mixture)
    message = str(caught.value)
    assert spoil.last == BAD_STEP
    # the ids are hashes of the texts, and the rows hold these texts
    task = spoil.batch.task
    described = message.split(f"task {task}, ")[-1]
    ids = [int(i) for i in re.search(r"ids ([-\d, ]+) and", described)[1].split(", ")]
    assert ids == torch.cat(spoil.batch.ids)[: len(ids)].tolist()
    numbers = [int(i) for i in re.search(r"rows ([\d, ]+) and", described)[1].split(", ")]
    data = mixture.tasks[task]
    if task == "sts":
        texts = [row["ids"][0] for row in data.train.store.take(numbers)]
    else:
        texts = data.train.queries[np.array(numbers)].tolist()
    assert texts == spoil.batch.ids[0][: len(numbers)].tolist()
    # what is on disk is good, and of a step before
    found = read(newest(tmp_path))
    assert found["global_step"] == BAD_STEP // SAVED_EVERY * SAVED_EVERY
    for path in tmp_path.glob("*.ckpt"):
        assert all(weight.isfinite().all() for weight in read(path)["state_dict"].values())
    if where != "weight":
        assert all(weight.isfinite().all() for weight in module.parameters())


def test_without_it_the_run_goes_on_and_saves_nan(make, tmp_path):
    """The fault is one that nothing else stops."""
    trainer, module, mixture = make(Spoil("gradient", float("nan")))
    trainer.fit(module, mixture)
    assert trainer.global_step == 12
    assert not all(weight.isfinite().all() for weight in read(newest(tmp_path))["state_dict"].values())


def test_it_writes_no_bad_checkpoint(make, tmp_path):
    """Whoever asks for it."""
    trainer, module, mixture = make(Guard())
    trainer.fit(module, mixture)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(InputError, match="is not finite"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_of_the_gradients_before_clipping_is_logged(accumulate, make):
    class Look(Callback):
        found, logged = [], []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.found.append(np.linalg.norm([np.linalg.norm(p.grad.numpy()) for p in module.parameters()]))

        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step % 3 == 0 and "train/grad_norm" in trainer.callback_metrics:
                self.logged.append(float(trainer.callback_metrics["train/grad_norm"]))

    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1e-3, "log_every_n_steps": 3}
    trainer, module, mixture = make(Guard(), look := Look(), **settings)
    trainer.fit(module, mixture)
    assert min(look.found) > 1e-3, "clipped at every step"
    np.testing.assert_allclose(sorted(set(look.logged)), sorted(np.float32(look.found[2::3])), rtol=1e-5)


def test_large_finite_values_are_left_alone(make):
    """Their squares are not finite in 32 bits."""

    class Large(Callback):
        def on_after_backward(self, trainer, module):
            for p in module.parameters():
                if p.grad is not None:
                    p.grad.fill_(1e30)

    trainer, module, mixture = make(Large(), Guard())
    trainer.fit(module, mixture)
    assert trainer.global_step == 12


def test_a_loss_scaler_may_meet_infinite_gradients():
    module = nn.Linear(2, 2)
    module.weight.grad = torch.full((2, 2), torch.inf)
    guard = Guard()
    guard._losses, guard._batches = [torch.tensor(1.0)], [None]
    plugin = SimpleNamespace(scaler=object())
    trainer = SimpleNamespace(precision_plugin=plugin, datamodule=None, global_step=0, log_every_n_steps=10)
    guard.on_before_optimizer_step(trainer, module, None)
    trainer.precision_plugin.scaler = None
    with pytest.raises(InputError, match="the gradient of weight is not finite"):
        guard.on_before_optimizer_step(trainer, module, None)


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_lack_of_memory_gives_advice(error):
    with pytest.raises(InputError) as caught, memory_advice(SimpleNamespace(batch_tokens=8192, recompute=False)):
        raise error
    assert "module.batch_tokens=4096" in str(caught.value)
    assert "module.recompute=true" in str(caught.value)
    assert "more" not in str(caught.value)
    with pytest.raises(InputError) as caught, memory_advice(SimpleNamespace(batch_tokens=8192, recompute=True)):
        raise error
    assert "recompute" not in str(caught.value)


def test_a_real_lack_of_memory_is_known():
    with pytest.raises(InputError, match="out of memory"), memory_advice(SimpleNamespace(batch_tokens=2)):
        torch.empty(2**58, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(SimpleNamespace(batch_tokens=2)):
        raise RuntimeError("shapes do not match")


# ---- random numbers


class Draws(LightningModule):
    """Notes what each batch of a step draws."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), {}

    def training_step(self, batch):
        values = (torch.rand(()).item(), np.random.rand(), random.random())
        self.seen.setdefault(self.trainer.global_step, []).append(values)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def draws(seed, accumulate=1, steps=4):
    module = Draws()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepRandomness(seed)],
    )
    trainer.fit(module, DataLoader(torch.ones(20, 1)))
    return module.seen


def test_draws_follow_from_seed_step_and_place():
    first = draws(0, 2)
    torch.manual_seed(99)
    assert draws(0, 2) == first
    flat = [value for step in first.values() for values in step for value in values]
    assert [len(step) for step in first.values()] == [2] * 4
    assert len(set(flat)) == len(flat)
    other = draws(1, 2)
    assert not set(flat) & {value for step in other.values() for values in step for value in values}
    assert {s: v[0] for s, v in first.items()} == {s: v[0] for s, v in draws(0, 1).items()}


def test_devices_draw_apart():
    """So that their dropout masks differ."""
    callback, found = StepRandomness(3), []
    for rank in (0, 1):
        callback._step = -1
        callback.on_train_batch_start(SimpleNamespace(global_step=7, global_rank=rank), None, None, 0)
        found.append(torch.rand(()).item())
    assert found[0] != found[1]


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed=-1"):
        StepRandomness(-1)
