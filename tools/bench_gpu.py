"""Times a training step of the acge-large geometry on a GPU in bf16 autocast, against sentence-transformers.

    python tools/bench_gpu.py [--steps N] [--rounds N] [--peak-tflops X]

24 layers of 1024 and a head of 1792 dims, with the texts, the losses and the optimizer of `bench_step.py`. Tokens are counted
without padding. Model FLOPs are those of forward and backward over them: 6 a weight and token, plus attention. Work done twice
or on padding does not count. Ends with one JSON line; without a GPU it is {"gpu": null}.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_step import CHARACTERS, DEFAULT, OPTIMIZER, PAIRS, our_side, step_of, texts, their_side
from rich.console import Console
from rich.table import Table

from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.export.sentence_transformers import export
from acge_lightning.terminal import ProgressBar
from acge_lightning.training.optim import parameter_groups

Result = dict[str, float]

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 1024,
}
DIMS = (1792, 1024, 512, 256)
PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0}  # bf16, dense
THEIRS: dict[str, dict[str, int]] = {
    DEFAULT: {},
    **{f"theirs cached {n}": {"mini_batch_size": n} for n in (8, 16, 32)},
    **{f"theirs cached {n} tokens": {"mini_batch_num_tokens": n} for n in (4096, 8192)},
}
OURS = "ours"  # all settings at their defaults; all ratios are its
ALL_OURS: dict[str, dict[str, Any]] = {
    OURS: {},
    **{f"ours {n}": {"batch_tokens": n} for n in (4096, 8192, 32768)},
    "ours recompute": {"recompute": True},
    "ours padded": {"attention": "sdpa"},
}


def make_model(folder: Path, config: dict[str, Any] = CONFIG, dense: int = DIMS[0]) -> Path:
    """A fresh encoder with a head, as a folder that both sides read."""
    torch.manual_seed(0)
    tokenizer = train_vocabulary(CHARACTERS, vocab_size=len(CHARACTERS) * 3 // 2)
    return export(transformer(tokenizer, config, max_length=1024, dense=dense), folder)


def model_flops(lengths: list[int], config: dict[str, Any] = CONFIG, dense: int = DIMS[0]) -> float:
    """FLOPs of forward and backward over texts of these lengths.

    >>> config = {"num_hidden_layers": 1, "hidden_size": 2, "intermediate_size": 8}
    >>> model_flops([3], config, 1)  # 6 * 3 * (4 * 4 + 2 * 16) + 12 * 2 * 9 + 6 * 2
    1092
    """
    layers, width, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    weights = layers * (4 * width * width + 2 * width * inner)
    attention = 12 * layers * width * sum(n * n for n in lengths)
    return 6 * weights * sum(lengths) + attention + 6 * width * dense * len(lengths)


def peak_tflops(name: str) -> float:
    """The card's bf16 peak; NaN for a card that is not in the table."""
    return next((peak for card, peak in PEAK_TFLOPS.items() if card in name), float("nan"))


def measure(folder: Path, setting: str, mix: str, steps: int, device: str = "cuda", shrink: int = 1) -> Result:
    """Median seconds, tokens and model FLOPs a second, and the peak of memory in MiB over that of the model."""
    torch.manual_seed(0)
    ours = setting in ALL_OURS
    settings = ALL_OURS[setting] if ours else THEIRS[setting]
    model, step = (our_side if ours else their_side)(folder, DIMS, device, **settings)
    optimizer = OPTIMIZER(parameter_groups(model, 0.01) if ours else model.parameters())
    on_gpu = device == "cuda"
    start_bytes = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, rates, flops = [], [], []
    for i in range(steps + 2):
        columns = texts(mix, i, shrink)
        lengths = [len(text) + 2 for column in columns for text in column]  # a token a character, and [CLS] and [SEP]
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            step_of(model, step, columns)
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        rates.append(sum(lengths) / seconds[-1])
        flops.append(model_flops(lengths) / seconds[-1])
    peak = torch.cuda.max_memory_allocated() - start_bytes if on_gpu else float("nan")
    timed = {"seconds": seconds, "tokens_per_second": rates, "flops": flops}
    return {name: statistics.median(values[2:]) for name, values in timed.items()} | {"mib": peak / 2**20}


def measure_all(folder: Path, steps: int, rounds: int) -> dict[str, dict[str, list[Result]]]:
    """Results by mix and setting; settings take turns, and one that runs out of memory has none."""
    results_of: dict[str, dict[str, list[Result]]] = {mix: {s: [] for s in [*THEIRS, *ALL_OURS]} for mix in PAIRS}
    with ProgressBar("", "runs", rounds * len(PAIRS) * (len(THEIRS) + len(ALL_OURS))) as bar:
        for mix, settings in results_of.items():
            for turn in range(rounds):
                for setting in settings if turn % 2 == 0 else reversed(settings):
                    bar.rename(f"{mix}: {setting}")
                    try:
                        settings[setting].append(measure(folder, setting, mix, steps))
                    except torch.OutOfMemoryError:
                        bar.print_line(f"{mix}: {setting}: out of memory")
                    gc.collect()
                    torch.cuda.empty_cache()
                    bar.advance()
    return results_of


def median(results: list[Result], name: str) -> float:
    """NaN if there are no results."""
    return statistics.median(result[name] for result in results) if results else float("nan")


def summary(settings: dict[str, list[Result]], peak: float) -> dict[str, float | None]:
    """What is reported of a mix; None for what could not be measured."""
    ours, default = (median(settings[name], "seconds") for name in (OURS, DEFAULT))
    best = min((median(settings[name], "seconds") for name in THEIRS if settings[name]), default=float("nan"))
    values = {
        "tokens_per_second": median(settings[OURS], "tokens_per_second"),
        "mfu": median(settings[OURS], "flops") / (peak * 1e12),
        "ratio_vs_default": default / ours,
        "ratio_vs_best": best / ours,
        "memory_ratio_vs_default": median(settings[OURS], "mib") / median(settings[DEFAULT], "mib"),
    }
    return {name: round(value, 3) if value == value else None for name, value in values.items()}


def show(results_of: dict[str, dict[str, list[Result]]], peak: float, name: str) -> None:
    """The table and the JSON line."""
    table = Table("mix", "setting", "s a step", "tokens/s", "MFU", "MiB", title=f"{name}, peak {peak} TFLOP/s bf16")
    for mix, settings in results_of.items():
        for setting, results in settings.items():
            values = [median(results, key) for key in ("seconds", "tokens_per_second", "flops", "mib")]
            shown = [f"{values[0]:.4f}", f"{values[1]:.0f}", f"{values[2] / (peak * 1e12):.1%}", f"{values[3]:.0f}"]
            table.add_row(mix, setting, *shown)
    Console().print(table)
    print(json.dumps({"gpu": name, **{mix: summary(settings, peak) for mix, settings in results_of.items()}}))


def main(argv: list[str]) -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a run, after two of warming up")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each setting")
    parser.add_argument("--peak-tflops", type=float, help="bf16 peak of the card, instead of the table's")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured.")
        print(json.dumps({"gpu": None}))
        return
    name = torch.cuda.get_device_name()
    peak = args.peak_tflops or peak_tflops(name)
    with tempfile.TemporaryDirectory() as temporary:
        results_of = measure_all(make_model(Path(temporary) / "model"), args.steps, args.rounds)
    show(results_of, peak, name)


if __name__ == "__main__":
    main(sys.argv[1:])
