"""Times cleaning at 100 k, 300 k and 1 M rows, with the peak of memory, and semhash and datasketch beside it where installed.

    python tools/bench_mining.py [--data DIR] [--rows N ...] [--rounds N]

Real: distinct texts of the unlabelled and classified sets in a fixed random order; 100 k and 300 k are the first ones of it.
Tiled: a million rows are those 300 k and copies of them with 30 % of their characters replaced, which makes few duplicates.
`clean`: keys with script (OpenCC), then exact, re-ordered and near duplicates. Each size is timed in a process of its own with
one thread, texts as an Arrow array in memory; seconds are those of the processor, the median of the rounds, and the peak is
that of the whole process, texts among them. On the smallest size: datasketch, MinHash of the same 2-grams of the same keys,
128 values, 3 × 42, without verification; semhash at its default threshold of .9 with a static
encoder, fresh (its vocabulary is not timed).

Ends with one JSON line: `clean_rows_per_s` at the largest size, `growth` the time per row at 300 k real rows by that at 100 k,
`peak_mib` at the largest size; null for what was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from process_memory import memory_mib
from rich.console import Console
from rich.table import Table

from acge_lightning.data.readers import rows
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.mining.cleaning.deduplicate import near_duplicates
from acge_lightning.mining.normalise import duplicate_keys

SIZES = (100_000, 300_000, 1_000_000)
REAL = 300_000
REPLACED = 0.3  # of the characters of a tile
CONSOLE = Console(stderr=True, width=128)


def real_texts(data: Path) -> list[str]:
    """REAL distinct texts of two characters or more, in a fixed random order."""
    texts: dict[str, None] = {}
    for family in ("unlabelled", "classification"):
        for file in sorted((data / family).glob("*/train.jsonl.gz")):
            texts.update((row["text"], None) for _, row in rows(file) if len(row["text"]) > 1)
    if len(texts) < REAL:
        sys.exit(f"{data} holds {len(texts)} texts, and {REAL} are needed")
    every = list(texts)
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))[:REAL]]


def tiled(texts: list[str], count: int) -> pa.Array:
    """`count` texts: those given, then copies of them with characters of other texts in them."""
    parts, rng = [pa.array(texts[:count], pa.large_string())], np.random.default_rng(1)
    lengths = np.array([len(text) for text in texts])
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    ends = np.cumsum(lengths)
    for start in range(len(texts), count, len(texts)):
        tile = codes.copy()
        places = np.flatnonzero(rng.random(len(codes)) < REPLACED)
        tile[places] = codes[rng.integers(len(codes), size=len(places))]
        joined = tile.tobytes().decode("utf-32-le")
        copies = [joined[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        parts.append(pa.array(copies[: count - start], pa.large_string()))
    return pa.concat_arrays(parts)


def clean(texts: pa.Array) -> dict[str, Any]:
    start = time.process_time()
    keys = duplicate_keys(texts)
    middle = time.process_time()
    findings = near_duplicates(keys)
    end = time.process_time()
    return {
        "key_s": middle - start,
        "near_s": end - middle,
        "seconds": end - start,
        "flagged": {found.reason: len(found) for found in findings},
    }


def with_datasketch(texts: pa.Array) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH

    keys = duplicate_keys(texts).to_pylist()
    start = time.process_time()
    index, flagged = MinHashLSH(num_perm=128, params=(42, 3)), 0
    for row, key in enumerate(keys):
        minhash = MinHash(num_perm=128)
        minhash.update_batch([key[i : i + 2].encode() for i in range(max(len(key) - 1, 1))])
        flagged += bool(index.query(minhash))
        index.insert(row, minhash)
    return {"seconds": time.process_time() - start, "flagged": {"candidate": flagged}}


class StaticEncoder:
    """What semhash needs of an encoder: a static one of ours, fresh, over tokens of the first texts."""

    def __init__(self, texts: list[str]) -> None:
        self.encoder = static(train_vocabulary(texts[:20_000], "unigram", 8000), dim=256)

    def encode(self, inputs: Sequence[str], **_: Any) -> np.ndarray:
        """Float32[n, 256]."""
        return self.encoder.encode(list(inputs))


def with_semhash(texts: pa.Array) -> dict[str, Any]:
    from semhash import SemHash

    listed = texts.to_pylist()
    encoder = StaticEncoder(listed)
    start = time.process_time()
    result = SemHash.from_records(listed, model=encoder).self_deduplicate(threshold=0.9)
    return {"seconds": time.process_time() - start, "flagged": {"duplicate": len(result.filtered)}}


SIDES = {"clean": clean, "datasketch": with_datasketch, "semhash": with_semhash}


def measure(side: str, count: int, file: Path) -> dict[str, Any]:
    """Time one side in this process."""
    with pa.memory_map(str(file)) as source:
        texts = pa.ipc.open_file(source).read_all()["text"].combine_chunks().slice(0, count)
        texts = pa.concat_arrays([texts.slice(0, 0), texts])  # a copy of what is used, in memory
    held = memory_mib("VmRSS")
    start = time.perf_counter()
    result = SIDES[side](texts) | {"wall_s": time.perf_counter() - start}
    return {"side": side, "rows": len(texts), "held_mib": held, "peak_mib": memory_mib("VmHWM"), **result}


def run(side: str, count: int, file: Path) -> dict[str, Any]:
    """Time one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--rows", str(count), "--file", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def rate(results: list[dict[str, Any]]) -> float:
    """Rows per second of the median round."""
    return results[0]["rows"] / median(result["seconds"] for result in results)


def show(sides: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    table = Table("side", "rows", "rows / CPU s", "key s", "near s", "wall s", "peak MiB", "flagged")
    for (side, count), results in sides.items():
        last = results[-1]
        parts = [f"{median(result[name] for result in results):.1f}" if name in last else "" for name in ("key_s", "near_s")]
        peak = max(result["peak_mib"] for result in results)
        flagged = "\n".join(f"{reason} {number:,}" for reason, number in last["flagged"].items())
        table.add_row(side, f"{count:,}", f"{rate(results):,.0f}", *parts, f"{last['wall_s']:.1f}", f"{peak:,.0f}", flagged)
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("ACGE_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_mining"), help="where the texts are kept")
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES), help="sizes")
    parser.add_argument("--rounds", type=int, default=3, help="times that each size is timed")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.rows[0], args.file)))
        return
    file = args.out / f"texts-{max(args.rows)}.arrow"
    if not file.is_file():
        args.out.mkdir(parents=True, exist_ok=True)
        table = pa.table({"text": tiled(real_texts(args.data), max(args.rows))})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    sides = {("clean", count): [run("clean", count, file) for _ in range(args.rounds)] for count in sorted(args.rows)}
    for side in ("datasketch", "semhash"):
        if find_spec(side) is None:
            CONSOLE.print(f"{side} is not installed: left out")
        else:
            sides[side, min(args.rows)] = [run(side, min(args.rows), file)]
    show(sides)
    largest = sides["clean", max(args.rows)]
    both = [rate(sides["clean", count]) for count in SIZES[:2] if ("clean", count) in sides]
    figures = {
        "rows": max(args.rows),
        "clean_rows_per_s": round(rate(largest)),
        "growth": round(both[0] / both[1], 3) if len(both) == 2 else None,
        "peak_mib": round(max(result["peak_mib"] for result in largest)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
