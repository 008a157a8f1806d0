"""What a run says of itself at its end."""

import gzip
import json

import pytest
from conftest import SAMPLE
from hydra import compose, initialize_config_dir

from acge_lightning.commands.single_run import train
from acge_lightning.commands.verdict import verdict
from acge_lightning.config.sources import config_dir

GOOD = {"val/mean": 0.5}, {"val/mean": 0.6}


def test_a_run_that_went_well_says_nothing():
    assert verdict(*GOOD, {"sts": (2.0, 1.5, 0.1)}, 500, 2e-5) == []
    assert verdict({}, {"val/mean": 0.1}, {}, 500, 2e-5) == []


def test_a_model_that_got_worse_is_said_with_what_to_try():
    (said,) = verdict({"val/mean": 0.9099, "test/mean": 0.91}, {"val/mean": 0.9075, "test/mean": 0.9}, {}, 480, 2e-5)
    assert said.startswith("The model got worse: val/mean 0.9099 → 0.9075 (-0.0024), test/mean 0.9100 → 0.9000 (-0.0100).")
    for remedy in (
        "optim.optimizer.lr=5.0e-06, not 2.0e-05",
        "more rows than these 480",
        "checking the labels",
        "another loss",
    ):
        assert remedy in said


def test_many_rows_are_not_called_few():
    (said,) = verdict({"val/mean": 0.9}, {"val/mean": 0.8}, {}, 50_000, None)
    assert "more rows" not in said
    assert "optim.optimizer.lr" not in said, "the optimizer has none"


def test_a_model_that_did_not_change_is_said():
    (said,) = verdict({"val/mean": 0.4067}, {"val/mean": 0.4067}, {}, 6000, 2e-5)
    assert said.startswith("Training changed hardly anything: val/mean 0.4067 → 0.4067 (+0.0000)")
    assert "optim.optimizer.lr=8.0e-05" in said


STILL = {  # first, last, standard error of their difference
    (2.0, 1.99, 0.0): True,
    (2.0, 2.5, 0.01): True,
    (0.0, 0.0, 0.0): True,
    (2.0, 1.8, 0.11): True,
    (2.0, 1.8, 0.09): False,
    (2.0, 1.97, 0.01): False,
    (-1.0, -1.5, 0.0): False,
}


@pytest.mark.parametrize(("ends", "still"), STILL.items())
def test_a_loss_that_does_not_fall_is_said(ends, still):
    said = verdict(*GOOD, {"sts": ends, "pair": (3.0, 1.0, 0.1)}, 5000, 2e-5)
    assert len(said) == still
    assert not still or ("sts" in said[0] and "pair" not in said[0])


def test_many_losses_make_a_short_sentence():
    (said,) = verdict(*GOOD, {f"task{i}": (1.0, 1.0, 0.0) for i in range(9)}, 5000, 2e-5)
    assert "task2 1 → 1 and 6 more" in said


@pytest.fixture
def run(tmp_path, cache):
    def result(*words):
        tiny = ["encoder.dim=16", "encoder.tokenizer.vocab_size=900", "trainer.accelerator=cpu", "callbacks.progress=null"]
        fixed = [f"paths.output_dir={tmp_path}", f"paths.cache_dir={cache}", "task=[sample_sts]", "max_dev=60"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            train(compose("train", [*fixed, *tiny, *words]))
        return json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))

    return result


def test_a_run_that_learns_nothing_says_so_on_the_terminal_and_in_its_files(run, tmp_path, capsys):
    found = run("optim.optimizer.lr=1.0e-9", "task.sample_sts.data.batch_size=16")
    score, loss = found["remarks"]
    assert score.startswith("Training changed hardly anything")
    assert loss.startswith("The training loss did not fall")
    shown = capsys.readouterr().out
    assert "optim.optimizer.lr=1e-09 is very small for a static encoder that begins at random" in shown
    assert score in shown
    assert loss in shown
    assert json.loads((tmp_path / "export" / "training.json").read_text(encoding="utf-8"))["remarks"] == found["remarks"]


def test_a_run_on_wrong_labels_says_that_it_got_worse(run, tmp_path, capsys):
    """Its training rows have their scores turned round."""
    folder = tmp_path / "公司 数据[1]"
    folder.mkdir()
    for name in ("train", "dev"):
        with gzip.open(SAMPLE / "sts" / "sample_zh" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [row | {"score": -row["score"]} for row in rows] if name == "train" else rows
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = run("task=[scored_pairs]", f'+paths.data="{folder}"', "trainer.max_epochs=3")
    assert found["after"]["val/mean"] < found["before"]["val/mean"] - 0.005
    assert [remark.partition(":")[0] for remark in found["remarks"]] == ["The model got worse"]
    assert found["remarks"][0] in capsys.readouterr().out
