"""Resuming from a checkpoint: compares the configs, finds moved files, and keeps the scores from before training."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from acge_lightning.errors import InputError
from acge_lightning.training.checkpoint import newest, read_unverified

_LOG = logging.getLogger(__name__)
_MOST_SHOWN = 8  # differences in a message

# Where a run works and what it reports, which changes nothing that it learns. These keys may always differ.
RUN_KEYS = (
    *("name", "test", "trusted", "paths*", "logger*", "resume", "resume_changed_data", "on_bad_row", "max_bad_fraction"),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "precision", "plugins*")),
    *(f"trainer.{name}" for name in ("deterministic", "benchmark", "profiler*", "detect_anomaly", "inference_mode")),
    *(f"trainer.{name}" for name in ("enable_*", "log_every_n_steps", "default_root_dir", "num_sanity_val_steps")),
    "trainer.limit_test_batches",
    *("mixture.num_workers", "mixture.resume_changed_data"),
    *("module.batch_tokens", "module.recompute", "module.compile", "encoder.attention", "encoder.gradient_checkpointing"),
    *(f"callbacks.{name}*" for name in ("progress", "learning_rate", "signals", "steps", "peers", "guard", "evaluation")),
    *(f"callbacks.checkpoint.{name}" for name in ("dirpath", "filename", "verbose", "save_last", "auto_insert_metric_name")),
    *(f"task.*.data.{name}" for name in ("cache_dir", "on_bad_row", "max_bad_fraction")),
)
# How long it trains and how often it is scored, from the step where it goes on; and files that are compared by their content.
LENGTH_KEYS = (
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.gradient_clip_val"),
    *("callbacks.early_stopping*", "callbacks.ewc.anchors*", "task.*.data.path", "fisher*"),
)


# ---- the config


def check_config(where: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on under a config of which a part would have no effect, or would be claimed of steps that had another.

    What may differ: `RUN_KEYS`, `LENGTH_KEYS`; a task's data where its rows are the same, or with `resume_changed_data=true`.

    Args:
        where: the checkpoint, for the message.
        before: the config that it was trained with, as it was recorded.
        now: the config to go on with, as it would be recorded.

    Raises:
        InputError: naming each other key with both values.
    """
    free = [*RUN_KEYS, *LENGTH_KEYS, *(["task.*.data*"] if now.get("resume_changed_data") else [])]
    old, new = (dict(config.get("task") or {}) for config in (before, now))
    both = old.keys() & new.keys()  # which tasks there are is compared with the rows, by the mixture
    before, now = ({**c, "task": {n: t[n] for n in both}} for c, t in ((before, old), (now, new)))
    _refuse(where, differences(before, now, free))


def check_same(where: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to keep what was finished under another config; only `RUN_KEYS` may differ.

    Raises:
        InputError: naming each other key with both values.
    """
    _refuse(where, differences(before, now, RUN_KEYS))


def _refuse(where: Any, differing: Mapping[str, tuple[Any, Any]]) -> None:
    if not differing:
        return
    shown = [f"{key}={_as_text(old)} (now {_as_text(new)})" for key, (old, new) in differing.items()]
    more = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    raise InputError(
        f"{where} was trained with another config: {', '.join(shown[:_MOST_SHOWN])}{more}: put it back, or begin a new run "
        "with another paths.output_dir (encoder=pretrained encoder.path=<a run>/export begins with the weights of that run)"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Key -> its values in both configs, outermost keys first, for those that differ and match none of the patterns.

    Paths below the run's folder, the folder that holds it or another of `paths` may move along with it. A key that is missing
    counts as null; of nodes with other targets only the target is given, of keys of one name that differ alike the outermost.

    >>> differences({"seed": 0, "mixture": {"seed": 0}}, {"seed": 5, "mixture": {"seed": 5}}, [])
    {'seed': (0, 5)}
    """
    differing: dict[str, tuple[Any, Any]] = {}
    old_path, new_path = _below_folders(before), _below_folders(now)

    def compare(key: str, old: Any, new: Any) -> None:
        if old == new or any(fnmatchcase(key, pattern) for pattern in free):
            return
        old_node, new_node = _node(old), _node(new)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old_node, new_node = dict(enumerate(old)), dict(enumerate(new))
        if old_node is None or new_node is None or not (old_node or new_node):
            if not (isinstance(old, str) and isinstance(new, str) and old_path(old) == new_path(new)):
                differing[key] = old, new
        elif old_node.get("_target_") != new_node.get("_target_"):
            if old is None or new is None or not any(fnmatchcase(f"{key}._target_", pattern) for pattern in free):
                differing[key] = old, new
        else:
            for name in {**old_node, **new_node}:
                compare(f"{key}.{name}" if key else str(name), old_node.get(name), new_node.get(name))

    compare("", dict(before), dict(now))
    outermost: dict[tuple[str, str], str] = {}
    for key in sorted(differing, key=lambda key: (key.count("."), key)):
        outermost.setdefault((key.rpartition(".")[2], repr(differing[key])), key)
    return {key: differing[key] for key in outermost.values()}


def _node(value: Any) -> Mapping[Any, Any] | None:
    """A mapping as it is, nothing as an empty one; None for any other value."""
    return {} if value is None else value if isinstance(value, Mapping) else None


def _below_folders(config: Mapping[str, Any]) -> Callable[[str], str]:
    """A function that rewrites a path as one relative to the folder of the config that it lies in."""
    paths = {key: value for key, value in (config.get("paths") or {}).items() if isinstance(value, str) and value}
    roots = {value.rstrip("/"): key for key, value in paths.items()}
    roots.setdefault(os.path.dirname(paths.get("output_dir", "").rstrip("/")), "beside")

    def relative(text: str) -> str:
        for root, name in sorted(roots.items(), key=lambda item: -len(item[0])):
            if root and (text == root or text.startswith(f"{root}/")):
                return f"<{name}>{text[len(root) :]}"
        return text

    return relative


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        value = value["_target_"]
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text[1:-1] if isinstance(value, str) else text
    return text if len(text) <= 60 else f"{text[:59]}…"


# ---- the checkpoint


def checkpoint_to_resume(resume: str | None, folder: Path, trainer: Trainer, module: LightningModule) -> Path | None:
    """Choose the checkpoint that `resume` asks for, of the same config; None to begin anew.

    Args:
        resume: a file; `auto`, the newest good one; None, which under Slurm means the one with which the job was requeued.
        folder: of the checkpoints.
        trainer: in whose folder Lightning puts those of requeued jobs.
        module: holds the config.

    Raises:
        InputError: the config is another one.
    """
    requeued = Path(trainer.default_root_dir)
    if resume == "auto":
        file = newest(folder, requeued)
    elif resume is None:
        file = newest(requeued) if _requeued(trainer) else None
    else:
        file = Path(resume)
    if file is not None:
        try:
            content = read_unverified(file)
        except Exception:  # damaged: another is loaded in its place, and compared then
            return file
        check_recorded(file, content, module)
    return file


def _requeued(trainer: Trainer) -> list[Path]:
    """Checkpoints that Lightning wrote when Slurm put the job back into its queue; under Slurm, it loads them unasked."""
    return list(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt*")) if SLURMEnvironment.detect() else []


def put_aside(trainer: Trainer, folder: Path) -> None:
    """Move checkpoints of requeued jobs to the others, after the fit: Lightning would load them to score any module."""
    if trainer.is_global_zero:
        for file in _requeued(trainer):
            folder.mkdir(exist_ok=True)
            file.replace(folder / file.name)
    trainer.strategy.barrier()


class Resume(Callback):
    """Compares a checkpoint with the run that goes on from it, before Lightning takes anything else from it.

    - The config must be the same (see `check_config`).
    - The best checkpoints so far are looked for by name, beside the checkpoint and in the folder that `ModelCheckpoint` writes
      to, whatever folders the checkpoint names: a folder may have moved, and no other file is read, or removed later.
    - `EarlyStopping` counts on, with the patience of the config.

    Attributes:
        before: scores before the first step; they go along in checkpoints, as `before`.

    Raises:
        InputError: another config, or values that cannot be gone on from.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self._started, self._step = False, 0

    @classmethod
    def of(cls, trainer: Trainer) -> Resume:
        """The callback of this class that a trainer has."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        return next(callback for callback in callbacks if isinstance(callback, cls))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the scores before training."""
        checkpoint["before"] = dict(self.before)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the scores from before training; correct the states of Lightning's callbacks."""
        check_recorded(trainer.ckpt_path, checkpoint, pl_module)
        self.before = {str(name): float(value) for name, value in checkpoint.get("before", {}).items()}
        states = checkpoint["callbacks"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # as in `of`
            if callback.state_key not in states:
                continue
            if isinstance(callback, ModelCheckpoint):
                folder = Path(trainer.ckpt_path or "").parent.resolve()
                folders = folder, Path(callback.dirpath or folder)
                states[callback.state_key] = _relocated(states[callback.state_key], callback, folders)
            elif isinstance(callback, EarlyStopping):
                states[callback.state_key] = _with_patience(states[callback.state_key], callback)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """An optimizer has taken a step with the state that was restored."""
        self._started = self._started or trainer.global_step > self._step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._step = trainer.global_step

    @contextmanager
    def restoring(self, trainer: Trainer) -> Iterator[None]:
        """What a checkpoint does to Lightning until the first step is taken, in one message.

        Raises:
            InputError: in place of whatever it was.
        """
        try:
            yield
        except (InputError, MisconfigurationException, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._started or not trainer.ckpt_path:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise InputError(f"{trainer.ckpt_path} cannot be gone on from ({reason}): take another, or begin anew") from error


def check_recorded(where: Any, checkpoint: Mapping[str, Any], module: LightningModule) -> None:
    """As `check_config`, for the configs that a checkpoint and a module hold; one that says nothing is warned of."""
    try:
        recorded = (checkpoint.get("hyper_parameters") or {}).get("config")
        if recorded:
            check_config(where, recorded, module.hparams.get("config") or {})
        else:
            _LOG.warning("%s does not say with which config it was trained: nothing is compared", where)
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{where} holds something else in the place of its config: take another, or begin anew") from error


def _relocated(state: Mapping[str, Any], callback: ModelCheckpoint, folders: tuple[Path, ...]) -> dict[str, Any]:
    """The state of a ModelCheckpoint with its files where they are now; those that are gone are left out."""
    kept: dict[str, torch.Tensor] = {}
    for path, score in state["best_k_models"].items():
        located = _located(path, folders)
        if located:
            kept[located] = torch.as_tensor(float(score))
        else:
            _LOG.warning("%s, of the best checkpoints so far (%s %g), is gone", path, callback.monitor, float(score))
    pick_worst, pick_best = (min, max) if callback.mode == "max" else (max, min)
    best, worst = "" if callback.monitor else _located(state["best_model_path"], folders), ""
    if kept:
        best, worst = (pick(kept, key=lambda path: float(kept[path])) for pick in (pick_best, pick_worst))
    return {
        **state,
        "dirpath": callback.dirpath,
        "best_k_models": kept,
        "best_model_path": best,
        "best_model_score": kept.get(best),
        "kth_best_model_path": worst,
        "kth_value": kept.get(worst, callback.kth_value),
        "last_model_path": _located(state["last_model_path"], folders[-1:]),
    }


def _located(path: str, folders: tuple[Path, ...]) -> str:
    """The checkpoint of that name in the first of the folders that has one; empty if none has."""
    name = re.split(r"[/\\]", path)[-1]
    files = [folder / name for folder in folders if name.endswith(".ckpt") and (folder / name).is_file()]
    return str(files[0]) if files else ""


def _with_patience(state: Mapping[str, Any], callback: EarlyStopping) -> dict[str, Any]:
    """The state of an EarlyStopping, with the patience that the config now gives it."""
    best = torch.as_tensor(float(state["best_score"]))
    counts = {name: int(state[name]) for name in ("wait_count", "stopped_epoch")}
    return {**state, **counts, "best_score": best, "patience": callback.patience}
