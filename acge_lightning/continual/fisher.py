"""The Fisher information of an encoder's weights on its old tasks, sample by sample: it makes anchors."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from acge_lightning.continual.anchor import FORMAT as ANCHOR
from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.pool_loss import Embedded, Estimator, FrozenLoss, frozen_loss
from acge_lightning.continual.sample_gradients import SampleGradients
from acge_lightning.data.batch import TextBatch
from acge_lightning.data.collate import Collate
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.task import Task
from acge_lightning.encoder.encoder import Encoder, evaluation_mode
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import check_replaceable, lock, whole
from acge_lightning.losses.matryoshka import Matryoshka, check_dims
from acge_lightning.terminal import ProgressBar

_LOG = logging.getLogger(__name__)
_SAVED = 1  # version of the files of kept sums
_SAVE_EVERY = 30.0  # seconds
_NORMALISATION = "each task's mean over the entries of rows that are not all 0 is 1; then the tasks' weighted mean, likewise"


def fisher(
    encoder: Encoder,
    tasks: Mapping[str, Task],
    dims: Sequence[int] | None = None,
    estimator: Estimator = "empirical",
    samples: int = 2000,
    pool: int = 512,
    seed: int = 0,
    batch_tokens: int | None = None,
    state: str | Path | None = None,
    progress: bool = False,
) -> Anchor:
    """The diagonal Fisher information of an encoder's weights on some tasks, and the weights: an anchor.

    F_k = mean over samples i of (d loss_i / d theta_k)^2, with each sample's loss against a frozen pool (`pool_loss`), so that
    neither a batch's size nor its company changes it. The F of each task is divided by its mean over the weights that the task
    reaches (all but the all-zero rows: tokens that do not occur), so temperature, kind of loss and size of the model cancel:
    lambda is the strength, per weight, of an L2 pull to theta* that spends as much in all. Then tasks are averaged by weight.

    Under several processes (torch.distributed) each takes its share of the samples; squares are summed before they are reduced.

    Args:
        encoder: as trained; left as it is.
        tasks: name -> task, of which the training rows, the loss and the weight (0: left out) are taken.
        dims: prefix sizes of the losses; None: those that the encoder was trained for.
        estimator: `empirical`, `true` or `mas`, see `pool_loss.frozen_loss`.
        samples: most samples of a task.
        pool: most rows of a task that are frozen; at most half of its rows. None of them is a sample.
        seed: of the choice of rows, and of drawn targets.
        batch_tokens: tokens encoded together; changes time and memory only.
        state: folder where sums are kept every half minute, so that a new call goes on; they stay there.
        progress: show a progress bar.

    Returns:
        An `Anchor` on the CPU; fp32, or fp64 for an encoder in fp64.

    Raises:
        InputError: no task, too few rows, an estimator that does not fit a loss, or a task that no weight matters to.
    """
    tasks = {name: task for name, task in tasks.items() if task.weight > 0}
    if not tasks:
        raise InputError("there is no task of a weight above 0: choose some, for example task=[sample_sts]")
    if samples < 1 or pool < 2:
        raise InputError(f"samples={samples} and pool={pool} must be at least 1 and 2")
    estimator = "true" if estimator is True else estimator  # what YAML and the command line make of the word
    dims = tuple(encoder.matryoshka_dims if dims is None else dims)
    rank, world = _rank_and_world()
    meta = {"encoder": encoder_hash(encoder), "dim": encoder.dim, "dims": list(dims), "estimator": estimator, "seed": seed}
    works = {name: _TaskSamples(encoder, name, task, dims, estimator, samples, pool, seed) for name, task in tasks.items()}
    files = {}
    total = sum(-(-work.samples // world) for work in works.values())
    with ProgressBar("fisher", "samples", total, shown=progress and rank == 0) as bar:
        for name, work in works.items():
            settings = [work.describe(), meta, batch_tokens, rank, world, _SAVED]
            key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
            file = None if state is None else Path(state) / f"{name}.{rank}.safetensors"
            files[name] = _Sums(file, key, encoder, len(range(rank, work.samples, world)))
            _add_up(encoder, work, files[name], batch_tokens, bar, rank, world)
    importance, means = _combined(works, files)
    theta = {
        name: p.detach().to("cpu", torch.promote_types(p.dtype, torch.float32), copy=True)
        for name, p in encoder.named_parameters()
    }
    meta |= {
        "normalisation": _NORMALISATION,
        "tasks": {name: work.describe() | {"mean": means[name]} for name, work in works.items()},
        "versions": {name: version(name) for name in ("acge_lightning", "torch", "transformers")},
    }
    return Anchor(theta, importance, meta)


def write_anchor(
    file: str | Path, encoder: Encoder, tasks: Mapping[str, Task], bf16: bool = False, **settings: Any
) -> tuple[Path, Anchor]:
    """Write what `fisher` gives to a file. Until that is there, the sums are kept beside it, in `<its name>.parts`.

    Args:
        file: `….safetensors`.
        encoder: as in `fisher`.
        tasks: as in `fisher`.
        bf16: as in `Anchor.save`.
        settings: the other arguments of `fisher`.

    Raises:
        InputError: as `fisher`; the file is there and is no anchor; another process makes it; the disk is full, and the sums
            are kept for the next call.
    """
    file, is_main = Path(file), _rank_and_world()[0] == 0
    check_replaceable(file, ANCHOR.encode(), "an anchor")
    state = file.with_suffix(".parts")
    with lock(state / ".lock", wait=False) if is_main else nullcontext():
        anchor = fisher(encoder, tasks, **settings, state=state)
        if is_main:
            anchor.save(file, bf16)
            for sum_file in _sum_files(state, anchor.meta["tasks"]):
                sum_file.unlink(missing_ok=True)
    if is_main:
        with suppress(OSError):  # something else is there
            state.rmdir()
    return file, anchor


def _sum_files(state: Path, tasks: Iterable[str]) -> list[Path]:
    """The files of the sums of some tasks and all processes."""
    return [state / f"{name}.{rank}.safetensors" for name in tasks for rank in range(_rank_and_world()[1])]


class _TaskSamples:
    """A task's loss, its samples and its pool; texts are read and encoded in `begin`."""

    def __init__(
        self,
        encoder: Encoder,
        name: str,
        task: Task,
        dims: tuple[int, ...],
        estimator: Estimator,
        samples: int,
        pool: int,
        seed: int,
    ):
        self.encoder, self.name, self.task, self.estimator = encoder, name, task, estimator
        self.loss: nn.Module = task.training_loss()
        if dims:
            check_dims(dims, encoder.dim)
            self.loss = Matryoshka(self.loss, dims)
        frozen_loss(self.loss, _nothing(encoder), estimator)  # so errors come before anything is computed
        self.rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        self.collate = Collate(name, task.data, encoder)
        task.data.open()
        rows = len(task.data)
        if rows < 4:
            raise InputError(f"task {name} has {rows} training rows: at least 4 are needed, to be pool and samples")
        order = task.data.order(self.rng, self.rng.random(rows), batch_sizes(rows, task.data.batch_size))
        self.frozen = order[: 2 * min(pool, rows // 2) : 2]  # of each group of a label one half
        remaining = np.setdiff1d(np.arange(rows), self.frozen)
        self.chosen = self.rng.permutation(remaining)[:samples]
        self.samples = len(self.chosen)

    def begin(self) -> tuple[TextBatch, FrozenLoss, Tensor]:
        """The samples, their loss, and the numbers that decide on drawn targets."""
        pool, batch = (self.collate.training(rows, self.rng.random(len(rows))) for rows in (self.frozen, self.chosen))
        if len(batch.columns) > 1 and torch.equal(batch.columns[0].ids, batch.columns[1].ids):
            _LOG.warning(
                "%s: without dropout both views of a text are the same, so only the push away from others counts: "
                "set `augment`, or take labelled pairs",
                self.name,
            )
        batch, pool = batch.to(self.encoder.device), pool.to(self.encoder.device)
        negatives = None
        if len(batch.columns) > 2:
            negatives = _encoded(self.encoder, batch.columns[2:])[0], torch.cat(batch.ids[2:])
        vectors = _encoded(self.encoder, pool.columns)
        loss = frozen_loss(self.loss, Embedded(vectors, pool.labels, pool.ids), self.estimator, negatives)
        return batch, loss, torch.from_numpy(self.rng.random((len(batch), loss.draws_per_sample))).to(self.encoder.device)

    def describe(self) -> dict[str, Any]:
        """The provenance of the task's share of the anchor, as plain data."""
        inner = self.loss.loss if isinstance(self.loss, Matryoshka) else self.loss
        settings = {k: v for k, v in vars(inner).items() if k != "training" and not k.startswith("_")}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        data = self.task.data
        return {
            "data": {"family": data.family, "path": data.path, "rows": len(data), "fingerprint": data.fingerprint()},
            "loss": {"class": type(inner).__name__} | plain,
            "weight": self.task.weight,
            "samples": self.samples,
            "pool": len(self.frozen),
        }


def _add_up(
    encoder: Encoder, work: _TaskSamples, sums: _Sums, batch_tokens: int | None, bar: ProgressBar, rank: int, world: int
) -> None:
    """Add this process's share of a task's samples, from where its file ends."""
    own_samples = torch.arange(rank, work.samples, world)
    if sums.done >= len(own_samples):
        bar.advance(len(own_samples))
        return
    batch, loss, draws = work.begin()
    columns = [column.select(own_samples) for column in batch.columns[: loss.columns]]
    lengths = torch.stack([column.lengths for column in columns]).sum(0)
    done = 0
    with SampleGradients(encoder, absolute=work.estimator == "mas") as gradients:
        sums.count_into(gradients.totals)
        for chunk in Tokens(lengths[:0], lengths).chunks(batch_tokens or encoder.batch_tokens, packed=True):
            done += len(chunk)
            if done > sums.done:
                rows = own_samples[chunk].to(encoder.device)
                gradients.add([column.select(chunk) for column in columns], _losses(loss, batch, rows, draws))
                sums.keep(done, last=done == len(own_samples))
            bar.advance(len(chunk))


def _losses(loss: FrozenLoss, batch: TextBatch, rows: Tensor, draws: Tensor) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """A function that gives the losses of some of a chunk's samples, from their vectors."""

    def losses(vectors: tuple[Tensor, ...], which: Tensor) -> Tensor:
        chosen = rows[which.to(rows.device)]
        labels = batch.labels if batch.labels is None or batch.labels.dim() == 2 else batch.labels[chosen]
        ids = tuple(column[chosen] for column in batch.ids[: loss.columns])
        return loss(Embedded(vectors, labels, ids), draws[chosen])

    return losses


class _Sums:
    """Sums of one process and task over at most `limit` samples, in memory, and in a file if there is one."""

    def __init__(self, file: Path | None, key: str, encoder: Encoder, limit: int):
        self.file, self.key, self.limit, self.done = file, key, limit, 0
        self.layout = {name: (p.shape, p.dtype) for name, p in encoder.named_parameters()}
        self.totals: dict[str, Tensor] = {}  # empty where nothing has been counted, or where they are only in the file
        self._saved = time.monotonic()
        if file is not None and file.is_file():
            self._open(file)

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as opened:
                meta = opened.metadata() or {}
                if meta.get("key") != self.key:
                    _LOG.warning("%s is of other settings, data or weights: its task is begun anew", file)
                    return
                totals = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
                done = int(meta["done"])
            self._check(totals, done)
            self.totals, self.done = totals, done
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            _LOG.warning("%s cannot be read (%s): its task is begun anew", file, error)

    def _check(self, totals: Mapping[str, Tensor], done: int) -> None:
        """Raise a ValueError unless these are sums of squares, or of what is not negative either, of this encoder's weights."""
        if {name: (p.shape, p.dtype) for name, p in totals.items()} != self.layout or not 0 <= done <= self.limit:
            raise ValueError("it holds other weights, or more samples than there are")
        wrong = [name for name, p in totals.items() if p.numel() and not 0 <= float(p.min()) <= float(p.max()) < math.inf]
        if wrong:
            raise ValueError(f"{wrong[0]} holds a sum that is negative, infinite or NaN")

    def count_into(self, totals: dict[str, Tensor]) -> None:
        """Count into these tensors from now on, beginning with the sums so far."""
        for name, values in self.totals.items():
            totals[name].copy_(values)
        self.totals = totals

    def keep(self, done: int, last: bool) -> None:
        """Note that `done` samples are counted; write the file every half minute, and at the end."""
        self.done = done
        if self.file is not None and (last or time.monotonic() - self._saved > _SAVE_EVERY):
            with whole(self.file) as draft:
                totals = {name: values.cpu() for name, values in self.totals.items()}
                save_file(totals, draft, {"key": self.key, "done": str(done)})
            self._saved = time.monotonic()
        if last and self.file is not None:
            self.totals = {}  # read again when all tasks are there

    def take(self, encoder: Encoder) -> dict[str, Tensor]:
        """The sums over all processes."""
        if not self.totals and self.file is not None and self.done:
            self._open(self.file)
            if not self.totals:
                raise InputError(f"{self.file}, the sums of a task, was changed meanwhile: run this again, alone")
        totals = {name: torch.zeros_like(p, requires_grad=False) for name, p in encoder.named_parameters()}
        for name, values in self.totals.items():
            totals[name].copy_(values)
        self.totals = {}
        if _rank_and_world()[1] > 1:
            for values in totals.values():
                dist.all_reduce(values)
        return totals


def _combined(works: Mapping[str, _TaskSamples], files: Mapping[str, _Sums]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The normalised importance of all tasks, and each task's mean before."""
    importance: dict[str, Tensor] = {}
    means: dict[str, float] = {}
    for name, work in works.items():
        totals = files[name].take(work.encoder)
        mean = mean_of_rows(totals)
        if not 0 < mean < float("inf"):
            raise InputError(f"task {name}: the sum of squared gradients is {mean}: its samples and its loss say nothing")
        means[name] = mean / work.samples
        for key, values in totals.items():
            weighted = values.cpu() * (work.task.weight / mean)
            importance[key] = importance[key] + weighted if key in importance else weighted
    mean = mean_of_rows(importance)
    return {key: values / mean for key, values in importance.items()}, means


def mean_of_rows(values: Mapping[str, Tensor]) -> float:
    """The mean entry of all rows that are not all 0 (an entry of a vector is a row).

    >>> mean_of_rows({"table": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "bias": torch.tensor([0.0, 2.0])})
    1.0
    """
    tables = [v.reshape(v.shape[0] if v.dim() else 1, -1) for v in values.values() if v.numel()]
    count = sum(int(table.any(1).sum()) * table.shape[1] for table in tables)
    return sum(float(table.double().sum()) for table in tables) / max(1, count)


# ---- the encoder, the processes


@torch.no_grad()
def _encoded(encoder: Encoder, columns: Sequence[Tokens]) -> tuple[Tensor, ...]:
    with evaluation_mode(encoder):
        vectors = encoder(Tokens.cat(columns))
    return vectors.split([len(column) for column in columns])


def _nothing(encoder: Encoder) -> Embedded:
    empty, ids = torch.zeros(0, encoder.dim), torch.zeros(0, dtype=torch.long)
    return Embedded((empty, empty), None, (ids, ids))


def _rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def processes(device: str | None) -> Iterator[str | None]:
    """Join the other processes if `torchrun` started several; gives the device of this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2 or dist.is_initialized():
        yield device
        return
    cuda = str(device).startswith("cuda")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else device
    finally:
        dist.destroy_process_group()
