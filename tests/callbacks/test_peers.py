"""A run on two devices ends soon after one of its processes died or stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acge_lightning.callbacks.peers import Peers
from acge_lightning.errors import InputError

LIMIT = 4
WAIT = """
import os, time
from lightning.pytorch import Callback

class Wait(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        open(f"rank{trainer.global_rank}", "w").write(str(os.getpid()))
        if trainer.global_step >= 3:
            time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("rank", "number"),
    [
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.heavy),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.heavy),
        (1, signal.SIGSTOP),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.heavy),
    ],
)
def test_a_lost_process_ends_the_run(rank, number, tmp_path, cache):
    (tmp_path / "waiting.py").write_text(WAIT)
    command = [sys.executable, str(Path(__file__).parents[2] / "train.py"), "name=lost", "task=[sample_sts]", "encoder.dim=16"]
    command += ["trainer.devices=2", "+trainer.strategy=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2000"]
    command += [f"paths.cache_dir={cache}", f"callbacks.peers.limit={LIMIT}", "callbacks.progress=null", "logger=none"]
    command += ["trusted=[waiting]", "+callbacks.wait._target_=waiting.Wait", "trainer.check_val_every_n_epoch=1000"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        pids = {}
        for _ in range(1200):
            assert run.poll() is None, (tmp_path / "log").read_text()
            pids = {r: int(text) for r in (0, 1) if (text := read(tmp_path / f"rank{r}"))}
            if len(pids) == 2:
                break
            time.sleep(0.1)
        assert pids[0] == run.pid
        time.sleep(LIMIT)  # signs of life go about, and nobody is found dead
        assert run.poll() is None
        os.kill(pids[rank], number)
        start = time.monotonic()
        left = [pids[1 - rank]] if number == signal.SIGSTOP and rank == 0 else list(pids.values())
        while any(alive(pid) for pid in left):
            run.poll()
            assert time.monotonic() - start < 60, (tmp_path / "log").read_text()
            time.sleep(0.1)
        if number == signal.SIGSTOP:
            assert f"rank {rank} has given no sign for {LIMIT} s" in (tmp_path / "log").read_text()
            assert time.monotonic() - start > LIMIT * 0.8
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def read(path):
    return path.read_text() if path.is_file() else ""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_limit_must_be_a_time():
    with pytest.raises(InputError, match=r"limit=0 must be above 0"):
        Peers(0)
