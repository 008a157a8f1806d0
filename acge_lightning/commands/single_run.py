"""The main job: train an encoder on several tasks, evaluate it, hand it over."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from acge_lightning.callbacks.finite_guard import memory_advice
from acge_lightning.config.building import instantiate, instantiate_all, plain
from acge_lightning.config.secrets import recorded
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.pca import rotate_to_components, sample_texts
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import lock, unwritten
from acge_lightning.files.folder import check_target
from acge_lightning.report.runs import read_runs
from acge_lightning.report.tables import Scores, check_result, coverage_table, score_table, searches, write_result
from acge_lightning.terminal import show
from acge_lightning.training.checkpoint import SafeCheckpointIO
from acge_lightning.training.resume import Resume, checkpoint_to_resume, put_aside

_LOG = logging.getLogger(__name__)
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def train(cfg: DictConfig) -> float:
    """Train, evaluate and export as the config says.

    Args:
        cfg: composed from `conf/train.yaml`.

    Returns:
        `val/mean` of what was exported, for sweeps.

    Raises:
        InputError: anything in the config or the data that cannot work.
    """
    config = checked(cfg)
    folder = Path(config["paths"]["output_dir"])
    with in_use(folder):
        return _train(cfg, config, folder)


def _train(cfg: DictConfig, config: dict[str, Any], folder: Path) -> float:
    for name in ("export", "backbone"):  # one of which is written at the end
        check_target(folder / name)
    check_result(folder)
    seed_everything(config["seed"], workers=True, verbose=False)
    tasks = make_tasks(cfg)
    mixture = instantiate(
        cfg.mixture,
        tasks={name: task.data for name, task in tasks.items()},
        weights={name: task.weight for name, task in tasks.items()},
        trusted=cfg.trusted,
    )
    mixture.setup()
    if not mixture.evaluated("dev"):
        raise InputError("no task has a dev split to score: name one with `splits`, or set data.holdout above 0")
    texts = Texts(mixture.train_texts)
    encoder = make_encoder(cfg, texts)
    if config["components"]:
        encoder = rotate_to_components(encoder, sample_texts(texts, config["components"]))
    mixture.bind(encoder)
    module = instantiate(cfg.module, encoder=encoder, tasks=tasks, config=recorded(cfg), trusted=cfg.trusted)
    trainer = make_trainer(cfg)
    if trainer.world_size > 1:
        atexit.register(disconnect)

    checkpoints = folder / "checkpoints"
    resume = checkpoint_to_resume(config["resume"], checkpoints, trainer, module)
    if resume is None and trainer.is_global_zero:
        check_fresh(folder, checkpoints, config["resume"])
    state = Resume.of(trainer)

    with closing(trainer.loggers):
        with memory_advice(module), state.restoring(trainer), naming_settings(config["trainer"]):
            if resume is None:
                state.before = evaluate(trainer, module, mixture, config["test"])
            trainer.fit(module, mixture, ckpt_path=resume, weights_only=True)
            put_aside(trainer, checkpoints)
            take_best(trainer, module)
            after = evaluate(trainer, module, mixture, config["test"])

        if trainer.is_global_zero:
            output = module.save(folder, provenance(recorded(cfg), mixture, state.before, after, trainer.global_step))
            write_result(folder, state.before, after, output)
            draw(trainer, folder)
            tables = coverage_table(mixture.coverage()), score_table(state.before, after), searches(encoder, mixture)
            show(*tables, f"The model is in {output}")
    wait_for_ranks(trainer)
    return after["val/mean"]


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain data; its own keys have values that can work."""
    config = plain(cfg)
    if config["paths"]["output_dir"].startswith("~"):
        cfg.paths.output_dir = os.path.expanduser(config["paths"]["output_dir"])
        config = plain(cfg)
    for key, kind in (("seed", int), ("test", bool)):
        if not isinstance(config[key], kind):
            raise InputError(f"{key}={config[key]!r} must be {'a whole number' if kind is int else 'true or false'}")
    if config["components"] is not None and not (isinstance(config["components"], int) and config["components"] > 0):
        raise InputError(f"components={config['components']!r} must be a number of texts, for example 20000, or null")
    if config["resume"] not in (None, "auto") and not Path(config["resume"]).is_file():
        raise InputError(f"resume={config['resume']}: there is no such checkpoint file")
    _check_trainer(config["trainer"])
    return config


def check_fresh(folder: Path, checkpoints: Path, resume: str | None) -> None:
    """Refuse to begin a run where another one has been: its export and its checkpoints would be replaced.

    Args:
        folder: of the run.
        checkpoints: its folder of them.
        resume: None for a new run; `auto` may begin anew where no checkpoint is good.

    Raises:
        InputError: the folder holds a finished run, or checkpoints.
    """
    found = [folder / "result.json", *(sorted(checkpoints.glob("*.ckpt")) if resume is None else [])]
    if there := [str(file.relative_to(folder)) for file in found if file.is_file()]:
        advice = "resume=auto goes on with it, and " if resume is None else ""
        raise InputError(f"{folder} holds a run already ({there[0]}): {advice}a new run needs a folder of its own")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock a run's folder while the block runs, if this is the process of the first device.

    Raises:
        InputError: another run works there, or a file cannot be written, as the disk is full or the folder read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"paths.output_dir={folder} is a file: name a folder")
    with ExitStack() as held:
        if not rank_zero_only.rank:
            held.enter_context(lock(folder / ".lock", wait=False))
        try:
            yield
        except OSError as error:
            if error.errno not in _UNWRITTEN:
                raise
            raise unwritten(Path(error.filename or folder), error) from error


def _check_trainer(settings: Mapping[str, Any]) -> None:
    """Values that Lightning takes, and that only fail, or do nothing, later."""
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "val_check_interval"):
        if isinstance(settings.get(key), (int, float)) and settings[key] <= 0:
            raise InputError(f"trainer.{key}={settings[key]} must be above 0")
    if isinstance(settings.get("gradient_clip_val"), (int, float)) and settings["gradient_clip_val"] < 0:
        raise InputError(f"trainer.gradient_clip_val={settings['gradient_clip_val']} must be above 0, or null for no clipping")
    if settings.get("limit_val_batches") == 0:
        raise InputError("trainer.limit_val_batches=0 leaves nothing to score the model by: leave it out")
    if settings.get("overfit_batches"):
        raise InputError("trainer.overfit_batches does not work with mixed tasks: set trainer.limit_train_batches")
    if str(settings.get("precision")) in ("16-true", "bf16-true", "64-true", "64"):
        raise InputError(f"trainer.precision={settings['precision']}: weights stay 32-true; choose bf16-mixed or 16-mixed")


def make_tasks(cfg: DictConfig) -> dict[str, Task]:
    """The tasks of the mixture, by name."""
    if not cfg.get("task"):
        raise InputError("there is no task to train on: choose some, for example task=[sample_sts,sample_retrieval]")
    return {str(name): Task(**_task(cfg, str(name))) for name in cfg.task}


def _task(cfg: DictConfig, name: str) -> dict[str, Any]:
    node = cfg.task[name]
    known = ("data", "loss", "metric", "weight", "loss_weight")
    for key in node:
        if key not in known:
            raise InputError(f"task.{name}.{key} is unknown: choose from {list(known)}")
    if not node.get("data"):
        raise InputError(f"task.{name}.data is missing: say which data module and path")
    asked = {key: cfg.get(key) for key in ("on_bad_row", "max_bad_fraction")}  # of all tasks, where a task says nothing
    rules = {key: value for key, value in asked.items() if value is not None and key not in node.data}
    parts = {"data": instantiate(node.data, trusted=cfg.trusted, **rules)}
    parts |= {key: instantiate(node.get(key), trusted=cfg.trusted) for key in known[1:3]}
    return parts | {key: node[key] for key in known[3:] if node.get(key) is not None}


def make_encoder(cfg: DictConfig, texts: Iterable[str]) -> Encoder:
    """The encoder; a tokenizer that is not there yet is first learnt from the training texts."""
    tokenizer = cfg.encoder.get("tokenizer")
    if isinstance(tokenizer, DictConfig):
        learnt = instantiate(tokenizer, texts=texts, trusted=cfg.trusted)
        return instantiate(cfg.encoder, tokenizer=learnt, trusted=cfg.trusted)
    return instantiate(cfg.encoder, trusted=cfg.trusted)


def make_trainer(cfg: DictConfig) -> Trainer:
    """The Trainer with its callbacks and loggers."""
    loggers = instantiate_all(cfg.get("logger"), trusted=cfg.trusted)
    callbacks = instantiate_all(cfg.get("callbacks"), trusted=cfg.trusted)
    if not loggers:
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    trainer = instantiate(cfg.trainer, callbacks=[*callbacks, Resume()], logger=loggers, trusted=cfg.trusted)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a config without the plugin
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    return trainer


def evaluate(trainer: Trainer, module: LightningModule, mixture: MixtureDataModule, test: bool) -> dict[str, float]:
    """Scores of the dev splits, and of the test splits if asked for."""
    trainer.validate(module, mixture, verbose=False)
    scores = _scores(trainer, "val/")
    if test:
        trainer.test(module, mixture, verbose=False)
        scores |= _scores(trainer, "test/")
    return scores


def _scores(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(prefix)}


def take_best(trainer: Trainer, module: LightningModule) -> None:
    """Put back the weights of the best checkpoint, if one was kept."""
    kept = trainer.checkpoint_callback
    if isinstance(kept, ModelCheckpoint) and kept.best_model_path:
        module.load_state_dict(SafeCheckpointIO().load_checkpoint(kept.best_model_path)["state_dict"])


def provenance(config: dict[str, Any], mixture: MixtureDataModule, before: Scores, after: Scores, steps: int) -> dict[str, Any]:
    """How the model was made, as plain data: config, versions, data and scores."""
    packages = ("acge_lightning", "torch", "lightning", "transformers", "tokenizers")
    return {
        "config": config,
        "versions": {name: version(name) for name in packages},
        "data": {
            name: {role: len(split) for role, split in data.opened_splits.items()} for name, data in mixture.tasks.items()
        },
        "coverage": {name: asdict(task) for name, task in mixture.coverage().items()},
        "steps": steps,
        "before": dict(before),
        "metrics": dict(after),
    }


def draw(trainer: Trainer, folder: Path) -> None:
    """The run's figures, as in its report, to those of its loggers that take pictures."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, (TensorBoardLogger, WandbLogger))]
    if not loggers:
        return
    try:
        from acge_lightning.report.figures import figures
        from acge_lightning.report.style import log_figures
    except InputError as error:
        show(f"The loggers get no figures: {error}")
        return
    shown = figures(read_runs([str(folder)]))
    for logger in loggers:
        log_figures(logger, shown, trainer.global_step)


@contextmanager
def closing(loggers: Iterable[Logger]) -> Iterator[None]:
    """Close the loggers after the block, as failed if it fails, so that the next job of a multirun starts its own."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=int(status == "failed"))


@contextmanager
def naming_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """What Lightning says against a setting of its Trainer, as of any other key: in one message."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        named = [name for name in re.findall(r"`(\w+)`", str(error)) if name in settings]
        if isinstance(error, InputError) or not (named or isinstance(error, MisconfigurationException)):
            raise
        where, message = f".{named[0]}={settings[named[0]]}" if named else "", str(error).strip()
        if "val_check_interval" in named:  # Lightning's advice is to score nothing
            message = f"{message.partition('. ')[0]}; trainer.check_val_every_n_epoch=null counts steps across rounds"
        raise InputError(f"trainer{where}: {message}") from error


def wait_for_ranks(trainer: Trainer) -> None:
    """Until the processes that this one has started for the other devices have ended.

    Raises:
        ChildProcessError: one of them failed. One that a signal ended has done its work by now, so that is a warning.
    """
    for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", ()), 1):
        if process.wait() > 0:
            raise ChildProcessError(f"rank {rank} ended with status {process.returncode}: its message is above")
        if process.returncode:
            _LOG.warning("rank %d was ended by signal %d after its work was done", rank, -process.returncode)


def disconnect() -> None:
    """Leave the group of the devices: threads of gloo may abort a process that ends within it (NCCL's is left by Lightning)."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
