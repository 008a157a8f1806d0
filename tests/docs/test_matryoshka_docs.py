"""What docs/matryoshka.md tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from acge_lightning.commands import cli
from acge_lightning.config.overrides import arguments
from acge_lightning.config.sources import config_dir

PAGE = (Path(__file__).parents[2] / "docs" / "matryoshka.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.partition(" #")[0].strip() for line in BLOCKS.splitlines() if re.match(r"acge |python train", line)]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_there_is_something_to_check():
    names = {"train" if command.startswith("python") else shlex.split(command)[1] for command in COMMANDS}
    assert names == {"train", "pca", "evaluate", "report", "search", "longtail"}
    assert len(PYTHON) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command):
    words = shlex.split(command)
    name = "train" if words[0] == "python" else words[1]
    assert name in cli.COMMANDS
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(name, arguments(words[2:]))
    assert all(key.partition("=")[0].lstrip("+").split(".")[0] in {*cfg, "experiment"} for key in words[2:])


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_python_runs(block, tmp_path, monkeypatch, small_encoder, capsys):
    monkeypatch.chdir(tmp_path)
    code = PYTHON[block].replace("FOLDER", str(small_encoder))
    code = code.replace("[Stage(8, shortlist=2), Stage(16)])", "[Stage(8, shortlist=2), Stage(16)], force=True)")
    exec(compile(code, "matryoshka.md", "exec"), {})
    said = capsys.readouterr().out
    assert len(eval(said)) == 2 if block == 0 else float(said.split()[0]) > 0.9
