"""Run a job of Hydra as a command of its own: for the processes of the other devices, and for jobs of a multirun."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_original_cwd, to_absolute_path
from omegaconf import DictConfig, OmegaConf, read_write

from acge_lightning.config.overrides import quote, restated

_PIPE = "ACGE_PARENT_PIPE"  # environment variable: the file descriptor of a pipe whose other end the starting process holds


def set_command(words: list[str]) -> None:
    """Make `sys.argv` the command of the current job alone: Lightning starts the processes of the other devices with it.

    Lightning appends `hydra.run.dir` in double quotes: it is set to the job's folder, which in a multirun it is not.

    Args:
        words: those that start the program, such as `acge train`, and its flags.
    """
    job = _hydra_config()
    with read_write(job):
        job.run.dir = quote(job.runtime.output_dir)[1:-1]
    arguments = [restated(text) for text in overrides("hydra") + overrides("task") if not text.startswith("hydra.mode=")]
    sys.argv = [*words, *arguments, "hydra.mode=RUN"]


def overrides(kind: str) -> list[str]:
    """Return the job's overrides of the `task` or of `hydra`, interpolations not resolved."""
    return cast(list[str], OmegaConf.to_container(_hydra_config().overrides[kind], resolve=False))


def _hydra_config() -> DictConfig:
    """Return the config of Hydra's own settings."""
    return cast(DictConfig, HydraConfig.get())  # Hydra types it as the dataclass of its fields


def needs_own_process(cfg: DictConfig) -> bool:
    """Tell whether it is a job of a multirun that starts processes, whose remains would disturb the next job."""
    from acge_lightning.commands.single_run import make_trainer

    is_multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return is_multirun and make_trainer(cfg).strategy.launcher is not None


def run_in_own_process(cfg: DictConfig) -> float:
    """Run the job by the command of `sys.argv`; return its score, or NaN if it failed and has said why."""
    module = sys.modules["__main__"].__spec__
    program = [to_absolute_path(sys.argv[0])] if module is None else ["-m", module.name]
    folder = f"hydra.run.dir={quote(HydraConfig.get().runtime.output_dir)}"
    command = [sys.executable, *program, *sys.argv[1:], folder, "hydra.output_subdir=null"]
    if status_of(command, get_original_cwd()):
        return math.nan
    result = json.loads((Path(cfg.paths.output_dir) / "result.json").read_text(encoding="utf-8"))
    return result["after"]["val/mean"]


def status_of(command: Sequence[str], folder: str) -> int:
    """Run a command, and return its exit status; a pipe tells it when this process ends, however it ends."""
    read_end, write_end = os.pipe()
    try:
        environment = os.environ | {_PIPE: str(read_end)}
        return _wait(subprocess.Popen(command, cwd=folder, env=environment, pass_fds=[read_end]))
    finally:
        os.close(read_end)
        os.close(write_end)


def end_with_parent() -> None:
    """End a process of `status_of`, as by SIGTERM, when the one that started it has ended."""
    read_end = os.environ.pop(_PIPE, None)
    if read_end is not None:
        threading.Thread(target=_end_when_closed, args=(int(read_end),), daemon=True).start()


def _end_when_closed(read_end: int) -> None:
    os.read(read_end, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return its exit status; SIGTERM is passed on to it, as it may have something to save."""

    def leave(number: int, frame: Any) -> None:
        process.terminate()
        sys.exit(128 + number)

    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if listens else None
    try:
        return process.wait()
    finally:
        process.wait()
        if listens:
            signal.signal(signal.SIGTERM, before)
