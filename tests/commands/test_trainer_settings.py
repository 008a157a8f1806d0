"""Settings of Lightning's Trainer: each works, or is refused or remarked on in one line before anything is trained."""

import csv
import json
import logging

import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ModelCheckpoint

from acge_lightning.callbacks import Progress
from acge_lightning.commands import single_run
from acge_lightning.commands.program import program
from acge_lightning.commands.trainer import make_trainer, run_name
from acge_lightning.config.overrides import arguments, with_trainer_keys
from acge_lightning.config.sources import config_dir
from acge_lightning.errors import InputError

STEPS = 5  # of a round: 40 rows, 8 a batch
TINY = [
    *("task=[sample_sts]", "encoder=pretrained", "trainer.accelerator=cpu", "max_dev=20"),
    *("+task.sample_sts.data.max_train=40", "task.sample_sts.data.batch_size=8"),
]


@pytest.fixture
def run(tmp_path, cache, small_encoder):
    def train(*words):
        fixed = [f"paths.output_dir={tmp_path / 'run'}", f"paths.cache_dir={cache}", f"encoder.path={small_encoder}", *TINY]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train", [*fixed, *arguments(with_trainer_keys(words))])
        single_run.train(cfg)
        return json.loads((tmp_path / "run" / "export" / "training.json").read_text())["steps"]

    return train


def logged(folder):
    with (folder / "run" / "csv" / "version_0" / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


WORKS = {  # setting -> optimizer steps of the run
    "trainer.limit_train_batches=2": 2,
    "trainer.limit_train_batches=0.4": 2,
    "trainer.max_steps=2": 2,
    "trainer.max_epochs=2": 10,
    "trainer.val_check_interval=2": 5,
    "trainer.val_check_interval=0.5": 5,
    "trainer.check_val_every_n_epoch=1": 5,
    "trainer.num_sanity_val_steps=0": 5,
    "trainer.accumulate_grad_batches=2": 3,
    "trainer.gradient_clip_val=0.5": 5,
    "trainer.gradient_clip_algorithm=value": 5,
    "trainer.precision=bf16-mixed": 5,
    "trainer.profiler=simple": 5,
    "trainer.profiler=advanced": 5,
    "trainer.enable_progress_bar=false": 5,
    "trainer.enable_checkpointing=false": 5,
    "trainer.enable_model_summary=true": 5,
    "trainer.log_every_n_steps=2": 5,
    "trainer.detect_anomaly=true": 5,
    "trainer.limit_val_batches=1.0": 5,
    "trainer.overfit_batches=0": 5,
    "trainer.fast_dev_run=false": 5,
    "trainer.barebones=false": 5,
    "trainer.inference_mode=false": 5,
    "trainer.min_epochs=1": 5,
    "trainer.max_time=00:01:00:00": 5,
}


@pytest.mark.parametrize("setting", WORKS)
def test_a_setting_works(setting, run, tmp_path, capsys):
    assert run(setting) == WORKS[setting]
    assert (tmp_path / "run" / "export" / "modules.json").is_file()
    shown = capsys.readouterr()
    assert ("Epoch 1 of" in shown.out) == (setting != "trainer.enable_progress_bar=false")
    assert ("sample_sts loss:" in shown.out) == (setting != "trainer.enable_progress_bar=false")
    assert ("Profiler Report" in shown.out) == ("profiler" in setting)
    assert "v_num" not in shown.out


def test_a_run_without_a_number_of_epochs_shows_none(run, capsys):
    assert run("trainer.max_epochs=-1", "trainer.max_steps=7") == 7
    shown = capsys.readouterr().out
    assert "Epoch 2 " in shown
    assert "Epoch 2 of" not in shown
    assert "/-2" not in shown


def test_deterministic_algorithms_do(run):
    import torch

    try:
        assert run("trainer.deterministic=true") == STEPS
    finally:
        torch.use_deterministic_algorithms(False)


REFUSED = {
    "trainer.limit_val_batches=5": "set max_dev=500",
    "trainer.limit_val_batches=0.5": "set max_dev=500",
    "trainer.limit_val_batches=0": "leaves nothing to score",
    "trainer.limit_test_batches=5": "set max_dev=500",
    "trainer.limit_train_batches=0": "leaves nothing to learn from",
    "trainer.num_sanity_val_steps=2": "scores the model before training",
    "trainer.num_sanity_val_steps=-1": "scores the model before training",
    "trainer.fast_dev_run=true": "use debug=fast",
    "trainer.fast_dev_run=3": "use debug=fast",
    "trainer.overfit_batches=2": "set trainer.limit_train_batches",
    "trainer.overfit_batches=0.1": "set trainer.limit_train_batches",
    "trainer.barebones=true": "use debug=fast",
    "trainer.precision=64-true": "choose bf16-mixed",
    "trainer.precision=16-true": "choose bf16-mixed",
    "trainer.precision=transformer-engine": "choose bf16-mixed",
    "trainer.val_check_interval=0": "must be above 0",
    "trainer.val_check_interval=-1": "must be above 0",
    "trainer.val_check_interval=00:00:01:00": "give batches, or a share",
    "trainer.check_val_every_n_epoch=0": "must be above 0",
    "trainer.accumulate_grad_batches=0": "must be above 0",
    "trainer.log_every_n_steps=0": "must be above 0",
    "trainer.gradient_clip_val=-1": "must be above 0",
    "trainer.max_epochs=many": "takes int",
    "trainer.limit_val_batch=5": "did you mean limit_val_batches",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_work_is_refused_in_one_line_before_the_data_is_scored(setting, run, monkeypatch):
    monkeypatch.setattr(single_run, "evaluate", lambda *args: pytest.fail("it has begun"))
    with pytest.raises(InputError) as caught:
        run(setting)
    message = str(caught.value)
    assert setting.partition("=")[0] in message
    assert REFUSED[setting] in message
    assert "\n" not in message


def test_the_program_takes_a_setting_with_plus_and_without(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for number, word in enumerate(["trainer.limit_train_batches=2", "+trainer.limit_train_batches=2", "+trainer.max_steps=7"]):
        words = ["acge", "train", *TINY, "encoder.path=a", f"paths.cache_dir={cache}", f"hydra.run.dir={number}", word]
        monkeypatch.setattr("sys.argv", words)
        program("train", lambda cfg: found.append((cfg.trainer.get("limit_train_batches"), cfg.trainer.max_steps)))(2)
    assert found == [(2, -1), (2, -1), (None, 7)]


# ---- runs that are too short for a setting


REMARKS = {
    "trainer.max_steps=500": "The run ends after 5 steps, before trainer.max_steps=500",
    "trainer.check_val_every_n_epoch=3": "The run of 5 steps is over before its first validation",
    "trainer.max_steps=2": "The run of 2 steps is over before its first validation",
    "trainer.max_epochs=2": None,
    "trainer.limit_train_batches=2": None,
}


@pytest.mark.parametrize("setting", REMARKS)
def test_a_run_too_short_for_a_setting_says_so(setting, run, capsys):
    run(setting)
    shown = capsys.readouterr().out
    said = [line for line in shown.splitlines() if line.startswith("The run ")]
    assert len(said) == (REMARKS[setting] is not None)
    if said:
        assert said[0].startswith(REMARKS[setting])


@pytest.mark.parametrize(("every", "says"), [(6, True), (500, True), (5, False), (2, False)])
def test_an_evaluation_that_never_comes_is_told(every, says, run, caplog):
    from conftest import SAMPLE

    with caplog.at_level(logging.WARNING):
        run(
            "callbacks=[progress,evaluation]",
            f"paths.data_dir={SAMPLE}",
            *("callbacks.evaluation.tasks=[sts]", "callbacks.evaluation.limit=10", "callbacks.evaluation.share=1.0"),
            f"callbacks.evaluation.every={every}",
        )
    expected = f"callbacks.evaluation.every={every}, and the run ends after 5 steps: it scores nothing; set it to 1"
    assert (expected in caplog.text) == says


def test_a_short_run_logs_its_losses(run, tmp_path):
    run("trainer.limit_train_batches=3")
    losses = [row["step"] for row in logged(tmp_path) if row["train/loss"]]
    assert losses == ["0", "1", "2"], "each of three steps, not every ten"


def test_without_a_test_split_nothing_is_called_test(run, tmp_path, capsys):
    run("test=true", "++task.sample_sts.data.splits={test: null}")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {key.partition("/")[0] for key in [*result["before"], *result["after"]]} == {"val"}
    shown = capsys.readouterr()
    assert "No task has a test split" in shown.out
    assert "Total length" not in shown.out + shown.err


def test_fast_debugging_scores_few_rows(tmp_path):
    assert config(tmp_path, "debug=fast").max_dev == 100
    assert config(tmp_path).max_dev is None


@pytest.mark.parametrize(("own", "given", "rows"), [("null", 30, 30), (10, 30, 10), (30, 10, 10)])
def test_the_limit_of_all_tasks_and_that_of_one(own, given, rows, run, tmp_path):
    run(f"max_dev={given}", f"task.sample_sts.data.max_dev={own}")
    assert json.loads((tmp_path / "run" / "export" / "training.json").read_text())["data"]["sample_sts"]["dev"] == rows


# ---- loggers and callbacks


def config(tmp_path, *words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [f"paths.output_dir={tmp_path}", "trainer.accelerator=cpu", *words])


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("logger=csv", ["CSVLogger"]),
        ("logger=tensorboard", ["TensorBoardLogger", "CSVLogger"]),
        ("logger=[csv,tensorboard]", ["CSVLogger", "TensorBoardLogger"]),
        ("logger=none", []),
    ],
)
def test_the_log_that_the_report_reads_is_kept(choice, kinds, tmp_path):
    trainer = make_trainer(config(tmp_path, choice))
    assert [type(logger).__name__ for logger in trainer.loggers] == kinds
    logs = [logger.log_dir for logger in trainer.loggers if type(logger).__name__ == "CSVLogger"]
    assert logs == [str(tmp_path / "csv" / "version_0")] * ("none" not in choice)


BARS = {"": 1, "callbacks=[guard]": 1, "callbacks.progress=null": 0, "++trainer.enable_progress_bar=false": 0}


@pytest.mark.parametrize(("word", "bars"), BARS.items())
def test_the_progress_line_is_ours_or_none(word, bars, tmp_path):
    trainer = make_trainer(config(tmp_path, *([word] if word else [])))
    assert [type(bar) for bar in [trainer.progress_bar_callback] if bar] == [Progress] * bars
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)


@pytest.mark.parametrize(
    ("number", "words", "name"),
    [
        (None, ["+experiment=quickstart", "logger=wandb"], "mine"),
        (None, ["optim.optimizer.lr=0.001", "task=[a]", "seed=1", "paths.data_dir=/data"], "mine lr=0.001 seed=1"),
        (7, ["++seed=2", "encoder=static"], "mine 7 seed=2 encoder=static"),
        (0, ["+note=${oc.env:TOKEN}", "seed=1"], "mine 0 seed=1"),  # the variable may be a secret
    ],
)
def test_a_run_on_wandb_is_named_by_what_is_its_own(number, words, name):
    assert run_name("mine", words, number) == name
