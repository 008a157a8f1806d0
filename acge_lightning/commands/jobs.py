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
from typing import IO, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_original_cwd, to_absolute_path
from omegaconf import DictConfig, OmegaConf, read_write

from acge_lightning.config.overrides import quote, restated

_CHILD = "ACGE_ENDS_WITH_INPUT"  # environment variable of a process whose input is a pipe that ends with who started it


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
    folder = f"hydra.run.dir={quote(HydraConfig.get().runtime.output_dir)}"
    command = [sys.executable, *_program(), *sys.argv[1:], folder, "hydra.output_subdir=null"]
    if status_of(command, get_original_cwd()):
        return math.nan
    result = json.loads((Path(cfg.paths.output_dir) / "result.json").read_text(encoding="utf-8"))
    return result["after"]["val/mean"]


def _program() -> list[str]:
    """Return what starts this program again, after `python`."""
    module, script = sys.modules["__main__"].__spec__, to_absolute_path(sys.argv[0])
    if module is not None and module.name != "__main__":
        return ["-m", module.name]
    return [script] if Path(script).is_file() else ["-m", "acge_lightning"]  # Windows' acge.exe is no file of Python


def status_of(command: Sequence[str], folder: str) -> int:
    """Run a command, and return its exit status; the end of its input tells it when this process ends, however it ends."""
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {_CHILD: "1"}, stdin=subprocess.PIPE)
    try:
        return _wait(process)
    finally:
        cast(IO[bytes], process.stdin).close()


def end_with_parent() -> None:
    """End a process of `status_of`, as by SIGTERM, when the one that started it has ended."""
    if os.environ.pop(_CHILD, None) is not None:
        threading.Thread(target=_end_when_closed, daemon=True).start()


def _end_when_closed() -> None:
    os.read(0, 1)
    if hasattr(os, "fork"):
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)  # Windows' `os.kill` ends a process without a chance to save


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
