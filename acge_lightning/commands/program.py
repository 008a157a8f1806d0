"""Run a command as a Hydra program over `conf/`: read its arguments, refuse unsafe configs, report its errors."""

from __future__ import annotations

import logging
import math
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from acge_lightning.commands.environment import ensure_home, lasting_output
from acge_lightning.commands.jobs import end_with_parent, overrides, set_command
from acge_lightning.config.overrides import arguments
from acge_lightning.config.secrets import concealed
from acge_lightning.config.sources import config_dir, read_flags
from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import explodes
from acge_lightning.terminal import end, make_logs_visible, one_line, show, visible

_QUIET = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # lightning 2.6 with torch 2.13, 2026-11
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # its batches follow from the step
    ".*Trying to infer the `batch_size`.*",
    "Checkpoint directory .* exists and is not empty",  # that of the run that goes on; a new one is refused there
)


def program(name: str, job: Callable[[DictConfig], Any] | None = None) -> Callable[..., None]:
    """Make a Hydra program: it composes `conf/<name>.yaml`, runs the job, and says in one message what is wrong with the input.

    Args:
        name: of the config and of the command.
        job: the function of the config; `run` of `acge_lightning.commands.<name>` by default, imported once it is composed.

    Returns:
        A function of the number of words of `sys.argv` that start the program; the others are its arguments.
    """
    words: list[str] = []

    def run(cfg: DictConfig) -> Any:
        _quieten()
        end_with_parent()
        set_command(words)
        is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            _check_trusted(cfg, overrides("task"))
            _check_size(cfg)
            _drop_unchosen(cfg, overrides("task"))
            return (job or import_module(f"acge_lightning.commands.{name}").run)(cfg)
        except (InputError, ChildProcessError) as error:
            message = concealed(str(error), cfg)
            if not is_multirun:
                end(message)
            show(f"\nerror: {one_line(message)}", stderr=True)
        except Exception:
            message = concealed(traceback.format_exc(), cfg)
            if not is_multirun:
                sys.exit(visible(message))
            show(message, stderr=True)
        return math.nan  # the other jobs go on, and the summary names this one

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(run)

    def command(count: int = 1) -> None:
        make_logs_visible()
        start, typed = sys.argv[:count], sys.argv[count:]
        try:
            flags, rest = read_flags(typed)
            words[:] = [*start, *flags]
            sys.argv = [" ".join(start), *arguments(rest)]
        except InputError as error:
            end(error)
        ensure_home()
        with lasting_output():
            main()

    return command


def _check_trusted(cfg: DictConfig, task_overrides: list[str]) -> None:
    """Refuse a `trusted` that the command line does not name, however it came into the config."""
    if cfg.get("trusted") and not any(text.lstrip("+").startswith("trusted=") for text in task_overrides):
        raise InputError("trusted counts from the command line only: take it out of the YAML, and give trusted=[…] there")


def _check_size(cfg: DictConfig) -> None:
    """Refuse a config whose interpolations make it too large, though its files are small."""
    if explodes(OmegaConf.to_container(cfg, resolve=False)):
        raise InputError(
            "the config is refused, for its interpolations, written out, are too large: take out what refers to others"
        )


def _drop_unchosen(cfg: DictConfig, task_overrides: list[str]) -> None:
    """Drop what an experiment sets for its own tasks if the command line has chosen others.

    Hydra replaces a choice of tasks by `task=[…]`, but keeps the weights and limits that the experiment's body sets for the
    former ones. What the command line itself sets for a task that is not chosen stays, and is an error later.
    """
    if not any(text.startswith("task=") for text in task_overrides) or not cfg.get("task"):
        return
    configured_tasks = {
        text.lstrip("+~").partition("=")[0].split(".")[1] for text in task_overrides if text.lstrip("+~").startswith("task.")
    }
    chosen = [n for n in cfg.task if n in configured_tasks or OmegaConf.select(cfg.task, f"{n}.data._target_") is not None]
    cfg.task = OmegaConf.masked_copy(cfg.task, chosen)


def _quieten() -> None:
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
