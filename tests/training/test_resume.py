"""A run that is killed and goes on ends with the weights, the optimizer and the best checkpoint of a run that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SAMPLE
from hydra import compose, initialize_config_dir

from acge_lightning.callbacks.steps import StepCheckpoint
from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.errors import InputError
from acge_lightning.training.checkpoint import newest, read

STS = [
    "task.sample_sts.data.batch_size=12",
    "+task.sample_sts.data.max_train=72",
    "task.sample_sts.data.max_dev=40",
    "optim=adamw_static",
]
ONE = ["task=[sample_sts]", *STS]
EACH_STEP = "callbacks.steps.every=1"
BERT = [
    "encoder=bert_mini",
    "encoder.config={model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "encoder.max_length=24",
]
REFRESHED = [
    "task=[sample_sts,sample_retrieval]",
    *STS,
    "+task.sample_retrieval.data={max_train: 60, batch_size: 12, max_dev: 20}",
    "callbacks=[guard,peers,randomness,checkpoint,steps,signals,early_stopping,learning_rate,progress,refresh_negatives]",
    "callbacks.refresh_negatives.every=3",
    "callbacks.refresh_negatives.relative_margin=null",
    "encoder.dropout=0.1",
    "trainer.max_epochs=2",
    EACH_STEP,
]
WITH_EWC = "callbacks=[guard,peers,randomness,checkpoint,steps,signals,early_stopping,learning_rate,progress,ewc]"
# name -> overrides, kinds of events to be killed at (None: all), number of kills in the long test, fewest of them that loaded
SETTINGS = {
    "every step": ([*ONE, "trainer.max_epochs=3", EACH_STEP], ["train_batch_end"], 17, 16),
    "inside the steps": (
        [*ONE, "trainer.max_epochs=2", EACH_STEP, "encoder.dropout=0.1"],
        ["before_optimizer_step", "train_batch_start"],
        12,
        10,
    ),
    "rounds only": ([*ONE, "trainer.max_epochs=4"], ["saved", "train_epoch_start", "train_epoch_end"], 12, 9),
    "accumulation": (
        [*ONE, "+task.sample_sts.data.max_train=84", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3", EACH_STEP],
        None,
        14,
        11,
    ),
    "accumulation, rounds only": (
        [*ONE, "+task.sample_sts.data.max_train=84", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3"],
        None,
        10,
        6,
    ),
    "accumulation without validation": (
        [
            *ONE,
            "+task.sample_sts.data.max_train=84",
            "trainer.accumulate_grad_batches=2",
            "trainer.max_epochs=3",
            "+trainer.limit_val_batches=0",
            "callbacks=[guard,randomness,checkpoint,steps,signals]",
            EACH_STEP,
        ],
        None,
        10,
        8,
    ),
    "accumulation, validation within rounds": (
        [
            *ONE,
            "+task.sample_sts.data.max_train=84",
            "trainer.accumulate_grad_batches=2",
            "trainer.max_epochs=2",
            "trainer.val_check_interval=3",
        ],
        None,
        10,
        6,
    ),
    "two workers": ([*ONE, "mixture.num_workers=2", "trainer.max_epochs=2", EACH_STEP], ["train_batch_end", "saved"], 8, 7),
    "mid-validation": (
        [*ONE, "trainer.max_epochs=3", "trainer.val_check_interval=2", EACH_STEP],
        ["validation_batch_start", "validation_end"],
        12,
        11,
    ),
    "SimCSE with dropout": (
        [
            "task=[sample_unlabelled,sample_sts]",
            *STS,
            "+task.sample_unlabelled.data={max_train: 60, batch_size: 12}",
            *BERT,
            "trainer.max_epochs=2",
            EACH_STEP,
        ],
        ["train_batch_end", "before_optimizer_step"],
        10,
        9,
    ),
    "a mixture with Matryoshka": (
        [
            "task=[sample_sts,sample_retrieval,sample_classification]",
            *STS,
            "+task.sample_retrieval.data={max_train: 48, batch_size: 12, max_dev: 20}",
            "+task.sample_classification.data={max_train: 60, batch_size: 12, max_dev: 20}",
            "matryoshka={dims:[16,8]}",
            "mixture.temperature=2.0",
            "trainer.max_epochs=2",
            EACH_STEP,
        ],
        ["train_batch_end", "validation_batch_start"],
        10,
        9,
    ),
    **{
        f"EWC by {mode}": (
            [
                *ONE,
                WITH_EWC,
                "callbacks.ewc.anchors={anchor}",
                f"callbacks.ewc.mode={mode}",
                "callbacks.ewc.strength={0: 0.5, 12: 3.0}",
                "trainer.accumulate_grad_batches=2",
                "trainer.max_epochs=3",
                EACH_STEP,
            ],
            ["train_batch_end", "before_optimizer_step", "saved"],
            8,
            6,
        )
        for mode in ("gradient", "proximal", "rate")
    },
    "a schedule of Matryoshka dims": (
        [
            *ONE,
            "matryoshka={dims: [16, 8, 4]}",
            "+callbacks.matryoshka_schedule._target_=acge_lightning.callbacks.MatryoshkaSchedule",
            "+callbacks.matryoshka_schedule.random=1",
            "trainer.max_epochs=3",
            EACH_STEP,
        ],
        ["train_batch_end", "before_optimizer_step"],
        8,
        7,
    ),
    "negatives mined again": (REFRESHED, ["train_batch_end", "saved"], 12, 11),
    "negatives mined again, two workers": (
        [*REFRESHED, "mixture.num_workers=2", "trainer.accumulate_grad_batches=2", "callbacks.refresh_negatives.begin=1"],
        None,
        12,
        10,
    ),
    "negatives mined again, BERT": (
        [*(o for o in REFRESHED if "dropout" not in o), *BERT, "module.batch_tokens=200", "mixture.num_workers=1"],
        ["train_batch_end"],
        4,
        3,
    ),
    "negatives mined again, EWC after the step": (
        [
            *(o.replace(",refresh_negatives]", ",refresh_negatives,ewc]") for o in REFRESHED),
            "callbacks.ewc.anchors={anchor}",
            "callbacks.ewc.mode=proximal",
            "callbacks.refresh_negatives.every=1",
        ],
        ["train_batch_end", "validation_batch_start"],
        6,
        5,
    ),
    "masked LM": (
        [
            "task=[sample_unlabelled]",
            "+task.sample_unlabelled.data={max_train: 60, batch_size: 12, holdout: 0.1}",
            "module=masked_lm",
            *BERT,
            "trainer.max_epochs=2",
            EACH_STEP,
        ],
        ["train_batch_end"],
        8,
        7,
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from acge_lightning.data import UnlabelledDataModule
    from acge_lightning.encoder.vocabulary import train_vocabulary

    folder = tmp_path_factory.mktemp("tokenizer")
    data = UnlabelledDataModule(SAMPLE / "unlabelled" / "sample_zh", cache_dir=folder / "cache")
    train_vocabulary(data.train_texts(), "wordpiece", 600).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """`interrupted.py`, and the file with what it says."""
    said = tmp_path_factory.mktemp("program") / "stderr"
    command = [sys.executable, str(Path(__file__).with_name("interrupted.py"))]
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with (
        said.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process,
    ):
        yield process, said


@pytest.fixture
def interrupted(program, tmp_path, tokenizer, cache):
    """The whole run of overrides, and the runs that were killed and went on."""
    process, said = program

    def run(overrides, points, kinds, **others):
        fixed = [f"encoder.tokenizer={tokenizer}", f"paths.cache_dir={cache}", "+trainer.enable_progress_bar=false"]
        dim = [] if "encoder=bert_mini" in overrides else ["encoder.dim=16"]
        merged = {o.partition("=")[0]: o for o in [*overrides, *dim, *fixed]}  # the last of a key
        if any("{anchor}" in o for o in merged.values()):
            file = an_anchor(tmp_path / "old.safetensors", tokenizer)
            merged = {key: o.replace("{anchor}", str(file)) for key, o in merged.items()}
        asked = {"folder": str(tmp_path), "points": points, "kinds": kinds, "overrides": list(merged.values()), **others}
        print(json.dumps(asked), file=process.stdin, flush=True)
        whole, *runs = (json.loads(line) for line in iter(process.stdout.readline, "end\n") if line.startswith("{"))
        assert whole["status"] == 0, said.read_text()[-3000:]
        assert not [run for run in runs if run["status"]], said.read_text()[-3000:]
        return whole, runs

    return run


def an_anchor(file, tokenizer):
    """Of the static encoder of these runs, with numbers at random."""
    from acge_lightning.continual.anchor import Anchor
    from acge_lightning.encoder.build import static

    made = torch.Generator().manual_seed(1)
    shapes = {name: p.shape for name, p in static(str(tokenizer), dim=16).named_parameters()}
    theta, fisher = (
        {name: scale * torch.rand(shape, generator=made) for name, shape in shapes.items()} for scale in (0.1, 2.0)
    )
    return Anchor(theta, fisher, {}).save(file)


def check(whole, runs, killed, loaded):
    """All that loaded a checkpoint end alike, and enough of them did."""
    assert [run["killed"] for run in runs] == [killed] * len(runs)
    went_on = [run for run in runs if run["loaded"]]
    parts = ("steps", "weights", "optimizer", "best")
    differ = {(run["at"], run["event"], run["start"]): [p for p in parts if run[p] != whole[p]] for run in went_on}
    assert {point: names for point, names in differ.items() if names} == {}
    assert all(0 < run["start"] <= whole["steps"] for run in went_on)
    assert len(went_on) >= loaded


@pytest.mark.parametrize(
    "name",
    [
        "SimCSE with dropout",
        "EWC by rate",
        "negatives mined again, two workers",
        pytest.param("accumulation", marks=pytest.mark.heavy),
    ],
)
def test_a_killed_run_goes_on_exactly(name, interrupted):
    overrides, kinds, _, _ = SETTINGS[name]
    check(*interrupted(overrides, 3, kinds), -9, 2)


@pytest.mark.heavy
@pytest.mark.parametrize("name", SETTINGS)
def test_runs_killed_everywhere_go_on_exactly(name, interrupted):
    overrides, kinds, points, loaded = SETTINGS[name]
    whole, runs = interrupted(overrides, points, kinds)
    assert len(runs) == points
    check(whole, runs, -9, loaded)


def test_the_settings_have_enough_kills():
    assert sum(loaded for *_, loaded in SETTINGS.values()) >= 60


def test_without_the_callback_dropout_differs(interrupted):
    """The comparison can fail: the same runs, with what the process happens to draw."""
    overrides = [*SETTINGS["SimCSE with dropout"][0], "callbacks=[checkpoint,steps]"]
    whole, runs = interrupted(overrides, 2, ["train_batch_end"])
    assert runs[-1]["loaded"]
    assert runs[-1]["weights"] != whole["weights"]


# ---- signals

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 0}
WITH_VALIDATION = [*ONE, "trainer.max_epochs=2", "trainer.val_check_interval=3", "callbacks.steps.every=1000"]
PLACES = ["before_optimizer_step", "validation_batch_start", "saved"]


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("SIGINT", "SIGUSR1"))])
def test_a_signal_saves_and_ends(name, interrupted):
    """In training, in a validation, while a checkpoint is written: within a step, and the run goes on exactly."""
    whole, runs = interrupted(WITH_VALIDATION, 6, PLACES, signal=name)
    assert {run["event"] for run in runs} == set(PLACES)
    check(whole, runs, CODES[name], len(runs))
    before = [whole["events"][: run["at"]].count("before_optimizer_step") for run in runs]
    for run, steps in zip(runs, before, strict=True):
        assert run["loaded"] == "interrupted.ckpt"
        assert steps <= run["start"] <= steps + 1
    assert {run["start"] for run in runs} != {runs[0]["start"]}


def test_under_slurm_the_job_is_put_back_in_the_queue_after_the_step(interrupted, tmp_path):
    """What Lightning does on SIGUSR1 there; its own handler would save in the middle of the step."""
    calls = tmp_path / "calls"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tmp_path / "scontrol").chmod(0o755)
    names = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    environment = names | {"SLURM_NODEID": "0", "SLURM_NODELIST": "here", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    how = {"signal": "SIGUSR1", "environment": environment}
    whole, (run,) = interrupted(WITH_VALIDATION, 1, ["before_optimizer_step"], **how)
    assert calls.read_text() == "requeue 7\n"
    (saved,) = (tmp_path / f"at{run['at']}").glob("hpc_ckpt_*.ckpt")
    assert read(saved)["global_step"] == 1
    assert run["killed"] == 0
    assert run["weights"] == whole["weights"]


def test_a_validation_is_moved_to_the_end_of_a_step(caplog):
    trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=4, check_val_every_n_epoch=1, num_training_batches=11)
    for asked, expected in ((4, 4), (5, 8), (9, 11), (11, 11), (1, 4)):
        trainer.val_check_batch = asked
        StepCheckpoint("folder").on_train_start(trainer, None)
        assert trainer.val_check_batch == expected
    assert caplog.text.count("validating every") == 3
    with pytest.raises(InputError, match="every=0"):
        StepCheckpoint("folder", every=0)


# ---- resume=auto, and data that changed


@pytest.fixture
def compose_run(tmp_path, cache, tokenizer):
    def composed(*overrides):
        fixed = [f"paths.output_dir={tmp_path / 'run'}", f"paths.cache_dir={cache}", f"encoder.tokenizer={tokenizer}"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("train", [*fixed, "encoder.dim=16", "callbacks.progress=null", *overrides])

    return composed


def test_resume_auto_takes_the_newest_and_begins_where_there_is_none(compose_run, tmp_path):
    short = [*ONE, "optim.schedule=constant", "resume=auto"]
    train(compose_run(*short, "trainer.max_epochs=1"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["before"]  # a fresh start is scored before
    folder = tmp_path / "run" / "checkpoints"
    assert read(newest(folder))["global_step"] == 6
    train(compose_run(*short, "trainer.max_epochs=2"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["before"] == result["before"]
    assert read(newest(folder))["global_step"] == 12


def rows(scores):
    return "".join(json.dumps({"text1": f"第{i}句话", "text2": f"话{i}", "score": s}) + "\n" for i, s in enumerate(scores))


@pytest.mark.parametrize("change", ["a row", "a label", "the order", "nothing", "a task"])
def test_changed_training_rows_are_refused(change, compose_run, tmp_path):
    """A text, a label or the order; not that the same rows lie elsewhere."""
    scores = [i % 5 for i in range(40)]
    files = {
        "a row": rows([*scores, 3]),
        "a label": rows([*scores[:-1], 3]),
        "the order": "".join(sorted(rows(scores).splitlines(keepends=True), reverse=True)),
    }
    own = ["task=[scored_pairs]", "task.scored_pairs.data.batch_size=8", "optim=adamw_static"]
    (tmp_path / "a.jsonl").write_text(rows(scores))
    (tmp_path / "b.jsonl").write_text(files.get(change, rows(scores)))
    train(compose_run(*own, f"+paths.data={tmp_path / 'a.jsonl'}"))
    if change == "a task":
        own[0] = "task=[scored_pairs,sample_pair]"
    again = [*own, f"+paths.data={tmp_path / 'b.jsonl'}", "trainer.max_epochs=2", "resume=auto"]
    if change == "nothing":
        train(compose_run(*again))
        return
    task = "sample_pair is new" if change == "a task" else "scored_pairs has other training rows"
    with pytest.raises(InputError, match=f"task {task}.*resume_changed_data=true"):
        train(compose_run(*again))
    if change != "a task":  # the optimizer has the same weights
        train(compose_run(*again, "resume_changed_data=true"))


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL], ids=str)
def test_two_devices_end_with_the_same_weights_when_interrupted(number, tmp_path, cache):
    program = str(Path(__file__).parents[2] / "train.py")
    fixed = ["task=[sample_sts,sample_retrieval]", "encoder.dim=32", "optim=adamw_static", "trainer.accelerator=cpu"]
    fixed += ["trainer.devices=2", "+trainer.strategy=ddp", f"paths.cache_dir={cache}", "callbacks.progress=null"]
    fixed += ["trainer.max_epochs=3", "trainer.val_check_interval=7", "callbacks.steps.every=1", "encoder.dropout=0.1"]
    fixed += ["+callbacks@callbacks=refresh_negatives", "callbacks.refresh_negatives.every=5"]

    def run(name, *extra):
        command = [sys.executable, program, *fixed, f"paths.output_dir={tmp_path / name}", *extra]
        return subprocess.Popen(command, cwd=tmp_path, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert run("whole").wait(300) == 0
    cut = run("cut")
    checkpoints = tmp_path / "cut" / "checkpoints"
    for _ in range(3000):
        if len(list(checkpoints.glob("*.ckpt"))) >= 2:
            break
        time.sleep(0.05)
    if number == signal.SIGKILL:
        os.killpg(cut.pid, number)
    else:
        cut.send_signal(number)
    assert cut.wait(120) == {signal.SIGTERM: 143, signal.SIGUSR1: 0, signal.SIGKILL: -9}[number]
    assert newest(checkpoints) is not None
    assert not (tmp_path / "cut" / "export").exists()
    assert run("cut", "resume=auto").wait(300) == 0
    one, two = (sorted((tmp_path / name / "export").rglob("*.safetensors")) for name in ("whole", "cut"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
