"""Times a training step against sentence-transformers: same weights, same texts, same loss, same optimizer, both tokenising.

    python tools/bench_step.py [--steps N] [--rounds N] [--threads N] [--quick]

A fresh BERT (4 layers of 256) trains on made-up texts with InfoNCE at four Matryoshka dims; sentence-transformers does the same
with MultipleNegativesRankingLoss and MatryoshkaLoss. A step goes from texts to updated weights. Three mixes of texts:

- passages: 64 queries of about 12 tokens, their passages of about 120, some of up to 500
- short: 64 pairs of 8 to 40 tokens
- long: 16 pairs of 200 to 1000 tokens

First, losses and gradients must be equal (dropout off, fp64, a quarter of each batch), or nothing is timed. Then every setting
of both sides runs once; sentence-transformers' default, its fastest setting and ours take turns after that. Each run is a
process of its own. Time is the median of its steps after one of warming up; memory is the peak during the steps less what the
process held before them. Ends with one JSON line: theirs over ours in time, ours over theirs in memory, all with `OURS`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from process_memory import memory_mib, reset_peak
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from acge_lightning import load
from acge_lightning.encoder.build import quiet, transformer
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.export.sentence_transformers import save_backbone
from acge_lightning.losses.contrastive import InfoNCE
from acge_lightning.losses.matryoshka import Matryoshka
from acge_lightning.terminal import ProgressBar
from acge_lightning.training.optim import parameter_groups

Columns = list[list[str]]
Side = tuple[nn.Module, Callable[[Columns], Tensor]]  # a model, and its loss of texts
Result = dict[str, Any]

PAIRS = {"passages": 64, "short": 64, "long": 16}
DIMS = (256, 128, 64, 32)
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 1024,
}
CHARACTERS = [chr(0x4E00 + i) for i in range(6000)]  # each is one token
DEFAULT = "theirs default"
THEIRS: dict[str, dict[str, int]] = {
    DEFAULT: {},
    **{f"theirs cached {n}": {"mini_batch_size": n} for n in (8, 16, 32)},
    **{f"theirs cached {n} tokens": {"mini_batch_num_tokens": n} for n in (1024, 2048, 4096)},
}
OURS = "ours"  # all settings at their defaults; all ratios are its
ALL_OURS: dict[str, dict[str, Any]] = {
    OURS: {},
    **{f"ours {n}": {"batch_tokens": n} for n in (1024, 4096, 8192)},
    "ours recompute": {"recompute": True},
    "ours padded": {"attention": "sdpa"},
}
QUICK = [DEFAULT, "theirs cached 8", OURS]
OPTIMIZER = partial(torch.optim.AdamW, lr=2e-5, fused=True)  # what the trainer of sentence-transformers takes
TOLERANCE = 1e-5
CONSOLE = Console(stderr=True)


# ---- the texts and the model


def texts(mix: str, step: int, shrink: int = 1) -> Columns:
    """Queries and positives of a step; the same for the same arguments. `shrink` divides their number and their lengths."""
    rng = random.Random(f"{mix} {step}")
    lengths: dict[str, list[Callable[[], int]]] = {
        "passages": [partial(rng.randint, 8, 16), lambda: min(500, max(20, round(rng.lognormvariate(math.log(100), 0.6))))],
        "short": [partial(rng.randint, 8, 40)] * 2,
        "long": [partial(rng.randint, 200, 1000)] * 2,
    }
    pairs = max(4, PAIRS[mix] // shrink)
    return [["".join(rng.choices(CHARACTERS, k=max(1, n() // shrink - 2))) for _ in range(pairs)] for n in lengths[mix]]


def make_model(folder: Path) -> Path:
    """A fresh model, as a folder that both sides read."""
    torch.manual_seed(0)
    tokenizer = train_vocabulary(CHARACTERS, vocab_size=len(CHARACTERS) * 3 // 2)
    return save_backbone(transformer(tokenizer, CONFIG, max_length=1024), folder)


# ---- the two sides


def our_side(folder: Path, dims: Sequence[int] = DIMS, device: str = "cpu", **settings: Any) -> Side:
    """Our encoder and its loss of a batch of texts, as `EmbeddingModule` computes it."""
    encoder = load(folder, device=device, attention=settings.pop("attention", None)).train()
    loss = Matryoshka(InfoNCE(temperature=0.05), dims)

    def step(columns: Columns) -> Tensor:
        tokens = [encoder.tokenize(column) for column in columns]
        sizes = [len(t) for t in tokens]
        ids = torch.arange(sum(sizes), device=device).split(sizes)
        return loss(encoder(Tokens.cat(tokens).to(device), **settings).split(sizes), None, ids)

    return encoder, step


def their_side(folder: Path, dims: Sequence[int] = DIMS, device: str = "cpu", **settings: Any) -> Side:
    """The same of sentence-transformers; any setting makes it the cached loss."""
    with quiet():
        model = SentenceTransformer(str(folder), device=device).train()
    kind = CachedMultipleNegativesRankingLoss if settings else MultipleNegativesRankingLoss
    loss = MatryoshkaLoss(model, kind(model, scale=20.0, **settings), list(dims))
    return model, lambda columns: loss([batch_to_device(model.preprocess(c), model.device) for c in columns], None)


def make_side(setting: str, folder: Path) -> Side:
    """The side that a setting belongs to, with it."""
    return our_side(folder, **ALL_OURS[setting]) if setting in ALL_OURS else their_side(folder, **THEIRS[setting])


# ---- equality


def loss_and_gradients(setting: str, folder: Path, columns: Columns) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients in fp64 and without dropout; gradients by the name of the parameter within the backbone."""
    model, step = make_side(setting, folder)
    loss = step_of(model.double().eval(), step, columns)
    backbone = model.backbone if setting in ALL_OURS else model[0].auto_model
    return loss, {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def step_of(model: nn.Module, step: Callable[[Columns], Tensor], columns: Columns) -> Tensor:
    model.zero_grad()
    loss = step(columns)
    loss.backward()
    return loss.detach()


def relative_difference(own: Tensor, other: Tensor, floor: float) -> float:
    """Largest difference over the largest value; `floor` keeps gradients that are 0 but for rounding from counting."""
    return ((own - other).abs().max() / other.abs().max().clamp(min=floor)).item()


def check_equal(folder: Path, shrink: int = 1) -> float:
    """The largest relative difference of loss and gradients over all mixes; ends the program if it is not below 1e-5."""
    worst = 0.0
    for mix in PAIRS:
        columns = [column[: max(4, len(column) // 4)] for column in texts(mix, 0, shrink)]
        expected, gradients = loss_and_gradients(DEFAULT, folder, columns)
        floor = 1e-6 * max(g.abs().max().item() for g in gradients.values())
        for setting in (OURS, "ours recompute", "ours padded", "theirs cached 8"):
            loss, own_gradients = loss_and_gradients(setting, folder, columns)
            if own_gradients.keys() != gradients.keys():
                sys.exit(f"{mix}: {setting} has gradients of other parameters than {DEFAULT}: nothing is timed")
            differences = {name: relative_difference(own_gradients[name], g, floor) for name, g in gradients.items()}
            for name, difference in (differences | {"the loss": relative_difference(loss, expected, floor)}).items():
                if not difference < TOLERANCE:  # NaN too
                    sys.exit(f"{mix}: {setting} and {DEFAULT} differ by {difference:.1e} in {name}: nothing is timed")
                worst = max(worst, difference)
    return worst


# ---- measuring


def measure(folder: Path, setting: str, mix: str, steps: int, shrink: int = 1) -> Result:
    """Times one setting in this process: seconds of each step after the first, and MiB at the peak above the start."""
    torch.manual_seed(0)
    model, step = make_side(setting, folder)
    groups = parameter_groups(model, 0.01) if setting in ALL_OURS else model.parameters()
    optimizer = OPTIMIZER(groups)
    start_mib = memory_mib("VmRSS")
    reset_peak()
    seconds = []
    for i in range(steps + 1):
        columns = texts(mix, i, shrink)
        start = time.perf_counter()
        step_of(model, step, columns)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "mib": memory_mib("VmHWM") - start_mib}


def spawn(folder: Path, setting: str, mix: str, steps: int, shrink: int = 1) -> Result:
    """`measure` in a process of its own."""
    job = [str(folder), setting, mix, steps, shrink, torch.get_num_threads()]
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def run_job(job: str) -> None:
    folder, *rest, threads = json.loads(job)
    torch.set_num_threads(threads)
    print(json.dumps(measure(Path(folder), *rest)))


def measure_all(folder: Path, args: argparse.Namespace) -> tuple[dict[str, dict[str, list[Result]]], dict[str, str]]:
    """Results by mix and setting, and each mix's fastest setting of theirs."""
    trial_runs: dict[str, dict[str, list[Result]]] = {}
    compared_runs: dict[str, dict[str, list[Result]]] = {}
    best: dict[str, str] = {}
    settings = QUICK if args.quick else [*THEIRS, *ALL_OURS]
    with ProgressBar("", "runs", len(PAIRS) * (len(settings) + 3 * args.rounds)) as bar:

        def run(setting: str, mix: str, steps: int) -> Result:
            bar.rename(f"{mix}: {setting}")
            result = spawn(folder, setting, mix, steps, shrink_of(args))
            bar.print_line(f"{mix}: {setting}: {seconds_of([result]):.3f} s, {result['mib']:.0f} MiB")
            bar.advance()
            return result

        for mix in PAIRS:
            trial_runs[mix] = {setting: [run(setting, mix, 1)] for setting in settings}
            best[mix] = min((s for s in settings if s in THEIRS), key=lambda s: seconds_of(trial_runs[mix][s]))
            turns = list(dict.fromkeys([DEFAULT, OURS, best[mix]]))
            compared_runs[mix] = {setting: [] for setting in turns}
            for turn in range(args.rounds):
                for setting in turns if turn % 2 == 0 else reversed(turns):
                    compared_runs[mix][setting].append(run(setting, mix, args.steps))
            bar.advance((3 - len(turns)) * args.rounds)
    return {mix: trial_runs[mix] | compared_runs[mix] for mix in PAIRS}, best


def shrink_of(args: argparse.Namespace) -> int:
    return 8 if args.quick else 1


def seconds_of(results: list[Result]) -> float:
    """The median over all steps of all runs."""
    return statistics.median(s for result in results for s in result["seconds"])


def mib_of(results: list[Result]) -> float:
    """The median over runs of the peak."""
    return statistics.median(result["mib"] for result in results)


# ---- the answer


def ratios(results: dict[str, list[Result]], best: str) -> dict[str, float]:
    """The three ratios of a mix."""
    ours = results[OURS]
    fastest = min(seconds_of(results[best]), seconds_of(results[DEFAULT]))
    return {
        "ratio_vs_default": round(seconds_of(results[DEFAULT]) / seconds_of(ours), 3),
        "ratio_vs_best": round(fastest / seconds_of(ours), 3),
        "memory_ratio_vs_default": round(mib_of(ours) / mib_of(results[DEFAULT]), 3),
    }


def rows(results_of: dict[str, dict[str, list[Result]]], best: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for mix, settings in results_of.items():
        for setting, results in settings.items():
            steps = sum(len(result["seconds"]) for result in results)
            note = " (best of theirs)" if setting == best[mix] else " (compared)" if setting == OURS else ""
            yield mix, setting + note, f"{seconds_of(results):.3f}", f"{mib_of(results):.0f}", str(steps)


def show(results_of: dict[str, dict[str, list[Result]]], best: dict[str, str]) -> None:
    """The table and the JSON line."""
    title = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table("mix", "setting", "s a step", "MiB", "steps", title=title)
    for row in rows(results_of, best):
        table.add_row(*row)
    Console().print(table)
    print(json.dumps({mix: ratios(results_of[mix], best[mix]) for mix in PAIRS}))


def main(argv: list[str]) -> None:
    """Check, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a run that is compared")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each setting that is compared")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on both sides")
    parser.add_argument("--quick", action="store_true", help="tiny batches: shows that it works, its ratios mean nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        run_job(args.job)
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_model(Path(temporary) / "model")
        with CONSOLE.status("losses and gradients of both sides"):
            worst = check_equal(folder, shrink_of(args))
        CONSOLE.print(f"losses and gradients are equal (largest relative difference {worst:.1e})")
        results_of, best = measure_all(folder, args)
    show(results_of, best)


if __name__ == "__main__":
    main(sys.argv[1:])
