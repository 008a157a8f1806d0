"""Scores while training goes on: those of the encoder at that step, in no more than their share of the time."""

import time

import pytest
import torch
from conftest import SAMPLE
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.results import means
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.zoo.pretrained import load


def trained(small_encoder, cache, steps=8, callbacks=(), **options):
    from acge_lightning.callbacks.evaluation import Evaluation
    from acge_lightning.data import MixtureDataModule, STSDataModule
    from acge_lightning.data.task import Task
    from acge_lightning.training.embedding_module import EmbeddingModule

    logged = []

    class Recorder(Logger):
        name, version = "recorder", 0

        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics))

        def log_hyperparams(self, *args, **kwargs):
            pass

    data = STSDataModule(SAMPLE / "sts" / "sample_zh", batch_size=16, cache_dir=cache)
    module = EmbeddingModule(load(small_encoder).train(), {"a": Task(data)})
    callback = Evaluation(SAMPLE, cache_dir=cache, **{"tasks": ["sts", "pair"], "dims": [8], "every": 2} | options)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[callback, *callbacks],
        logger=Recorder(),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, MixtureDataModule({"a": data}))
    return module, callback, [(step, m) for step, m in logged if any(key.startswith("eval/") for key in m)]


def test_the_scores_in_training_are_those_of_the_encoder_at_that_step(small_encoder, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("acge_lightning.callbacks.evaluation.Evaluation._allowed", lambda self, trainer: True)
    module, _callback, logged = trained(small_encoder, cache)
    assert logged[-1][0] == 8
    result = evaluate([Model("a", "a", module.encoder)], find(SAMPLE, ["sts", "pair"], "dev", 1000), [8], cache_dir=tmp_path)
    expected = {f"eval/{r['family']}/{r['dataset']}@{r['dim']}": r["value"] for r in result["rows"]}
    expected |= {f"eval/mean@{dim}": means(result["rows"], "a", dim)["mean"] for dim in (16, 8)}
    assert logged[-1][1] == pytest.approx(expected, abs=1e-6)
    assert module.encoder.training


def test_scoring_takes_no_more_than_its_share(small_encoder, cache):
    class Slow(Callback):
        def on_train_batch_start(self, *args):
            time.sleep(0.02)

    start = time.monotonic()
    _, callback, logged = trained(small_encoder, cache, 40, [Slow()], share=0.2, every=1)
    assert 1 <= len(logged) < 40
    assert callback._spent - callback._last <= 0.2 * (time.monotonic() - start)


def test_scoring_changes_nothing_in_the_training(small_encoder, cache):
    often, seldom = (trained(small_encoder, cache, share=1.0, every=every)[0].encoder for every in (1, 1000))
    for one, other in zip(often.parameters(), seldom.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 must be at least 1"),
        ({"share": 0.0}, "share=0.0 must be above 0"),
        ({"tasks": ["nope"]}, "'nope' is not under"),
    ],
)
def test_settings_that_cannot_work(options, message, small_encoder, cache):
    with pytest.raises(InputError, match=message):
        trained(small_encoder, cache, **options)
