"""Runs of a setting that are killed at chosen events and go on from their newest checkpoint: `python interrupted.py < JSON`.

The program imports everything once and forks a process a run. Of each line {overrides, folder, points, kinds, environment} of
standard input it writes one JSON line a run to standard output: the whole run's first, then a line for each point that was
killed and went on; and the line `end`.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback

from acge_lightning.commands.encoder_defaults import follow_encoder
from acge_lightning.commands.single_run import make_encoder, make_tasks, make_trainer
from acge_lightning.config.building import instantiate, plain
from acge_lightning.config.sources import config_dir
from acge_lightning.training.checkpoint import SafeCheckpointIO, newest, read


class Events(Callback):
    """Counts what happens in a training run, and does something to this process at one of the events."""

    HOOKS = ("train_batch_start", "before_optimizer_step", "train_batch_end", "validation_batch_start", "validation_end")

    def __init__(self, at=None, number=signal.SIGKILL):
        self.at, self.number, self.seen, self.start = at, number, [], None

    def happened(self, name):
        if len(self.seen) == self.at:
            os.kill(os.getpid(), self.number)
        self.seen.append(name)

    def on_train_start(self, trainer, pl_module):
        self.start = trainer.global_step

    def on_train_batch_start(self, *args):
        self.happened("train_batch_start")

    def on_before_optimizer_step(self, *args):
        self.happened("before_optimizer_step")

    def on_train_batch_end(self, *args):
        self.happened("train_batch_end")

    def on_validation_batch_start(self, *args):
        self.happened("validation_batch_start")

    def on_validation_end(self, *args):
        self.happened("validation_end")

    def on_train_epoch_start(self, *args):
        self.happened("train_epoch_start")

    def on_train_epoch_end(self, *args):
        self.happened("train_epoch_end")


class LoudIO(SafeCheckpointIO):
    """Saving is an event too: after it."""

    events = None

    def save_checkpoint(self, *args, **kwargs):
        super().save_checkpoint(*args, **kwargs)
        LoudIO.events.happened("saved")


def fit(overrides, resume=False, events=None):
    """What `train` does around the fit; the digests of what it ends with."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", overrides)
    config = plain(cfg)
    tasks = make_tasks(cfg)
    data = {name: task.data for name, task in tasks.items()}
    weights = {name: task.weight for name, task in tasks.items()}
    mixture = instantiate(cfg.mixture, tasks=data, weights=weights)
    torch.manual_seed(7)
    encoder = make_encoder(cfg, ())
    follow_encoder(cfg, encoder)
    module = instantiate(cfg.module, encoder=encoder, tasks=tasks, config=plain(cfg))
    trainer = make_trainer(cfg)
    trainer.callbacks.insert(0, events)
    LoudIO.events = events
    trainer.strategy.checkpoint_io.__class__ = LoudIO
    torch.manual_seed(os.getpid())  # nothing may depend on what the process drew before
    path = newest(Path(config["paths"]["output_dir"]) / "checkpoints") if resume else None
    trainer.fit(module, mixture, ckpt_path=path, weights_only=True)
    best = trainer.checkpoint_callback.best_model_path
    return {
        "loaded": path and path.name,
        "start": trainer.global_step if events.start is None else events.start,  # None: the run had ended
        "steps": trainer.global_step,
        "weights": digest(module.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
        "best": best and (Path(best).name, digest(read(Path(best))["state_dict"])),
        "events": events.seen,
    }


def digest(value):
    found = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            found.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                add(key)
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for item in part:
                add(item)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def forked(environment, job, *args, **kwargs):
    """(exit status or minus the signal, what the job returned) in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.dup2(2, 1)
            os.environ.update(environment)
            with os.fdopen(writer, "w") as pipe:
                json.dump(job(*args, **kwargs), pipe)
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(text) if text else None


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        answer(json.loads(line))
        print("end", flush=True)


def answer(asked):
    folder, environment = Path(asked["folder"]), asked.get("environment", {})

    def run(name, resume=False, **how):
        fixed = [f"paths.output_dir={folder / name}", "++callbacks.progress=null", "logger=none", "trainer.accelerator=cpu"]
        return forked(environment, fit, [*fixed, *asked["overrides"]], resume, Events(**how))

    status, whole = run("whole")
    print(json.dumps({"status": status, **(whole or {})}), flush=True)
    if status:
        return
    number = getattr(signal, asked.get("signal", "SIGKILL"))
    events = whole["events"]
    kinds = asked.get("kinds")
    points = [i for i, name in enumerate(events) if not kinds or name in kinds]
    step = max(1, len(points) / asked["points"])
    for at in [points[int(i * step)] for i in range(min(asked["points"], len(points)))]:
        killed, _ = run(f"at{at}", at=at, number=number)
        status, found = run(f"at{at}", resume=True)
        line = {"at": at, "event": events[at], "killed": killed, "status": status, **(found or {})}
        line.pop("events", None)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
