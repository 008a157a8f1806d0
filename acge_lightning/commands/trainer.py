"""Make the Trainer of a run; settings of it that cannot work are refused, or said, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from acge_lightning.callbacks.progress import Progress
from acge_lightning.callbacks.steps import StepCheckpoint
from acge_lightning.config.building import instantiate, instantiate_all
from acge_lightning.errors import InputError
from acge_lightning.training.checkpoint import SafeCheckpointIO
from acge_lightning.training.resume import Resume

_ABOVE_ZERO = ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "val_check_interval")
_NOT_HERE = {  # settings that do not work with this package: key -> what to do in its place
    "overfit_batches": "does not work with mixed tasks: set trainer.limit_train_batches",
    "fast_dev_run": "would score a batch of each task, and keep nothing: use debug=fast",
    "barebones": "switches off the checkpoints and scores that a run is about: use debug=fast to look for errors",
    "reload_dataloaders_every_n_epochs": "is not needed: every round is shuffled anew",
    "model_registry": "is for Lightning's own cloud: leave it out",
}


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse values that Lightning accepts, and that fail later, or do nothing.

    Raises:
        InputError: naming the key, and what to set in its place.
    """
    for key, remedy in _NOT_HERE.items():
        if settings.get(key):
            raise InputError(f"trainer.{key}={settings[key]} {remedy}")
    for key in _ABOVE_ZERO:
        if isinstance(settings.get(key), (int, float)) and settings[key] <= 0:
            raise InputError(f"trainer.{key}={settings[key]} must be above 0")
    if isinstance(settings.get("val_check_interval"), (str, dict)):  # which Lightning's own early stopping fails on
        raise InputError(f"trainer.val_check_interval={settings['val_check_interval']}: give batches, or a share: 500 or 0.25")
    if isinstance(settings.get("gradient_clip_val"), (int, float)) and settings["gradient_clip_val"] < 0:
        raise InputError(f"trainer.gradient_clip_val={settings['gradient_clip_val']} must be above 0, or null for no clipping")
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        _check_limit(key, settings.get(key))
    if settings.get("num_sanity_val_steps") not in (None, 0):
        raise InputError(
            f"trainer.num_sanity_val_steps={settings['num_sanity_val_steps']} is not needed: a run scores the model before "
            "training, on all evaluation rows"
        )
    if str(settings.get("precision")) not in ("32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed", "None"):
        raise InputError(f"trainer.precision={settings['precision']}: weights stay 32-true; choose bf16-mixed or 16-mixed")


def _check_limit(key: str, limit: Any) -> None:
    """Refuse to score some batches only: a query without its documents, or half of a pair, cannot be scored."""
    if limit == 0:
        purpose = "learn from" if key == "limit_train_batches" else "score the model by"
        raise InputError(f"trainer.{key}=0 leaves nothing to {purpose}: leave it out")
    if limit is None or key == "limit_train_batches" or (limit == 1 and isinstance(limit, float)):
        return
    raise InputError(f"trainer.{key}={limit} would cut pairs and queries apart: to score fewer rows, set max_dev=500")


def make_trainer(cfg: DictConfig) -> Trainer:
    """Make the Trainer with its callbacks and loggers.

    Where anything is logged, so is the CSV file that `acge report` reads. Runs on W&B are named by what is particular to them.
    """
    loggers = instantiate_all(_named(cfg), trusted=cfg.trusted)
    if loggers and not any(isinstance(logger, CSVLogger) for logger in loggers):
        loggers.append(CSVLogger(cfg.paths.output_dir, "csv"))
    callbacks = instantiate_all(cfg.get("callbacks"), trusted=cfg.trusted)
    if "progress" not in (cfg.get("callbacks") or {}):  # null: none is wanted; Lightning would add another kind
        callbacks.append(Progress())
    callbacks = [callback for callback in callbacks if not isinstance(callback, _unwanted(cfg.trainer, loggers))]
    shown = any(isinstance(callback, ProgressBar) for callback in callbacks)
    given = {"callbacks": [*callbacks, Resume()], "logger": loggers, "enable_progress_bar": shown}
    trainer = instantiate(cfg.trainer, **given, trusted=cfg.trusted)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a config without the plugin
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    return trainer


def _unwanted(settings: Mapping[str, Any], loggers: list[Logger]) -> tuple[type[Callback], ...]:
    """Return the kinds of callbacks that the settings of the Trainer, or the lack of loggers, leave nothing to do."""
    kinds: list[type[Callback]] = [] if loggers else [LearningRateMonitor]
    if settings.get("enable_progress_bar") is False:
        kinds.append(ProgressBar)
    if settings.get("enable_checkpointing") is False:
        kinds += [ModelCheckpoint, StepCheckpoint]
    return tuple(kinds)


def _named(cfg: DictConfig) -> Any:
    """Return the loggers' config, in which W&B's run has a name."""
    nodes = cfg.get("logger")
    wandb = OmegaConf.select(cfg, "logger.wandb")
    if wandb is None or wandb.get("name") is not None or not HydraConfig.initialized():
        return nodes
    hydra = HydraConfig.get()
    number = hydra.job.num if hydra.mode == RunMode.MULTIRUN else None
    texts: Any = OmegaConf.to_container(cast(DictConfig, hydra).overrides.task, resolve=False)
    return OmegaConf.merge(nodes, {"wandb": {"name": run_name(str(cfg.name), texts, number)}})


def run_name(name: str, texts: Sequence[str], number: int | None = None) -> str:
    """Name a run by what its command sets; interpolations, which may hold a secret, are left out.

    Args:
        name: of the run.
        texts: the overrides of the command, interpolations as they were written.
        number: of the job of a multirun.

    >>> run_name("quickstart", ["optim.optimizer.lr=0.001", "+note=${oc.env:TOKEN}", "seed=1"], 3)
    'quickstart 3 lr=0.001 seed=1'
    """
    settings = [text.lstrip("+").partition("=") for text in texts if "${" not in text]
    unnamed = ("experiment", "task", "name", "logger", "paths", "callbacks", "trusted", "resume", "debug")
    words = [f"{key.rpartition('.')[2]}={value}" for key, _, value in settings if re.split(r"[.@]", key)[0] not in unnamed]
    return " ".join([name, *([] if number is None else [str(number)]), *words])[:128]


@contextmanager
def naming_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn Lightning's errors about settings of its Trainer into an InputError that names the key."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        setting_names = [name for name in re.findall(r"`(\w+)`", str(error)) if name in settings]
        if isinstance(error, InputError) or not (setting_names or isinstance(error, MisconfigurationException)):
            raise
        where, message = f".{setting_names[0]}={settings[setting_names[0]]}" if setting_names else "", str(error).strip()
        if "val_check_interval" in setting_names:  # Lightning would advise to skip the scores
            message = f"{message.partition('. ')[0]}; trainer.check_val_every_n_epoch=null counts steps across rounds"
        raise InputError(f"trainer{where}: {message}") from error


def plan(trainer: Trainer, batches: int) -> list[str]:
    """Log at least 20 times also in a short run, and say what of the Trainer's settings the run is too short for.

    Args:
        trainer: of the run.
        batches: of a round, on each device.

    Returns:
        Sentences for the user.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    per_round = -(-batches // trainer.accumulate_grad_batches)
    rounds, most = trainer.max_epochs or 0, trainer.max_steps
    steps = per_round * rounds if rounds > 0 else most
    if 0 < most < steps:
        steps = most
    if steps > 0:
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, steps // 20), batches)  # type: ignore[attr-defined]
    sentences = []
    if 0 < steps < most:
        sentences.append(
            f"The run ends after {steps} steps, before trainer.max_steps={most}, as trainer.max_epochs={rounds}: "
            "trainer.max_epochs=-1 goes on until then"
        )
    if 0 < steps < _first_validation(trainer, batches):
        sentences.append(
            f"The run of {steps} steps is over before its first validation: the last weights are exported, not the best ones"
        )
    return sentences


def _first_validation(trainer: Trainer, batches: int) -> float:
    """Return the optimizer step after which the first validation comes; 0 if the clock decides on it."""
    interval, every = getattr(trainer, "val_check_interval", None), trainer.check_val_every_n_epoch
    if not isinstance(interval, (int, float)):
        return 0
    first = interval if isinstance(interval, int) else max(1, int(batches * interval))
    return ((every or 1) - 1) * -(-batches // trainer.accumulate_grad_batches) + first // trainer.accumulate_grad_batches
