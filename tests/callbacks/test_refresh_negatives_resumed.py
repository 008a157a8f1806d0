"""Negatives that are mined again: checkpoints, corpora, and what cannot work."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from refreshed import NOUNS, ROWS, RULES, beir, runs, tokenizer, write

from acge_lightning.callbacks.randomness import StepRandomness
from acge_lightning.callbacks.refresh_negatives import RefreshNegatives
from acge_lightning.data import RetrievalDataModule, STSDataModule
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import static
from acge_lightning.errors import InputError
from acge_lightning.training.embedding_module import EmbeddingModule


@pytest.fixture
def fit(tmp_path):
    return runs(tmp_path)


# ---- going on from a checkpoint


class Save(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_is_data_and_other_documents_are_refused(fit, tmp_path, caplog):
    """Of a corpus, documents that nobody judges are no part of the rows: that they changed is seen all the same."""
    documents = [*(row["positive"][0] for row in ROWS), *(f"{a}咬{b}" for a in NOUNS for b in NOUNS)]

    def run(*callbacks, size=12, **options):
        data = RetrievalDataModule(tmp_path / "beir", batch_size=size, holdout=0.0, cache_dir=tmp_path / "cache")
        return fit(RefreshNegatives(every=4, **RULES), StepRandomness(), *callbacks, tasks={"a": data}, **options)

    beir(tmp_path / "beir", documents)
    whole, _, watch = run(Save(6, tmp_path / "at.ckpt"))
    state = torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"]["RefreshNegatives"]
    assert state["step"] == 4
    assert state["mined"]["a"]["texts"].tolist() == watch.mined[4]["a"].texts.tolist()
    again, _, _ = run(ckpt_path=tmp_path / "at.ckpt")
    assert all(map(torch.equal, again.encoder.parameters(), whole.encoder.parameters()))
    _, _, watch = run(ckpt_path=tmp_path / "at.ckpt", size=9)
    assert "no negatives of step 4 are there" in caplog.text, "of the rows that other batches have"
    assert len(watch.mined[6]["a"].rows) > 30
    caplog.clear()
    beir(tmp_path / "beir", [*documents[:-1], "龙咬蛇，蛇咬龙"])
    with pytest.raises(InputError, match="task a has other texts since the checkpoint was written: put the data back"):
        run(ckpt_path=tmp_path / "at.ckpt")
    _, trainer, _ = run(ckpt_path=tmp_path / "at.ckpt", mixture={"resume_changed_data": True})
    assert trainer.global_step == 10
    assert "no negatives of step 4 are there: they are mined with the encoder of step 6" in caplog.text


def test_the_document_that_a_query_is_itself_is_never_its_negative(fit, tmp_path):
    """As `exclude_own_id` says: with a title before it, its text is not that of the query."""
    beir(tmp_path / "beir", [row["positive"][0] for row in ROWS])
    own = [{"_id": f"q{i}", "title": "关于动物的问题，很长很长的题目", "text": row["query"]} for i, row in enumerate(ROWS)]
    with (tmp_path / "beir" / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in own)
    mined = []
    for exclude in (False, True):
        options = {"batch_size": 12, "holdout": 0.0, "exclude_own_id": exclude, "cache_dir": tmp_path / "cache"}
        _, trainer, watch = fit(
            RefreshNegatives(every=6, **RULES), tasks={"a": RetrievalDataModule(tmp_path / "beir", **options)}
        )
        own_documents = trainer.datamodule.tasks["a"].train.own_documents
        pairs = [(m["a"].rows[:, None] >= 0) & (m["a"].texts == own_documents[m["a"].rows, None]) for m in watch.mined.values()]
        mined.append(sum(int(pair.sum()) for pair in pairs))
    assert mined[0] > 0
    assert mined[1] == 0


def test_few_documents_are_drawn_anew_each_time(fit, tmp_path):
    documents = [*(row["positive"][0] for row in ROWS), *(f"{a}咬{b}" for a in NOUNS for b in NOUNS)]
    beir(tmp_path / "beir", documents)
    data = RetrievalDataModule(tmp_path / "beir", batch_size=12, holdout=0.0, cache_dir=tmp_path / "cache")
    callback = RefreshNegatives(every=5, max_documents=30, **RULES)
    fit(callback, tasks={"a": data})
    assert callback.counts["a"].texts <= 30 + 60, "and the positives of five steps"
    assert callback.counts["a"].negatives > 0


# ---- what cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 must be a whole number of at least 1"),
        ({"begin": -1}, "begin=-1"),
        ({"begin": 1.5}, "begin=1.5"),
        ({"max_documents": 0}, "max_documents=0"),
        ({"negatives": 0}, "refresh_negatives: negatives=0"),
        ({"range_max": 1, "negatives": 2}, "widen range_max"),
        ({"denoise": True}, "denoise is unknown: choose from absolute_margin"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RefreshNegatives(**settings)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({}, ["sts"], r"no task trains on queries with positives.*task=\[triplets\]"),
        ({"tasks": ["sts"]}, ["faq", "sts"], r"sts has no queries with positives \(its family is sts\)"),
        ({"tasks": ["other"]}, ["faq"], "other is no task that trains: choose from faq"),
        ({"tasks": []}, ["faq"], "no task trains"),
        ({"range_min": 72, "range_max": 80}, ["faq"], "range_min=72 passes over all 72 texts of task faq: lower it"),
        ({"range_min": 10, "max_documents": 9}, ["faq"], "range_min=10 passes over all 9 texts of task faq: lower it"),
    ],
)
def test_tasks_that_cannot_work_are_refused_before_the_first_step(options, names, message, fit, tmp_path):
    kinds = {"faq": RetrievalDataModule, "sts": STSDataModule}
    tasks = {name: kinds[name](tmp_path / name, holdout=0.0, cache_dir=tmp_path / "cache") for name in names}
    with pytest.raises(InputError, match=message):
        fit(RefreshNegatives(**options), tasks=tasks)


def test_a_run_that_ends_before_the_first_refresh_is_told(fit, caplog):
    _, _, watch = fit(RefreshNegatives(begin=10), steps=10)
    assert "begin=10, and the run ends after 10 steps: it mines nothing" in caplog.text
    assert all(len(batch.columns) == 2 for _, batch, _ in watch.seen)


def test_a_trainer_without_a_mixture_is_refused(tmp_path):
    data = RetrievalDataModule(write(tmp_path / "train.jsonl", ROWS), holdout=0.0, cache_dir=tmp_path / "cache")
    module = EmbeddingModule(static(tokenizer(), dim=4), {"a": Task(data)})
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, callbacks=[RefreshNegatives()], limit_val_batches=0, **quiet)
    with pytest.raises(InputError, match="MixtureDataModule"):
        trainer.fit(module, data)
