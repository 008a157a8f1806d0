"""Train an encoder on several tasks, evaluate it and export it."""

from __future__ import annotations

import atexit
import errno
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from acge_lightning.callbacks.finite_guard import memory_advice
from acge_lightning.commands.encoder_defaults import follow_encoder, kind_of
from acge_lightning.commands.scored_rows import earlier_rows, scored_rows
from acge_lightning.commands.trainer import check_trainer, make_trainer, naming_settings, plan
from acge_lightning.commands.verdict import verdict
from acge_lightning.config.building import instantiate, plain
from acge_lightning.config.secrets import recorded
from acge_lightning.data.dataset import TaskDataset
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.pca import rotate_to_components, sample_texts
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import lock, write_error
from acge_lightning.files.folder import check_target
from acge_lightning.report.runs import read_runs
from acge_lightning.report.tables import Scores, check_result, coverage_table, score_table, searches, write_result
from acge_lightning.terminal import show
from acge_lightning.training.checkpoint import SafeCheckpointIO
from acge_lightning.training.optim import check_learning_rate
from acge_lightning.training.optimized_module import OptimizedModule
from acge_lightning.training.resume import Resume, checkpoint_to_resume, put_aside
from acge_lightning.training.unscored import ADVICE, is_scored, leave_unscored

_LOG = logging.getLogger(__name__)
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def train(cfg: DictConfig) -> float:
    """Train, evaluate and export as the config says.

    Args:
        cfg: composed from `conf/train.yaml`.

    Returns:
        `val/mean` of the exported encoder, for sweeps.

    Raises:
        InputError: a value of the config, or the data, cannot work.
    """
    config = checked(cfg)
    folder = Path(config["paths"]["output_dir"])
    with in_use(folder):
        return _train(cfg, config, folder)


def _train(cfg: DictConfig, config: dict[str, Any], folder: Path) -> float:
    for name in ("export", "backbone"):  # one of them is written at the end
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
    for role in ("dev", "test") if config["test"] else ("dev",):
        mixture.check_scorable(role)
    texts = Texts(mixture.train_texts)
    encoder = make_encoder(cfg, texts)
    if config["components"]:
        encoder = rotate_to_components(encoder, sample_texts(texts, config["components"]))
    mixture.bind(encoder)
    sentences = follow_encoder(cfg, encoder)
    module = instantiate(cfg.module, encoder=encoder, tasks=tasks, config=recorded(cfg), trusted=cfg.trusted)
    trainer = make_trainer(cfg)
    leave_unscored(trainer, module, mixture)
    if trainer.world_size > 1:
        atexit.register(disconnect)
    sentences += plan(trainer, len(mixture.sampler))
    test = config["test"] and bool(mixture.evaluated("test"))
    if config["test"] and not test:
        sentences.append("No task has a test split: the scores below are those of dev rows")

    checkpoints = folder / "checkpoints"
    resume = checkpoint_to_resume(config["resume"], checkpoints, trainer, module)
    if resume is None and trainer.is_global_zero:
        check_fresh(folder, checkpoints, config["resume"])
    if trainer.is_global_zero:
        show(*sentences)
    state = Resume.of(trainer)

    with closing(trainer.loggers):
        with memory_advice(module), state.restoring(trainer), naming_settings(config["trainer"]):
            if resume is None:
                state.before = evaluate(trainer, module, mixture, test)
            trainer.fit(module, mixture, ckpt_path=resume, weights_only=True)
            put_aside(trainer, checkpoints)
            take_best(trainer, module)
            after = evaluate(trainer, module, mixture, test)

        if trainer.is_global_zero:
            hand_over(cfg, trainer, module, mixture, state.before, after)
    wait_for_ranks(trainer)
    return after.get("val/mean", math.nan)


def hand_over(
    cfg: DictConfig,
    trainer: Trainer,
    module: OptimizedModule,
    mixture: MixtureDataModule,
    before: Scores,
    after: Scores,
) -> None:
    """Export the model, write the result, and show both with what is to be said of them."""
    folder, rate = Path(cfg.paths.output_dir), OmegaConf.select(cfg, "optim.optimizer.lr")
    row_count = sum(len(data.train) for data in mixture.training_tasks.values())
    suited = kind_of(cfg, module.encoder).learning_rate
    remarks = verdict(before, after, module.history.ends(), row_count, rate, suited)
    shown = {key: value for key, value in after.items() if key.count("/") == 1 or "@" not in key}  # of prefixes the means only
    record = provenance(recorded(cfg), mixture, before, shown, trainer.global_step) | {"remarks": remarks}
    output = module.save(folder, record, earlier_rows(cfg.encoder.get("path")))
    rows = scored_rows(plain(cfg), mixture)
    write_result(folder, before, after, output, rows, remarks)
    draw(trainer, folder)
    scores = score_table(before, shown, rows, mixture.document_counts()) if after else ADVICE
    show(coverage_table(mixture.coverage()), scores, searches(module.encoder, mixture))
    profile = trainer.profiler.summary()  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    show(profile or None)  # of trainer.profiler=simple, which Lightning only logs
    show(*remarks, style="bold red")
    show(f"The model is in {output}")


def checked(cfg: DictConfig) -> dict[str, Any]:
    """Convert the config to plain data, and check the values of its own keys."""
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
    if config["max_dev"] is not None and not (isinstance(config["max_dev"], int) and config["max_dev"] > 0):
        raise InputError(f"max_dev={config['max_dev']!r} must be a number of rows, for example 500, or null")
    check_learning_rate(((config.get("optim") or {}).get("optimizer") or {}).get("lr"))
    check_trainer(config["trainer"])
    return config


def check_fresh(folder: Path, checkpoints: Path, resume: str | None) -> None:
    """Refuse a new run in the folder of another one: its export and its checkpoints would be replaced.

    Args:
        folder: of the run.
        checkpoints: the folder of the run's checkpoints.
        resume: None for a new run; `auto` may start anew if no checkpoint is good.

    Raises:
        InputError: the folder holds a finished run, or checkpoints.
    """
    files = [folder / "result.json", *(sorted(checkpoints.glob("*.ckpt")) if resume is None else [])]
    if existing := [str(file.relative_to(folder)) for file in files if file.is_file()]:
        advice = "resume=auto goes on with it, and " if resume is None else ""
        raise InputError(f"{folder} holds a run already ({existing[0]}): {advice}a new run needs a folder of its own")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock a run's folder while the block runs, if this is the process of the first device.

    Raises:
        InputError: another run uses it, or a file cannot be written, as the disk is full or the folder read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"paths.output_dir={folder} is a file: name a folder")
    with ExitStack() as locks:
        if not rank_zero_only.rank:  # type: ignore[attr-defined]  # lightning sets it on the function
            locks.enter_context(lock(folder / ".lock", wait=False))
        try:
            yield
        except OSError as error:
            if error.errno not in _UNWRITTEN:
                raise
            raise write_error(Path(error.filename or folder), error) from error


def make_tasks(cfg: DictConfig) -> dict[str, Task]:
    """Make the tasks of the mixture, by name."""
    if not cfg.get("task"):
        raise InputError("there is no task to train on: choose some, for example task=[sample_sts,sample_retrieval]")
    return {str(name): Task(**_task(cfg, str(name))) for name in cfg.task}


def _task(cfg: DictConfig, name: str) -> dict[str, Any]:
    node = cfg.task[name]
    allowed_keys = ("data", "loss", "metric", "weight", "loss_weight")
    for key in node:
        if key not in allowed_keys:
            raise InputError(f"task.{name}.{key} is unknown: choose from {list(allowed_keys)}")
    if not node.get("data"):
        raise InputError(f"task.{name}.data is missing: say which data module and path")
    defaults = {key: cfg.get(key) for key in ("on_bad_row", "max_bad_fraction")}  # of all tasks, unless a task sets them
    rules = {key: value for key, value in defaults.items() if value is not None and key not in node.data}
    if cfg.get("max_dev") is not None:
        rules["max_dev"] = min(cfg.max_dev, node.data.get("max_dev") or cfg.max_dev)
    arguments = {"data": instantiate(node.data, trusted=cfg.trusted, **rules)}
    if isinstance(arguments["data"], TaskDataset):
        arguments["data"].key = f"task.{name}.data."
    arguments |= {key: instantiate(node.get(key), trusted=cfg.trusted) for key in allowed_keys[1:3]}
    return arguments | {key: node[key] for key in allowed_keys[3:] if node.get(key) is not None}


def make_encoder(cfg: DictConfig, texts: Iterable[str]) -> Encoder:
    """Make the encoder; a tokenizer that does not exist yet is first learnt from the training texts."""
    tokenizer = cfg.encoder.get("tokenizer")
    if isinstance(tokenizer, DictConfig):
        learnt = instantiate(tokenizer, texts=texts, trusted=cfg.trusted)
        return instantiate(cfg.encoder, tokenizer=learnt, trusted=cfg.trusted)
    return instantiate(cfg.encoder, trusted=cfg.trusted)


def evaluate(trainer: Trainer, module: LightningModule, mixture: MixtureDataModule, test: bool) -> dict[str, float]:
    """Score the dev splits, and with `test` the test splits; empty if no task has a score."""
    if not is_scored(module, mixture):
        return {}
    trainer.validate(module, mixture, verbose=False)
    scores = _scores(trainer, "val/")
    if test:
        trainer.test(module, mixture, verbose=False)
        scores |= _scores(trainer, "test/")
    return scores


def _scores(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(prefix)}


def take_best(trainer: Trainer, module: LightningModule) -> None:
    """Load the weights of the best checkpoint, if one was saved."""
    callback = trainer.checkpoint_callback
    if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
        module.load_state_dict(SafeCheckpointIO().load_checkpoint(callback.best_model_path)["state_dict"])


def provenance(config: dict[str, Any], mixture: MixtureDataModule, before: Scores, after: Scores, steps: int) -> dict[str, Any]:
    """Record how the model was made, as plain data: config, versions, data and scores."""
    packages = ("acge_lightning", "torch", "lightning", "transformers", "tokenizers")
    return {
        "config": config,
        "versions": {name: version(name) for name in packages},
        "data": {
            name: {role: len(split) for role, split in data.opened_splits.items()} for name, data in mixture.tasks.items()
        },
        "made_of": mixture.made_of,
        "coverage": {name: asdict(task) for name, task in mixture.coverage().items()},
        "steps": steps,
        "before": dict(before),
        "metrics": dict(after),
    }


def draw(trainer: Trainer, folder: Path) -> None:
    """Log the run's figures, as in its report, with those of its loggers that take pictures."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, (TensorBoardLogger, WandbLogger))]
    if not loggers:
        return
    try:
        from acge_lightning.report.figures import figures
        from acge_lightning.report.style import log_figures
    except InputError as error:
        show(f"The loggers get no figures: {error}")
        return
    run_figures = figures(read_runs([str(folder)]))
    for logger in loggers:
        log_figures(logger, run_figures, trainer.global_step)


@contextmanager
def closing(loggers: Iterable[Logger]) -> Iterator[None]:
    """Close the loggers after the block, as failed if it raises, so that the next job of a multirun starts its own."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=int(status == "failed"))


def wait_for_ranks(trainer: Trainer) -> None:
    """Wait until the processes that this one has started for the other devices have ended.

    Raises:
        ChildProcessError: one of them failed. If a signal ended it, its work was done already: that is a warning.
    """
    for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", ()), 1):
        if process.wait() > 0:
            raise ChildProcessError(f"rank {rank} ended with status {process.returncode}: its message is above")
        if process.returncode:
            _LOG.warning("rank %d was ended by signal %d after its work was done", rank, -process.returncode)


def disconnect() -> None:
    """Leave the process group: threads of gloo may abort a process that ends within it (Lightning leaves NCCL's)."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
