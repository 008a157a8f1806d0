"""kill -9 and Ctrl-C in the middle of runs: of who started them and of workers; nothing is lost, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cross_encoder
import pytest
import shard_functions
from conftest import SAMPLE
from seeded import seeded

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")]
ENGINES = ["local", "ray"]
MOMENTS = 10
SECONDS = 180  # for what takes a few


@pytest.fixture
def start(tmp_path):
    """Starts a command of ours, whose processes are known by a variable of their environment."""
    environment = os.environ | {"ACGE_TEST": str(tmp_path)}

    def start_command(*words):
        command = [sys.executable, "-m", "acge_lightning", *map(str, words)]
        with (tmp_path / "log.txt").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    yield start_command
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def processes(tmp_path):
    """Those that live, and were started by a test."""
    marked = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f"ACGE_TEST={tmp_path}".encode() in (folder / "environ").read_bytes()
            is_alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            continue
        if is_ours and is_alive:
            marked.append(int(folder.name))
    return marked


def workers(tmp_path, engine):
    """Those that call functions."""
    signs = (b"spawn_main",) if engine == "local" else (b"ray::_work", b"ray::IDLE")
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in processes(tmp_path)}
    found = []
    for pid, file in lines.items():
        try:
            found += [pid] if any(sign in file.read_bytes() for sign in signs) else []
        except OSError:
            continue
    return found


def wait_for(condition):
    """Whether something comes true in time."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def results(folder):
    return len(list(folder.glob("*.result"))) if folder.exists() else 0


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def check_killed_drivers(start, words, tmp_path, counts):
    """Kill who started the run once so many shards are there, again and again; the last run ends."""
    work, killed = tmp_path / ".out.work", 0
    for count in counts:
        process = start(*words, f"out={tmp_path / 'out'}")
        wait_for(lambda: process.poll() is not None or results(work) >= count)  # noqa: B023
        process.kill()
        killed += process.wait(SECONDS) == -signal.SIGKILL
        assert wait_for(lambda: not processes(tmp_path)), "workers outlive who started them"
        assert not (tmp_path / "out").exists() or process.returncode == 0
    assert killed >= len(counts) - 1
    assert start(*words, f"out={tmp_path / 'out'}").wait(SECONDS) == 0, (tmp_path / "log.txt").read_text()


def check_killed_workers(start, words, tmp_path, counts, engine):
    """Kill one worker of a run whenever so many shards are there; it ends all the same."""
    work, killed = tmp_path / ".out.work", 0
    process = start(*words, f"out={tmp_path / 'out'}")
    for count in counts:
        wait_for(lambda: process.poll() is not None or (results(work) >= count and workers(tmp_path, engine)))  # noqa: B023
        for pid in workers(tmp_path, engine)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert process.wait(SECONDS) == 0, (tmp_path / "log.txt").read_text()
    assert killed >= len(counts) - 1


def check_nothing_is_left(tmp_path, expected):
    assert contents(tmp_path / "out") == expected
    assert wait_for(lambda: not processes(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("killed", ["driver", "worker"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_clean_that_is_killed_at_ten_places(engine, killed, start, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    data = shard_functions.write_dirty(tmp_path / "data")
    assert start("clean", data, f"out={tmp_path / 'whole'}").wait(SECONDS) == 0
    expected = contents(tmp_path / "whole")
    words = ["clean", data, f"engine={engine}", "workers=2"]
    counts = [4 * moment for moment in range(MOMENTS)]
    if killed == "driver":
        check_killed_drivers(start, words, tmp_path, counts)
    else:
        check_killed_workers(start, words, tmp_path, counts, engine)
    check_nothing_is_left(tmp_path, expected)


@pytest.mark.parametrize("killed", ["driver", "worker"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_mine_that_is_killed(engine, killed, start, small_encoder, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    model, scorer = seeded(small_encoder, tmp_path / "model"), cross_encoder.save(tmp_path / "cross")
    words = ["mine", model, SAMPLE / "retrieval/sample_zh", f"scorer={scorer}", "near=null", "scores=true", "negatives=2"]
    assert start(*words, f"out={tmp_path / 'whole'}", f"paths.cache_dir={tmp_path / 'cache'}").wait(SECONDS) == 0
    expected = contents(tmp_path / "whole")
    words += [f"engine={engine}", "workers=2", f"paths.cache_dir={tmp_path / 'other'}"]
    if killed == "driver":
        check_killed_drivers(start, words, tmp_path, [1, 3, 5])
    else:
        check_killed_workers(start, words, tmp_path, [1, 3, 5], engine)
    check_nothing_is_left(tmp_path, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_ends_all_processes_and_keeps_the_shards(engine, start, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    data = shard_functions.write_dirty(tmp_path / "data")
    process = start("clean", data, f"out={tmp_path / 'out'}", f"engine={engine}", "workers=2")
    assert wait_for(lambda: results(tmp_path / ".out.work") >= 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    assert process.wait(SECONDS) != 0
    assert wait_for(lambda: not processes(tmp_path))
    assert not (tmp_path / "out").exists()
    assert results(tmp_path / ".out.work") >= 5
    assert "spawn_main" not in (tmp_path / "log.txt").read_text(), "workers say nothing"
