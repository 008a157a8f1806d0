"""Negatives that are mined again while training goes on: those of the encoder at that step, and nothing else changes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from refreshed import NOUNS, RULES, runs, write

from acge_lightning.callbacks.progress import Progress
from acge_lightning.callbacks.refresh_negatives import RefreshNegatives
from acge_lightning.data import RerankingDataModule, RetrievalDataModule
from acge_lightning.data.records import text_id
from acge_lightning.mining import DenseNeighbours, Rules, combine_judgements, mine, text_keys
from acge_lightning.zoo.pretrained import load


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged += [(step, metrics)] if any(key.startswith("refresh/") for key in metrics) else []

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.fixture
def fit(tmp_path):
    return runs(tmp_path)


def by_hand(data, encoder, rules, autocast=False):
    """Query -> the hashes of its negatives, of all queries at once."""
    judged = combine_judgements([data.train])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        vectors = [encoder.encode(t, 8, prompt=p).numpy() for t, p in ((judged.queries, "q"), (judged.texts, "d"))]
    mined = mine(judged, DenseNeighbours(*vectors), rules)
    texts = [{text_id(judged.texts[t]) for t in row if t >= 0} for row in mined.texts.tolist()]
    return dict(zip(map(text_id, judged.queries), texts, strict=True))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"every": 4, "sampling": "top"}, {}),
        ({"every": 3, "begin": 2, "seed": 5}, {"workers": 2, "accumulate_grad_batches": 2}),
        ({"every": 5, "near": None}, {"matryoshka": {"dims": [8, 4]}, "precision": "bf16-mixed"}),
        ({"every": 4}, {"mixture": {"temperature": 3.0, "seed": 2}, "limit_train_batches": 5}),
        ({"every": 3}, {"mixture": {"curriculum": {"start": 0.4, "steps": 12}}}),
    ],
)
def test_a_batch_has_what_is_mined_by_hand_with_the_encoder_of_the_last_refresh(fit, options, settings):
    _, trainer, watch = fit(RefreshNegatives(**RULES, **options), **settings)
    data = trainer.datamodule.tasks["faq"]
    rules = Rules(
        **RULES,
        **{"near": 0.8, "sampling": "random"} | {key: value for key, value in options.items() if key not in ("every", "begin")},
    )
    every, begin = options["every"], options.get("begin", 0)
    encoders = {}
    for step, _, encoder in watch.seen:
        encoders.setdefault(step, encoder)
    compared = 0
    for step, batch, _ in watch.seen:
        if batch.task == "faq" and step >= begin:
            due = step - (step - begin) % every
            expected = by_hand(data, encoders[due], rules, settings.get("precision") == "bf16-mixed")
            queries, positives = (ids.tolist() for ids in batch.ids[:2])
            assert set(batch.ids[2].tolist()) == set().union(*(expected[q] for q in queries)) - set(positives)
            compared += 1
        else:
            assert len(batch.columns) == 2, "nothing is mined for other tasks, or before the first refresh"
    assert compared > 4
    assert trainer.global_step == 10


class Replay(Callback):
    """Gives the data the negatives that another run had, and mines none."""

    def __init__(self, watch):
        self.mined = watch.mined

    def setup(self, trainer, pl_module, stage):
        self.data, trainer.datamodule.changes = trainer.datamodule.tasks, self

    def next_change(self, step):
        return step + 1

    def prepare(self, step):
        for name, mined in self.mined[step].items():
            self.data[name].mined = mined


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.heavy)])
def test_mining_leaves_the_random_numbers_of_training_alone(fit, workers):
    """Dropout, without `StepRandomness`: against a run that has the same negatives and mines none."""
    module, _, watch = fit(RefreshNegatives(every=3, **RULES), workers=workers)
    again, _, _ = fit(Replay(watch), workers=workers)
    bare, _, _ = fit(workers=workers)
    weights, others, without = (list(m.encoder.parameters()) for m in (module, again, bare))
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, without, strict=True))


def test_what_was_mined_is_told_and_logged(fit, capsys):
    """Against counts over the negatives in force; the data is left as it was."""
    recorder, bar = Recorder(), Progress()
    _, trainer, watch = fit(RefreshNegatives(every=3, **RULES), bar, logger=recorder, steps=8)  # a round
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step ")]
    assert [step for step, _ in recorder.logged] == [0, 3, 6]
    earlier = {}
    for (step, values), line in zip(recorder.logged, said, strict=True):
        mined = watch.mined[step]["faq"]
        queries = np.unique(mined.rows)  # no query of these rows comes twice
        pairs = {(row, text) for row, texts in zip(mined.rows.tolist(), mined.texts.tolist(), strict=True) for text in texts}
        pairs = {(row, text) for row, text in pairs if text >= 0}
        assert values["refresh/negatives"] == len(pairs)
        assert values["refresh/without"] == len(queries) - len({row for row, _ in pairs})
        assert line.startswith(f"Step {step}, mined in {values['refresh/seconds']:.1f} s")
        assert f"{len(pairs)} hard negatives of {len(queries)} queries; {values['refresh/without']:.0f} queries" in line
        rows = {row for row in queries.tolist() if row in earlier}
        new = [text not in earlier[row] for row, text in pairs if row in rows]
        assert values.get("refresh/new") == (pytest.approx(np.mean(new)) if new else None)
        earlier = {row: set(texts) for row, texts in zip(mined.rows.tolist(), mined.texts.tolist(), strict=True)}
    tasks = [task for task in bar.progress.tasks if task.description == "mine faq"]
    assert len(tasks) == 3
    assert all(task.finished and not task.visible for task in tasks)
    assert trainer.datamodule.changes is None
    assert trainer.datamodule.tasks["faq"].mined is None


def test_a_planted_false_negative_is_never_mined(fit, tmp_path):
    """Texts that other tasks, and other splits, judge positive for a query, written in other ways, beside many that may be."""
    rows = [{"query": f"{noun}几岁", "positive": [f"{noun}三岁{i}"]} for i, noun in enumerate(NOUNS) for _ in range(2)]
    rows += [
        {"query": f"别的{i}", "positive": [text]} for i, text in enumerate(["猫４岁！", "狗四岁了", "鸟今年已经整整五岁了。"])
    ]
    write(tmp_path / "a" / "train.jsonl", rows)
    write(tmp_path / "a" / "test.jsonl", [{"query": "猫几岁？", "positive": ["猫4岁"]}])
    other_rows = [
        {"query": "狗几歲", "positive": ["狗四岁了"], "negative": ["狗"]},
        *({"query": q, "positive": ["p"]} for q in "xy"),
    ]
    write(tmp_path / "b" / "train.jsonl", other_rows)
    write(tmp_path / "c" / "dev.jsonl", [{"query": "鸟几岁", "positive": ["鸟今年已经整整六岁了"]}])
    options = {"holdout": 0.0, "cache_dir": tmp_path / "cache"}
    tasks = {
        "a": RetrievalDataModule(tmp_path / "a", batch_size=9, **options),
        "b": RerankingDataModule(tmp_path / "b", batch_size=2, **options),
        "c": RetrievalDataModule(tmp_path / "c", **options),
    }
    forbidden = {"猫几岁": ["猫4岁"], "狗几岁": ["狗四岁了"], "鸟几岁": ["鸟今年已经整整五岁了"]}
    rules = {"negatives": 14, "range_max": 30, "relative_margin": None}
    _, trainer, watch = fit(RefreshNegatives(every=2, **rules), tasks=tasks, mixture={"weights": {"c": 0}}, steps=6)
    split = trainer.datamodule.tasks["a"].train
    queries, mined_texts = split.read_queries(np.arange(len(split))), set()
    for mined in (step["a"] for step in watch.mined.values()):
        for row, texts in zip(mined.rows.tolist(), mined.texts.tolist(), strict=True):
            keys = set(text_keys(split.read_candidates(np.array([t for t in texts if t >= 0], dtype=np.int64))))
            assert not keys & set(text_keys(forbidden.get(queries[row], [])))
            mined_texts |= keys
    assert set(text_keys([text for texts in forbidden.values() for text in texts])) <= mined_texts, "of other queries"


@pytest.mark.heavy
def test_two_devices_mine_what_one_mines(tmp_path, cache):
    """A whole run of the program on two gloo processes, which share the work, against one of a single process."""
    program = str(Path(__file__).parents[2] / "train.py")
    fixed = ["task=[sample_retrieval,sample_sts]", "encoder.dim=32", "optim=adamw_static", "optim.optimizer.lr=1.0e-3"]
    fixed += ["trainer.accelerator=cpu", f"paths.cache_dir={cache}", "callbacks.progress=null", "trainer.max_epochs=1"]
    fixed += ["+callbacks@callbacks=refresh_negatives", "callbacks.refresh_negatives.every=8", "mixture.num_workers=1"]
    said, vectors = [], []
    for name, extra in (("one", []), ("two", ["trainer.devices=2", "+trainer.strategy=ddp"])):
        command = [sys.executable, program, *fixed, f"paths.output_dir={tmp_path / name}", *extra]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("Step ")]
        said.append([re.sub(r"mined in .* s", "", line) for line in lines])
        vectors.append(load(tmp_path / name / "export").encode(["怎么退货？", "今天天气很好"]))
    steps = [[line.split(",")[0] for line in lines] for lines in said]
    assert steps[0] == steps[1]
    assert len(steps[0]) > 2
    assert said[0][0] == said[1][0], "with the weights of the beginning, which are the same to the last bit"
    assert (vectors[0] - vectors[1]).abs().max() < 1e-3
