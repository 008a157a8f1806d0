"""What docs/continual.md tells people to type works."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from conftest import SAMPLE
from hydra import compose, initialize_config_dir

from acge_lightning.commands import cli
from acge_lightning.config.building import plain
from acge_lightning.config.sources import config_dir
from acge_lightning.report.runs import read_runs

PAGE = (Path(__file__).parents[2] / "docs" / "continual.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]
STRATEGIES = re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)


def composed(command, *more, alike=str):
    """The config of a command; of the values of a sweep the first."""
    program, name, *words = shlex.split(command)
    assert program == "acge"
    assert name in cli.COMMANDS
    sweep = "-m" in words
    words = [re.sub(r"^(strategy(?:\.strength)?=[^,]+),.*", r"\1", word) if sweep else word for word in words if word != "-m"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return name, compose(name, [*map(alike, words), *more])


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 8
    assert {shlex.split(command)[1] for command in COMMANDS} == {"train", "fisher", "evaluate", "report"}
    assert set(STRATEGIES) == {file.stem for file in (config_dir() / "strategy").glob("*.yaml")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command):
    name, cfg = composed(command, *([] if " report " in command else ["paths.output_dir=x"]))
    assert name == "report" or plain(cfg)["paths"]["cache_dir"]


@pytest.mark.parametrize("key", re.findall(r"`((?:strategy|callbacks)\.[a-z.]+)`", PAGE))
def test_a_key_is_there(key):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["strategy=ewc", "callbacks=[progress,ewc]"])
    node = cfg
    for part in key.split("."):
        assert part in node
        node = node[part] if node.get(part) is not None else {}


@pytest.mark.heavy
def test_the_page_from_its_first_to_its_last_command(tmp_path, monkeypatch, small_encoder, cache):
    """On the sample, in place of what stands in capitals."""
    monkeypatch.chdir(tmp_path)
    for name in ("stsb_en", "nfcorpus_en"):
        family = "sts" if name == "stsb_en" else "retrieval"
        (tmp_path / "data" / family).mkdir(parents=True)
        (tmp_path / "data" / family / name).symlink_to(SAMPLE / family / "sample_zh")
    source = next((SAMPLE / "sts" / "sample_zh").glob("train.jsonl*"))
    runs = {"adapt": tmp_path / "one", "finetune": tmp_path / "tuned"}
    small = ["trainer.accelerator=cpu", "callbacks.progress=null", f"paths.cache_dir={cache}"]

    def filled(word):
        word = re.sub(r"outputs/(adapt|finetune)/TIME", lambda found: str(runs[found[1]]), word)
        word = word.replace("multirun/adapt/TIME", str(runs["adapt"])).replace("pairs.jsonl", str(source))
        return word.replace("FOLDER", str(small_encoder)).replace("=DIR", f"={tmp_path / 'data'}")

    for number, command in enumerate(COMMANDS):
        words, name = shlex.split(command), shlex.split(command)[1]
        more = [f"paths.cache_dir={cache}"] if name in ("fisher", "evaluate") else []
        if name == "evaluate":
            more.append("paths.output_dir=.")
        if name == "fisher":
            more += ["samples=20", "pool=10", "paths.output_dir=."]
        if name == "train":
            by_hand = "+experiment=finetune" in words
            out = runs["finetune"] if by_hand else runs["adapt"] / str(number)
            more = [*small, f"paths.output_dir={out}", *([] if by_hand else ["fisher={samples: 20, pool: 10}"])]
            (out / ".hydra").mkdir(parents=True)
        _, cfg = composed(command, *more, alike=filled)
        import_module(f"acge_lightning.commands.{name}").run(cfg)
    assert len(read_runs(str(runs["adapt"]))) == 3
    assert (tmp_path / "report.html").is_file()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["dataset"] for row in rows} == {"stsb_en", "nfcorpus_en"}
    assert len({row["encoder"] for row in rows}) == 2
