"""Run a command as a Hydra program over `conf/`: read its arguments, refuse unsafe configs, report its errors."""

from __future__ import annotations

import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.commands.checks import check
from acge_lightning.commands.environment import ensure_home, lasting_output
from acge_lightning.commands.jobs import end_with_parent, overrides, set_command
from acge_lightning.commands.usage import USAGE
from acge_lightning.commands.words import with_keys
from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import arguments, with_names, with_trainer_keys
from acge_lightning.config.secrets import concealed
from acge_lightning.config.sources import read_flags
from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import explodes
from acge_lightning.terminal import end, make_logs_visible, one_line, show, visible

_TRACEBACKS = "HYDRA_FULL_ERROR"  # environment variable: 1 has Hydra raise its errors
_QUIET = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # lightning 2.6 with torch 2.13, 2026-11
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # its batches follow from the step
    ".*Trying to infer the `batch_size`.*",
    "ModelCheckpoint\\(monitor=.* could not find the monitored key",  # of a run too short to be validated, which is said
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
            cfg = with_names(cfg)
            _check_trusted(cfg, overrides("task"))
            _check_size(cfg)
            _drop_unchosen(cfg, overrides("task"))
            _listed(cfg, USAGE[name].lists)
            if job is None:
                check(name, cfg)
            with _tracebacks_of_hydra(False):
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
            keyed = with_keys(name, rest)
            sys.argv = [" ".join(start), *arguments(with_trainer_keys(keyed) if name == "train" else keyed)]
        except InputError as error:
            end(error)
        ensure_home()
        config_name = next((flag.partition("=")[2] for flag in flags if flag.startswith("--config-name=")), name)
        with lasting_output(), _one_line(name, config_name, sys.argv[1:]):
            main()

    return command


@contextmanager
def _one_line(name: str, config_name: str, arguments: Sequence[str]) -> Iterator[None]:
    """End the program with one line if Hydra refuses its arguments."""
    if os.environ.get(_TRACEBACKS) == "1":  # somebody wants to see it all
        yield
        return
    try:
        with _tracebacks_of_hydra(True):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        from acge_lightning.commands.mistakes import explained

        end(explained(error, name, config_name, [word for word in arguments if not word.startswith("-")]))


@contextmanager
def _tracebacks_of_hydra(wanted: bool) -> Iterator[None]:
    """Let Hydra raise its errors in the block, rather than print them; processes that a job starts inherit nothing of that."""
    before = os.environ.pop(_TRACEBACKS, None)
    if wanted:
        os.environ[_TRACEBACKS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TRACEBACKS, None)
        if before is not None:
            os.environ[_TRACEBACKS] = before


def _listed(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Make a list of a single value, for keys that take lists."""
    for key in keys:
        if not OmegaConf.is_missing(cfg, key) and isinstance(value := cfg.get(key), (str, int, float)):
            cfg[key] = [value]


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
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(message)}\n"  # without the path of a library's file
    for name in ("lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
