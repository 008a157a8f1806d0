"""YAML files of others through the real command line: no code runs, nothing is written, one line says what is refused."""

import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from acge_lightning.commands import cli
from acge_lightning.commands.single_run import make_trainer
from acge_lightning.config.building import plain
from acge_lightning.config.sources import config_dir
from acge_lightning.files import yaml_file
from acge_lightning.report.runs import read_runs

CANARY = "canary.txt"
CALL = {"_target_": "torch.utils.collect_env.run", "command": f"touch {CANARY}"}
LOG = {"version": 1, "root": {"handlers": ["h"]}, "handlers": {"h": {"class": "logging.FileHandler", "filename": CANARY}}}
CUSTOM_LOG = LOG | {"handlers": {"h": {"()": CALL["_target_"], "command": CALL["command"]}}}
HYDRA = {"hydra": {"callbacks": {"x": CALL}}}


def text(body, package="_global_"):
    """A YAML file; a string is its text."""
    return f"# @package {package}\n" + (body if isinstance(body, str) else yaml.safe_dump(body))


def defaults(*entries, **body):
    return {"defaults": list(entries)} | body


def doubling(count, first=0, nodes=False):
    """Keys each of which holds the one before twice."""
    pair = lambda before: {"x": before, "y": before} if nodes else before * 2  # noqa: E731
    return {f"a{i}": pair(f"${{a{i - 1}}}") if i else "word" for i in range(first, first + count)}


# name -> files of the folder of configs; what is run is `train --config-dir conf +experiment=x`.
FILES = {
    "callbacks": {"experiment/x": text(HYDRA)},
    "launcher": {"experiment/x": text({"hydra": {"launcher": CALL}})},
    "sweeper": {"experiment/x": text({"hydra": {"sweeper": CALL}})},
    "the log of a job": {"experiment/x": text({"hydra": {"job_logging": LOG}})},
    "the log of Hydra": {"experiment/x": text({"hydra": {"hydra_logging": CUSTOM_LOG}})},
    "the environment": {"experiment/x": text({"hydra": {"job": {"env_set": {"PYTHONSTARTUP": "evil.py"}}}})},
    "a copy of the environment": {"experiment/x": text({"hydra": {"job": {"env_copy": ["HOME"]}}})},
    "another folder's files": {"experiment/x": text({"hydra": {"output_subdir": "../../precious"}})},
    "the search path": {"experiment/x": text({"hydra": {"searchpath": ["pkg://evil"]}})},
    "an interpolated node": {"experiment/x": text({"hydra": "${evil}", "evil": HYDRA["hydra"]})},
    "an interpolated part": {"experiment/x": text({"hydra": {"callbacks": "${evil}"}, "evil": {"x": CALL}})},
    "a list": {"experiment/x": text({"hydra": {"run": {"dir": [CALL]}}})},
    "params of the sweep": {"experiment/x": text({"hydra": {"sweeper": {"params": {"hydra.callbacks": "{x: 1}"}}}})},
    "params that add": {"experiment/x": text({"hydra": {"sweeper": {"params": {"+hydra.callbacks.x": "1"}}}})},
    "params of a group": {"experiment/x": text({"hydra": {"sweeper": {"params": {"hydra/launcher": "y"}}}})},
    "params of a package": {"experiment/x": text({"hydra": {"sweeper": {"params": {"+p@hydra.callbacks": "y"}}}})},
    "a header": {"experiment/x": text({"x": CALL}, "hydra.callbacks")},
    "a global header": {"experiment/x": text({"x": CALL}, "_global_.hydra.callbacks")},
    "a glued header": {"experiment/x": text({"x": CALL}, "_global_xhydra.callbacks")},
    "a header in brackets": {"experiment/x": text({"x": CALL}, "hydra[callbacks]")},
    "a bracketed root": {"experiment/x": text({"x": CALL}, "[hydra].callbacks")},
    "a package": {"experiment/x": text(defaults({"/p@hydra.callbacks": "y"})), "p/y": yaml.safe_dump({"x": CALL})},
    "a package of several": {"experiment/x": text(defaults({"/p@hydra.callbacks": ["y"]})), "p/y": yaml.safe_dump({"x": CALL})},
    "a package of a path": {"experiment/x": text(defaults("/p/y@hydra.callbacks")), "p/y": yaml.safe_dump({"x": CALL})},
    "a package made of a group": {
        "experiment/x": text(defaults({"/d@hy_group_ra.callbacks": "y"})),
        "d/y": yaml.safe_dump({"x": CALL}),
    },
    "a folder that glues": {"experiment/x": text(defaults("/a_global_bhydra/y")), "a_global_bhydra/y": text(HYDRA)},
    "a package's own YAML": {"experiment/x": text(defaults({"/callbacks@hydra.callbacks": "checkpoint"}))},
    "a file of a file": {"experiment/x": text(defaults({"/p@_global_": "y"})), "p/y": yaml.safe_dump(HYDRA)},
    "a chosen file": {"experiment/x": text(defaults({"/p@_global_": "${q}"}, {"/q": "y"})), "p/y": text(HYDRA), "q/y": "a: 1"},
    "an override": {
        "experiment/x": text(defaults({"override /hydra/launcher": "y"})),
        "hydra/launcher/y": yaml.safe_dump(CALL),
    },
    "an override by spaces": {"experiment/x": text(defaults({"optional override /hydra/launcher": "basic"}))},
    "Hydra's own config": {"experiment/x": text({"name": "a"}), "hydra/config": "run: {dir: x}\n"},
    "a file outside": {"experiment/x": text(defaults({"/p@_global_": "../../evil"}))},
    "an absolute file": {"experiment/x": text(defaults("//elsewhere/evil"))},
    "a computed file": {"experiment/x": text(defaults({"/p@_global_": "${oc.decode:'\"../../evil\"'}"}))},
    "trusted": {"experiment/x": text({"trusted": ["os", "posix"]})},
    "an interpolated trusted": {"experiment/x": text({"trusted": "${mine}", "mine": ["os", "posix"]})},
    "a package trusted": {"experiment/x": text("- os\n", "trusted")},
    "a folder trusted": {"experiment/x": text(defaults("/trusted/y")), "trusted/y": "- os\n"},
    "params trusted": {"experiment/x": text({"hydra": {"sweeper": {"params": {"trusted": "[os]"}}}})},
    "aliases": {"experiment/x": text("a: &a0 [x]\n" + "".join(f"b{i}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(30)))},
    "merges": {
        "experiment/x": text(
            "a: &a0 {k: 1}\n" + "".join(f"b{i}: &a{i + 1} {{<<: [*a{i}, *a{i}], k{i}: 1}}\n" for i in range(30))
        )
    },
    "doubling interpolations": {"experiment/x": text({"name": "${a29}", **doubling(30)})},
    "doubling nodes": {"experiment/x": text({"name": "${a29.x}", **doubling(30, nodes=True)})},
    "an alias to itself": {"experiment/x": text("a: &a [*a]\n")},
    "a long text, often": {"experiment/x": text(f"a: &a {'x' * 9000}\nb: [{', '.join(['*a'] * 100)}]\n")},
    "many levels": {"experiment/x": text("a: " + "[" * 60 + "]" * 60)},
    "very many levels": {"experiment/x": text("a: " + "[" * 3000 + "]" * 3000)},
    "a huge file": {"experiment/x": text("a: 1\n" + "# comment\n" * 30000)},
    "a huge number": {"experiment/x": text("a: " + "1:" * 5000 + "1\n")},
    "an object of Python": {"experiment/x": text(f"a: !!python/object/apply:os.system ['touch {CANARY}']\n")},
    "no YAML": {"experiment/x": text("a: [\n")},
    "a key twice": {"experiment/x": text("a: 1\na: 2\n")},
    "no UTF-8": {"experiment/x": b"a: \xff\n"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder: nothing is written to it but what a test's job writes."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    yield tmp_path
    for handler in set(log.handlers) - set(handlers):
        handler.close()
    log.handlers[:], log.level = handlers, level
    assert not list(tmp_path.rglob(CANARY))


def write(folder, files):
    for name, content in files.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def composed(*typed, job=None):
    """The configs that the jobs of `acge train …` get."""
    seen = []
    run = lambda cfg: (seen.append(plain(cfg)), job and job(cfg))[0]  # noqa: E731
    with patch("acge_lightning.commands.train.run", run), patch.object(sys, "argv", ["acge", "train", *typed]):
        cli.main()
    return seen


def refused(*typed, job=None):
    """What is said of a command that is refused before a job begins."""
    with pytest.raises(SystemExit) as stopped:
        composed(*typed, job=job or (lambda cfg: pytest.fail("a job has begun")))
    message = stopped.value.code
    assert message.startswith("\nerror: ")
    assert "\n" not in message.strip()
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused_before_anything_runs(name, folder):
    write(folder / "conf", FILES[name])
    message = refused("--config-dir", "conf", "+experiment=x")
    assert f"{folder}/conf/" in message
    assert os.listdir(folder) == ["conf"]


@pytest.mark.parametrize("name", ["launcher", "sweeper", "the log of a job", "an override", "params of the sweep", "trusted"])
def test_a_file_is_refused_before_a_sweep_begins(name, folder):
    write(folder / "conf", FILES[name])
    refused("-m", "--config-dir", "conf", "+experiment=x")
    assert os.listdir(folder) == ["conf"]


@pytest.mark.filterwarnings("ignore:Callback tuple")
def test_the_payloads_work_where_they_are_not_refused(folder):
    """As they stand in the package's own YAMLs, or are typed."""
    composed(f"++hydra.job_logging={yaml.safe_dump(LOG, default_flow_style=True, width=1000).strip()}".replace('"', ""))
    assert (folder / CANARY).exists()
    (folder / CANARY).unlink()
    composed("+hydra.callbacks.x._target_=torch.utils.collect_env.run", f"+hydra.callbacks.x.command='touch {CANARY}'")
    assert (folder / CANARY).exists()
    (folder / CANARY).unlink()


@pytest.mark.parametrize("swept", ["+experiment=good,x", "+experiment=good encoder=static,static_small,x"])
def test_one_bad_file_among_the_values_of_a_sweep(swept, folder):
    """No job begins, though the first are good."""
    evil = {"hydra": {"job_logging": LOG}}
    write(folder / "conf", {"experiment/good": text({"name": "g"}), "experiment/x": text(evil), "encoder/x": text(evil)})
    assert "hydra.job_logging" in refused("-m", "--config-dir", "conf", *swept.split())


@pytest.mark.parametrize("way", ["config-name", "searchpath", "config-path", "a path", "an absolute name"])
def test_other_ways_to_files_of_ones_own(way, folder):
    body = defaults("train", "_self_") | HYDRA
    write(folder / "conf", {"own_config": yaml.safe_dump(body), "experiment/x": text(HYDRA)})
    out = os.path.relpath(folder / "conf" / "own_config", config_dir() / "experiment")
    if way == "config-path":
        shutil.copytree(config_dir(), folder / "whole")
        write(folder / "whole", {"experiment/x": text(HYDRA)})
    typed = {
        "config-name": ["--config-dir", "conf", "--config-name", "own_config"],
        "searchpath": [f"hydra.searchpath=[file://{folder}/conf]", "+experiment=x"],
        "config-path": [f"--config-path={folder}/whole", "+experiment=x"],
        "a path": [f"+experiment={out}"],
        "an absolute name": [f"--config-name={folder}/conf/own_config"],
    }
    told = {"a path": "is outside of", "an absolute name": "is a path"}.get(
        way, "hydra.callbacks.x._target_ counts from the command"
    )
    assert told in refused(*typed[way])


def test_the_search_path_of_a_file_imports_nothing(folder, monkeypatch):
    (folder / "evil_conf_q").mkdir()
    (folder / "evil_conf_q" / "__init__.py").write_text(f"open({CANARY!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    write(folder / "conf", {"own_config": "defaults: [train, _self_]\nhydra: {searchpath: ['pkg://evil_conf_q']}\n"})
    assert "hydra.searchpath counts from the command line only" in refused(
        "--config-dir", "conf", "--config-name", "own_config"
    )


@pytest.mark.parametrize("flag", ["--experimental-rerun=x.pickle", "--experimental-r=x.pickle"])
def test_a_pickle_is_never_read(flag, folder):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {CANARY}",)

    (folder / "x.pickle").write_bytes(pickle.dumps(Evil()))
    assert "pickle" in refused(flag)


@pytest.mark.parametrize("flags", [["--hydra-help"], ["--cfg", "hydra"], ["--cfg", "all", "--resolve"], ["--info", "config"]])
def test_what_only_shows_a_config_refuses_it_too(flags, folder):
    write(folder / "conf", {"experiment/x": text({"hydra": {"hydra_logging": CUSTOM_LOG}})})
    assert "hydra.hydra_logging" in refused(*flags, "--config-dir=conf", "+experiment=x")


def test_help_reads_no_file_of_the_users(folder, capsys):
    write(folder / "conf", {"experiment/x": "no: [YAML", "task/evil": "# evil\n"})
    for words in (["--help"], ["--help", "task"]):
        assert composed("--config-dir=conf", "+experiment=x", *words) == []
    shown = capsys.readouterr().out
    assert "usage: acge train" in shown
    assert "scored_pairs" in shown
    assert "evil" not in shown


def test_a_package_of_yamls_cannot_trust(folder, monkeypatch):
    """Its YAMLs are part of code that the command line has chosen, but `trusted` must stand there by itself."""
    write(folder / "conf_q", {"experiment/x": text({"trusted": ["os", "posix"]})})
    (folder / "conf_q" / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    assert "trusted counts from the command line only" in refused("hydra.searchpath=[pkg://conf_q]", "+experiment=x")


def test_a_stage_cannot_trust(folder):
    from acge_lightning.commands.stages import read_stages

    write(folder / "conf", {"experiment/x": text({"stages": {"a": {"task": ["t"], "set": {"trusted": ["os"]}}}})})
    message = refused("--config-dir", "conf", "+experiment=x", job=lambda cfg: read_stages(plain(cfg)))
    assert "stages.a.set.trusted" in message


def test_a_file_cannot_leave_out_the_checks_of_checkpoints(folder):
    write(folder / "conf", {"experiment/x": text({"trainer": {"plugins": None}})})
    kept = []
    keep = lambda cfg: kept.append(type(make_trainer(cfg).strategy.checkpoint_io).__name__)  # noqa: E731
    composed("--config-dir", "conf", "+experiment=x", "logger=none", job=keep)
    assert kept == ["SafeCheckpointIO"]


# ---- what a file may do


def test_what_a_file_may_set_of_hydra(folder):
    body = {"hydra": {"run": {"dir": "mine/${name}"}, "sweep": {"dir": "all"}, "sweeper": {"params": {"seed": "3,4"}}}}
    write(folder / "conf", {"experiment/x": text(body | {"name": "n", "trusted": []})})
    places = []

    def job(cfg):
        places.append(Path(HydraConfig.get().runtime.output_dir))
        (places[-1] / "result.json").write_text(json.dumps({"after": {"val/mean": 0.5}}), encoding="utf-8")

    composed("--config-dir", "conf", "+experiment=x", job=job)
    assert places == [folder / "mine" / "n"]
    assert [config["seed"] for config in composed("-m", "--config-dir", "conf", "+experiment=x", job=job)] == [3, 4]
    assert sorted(p.name for p in (folder / "all").iterdir()) == ["0", "1", "multirun.yaml", "summary.csv"]


def test_ordinary_aliases_keep_their_meaning(folder):
    write(
        folder / "conf",
        {"experiment/x": text("a: &a {lr: 1.0e-3, b: [1, 2]}\nc: {<<: *a, b: 3}\nd: [*a, *a]\ne: 2020-13-45\n")},
    )
    (config,) = composed("--config-dir", "conf", "+experiment=x")
    assert (config["c"], config["d"]) == ({"lr": 0.001, "b": 3}, [{"lr": 0.001, "b": [1, 2]}] * 2)
    assert config["e"] == "2020-13-45"


def test_copies_of_the_packages_files_and_a_config_of_ones_own(folder):
    write(
        folder / "conf", {"own_config": "defaults: [train, _self_]\nname: mine\n", "group/a": "x: 1\n", "group/sub/b": "x: 2\n"}
    )
    shutil.copy(config_dir() / "train.yaml", folder / "conf" / "copied.yaml")
    (config,) = composed("--config-dir", "conf", "--config-name", "own_config", "+group=a", "+group@other=sub/b")
    assert (config["name"], config["group"], config["other"]) == ("mine", {"x": 1}, {"x": 2})
    (config,) = composed("-cd", "conf", "-cn", "copied", "seed=7")
    assert (config["name"], config["seed"]) == ("train", 7)
    (config,) = composed(f"hydra.searchpath=['{folder}/conf']", "+group=a")
    assert config["group"] == {"x": 1}


def test_what_is_trusted_on_the_command_line_may_be_named(folder, monkeypatch):
    (folder / "my_call_q.py").write_text(
        "from lightning.pytorch import Callback\nclass Mine(Callback):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(folder)
    write(folder / "conf", {"experiment/x": text({"callbacks": {"own_config": {"_target_": "my_call_q.Mine"}}})})
    kinds = []
    keep = lambda cfg: kinds.extend(type(c).__name__ for c in make_trainer(cfg).callbacks)  # noqa: E731
    composed("--config-dir", "conf", "+experiment=x", "trusted=[my_call_q]", "logger=none", job=keep)
    assert "Mine" in kinds
    assert "trusted=[my_call_q]" in refused("--config-dir", "conf", "+experiment=x", "logger=none", job=make_trainer)


def test_a_folder_that_is_not_there(folder):
    assert "nowhere is not there" in refused("--config-dir", "nowhere")
    assert "nowhere is not there" in refused("hydra.searchpath=[nowhere]")


# ---- files of runs


def test_files_that_double_each_other_are_refused_together(folder):
    files = {f"group/{n}": text(doubling(6, 6 * n)) for n in range(5)}
    write(folder / "conf", {"experiment/x": text(defaults(*[f"/group/{n}" for n in range(5)])), **files})
    assert "interpolations" in refused("--config-dir", "conf", "+experiment=x")


def test_a_config_explodes_where_what_it_resolves_to_is_large():
    """Against OmegaConf, over absolute and relative names, lists and nodes."""
    levels = {
        "texts": lambda i: {f"a{i}": f"${{a{i - 1}}}-${{a{i - 1}}}"},
        "one name": lambda i: {f"a{i}": {"k": f"${{a{i - 1}.k}}${{..a{i - 1}.k}}"}},
        "nodes": lambda i: {f"a{i}": {"x": f"${{a{i - 1}}}", "y": [f"${{a{i - 1}}}"]}},
        "lists": lambda i: {f"a{i}": [f"${{a{i - 1}[0]}}${{a{i - 1}.0}}"]},
    }
    first = {"texts": "word", "one name": {"k": "word"}, "nodes": "word", "lists": ["word"]}
    for kind, level in levels.items():
        data = {"a0": first[kind], "fine": "${oc.env:HOME,x} ${a0}", "again": "${again}"}
        for i in range(1, 9):
            data |= level(i)
            config = OmegaConf.create({key: value for key, value in data.items() if key != "again"})
            whole = len(json.dumps(OmegaConf.to_container(config, resolve=True)))
            with patch.object(yaml_file, "LARGEST", whole // 4):
                assert yaml_file.explodes(data), (kind, i)
            with patch.object(yaml_file, "LARGEST", whole * 10):
                assert not yaml_file.explodes(data), (kind, i)


def test_a_report_refuses_explosive_files(folder):
    write(folder / "run" / ".hydra", {"config": FILES["aliases"]["experiment/x"]})
    (folder / "run" / "result.json").write_text('{"before": {}, "after": {"val/mean": 0.5}}', encoding="utf-8")
    (run,) = read_runs("run")
    assert run.after == {"val/mean": 0.5}
    (remark,) = [remark for remark in run.remarks if "config.yaml" in remark]
    assert remark.startswith("run/.hydra/config.yaml is damaged: refused, for its aliases")
