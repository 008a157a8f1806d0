"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE
from hydra import compose, initialize_config_dir

from acge_lightning import load
from acge_lightning.config.overrides import arguments
from acge_lightning.config.sources import config_dir

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"(python train\.py|acge (train|vocabulary)) ", line)
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 10
    assert len(PYTHON) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command):
    words = [w for w in shlex.split(command) if w not in ("-m", "--config-dir", "my_conf")]
    name = "vocabulary" if words[1] == "vocabulary" else "train"
    overrides = [w.partition(",")[0] if w.startswith("seed=") else w for w in words[2:] if w != "+experiment=mine"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(name, overrides)
    assert cfg.task


@pytest.mark.parametrize("key", re.findall(r"`([+a-z_.]+=[^`…]+)`", README))
def test_a_key_composes(key):
    overrides = ["task=[scored_pairs]"] if "scored_pairs" in key else []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        assert compose("train", arguments([*overrides, shlex.split(key)[0]]))


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_python_runs(block, tmp_path, monkeypatch, small_encoder):
    """With a folder in place of the placeholders."""
    monkeypatch.chdir(tmp_path)
    source = next((SAMPLE / "sts" / "sample_zh").glob("dev.jsonl*"))
    code = PYTHON[block].replace('"pairs.jsonl"', f'"{source}", cache_dir="{tmp_path}"').replace("FOLDER", str(small_encoder))
    code = re.sub(r'"outputs/[^"]*", dim=256', f'"{small_encoder}", dim=8', code)
    code = code.replace("max_epochs=1", 'max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False')
    left = {}
    exec(compile(code, "README.md", "exec"), left)
    if "vectors" in left:
        assert left["vectors"].shape == (2, 8)
    else:
        assert torch.equal(load("model").encode("退货"), left["module"].encoder.encode("退货"))
