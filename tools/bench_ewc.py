"""Times the Fisher information against a loop over samples, and the pull to an anchor against a penalty in the loss.

    python tools/bench_ewc.py [--rounds N] [--threads N] [--quick]

The encoder is a BERT of 4 layers x 256 with a vocabulary of 8000, the texts are random tokens. Three settings of 64 samples:
`short`, one text of 8 to 40 tokens each (LabelContrast); `pairs`, two such texts each (InfoNCE); `long`, one text of 40 to
200 tokens. The loop encodes one sample at a time, unpadded, without a mask, and squares the gradient that autograd gives.
First both must give the same (fp64, to 1e-6 of the largest entry), or nothing is timed. Then they take turns with one batched
forward and backward pass without per-sample work, which is the ceiling; a figure is the median of the rounds' ratios. `lean` is
the same loop with sparse gradients of the token table, of which an ordinary loop squares all 8000 rows a sample.

A training step is 64 such pairs, InfoNCE, backward and fused AdamW, with `add_penalty_gradient_` between the last two, as a
callback calls it; `step_overhead` is a step's time over the same step's without the call. `textbook_ratio` is the time that
the penalty in the loss adds, forward and backward, over that of the call.

Memory is in copies of the parameters (a BERT of 8 layers x 512), with theta* and F from an anchor's file, as a callback has
them. `memory_copies` is their tensors and what torch has allocated at the peak of a step beyond a plain step's peak: it is the
same in every run. `process_copies` is the peak of a process (VmHWM) beyond that of plain steps, the file's pages included, the
median of five processes; what malloc keeps of memory that was freed makes them differ by a tenth of a copy.

Ends with one JSON line: `fisher_speedup` (short), `fisher_speedup_long`, `fisher_ceiling` (short), `step_overhead`,
`textbook_ratio`, `memory_copies`, and more of the same.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from process_memory import memory_mib, reset_peak
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.ewc import add_penalty_gradient_, penalty
from acge_lightning.continual.pool_loss import Embedded, FrozenLoss, frozen_loss
from acge_lightning.continual.sample_gradients import SampleGradients
from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.losses.contrastive import InfoNCE, LabelContrast
from acge_lightning.terminal import track

N, POOL, VOCABULARY = 64, 512, 8000
SETTINGS = {"short": (8, 40, 1), "pairs": (8, 40, 2), "long": (40, 200, 1)}  # fewest and most tokens, texts a sample
CONSOLE = Console(stderr=True)
Job = Callable[[], Any]
Losses = Callable[[tuple[Tensor, ...], Tensor], Tensor]  # the columns' vectors, and the rows of their samples


def encoder(layers: int = 4, size: int = 256) -> Encoder:
    """A BERT with random weights and a vocabulary that nobody reads."""
    words = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(VOCABULARY - 2))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    config = {"model_type": "bert", "hidden_size": size, "num_hidden_layers": layers, "intermediate_size": 4 * size}
    return transformer(tokenizer, config | {"num_attention_heads": size // 64}).eval()


def random_texts(shortest: int, longest: int, generator: torch.Generator, count: int = N) -> Tokens:
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    return Tokens(torch.randint(2, VOCABULARY, (int(lengths.sum()),), generator=generator), lengths)


def make_samples(setting: str, dtype: torch.dtype = torch.float) -> tuple[list[Tokens], Losses]:
    """The samples of a setting and their losses."""
    shortest, longest, count = SETTINGS[setting]
    generator = torch.Generator().manual_seed(0)
    columns = [random_texts(shortest, longest, generator) for _ in range(count)]
    frozen = tuple(torch.randn(POOL, 256, generator=generator, dtype=torch.double).to(dtype) for _ in range(count))
    labels = torch.randint(8, (POOL + N,), generator=generator)
    ids = tuple(torch.arange(POOL + N) + k * 10_000 for k in range(count))
    pool = Embedded(frozen, labels[N:] if count == 1 else None, tuple(column[N:] for column in ids))
    loss: FrozenLoss = frozen_loss(LabelContrast() if count == 1 else InfoNCE(), pool)

    def losses(vectors: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return loss(Embedded(vectors, labels[rows] if count == 1 else None, tuple(column[rows] for column in ids)))

    return columns, losses


class Sides:
    """The Fisher information by our estimator, by a loop, and what a batch costs without it."""

    def __init__(self, model: Encoder, setting: str, dtype: torch.dtype = torch.float):
        self.model, (self.columns, self.losses) = model, make_samples(setting, dtype)
        self.rows = [[column.select(torch.tensor([i])).ids[None] for column in self.columns] for i in range(N)]

    def ours(self) -> dict[str, Tensor]:
        """In chunks, by the layers' inputs and gradients."""
        with SampleGradients(self.model) as gradients:
            lengths = torch.stack([column.lengths for column in self.columns]).sum(0)
            for chunk in Tokens(lengths[:0], lengths).chunks(self.model.batch_tokens, packed=True):
                columns = [column.select(chunk) for column in self.columns]
                gradients.add(columns, lambda vectors, rows, chunk=chunk: self.losses(vectors, chunk[rows]))
        return gradients.totals

    def loop(self) -> dict[str, Tensor]:
        """One sample after the other."""
        self.model.backbone.set_attn_implementation("sdpa")
        parameters = dict(self.model.named_parameters())
        totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for i, sample_ids in enumerate(self.rows):
            vectors = tuple(self.model.backbone(input_ids=ids).last_hidden_state.mean(1) for ids in sample_ids)
            gradients = torch.autograd.grad(self.losses(vectors, torch.tensor([i])).sum(), list(parameters.values()))
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient.is_sparse:
                    gradient = gradient.coalesce()
                    total.index_add_(0, gradient.indices()[0], gradient.values().square_())
                else:
                    total.addcmul_(gradient, gradient)
        self.model.backbone.set_attn_implementation("packed")
        return totals

    def lean(self) -> dict[str, Tensor]:
        """The loop, without the rows of the token table that a sample does not have."""
        table = self.model.backbone.embeddings.word_embeddings
        table.sparse = True
        totals = self.loop()
        table.sparse = False
        return totals

    def batch(self) -> None:
        """Forward and backward, once."""
        vectors = self.model(Tokens.cat(self.columns)).split(N)
        self.losses(vectors, torch.arange(N)).sum().backward()
        self.model.zero_grad()


def check(setting: str) -> float:
    """The largest difference of the sides, relative to the largest entry; ends the program if they do not agree."""
    torch.manual_seed(0)
    sides = Sides(encoder().double(), setting, torch.double)
    ours, loop = sides.ours(), sides.loop()
    difference = max(float((ours[name] - loop[name]).abs().max()) for name in loop) / max(float(x.max()) for x in loop.values())
    if not difference <= 1e-6:
        sys.exit(f"{setting}: the sides differ by {difference:.1e} of the largest entry: nothing is timed")
    return difference


def seconds(jobs: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; one more round comes first, to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def fisher(setting: str, rounds: int) -> dict[str, Any]:
    difference = check(setting)
    torch.manual_seed(0)
    sides = Sides(encoder(), setting)
    time_of = seconds({"ours": sides.ours, "loop": sides.loop, "lean": sides.lean, "batch": sides.batch}, rounds)
    return {
        "setting": setting,
        "seconds": {name: round(statistics.median(values), 4) for name, values in time_of.items()},
        "speedup": median_ratio(time_of["loop"], time_of["ours"]),
        "speedup_lean": median_ratio(time_of["lean"], time_of["ours"]),
        "ceiling": median_ratio(time_of["loop"], time_of["batch"]),
        "difference": difference,
    }


class Step:
    """A training step, and what an anchor adds to it."""

    def __init__(self, model: Encoder, bf16: bool = False, count: int = N):
        self.model, self.loss = model.train(), InfoNCE()
        self.theta = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.theta, lr=2e-5, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.columns = [random_texts(8, 40, generator, count) for _ in range(2)]
        self.bf16, self.star, self.importance = bf16, [], []

    def anchor(self) -> None:
        """Hold theta* and F, as they come from a file."""
        theta = {str(i): p.detach() for i, p in enumerate(self.theta)}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "anchor.safetensors"
            fisher = {name: torch.rand_like(p) for name, p in theta.items()}
            anchor = Anchor.load(Anchor(theta, fisher, {}).save(file, self.bf16))
        self.star, self.importance = ([tensors[name] for name in theta] for tensors in (anchor.theta, anchor.fisher))

    def ours(self) -> float:
        """What a callback does."""
        start = time.perf_counter()
        add_penalty_gradient_([p.grad for p in self.theta], self.theta, self.star, self.importance, 1.0)
        return time.perf_counter() - start

    def textbook(self) -> float:
        """The penalty as one writes it, and its backward pass."""
        start = time.perf_counter()
        terms = [(f * (p - star) ** 2).sum() for p, star, f in zip(self.theta, self.star, self.importance, strict=True)]
        (0.5 * torch.stack(terms).sum()).backward()
        return time.perf_counter() - start

    def __call__(self, added: Callable[[], float] | None = None) -> tuple[float, float]:
        """Seconds of the step, and of what was added to it."""
        start = time.perf_counter()
        vectors = self.model(Tokens.cat(self.columns)).split(len(self.columns[0]))
        self.loss(vectors).backward()
        extra = added() if added else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return time.perf_counter() - start, extra


def steps(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    step = Step(encoder())
    step.anchor()
    ours, textbook = [], []
    for turn in range(rounds + 1):
        for added, times in ((step.ours, ours), (step.textbook, textbook)):
            step_and_extra = step(added)
            if turn:
                times.append(step_and_extra)
    return {
        "step_overhead": round(statistics.median(whole / (whole - extra) for whole, extra in ours), 4),
        "step_overhead_textbook": round(statistics.median(whole / (whole - extra) for whole, extra in textbook), 4),
        "textbook_ratio": median_ratio([extra for _, extra in textbook], [extra for _, extra in ours]),
        "step_seconds": round(statistics.median(whole - extra for whole, extra in ours), 4),
        "penalty_value": round(float(penalty([p.detach() for p in step.theta], step.star, step.importance, 1.0)), 6),
    }


def small_step(side: str) -> tuple[Step, Callable[[], float]]:
    """A step of so few texts that activations do not hide what is measured, and what is added to it."""
    step = Step(encoder(8, 512), bf16=side == "bf16", count=2)
    return step, step.textbook if side == "textbook" else step.ours


def copies(side: str) -> float:
    """Copies of the parameters in theta*, F, and what a step with them allocates at its peak beyond a plain step."""
    step, added = small_step(side)
    plain = allocated(step)
    step.anchor()
    anchor_bytes = sum(t.nbytes for t in (*step.star, *step.importance))
    return round((anchor_bytes + allocated(step, added) - plain) / sum(p.nbytes for p in step.theta), 3)


def allocated(step: Step, added: Callable[[], float] | None = None) -> int:
    """Bytes at the peak of what torch allocates in a step, once gradients and the optimizer's state are there."""
    step(added)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(added)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def peak(side: str) -> float:
    """Copies of the parameters at the peak of an anchored step above that of a plain one, in this process."""
    step, added = small_step(side)
    step.anchor()
    step(added)  # what is loaded once, programs and the like, is no copy of the parameters
    step.star, step.importance = [], []
    plain = peak_of(step)
    step.anchor()
    return (peak_of(step, added) - plain) / (sum(p.nbytes for p in step.theta) / 2**20)


def peak_of(step: Step, added: Callable[[], float] | None = None) -> float:
    """MiB at the peak of some steps, when all that is freed has been given back and the first ones are done."""
    for measured in (False, True):
        ctypes.CDLL(None).malloc_trim(0)
        if measured:
            reset_peak()
        for _ in range(3):
            step(added)
    return memory_mib("VmHWM")


def peak_in_processes(side: str, threads: int) -> float:
    """`peak` in processes of their own: the median of five."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", side]
    peaks = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(5)]
    return round(statistics.median(peaks), 3)


def show(results: list[dict[str, Any]]) -> None:
    table = Table("64 samples", "ours s", "loop s", "lean loop s", "batch s", "faster", "than lean", "ceiling")
    for row in results:
        times = map(str, row["seconds"].values())
        table.add_row(row["setting"], *times, str(row["speedup"]), str(row["speedup_lean"]), str(row["ceiling"]))
    CONSOLE.print(table)


def main(argv: list[str]) -> None:
    """Compare, time, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one round, short texts only, to see that it works")
    parser.add_argument("--peak", choices=["fp32", "bf16", "textbook"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(args.peak))
        return
    settings, rounds = (["short"], 1) if args.quick else (list(SETTINGS), args.rounds)
    results = [fisher(setting, rounds) for setting in track(settings, "measuring", "settings")]
    show(results)
    answer: dict[str, Any] = {"fisher_speedup": results[0]["speedup"], "fisher_ceiling": results[0]["ceiling"]}
    answer |= {f"fisher_speedup_{row['setting']}": row["speedup"] for row in results[1:]}
    answer |= steps(rounds)
    for side, suffix in {"fp32": "", "bf16": "_bf16", "textbook": "_textbook"}.items():
        answer |= {f"memory_copies{suffix}": copies(side), f"process_copies{suffix}": peak_in_processes(side, args.threads)}
    print(json.dumps(answer | {"threads": args.threads, "settings": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
