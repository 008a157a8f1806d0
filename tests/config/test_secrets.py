"""Values of environment variables are used; what is recorded and said has `${oc.env:…}` in their place."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from omegaconf import OmegaConf

from acge_lightning.commands import cli
from acge_lightning.config.building import instantiate, instantiate_all, plain
from acge_lightning.config.secrets import concealed, recorded
from acge_lightning.errors import InputError

SECRET = "s3cr3t-v4lue"
TEXT = "${oc.env:ACGE_TOKEN_Q}"
TINY = ["task=[sample_sts]", "encoder.dim=8", "encoder.tokenizer.vocab_size=1200", "callbacks.progress=null"]
TINY += ["trainer.max_steps=1", "trainer.accelerator=cpu", "hydra.run.dir=run"]
GIVEN = [f"+note={TEXT}", "+again=${note}", "+url=https://me:${again}@host", "+list=[${url},1]", "+other=${list}"]


@pytest.fixture(autouse=True)
def secret(monkeypatch, tmp_path):
    monkeypatch.setenv("ACGE_TOKEN_Q", SECRET)
    monkeypatch.chdir(tmp_path)


def test_set_variables_stay_interpolations_wherever_they_are_referred_to(monkeypatch):
    monkeypatch.delenv("ACGE_NOT_SET_Q", raising=False)
    cfg = OmegaConf.create(
        {
            "a": TEXT,
            "b": "${a}",
            "c": "x/${b}/y",
            "d": "${oc.decode:${oc.env:ACGE_TOKEN_Q}}",
            "e": "${oc.env:ACGE_NOT_SET_Q,5}",
            "f": [{"g": "${c}"}],
            "h": "${f}",
            "i": "${oc.env:ACGE_TOKEN_Q,other}",
            "j": "${table.${a}}",
            "table": {SECRET: 3, "x": None, "y": "???"},
            "n": "${oc.env:ACGE_NOT_SET_Q,${a}}",
        }
    )
    made = recorded(cfg)
    del made["table"]
    assert made == {
        **{"a": TEXT, "b": TEXT, "c": f"x/{TEXT}/y", "d": TEXT, "e": "5", "f": [{"g": f"x/{TEXT}/y"}]},
        **{"h": [{"g": f"x/{TEXT}/y"}], "i": "${oc.env:ACGE_TOKEN_Q,other}", "j": "${table.${a}}", "n": TEXT},
    }
    cfg.table.y = 1
    used = plain(cfg)  # afterwards, values are values again
    assert [used[key] for key in "abcdj"] == [SECRET, SECRET, f"x/{SECRET}/y", SECRET, 3]
    assert recorded({"a": [1]}) == {"a": [1]}


DEFAULTS = ["5", "1.5", "null", "true", '"~/a b"', "a/b.c", """'say "x\\\\"'""", "[1,2]", "${x}", '"数据"', "'null'"]


@pytest.mark.parametrize("default", DEFAULTS)
def test_what_is_recorded_can_be_read_again(default, monkeypatch):
    """Loggers write it through OmegaConf; once the variable is gone, the default holds."""
    monkeypatch.setenv("ACGE_Q", SECRET)
    cfg = OmegaConf.create({"x": "other", "a": f"${{oc.env:ACGE_Q,{default}}}"})
    again = OmegaConf.create(recorded(cfg))
    assert again.a == cfg.a == SECRET
    assert SECRET not in OmegaConf.to_yaml(again)
    monkeypatch.delenv("ACGE_Q")
    assert again.a == cfg.a != SECRET


def test_a_config_without_variables_is_recorded_as_it_is_used():
    cfg = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": [1, {"e": "${b.c}"}]}, "f": "\\${a}", "g": None, "h": "${b}"})
    assert recorded(cfg) == plain(cfg)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "device": "${token}"},
        {"_target_": "acge_lightning.losses.InfoNCE", "temperature": "${token}"},
        {"_target_": "acge_lightning.losses.InfoNCE", "partition": "x ${token} y"},
        {"_target_": "${token}"},
        {"_target_": "acge_lightning.losses.${token}.X"},
    ],
)
def test_no_message_of_instantiate_quotes_a_value(node):
    cfg = OmegaConf.create({"token": TEXT, "k": {"n": node}})
    for build in (lambda: instantiate(cfg.k.n), lambda: instantiate_all(cfg.k)):
        with pytest.raises(InputError, match=r"oc\.env:ACGE_TOKEN_Q") as caught:
            build()
        assert SECRET not in str(caught.value)


def test_paths_and_short_values_stay_readable_in_messages(monkeypatch, tmp_path):
    monkeypatch.setenv("ACGE_PLACE_Q", str(tmp_path))
    monkeypatch.setenv("ACGE_ONE_Q", "1")
    cfg = OmegaConf.create({"a": "${oc.env:ACGE_PLACE_Q}", "b": "${oc.env:ACGE_ONE_Q}", "c": TEXT})
    assert concealed(f"{tmp_path}/x.jsonl:1 has {SECRET!r}", cfg) == f"{tmp_path}/x.jsonl:1 has '{TEXT}'"


def run(*typed):
    with patch.object(sys, "argv", ["acge", "train", *TINY, *typed]):
        cli.main()


@pytest.mark.parametrize("error", [InputError(f"{SECRET} is bad"), RuntimeError(f"no {SECRET}")])
def test_no_message_of_the_command_line_has_a_value(error):
    def fail(cfg):
        raise error

    with patch("acge_lightning.commands.train.run", fail), pytest.raises(SystemExit) as stopped:
        run(*GIVEN)
    assert TEXT in stopped.value.code
    assert SECRET not in stopped.value.code


def holders(folder):
    """Files in which the value stands."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_no_file_of_a_run_holds_a_value(tmp_path, cache, capsys):
    run(*GIVEN, f"paths.cache_dir={cache}", "logger=[csv,tensorboard]")
    folder = tmp_path / "run"
    assert holders(tmp_path) == []
    assert SECRET not in "".join(capsys.readouterr())
    config = json.loads((folder / "export" / "training.json").read_text(encoding="utf-8"))["config"]
    url = f"https://me:{TEXT}@host"
    assert [config[key] for key in ("note", "again", "url", "list", "other")] == [TEXT, TEXT, url, [url, 1], [url, 1]]
    kept = next((folder / "checkpoints").glob("*.ckpt")).read_bytes()
    assert TEXT.encode() in kept
    assert TEXT in (folder / "csv" / "version_0" / "hparams.yaml").read_text(encoding="utf-8")


@pytest.mark.heavy
def test_no_file_of_wandb_holds_a_value(tmp_path, cache):
    """In a process of its own, with whose end all is written."""
    typed = [*TINY, *GIVEN, f"paths.cache_dir={cache}", "logger=wandb", "logger.wandb.offline=true"]
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-m", "acge_lightning", "train", *typed], env=env, timeout=280, check=False)
    assert done.returncode == 0
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert TEXT.encode() in log.read_bytes()
    assert holders(tmp_path) == []
