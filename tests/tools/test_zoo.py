"""The pipeline that makes the encoders of the package: what it runs again, and on which data. `make zoo-check` runs it."""

import fnmatch
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from acge_lightning.config.overrides import arguments
from acge_lightning.config.sources import config_dir

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import zoo


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run; each leaves a folder, but for those that are told to fail."""
    called = []
    called_to_fail = set()

    def pretend(command, check):
        name = command[1]
        called.append(name)
        if name in called_to_fail:
            return SimpleNamespace(returncode=3)
        Path(command[-1].partition("=")[2]).mkdir()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(zoo.subprocess, "run", pretend)
    return SimpleNamespace(called=called, fail=called_to_fail)


def three(out):
    return [zoo.Stage(name, [name, f"out={out / name}"]) for name in ("a", "b", "c")]


def test_a_stage_that_is_done_is_not_run_again(tmp_path, commands):
    commands.fail.add("b")
    with pytest.raises(SystemExit, match="Stage 2 of 3, b: failed with status 3"):
        zoo.run(three(tmp_path), tmp_path, rehearse=False)
    commands.fail.clear()
    zoo.run(three(tmp_path), tmp_path, rehearse=False)
    zoo.run(three(tmp_path), tmp_path, rehearse=False)
    assert commands.called == ["a", "b", "b", "c"]
    assert list(json.loads((tmp_path / "stages.json").read_text())) == ["a", "b", "c"]


def test_without_its_folder_a_stage_and_all_after_it_are_made_anew(tmp_path, commands):
    zoo.run(three(tmp_path), tmp_path, rehearse=False)
    (tmp_path / "b").rmdir()
    (tmp_path / "c" / "old").touch()
    zoo.run(three(tmp_path), tmp_path, rehearse=False)
    assert commands.called == ["a", "b", "c", "b", "c"]
    assert not (tmp_path / "c" / "old").exists()


def test_a_stage_that_was_made_by_another_command_is_not_taken(tmp_path, commands):
    zoo.run(three(tmp_path), tmp_path, rehearse=False)
    changed = [zoo.Stage("a", ["a", "seed=1", f"out={tmp_path / 'a'}"])]
    with pytest.raises(SystemExit, match=f"its command has changed since {tmp_path / 'a'} was made: remove that folder"):
        zoo.run(changed, tmp_path, rehearse=False)


@pytest.mark.parametrize("name", ["数据,客服(1)", "it's [a] b\\c", "x={y} ${z}"])
def test_a_path_reaches_the_command_whatever_is_in_it(tmp_path, name):
    paths = {"source": str(tmp_path / name), "out": str(tmp_path / name / "out" / "cleaned")}
    [clean, *_] = zoo.stages(tmp_path / name, tmp_path / name / "out")
    overrides = OverridesParser.create().parse_overrides(arguments(clean.command[1:]))
    cfg = OmegaConf.create({one.key_or_group: one.value() for one in overrides if one.key_or_group in paths})
    assert OmegaConf.to_container(cfg, resolve=True) == paths


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match="lacks 37 of 37 sources, pairs/howtocook for one: give their folder with --data"):
        zoo.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="--until all is no stage: choose from cleaned, passages, static"):
        zoo.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--until", "all"])


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (config_dir() / "experiment").glob("zoo_*.yaml")))
def test_it_trains_on_named_sources_alone(experiment):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        paths = ["paths.data_dir=DATA", "++paths.data=MINED", "++paths.passages=PASSAGES", "paths.output_dir=."]
        cfg = compose("train", [f"+experiment={experiment}", *paths])
    given = [task.data.path for task in cfg.task.values()]
    paths = [path for one in given for path in ([one] if isinstance(one, str) else one)]
    names = ["/".join(path.split("/")[1:3]) for path in paths if path not in ("MINED", "PASSAGES")]
    assert names
    assert [name for name in names if not fnmatch.filter(zoo.SOURCES, name)] == []
    assert all(fnmatch.filter(zoo.SOURCES, name) for name in zoo.MINED)


def test_the_rehearsal_has_rows_of_every_source_and_no_two_the_same(tmp_path):
    folder = zoo.write_rehearsal(tmp_path)
    rows = {}
    for name in zoo.SOURCES:
        files = [file for file in (folder / name).rglob("train.*") if file.is_file()]
        rows[name] = [line for file in files for line in zoo.gzip.open(file, "rt")] if files[0].suffix == ".gz" else None
    pairs = [row for name, lines in rows.items() if name.startswith("pairs/") for row in lines]
    assert len(pairs) == len(set(pairs)) > 100
    assert not list((folder / "pairs").rglob("test*"))
    assert all(rows[name] is None or len(rows[name]) > 3 for name in rows)
