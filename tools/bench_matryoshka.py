"""Times the Matryoshka loss against sentence-transformers' MatryoshkaLoss, and training at seven dims against one.

    python tools/bench_matryoshka.py [--rounds N] [--threads N] [--data DIR] [--quick]

Both sides get the same embeddings of queries and positives (Float32[batch, 1792]), InfoNCE at temperature 0.05 with in-batch
negatives, and the same dims. Four settings: batches of 1024 and 4096, with the dims 256, 512, … 1792 and 64, 128, … 1024, 1792.
First, losses and gradients must be equal (fp64 to 1e-6, fp32 to 1e-5 of the largest entry), or nothing is timed. Then the sides
take turns; time is the median over the rounds. Memory is the peak during a forward and backward pass less what the process held
before, in a process of its own for each side.

Training is that of the experiment zh_multitask with a Dense head to 1792 dims, on the data sets of DIR ($ACGE_DATA): the same
batches with the seven dims of conf/matryoshka/acge and with the full one only, in turns; whole steps, the optimizer's included.

Ends with one JSON line: theirs over ours in time, ours over theirs in memory, of batch 1024 and the dims 256, 512, … 1792
(`settings` has all four), and `training_time_ratio`, seven dims over one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from process_memory import memory_mib, reset_peak
from rich.console import Console
from rich.table import Table
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

from acge_lightning.commands.single_run import make_encoder, make_tasks, make_trainer
from acge_lightning.config.building import instantiate
from acge_lightning.config.sources import config_dir
from acge_lightning.losses.contrastive import InfoNCE
from acge_lightning.losses.matryoshka import Matryoshka
from acge_lightning.terminal import track
from acge_lightning.training.embedding_module import EmbeddingModule

D, TEMPERATURE = 1792, 0.05
DIMS = {"even": tuple(range(256, D + 1, 256)), "doubling": (64, 128, 256, 512, 1024, D)}
SETTINGS = [(1024, "even"), (1024, "doubling"), (4096, "even"), (4096, "doubling")]
CONSOLE = Console(stderr=True)
Loss = Callable[[Tensor, Tensor], Tensor]


class Embeddings(nn.Module):
    """Stands for a model whose features are the embeddings."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features under the name that losses expect."""
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        """Their size."""
        return D


def ours(dims: tuple[int, ...]) -> Loss:
    loss = Matryoshka(InfoNCE(TEMPERATURE), dims)
    return lambda queries, documents: loss((queries, documents))


def theirs(dims: tuple[int, ...]) -> Loss:
    model = Embeddings()
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, 1 / TEMPERATURE), list(dims))
    return lambda queries, documents: loss([{"embedding": queries}, {"embedding": documents}], None)


SIDES = {"ours": ours, "theirs": theirs}


def columns(batch: int, dtype: torch.dtype = torch.float) -> tuple[Tensor, Tensor]:
    """Queries, and documents a little nearer to them than others: a loss far from 0, as early in training."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, D, generator=generator, dtype=torch.double)
    documents = queries + 8 * torch.randn(batch, D, generator=generator, dtype=torch.double)
    return queries.to(dtype).requires_grad_(), documents.to(dtype).requires_grad_()


def step(loss: Loss, embeddings: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The loss and its gradients."""
    value = loss(*embeddings)
    return [value.detach(), *torch.autograd.grad(value, embeddings)]


def check(batch: int, dims: tuple[int, ...]) -> None:
    """End the program unless both sides give the same."""
    for dtype, tolerance in ((torch.double, 1e-6), (torch.float, 1e-5)):
        results = [step(side(dims), columns(batch, dtype)) for side in SIDES.values()]
        for own, other in zip(*results, strict=True):
            difference = float((own - other).abs().max() / other.abs().max())
            if not difference <= tolerance:
                sys.exit(f"the sides differ by {difference:.1e} of the largest entry in {dtype}: nothing is timed")


def seconds(batch: int, dims: tuple[int, ...], rounds: int) -> dict[str, float]:
    embeddings, losses = columns(batch), {name: side(dims) for name, side in SIDES.items()}
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(rounds + 1):
        for name, loss in losses.items():
            start = time.perf_counter()
            step(loss, embeddings)
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(side: str, batch: int, dims: tuple[int, ...]) -> float:
    """MiB at the peak above the start, in this process."""
    loss, embeddings = SIDES[side](dims), columns(batch)
    step(SIDES[side]((D,)), columns(8))  # what is loaded at first use is loaded
    start = memory_mib("VmRSS")
    reset_peak()
    step(loss, embeddings)
    return memory_mib("VmHWM") - start


def peak_in_process(side: str, batch: int, dims: str, threads: int) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", side, str(batch), dims]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(batch: int, dims: str, rounds: int, threads: int) -> dict[str, Any]:
    check(min(batch, 256), DIMS[dims])
    time_of = seconds(batch, DIMS[dims], rounds)
    mib_of = {name: peak_in_process(name, batch, dims, threads) for name in SIDES}
    return {
        "batch": batch,
        "dims": DIMS[dims],
        "seconds": {name: round(value, 4) for name, value in time_of.items()},
        "mib": {name: round(value, 1) for name, value in mib_of.items()},
        "speedup": round(time_of["theirs"] / time_of["ours"], 3),
        "memory_ratio": round(mib_of["ours"] / mib_of["theirs"], 3),
    }


class Clock(Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self.start)


def training(data: str, rounds: int, steps: int) -> float:
    """Seconds of some steps at seven dims over those of the same steps at one; of each step the median over the rounds."""
    settings = ["+experiment=zh_multitask", "encoder.dense=1792", "matryoshka=acge", "callbacks=[]", "logger=none"]
    settings += [f"paths.data_dir={data}", f"trainer.max_steps={steps}", "+trainer.limit_val_batches=0"]
    settings += ["+trainer.enable_progress_bar=false", "+trainer.enable_checkpointing=false", "paths.output_dir=outputs"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", settings)
    tasks = make_tasks(cfg)
    weights = {name: task.weight for name, task in tasks.items()}
    mixture = instantiate(cfg.mixture, tasks={name: task.data for name, task in tasks.items()}, weights=weights)
    mixture.setup()
    encoder = make_encoder(cfg, mixture.train_texts())
    step_seconds: dict[str, list[list[float]]] = {"seven": [], "one": []}
    for _ in track(range(rounds + 1), "training", "rounds"):
        for name, runs in step_seconds.items():
            dims = cfg.matryoshka if name == "seven" else None
            module = EmbeddingModule(copy.deepcopy(encoder), tasks, dims, instantiate(cfg.optim))
            trainer, clock = make_trainer(cfg), Clock()
            trainer.callbacks.append(clock)
            trainer.fit(module, mixture)
            runs.append(clock.seconds)
    seven, one = (sum(map(statistics.median, zip(*runs[1:], strict=True))) for runs in step_seconds.values())
    return seven / one


def show(results: list[dict[str, Any]]) -> None:
    table = Table("batch", "dims", "ours s", "theirs s", "faster", "ours MiB", "theirs MiB", "memory ratio")
    for row in results:
        dims = ", ".join(map(str, row["dims"]))
        time_of, mib_of = (map(str, row[key].values()) for key in ("seconds", "mib"))
        table.add_row(str(row["batch"]), dims, *time_of, str(row["speedup"]), *mib_of, str(row["memory_ratio"]))
    CONSOLE.print(table)


def main(argv: list[str]) -> None:
    """Compare, time, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", "../shared/data"), help="folder of the data sets")
    parser.add_argument("--steps", type=int, default=80, help="training steps of a round")
    parser.add_argument("--quick", action="store_true", help="batch 64 only and no training, to see that it works")
    parser.add_argument("--peak", nargs=3, metavar=("SIDE", "BATCH", "DIMS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak:
        side, batch, dims = args.peak
        print(peak(side, int(batch), DIMS[dims]))
        return
    settings = [(64, "even"), (64, "doubling")] if args.quick else SETTINGS
    results = [measure(*setting, args.rounds, args.threads) for setting in track(settings, "measuring", "settings")]
    show(results)
    answer: dict[str, Any] = {"loss_speedup": results[0]["speedup"], "loss_memory_ratio": results[0]["memory_ratio"]}
    if not args.quick:
        answer["training_time_ratio"] = round(training(args.data, args.rounds // 3, args.steps), 3)
    print(json.dumps(answer | {"threads": args.threads, "settings": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
