"""A run on several devices, and a job of a multirun, however they were started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig

from acge_lightning.commands.program import program
from acge_lightning.commands.single_run import disconnect, wait_for_ranks
from acge_lightning.config.building import plain
from acge_lightning.config.overrides import quote

ROOT = Path(__file__).parents[2]
WAYS = {
    "acge": [str(Path(sys.executable).with_name("acge")), "train"],
    "-m": [sys.executable, "-m", "acge_lightning", "train"],
    "train.py": [sys.executable, os.path.relpath(ROOT / "train.py")],
}
TINY = ["task=[sample_sts]", "encoder.dim=8", "encoder.tokenizer.vocab_size=1200", "callbacks.progress=null", "logger=none"]
TINY += ["trainer.max_steps=1", "trainer.accelerator=cpu"]
TWO = ["trainer.devices=2", "+trainer.strategy=ddp"]


def run(way, *arguments, cwd, **env):
    command = [os.path.abspath(part) if part.endswith("train.py") else part for part in WAYS[way]]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run([*command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)


def own_configs(folder):
    """An experiment of one's own in a folder beside the run."""
    folder.mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nname: ours\n", encoding="utf-8")
    return ["--config-dir", folder.name, "+experiment=mine"]


@pytest.mark.parametrize("way", ["acge", *(pytest.param(way, marks=pytest.mark.heavy) for way in ("-m", "train.py"))])
def test_two_devices_start_each_way(way, tmp_path, cache):
    folder = tmp_path / '一 "1" (x)'
    own = own_configs(folder / "my conf")
    done = run(way, *own, *TINY, *TWO, f"paths.cache_dir={cache}", "+note=[退货] 'a'", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    (left,) = (folder / "outputs" / "ours").iterdir()
    training = json.loads((left / "export" / "training.json").read_text(encoding="utf-8"))
    assert training["config"]["note"] == "[退货] 'a'"
    assert sorted(p.name for p in folder.iterdir()) == ["my conf", "outputs"]


@pytest.mark.filterwarnings("ignore:Callback Summary")  # no job has left a score
def test_the_command_of_a_job_composes_it_again(tmp_path, monkeypatch):
    """Alone, though it comes from a multirun; also where a value is an interpolation, or looks like one."""
    monkeypatch.chdir(tmp_path)
    own = own_configs(tmp_path / "my conf")
    typed = [
        "name=a 'b' [c],模 型",
        "paths.data_dir=${oc.env:HOME}/x",
        "+paths.data=1\\${x",
        "trainer.devices=1,2",
        "~optim.schedule",
    ]

    def jobs_of(arguments):
        seen = []
        keep = lambda cfg: seen.append((list(sys.argv), plain(cfg), HydraConfig.get().runtime.output_dir))  # noqa: E731
        monkeypatch.setattr(sys, "argv", ["acge", "train", *arguments])
        program("train", keep)(2)
        return seen

    swept = jobs_of(["-m", *own, *typed])
    assert [(c["name"], c["trainer"]["devices"]) for _, c, _ in swept] == [
        (n, d) for n in ("a 'b' [c]", "模 型") for d in (1, 2)
    ]
    for argv, config, folder in swept:
        ((again, same, place),) = jobs_of([*argv[2:], f"hydra.run.dir={quote(folder)}", "hydra.output_subdir=null"])
        assert (same, place, again[:2]) == (config, folder, ["acge", "train"])
        assert config["paths"]["data"] == "1\\${x"
        assert config["paths"]["data_dir"] == f"{os.environ['HOME']}/x"


@pytest.mark.heavy
def test_jobs_of_a_multirun_on_two_devices_go_on_when_one_fails(tmp_path, cache):
    sweep = ["-m", *TINY, *TWO, f"paths.cache_dir={cache}", "optim.optimizer.lr=1e40,0.001", "name=我的 (1)"]
    done = run("acge", *sweep, "optim=adamw_static", "hydra.sweep.dir=all", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the jobs failed" in done.stderr
    assert "not finite" in done.stderr
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["0", "1", "multirun.yaml", "summary.csv"]
    scored = [(tmp_path / "all" / str(job) / "result.json").is_file() for job in range(2)]
    assert scored == [False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


@pytest.mark.heavy
def test_a_device_that_fails_fails_the_run(tmp_path, cache):
    wrong = "test=${oc.decode:${oc.env:LOCAL_RANK,false}}"  # a number on the second device only
    done = run("-m", *TINY, *TWO, f"paths.cache_dir={cache}", wrong, cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert "error: test=1 must be true or false" in done.stderr


def test_a_device_that_fails_at_the_end_fails_the_run():
    def trainer(*statuses):
        children = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"]) for status in statuses]
        return SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=children)))

    wait_for_ranks(trainer(0, 0))
    wait_for_ranks(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
    with pytest.raises(ChildProcessError, match="rank 2 ended with status 3"):
        wait_for_ranks(trainer(0, 3))


def test_a_device_that_is_aborted_after_its_work_is_told(caplog):
    aborted = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
    wait_for_ranks(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[aborted]))))
    assert "rank 1 was ended by signal 6 after its work was done" in caplog.text


def test_a_process_leaves_the_group_of_the_devices(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    disconnect()
    assert not dist.is_initialized()
    disconnect()


def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    """What the process saves on its way out is whole when the multirun has ended."""
    child = "import signal, sys, time\ndef leave(*_): time.sleep(0.5), open('saved', 'w').close(), sys.exit(143)\n"
    child += "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(60)"
    parent = "import subprocess, sys\nfrom acge_lightning.commands.jobs import _wait\n"
    parent += f"_wait(subprocess.Popen([sys.executable, '-c', {child!r}]))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    process.stdout.close()
    assert (tmp_path / "saved").is_file()


def test_a_job_ends_as_by_sigterm_when_its_multirun_was_killed(tmp_path):
    child = "import signal, sys, time\nfrom acge_lightning.commands.jobs import end_with_parent\n"
    child += "def leave(*_): open('saved', 'w').close(), sys.exit(143)\n"
    child += "signal.signal(signal.SIGTERM, leave)\nend_with_parent()\nprint('ready', flush=True)\ntime.sleep(600)"
    parent = (
        f"import sys\nfrom acge_lightning.commands.jobs import status_of\nstatus_of([sys.executable, '-c', {child!r}], '.')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == b""  # at its end: the other process, which has the same output, has ended
    process.stdout.close()
    assert (tmp_path / "saved").is_file()
