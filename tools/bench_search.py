"""Times adaptive retrieval against exact search and against HNSW, both of FAISS at full dim, at 99 % of the full-dim nDCG@10.

    python tools/bench_search.py [--data DIR] [--out DIR] [--model FOLDER] [--threads N]

Real: 300,000 distinct texts, the documents of the Chinese retrieval sets and unlabelled texts, embedded in 1792 dims by an
encoder trained here with Matryoshka (1000 steps of `+experiment=zh_matryoshka`), or by `--model`. Million: the same documents,
and synthetic vectors for the rest: x' = m_c + (r_i + (r_a - r_b) / sqrt 2) / sqrt 2 with the mean m_c of a cluster and the
residuals r of three of its real vectors, which has the clusters, and within each the covariance, of the real ones. Queries and
judgements are the sets' own in both. The funnel's stages and HNSW's efSearch are chosen on queries of the dev splits, as the
fastest that keep 99.5 % of the full-dim nDCG@10; shares and times are those of queries of the test splits. Queries are drawn
evenly: 1500 and 2048, for the million 1000 and 1024. HNSW compares whole vectors, its links join neighbours by the first 256
dims: built so four times faster, it found the same share of the neighbours (60,000 rows: 0.990 and 0.991). A round times all
sides one after the other, and ratios are medians over rounds. A single query of IndexFlatIP takes one thread, by FAISS's own
choice; `gemv` is a product of torch over the same vectors on all threads.

Training, embedding and indexes are kept under `--out`. Ends with one JSON line: `funnel_speedup_at_99` is null if the share on
the test queries is below 0.99; `hnsw_ratio`: HNSW's time by the funnel's (at least that, where HNSW's `share` is lower);
`bytes_per_vector_ratio`: bytes of the funnel, stages on disk among them, by those of IndexFlatIP, for real.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from rich.console import Console

from acge_lightning.adaptive import FunnelIndex, Stage
from acge_lightning.adaptive.stages import label
from acge_lightning.adaptive.tune import mean_ndcg
from acge_lightning.data.readers import rows
from acge_lightning.embeddings import encoder_hash
from acge_lightning.pretrained import load

DIM, K, TARGET, SHARE = 1792, 10, 0.995, 0.99
QUERIES = {"real": {"dev": 1500, "test": 2048}, "million": {"dev": 1000, "test": 1024}}  # at most
DIMS = [1792, 1536, 1024, 768, 512, 256, 128]
ROWS, MILLION, CLUSTERS = 300_000, 1_000_000, 1024
STEPS = 1000
LINKS, BREADTH, GRAPH_DIM = 32, 128, 256  # of HNSW
EFFORTS = (256, 512, 1024, 2048, 4096)
SHORTLISTS = (50, 100, 200, 300, 500, 800, 1200, 2000)
CONSOLE = Console(stderr=True)
Grades = list[dict[int, float]]


@dataclass
class Queries:
    """Vectors Float32[q, D], and for each the rows that are right."""

    vectors: np.ndarray
    grades: Grades

    def some(self, count: int) -> Queries:
        """Evenly drawn."""
        chosen = np.linspace(0, len(self.vectors) - 1, min(count, len(self.vectors))).round().astype(int)
        return Queries(self.vectors[chosen], [self.grades[i] for i in chosen])


def said(text: str, start: float) -> None:
    CONSOLE.print(f"{text}: {time.perf_counter() - start:.0f} s", highlight=False)


# ---- what is searched


def trained(out: Path, data: str) -> Path:
    """The folder of the encoder, trained if it is not there."""
    folder = out / "encoder"
    if not (folder / "export" / "modules.json").is_file():
        start = time.perf_counter()
        command = [sys.executable, "-m", "acge_lightning.cli", "train", "+experiment=zh_matryoshka"]
        command += [f"trainer.max_steps={STEPS}", "logger=none"]
        command += [f"paths.data_dir={data}", f"paths.output_dir={folder}", f"paths.cache_dir={out / 'rows'}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        said("training", start)
    return folder / "export"


def collected(data: Path) -> tuple[list[str], dict[str, list[tuple[str, dict[int, float]]]]]:
    """ROWS distinct texts, and (query, row -> grade) of the dev and test splits."""
    texts: dict[str, int] = {}
    queries: dict[str, list[tuple[str, dict[int, float]]]] = {"dev": [], "test": []}
    for folder in sorted((data / "retrieval").iterdir()):
        if folder.name.endswith("_en"):
            continue
        place = {}
        for _, row in rows(folder / "corpus.jsonl.gz"):
            place[str(row["_id"])] = texts.setdefault(f"{row.get('title') or ''} {row['text']}".strip(), len(texts))
        words = {str(row["_id"]): row["text"] for _, row in rows(folder / "queries.jsonl.gz")}
        for split, found in queries.items():
            judged: dict[str, dict[int, float]] = {}
            for file in (folder / "qrels").glob(f"{split}.tsv"):
                for _, row in rows(file):
                    if float(row["score"]) > 0:
                        judged.setdefault(row["query-id"], {})[place[row["corpus-id"]]] = float(row["score"])
            found += [(words[key], grades) for key, grades in judged.items()]
    asked = {text for found in queries.values() for text, _ in found}
    others = (row["text"] for file in sorted((data / "unlabelled").glob("*/*.jsonl.gz")) for _, row in rows(file))
    pool = list(dict.fromkeys(text for text in others if text not in texts and text not in asked))
    drawn = np.random.default_rng(0).permutation(len(pool))[: ROWS - len(texts)]
    documents = [*texts, *(pool[i] for i in np.sort(drawn))]
    if len(documents) < ROWS:
        sys.exit(f"{data} holds {len(documents)} texts, and {ROWS} are needed")
    return documents, queries


def embedded(out: Path, model: Path, data: Path) -> tuple[np.ndarray, dict[str, Queries], int]:
    """Float32[ROWS, D] on disk, the queries, and how many rows are documents of the retrieval sets."""
    encoder = load(model)
    folder = out / encoder_hash(encoder)
    if not (folder / "queries.json").is_file():
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        documents, queries = collected(data)
        table = np.lib.format.open_memmap(folder / "real.npy", "w+", np.float32, (len(documents), DIM))
        for at in range(0, len(documents), 20_000):
            table[at : at + 20_000] = encoder.encode(documents[at : at + 20_000]).numpy()
        table.flush()
        for split, found in queries.items():
            np.save(folder / f"{split}.npy", encoder.encode([text for text, _ in found]).numpy())
        answers = {split: [sorted(grades.items()) for _, grades in found] for split, found in queries.items()}
        answers["judged"] = 1 + max(row for found in queries.values() for _, grades in found for row in grades)
        (folder / "queries.json").write_text(json.dumps(answers))
        said(f"embedding of {len(documents):,} texts", start)
    answers = json.loads((folder / "queries.json").read_text())
    queries = {
        split: Queries(np.load(folder / f"{split}.npy"), [dict(map(tuple, pairs)) for pairs in answers[split]])
        for split in ("dev", "test")
    }
    return np.load(folder / "real.npy", mmap_mode="c"), queries, answers["judged"]


def million(file: Path, real: np.ndarray, judged: int) -> np.ndarray:
    """Float16[MILLION, D] on disk: the judged documents as they are, and synthetic vectors."""
    if file.is_file():
        return np.load(file, mmap_mode="c")
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    short = np.ascontiguousarray(real[:, :256])
    clusters = faiss.Kmeans(256, CLUSTERS, niter=10, seed=0, max_points_per_centroid=64)
    clusters.train(short)
    home = clusters.index.search(short, 1)[1][:, 0]
    order = np.argsort(home, kind="stable")
    sizes = np.bincount(home, minlength=CLUSTERS)
    first = np.cumsum(sizes) - sizes
    means = np.zeros((CLUSTERS, DIM), np.float32)
    for at in range(0, len(real), 20_000):
        np.add.at(means, home[at : at + 20_000], real[at : at + 20_000])
    means /= np.maximum(sizes, 1)[:, None]
    draft = file.with_suffix(".draft")
    table = np.lib.format.open_memmap(draft, "w+", np.float16, (MILLION, DIM))
    table[:judged] = real[:judged]
    for at in range(judged, MILLION, 10_000):
        rows = min(10_000, MILLION - at)
        of = home[rng.integers(0, len(real), rows)]
        three = [real[order[first[of] + (rng.random(rows) * sizes[of]).astype(np.int64)]] - means[of] for _ in range(3)]
        made = means[of] + (three[0] + (three[1] - three[2]) / 2**0.5) / 2**0.5
        table[at : at + rows] = made / np.linalg.norm(made, axis=1, keepdims=True)
    table.flush()
    draft.rename(file)
    said(f"{MILLION:,} synthetic vectors", start)
    return np.load(file, mmap_mode="c")


# ---- the sides


def full_dim(vectors: np.ndarray, file: Path) -> tuple[Any, Any]:
    """IndexFlatIP, and HNSW over its vectors, whose neighbours are found by their first GRAPH_DIM dims."""
    flat = faiss.IndexFlatIP(DIM)
    if not file.is_file():
        start = time.perf_counter()
        graph = faiss.IndexHNSWFlat(GRAPH_DIM, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BREADTH
        for part in parts(vectors):
            short = np.ascontiguousarray(part[:, :GRAPH_DIM])
            faiss.normalize_L2(short)
            graph.add(short)
        faiss.write_index(graph, str(file))
        said(f"HNSW of {len(vectors):,} rows", start)
        del graph
    for part in parts(vectors):
        flat.add(part)
    graph = faiss.read_index(str(file))
    short = faiss.downcast_index(graph.storage)
    short.thisown = True  # goes with the name
    graph.own_fields, graph.storage, graph.d = False, flat, DIM
    return flat, graph


def parts(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, as FAISS takes them."""
    for at in range(0, len(vectors), 10_000):
        yield np.ascontiguousarray(vectors[at : at + 10_000], dtype=np.float32)


def candidates() -> list[list[Stage]]:
    """First stages of several prefixes, each with several shortlists, with a middle stage and without."""
    last, middle = Stage(DIM, store="int8"), Stage(512, 50, "int8")
    found = []
    for first in (Stage(dim, 1, "int8") for dim in (128, 256, 512)):
        for shortlist in SHORTLISTS:
            start = replace(first, shortlist=shortlist)
            found += [[start, last], *([[start, middle, last]] if first.dim < middle.dim else [])]
    return found


def quality(search: Callable[[np.ndarray], np.ndarray], queries: Queries) -> float:
    """nDCG@10 of what a search finds."""
    found = np.concatenate([search(queries.vectors[at : at + 64]) for at in range(0, len(queries.vectors), 64)])
    return mean_ndcg(found.tolist(), queries.grades, K)


def seconds(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    """A query, over all of them in batches."""
    start = time.perf_counter()
    for at in range(0, len(queries), batch):
        search(queries[at : at + batch])
    return (time.perf_counter() - start) / len(queries)


def timed(sides: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int) -> dict[str, list[float]]:
    """Seconds a query of each side, a number a round; exact ones get fewer queries."""
    few, many, rounds = (8, 32, 5) if batch == 1 else (batch, 2 * batch, 4)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):  # the first one warms caches
        asked = np.roll(queries, -turn * many, axis=0)
        for name, search in sides.items():
            exact = name in ("flat", "gemv")
            if turn >= 0:
                times[name].append(seconds(search, asked[: few if exact else many], batch))
            elif not exact:
                seconds(search, asked[:many], batch)
    return times


def chosen_effort(graph: Any, queries: Queries, full: float, least: int) -> int:
    """The lowest efSearch that keeps the share, from a least one on."""
    for effort in (e for e in EFFORTS if e >= least):
        graph.hnsw.efSearch = effort
        if quality(lambda q: graph.search(q, K)[1], queries) >= TARGET * full:
            break
    return effort


def gemv(flat: Any) -> Callable[[np.ndarray], Any]:
    """Exact search as one product of torch."""
    table = torch.from_numpy(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * DIM).reshape(-1, DIM))
    return lambda q: (torch.from_numpy(q) @ table.T).topk(K)


def compared(
    name: str, vectors: np.ndarray, queries: dict[str, Queries], folder: Path, tried: list[list[Stage]], effort: int = 0
) -> dict[str, Any]:
    """All sides over the same vectors and queries; HNSW has at least this efSearch."""
    flat, graph = full_dim(vectors, folder / f"{name}.faiss")
    queries = {split: found.some(QUERIES[name][split]) for split, found in queries.items()}
    test, dev = queries["test"], queries["dev"]
    start = time.perf_counter()
    exact = gemv(flat)  # by far the faster one for many queries
    full = {split: quality(lambda q: exact(q).indices.numpy(), found) for split, found in queries.items()}
    graph.hnsw.efSearch = effort = chosen_effort(graph, dev, full["dev"], effort)
    said(f"{name}: full-dim nDCG@10 {full['test']:.4f}, HNSW efSearch {effort}", start)
    index = FunnelIndex.build(vectors, [Stage(DIM, store="int8")], matryoshka_dims=DIMS)
    answer: dict[str, Any] = {
        "rows": len(vectors),
        "queries": {s: len(q.grades) for s, q in queries.items()},
        "ndcg": full["test"],
    }
    made: dict[Any, Any] = {}
    kept = {"hnsw": quality(lambda q: graph.search(q, K)[1], test) / full["test"]}
    for key, batch in (("single", 1), ("batch64", 64)):
        start = time.perf_counter()
        tuned = index.tune(dev.vectors, dev.grades, k=K, target=TARGET, batch=batch, candidates=tried, made=made)
        tuned.write(folder / f"{name}_{key}" / "funnel.json")
        sides = {
            "flat": lambda q: flat.search(q, K)[1],
            "gemv": exact,
            "hnsw": lambda q: graph.search(q, K)[1],
            "funnel": lambda q: index.search(q, K).rows,
        }
        times = timed(sides, test.vectors, batch)
        shares = kept | {"funnel": quality(sides["funnel"], test) / full["test"]}
        ratio = {side: median(a / b for a, b in zip(times[side], times["funnel"], strict=True)) for side in sides}
        answer[key] = {
            "funnel_speedup_at_99": round(ratio["flat"], 2) if shares["funnel"] >= SHARE else None,
            "hnsw_ratio": round(ratio["hnsw"], 3),
            "gemv_ratio": round(ratio["gemv"], 2),
            "share": {side: round(share, 4) for side, share in shares.items()},
            "ms_a_query": {side: round(1e3 * median(values), 3) for side, values in times.items()},
            "stages": label(index.stages),
            "settings": [asdict(stage) for stage in index.stages],
            "hnsw_ef_search": effort,
            "bytes_a_vector": {
                "flat": 4 * DIM,
                "hnsw": round(4 * DIM + links(graph)),
                "funnel": round(sum(index.nbytes) / len(index)),
                "funnel_in_memory": round(index.nbytes[0] / len(index)),
            },
        }
        said(f"{name}, {key}: {json.dumps(answer[key], ensure_ascii=False)}", start)
    return answer


def links(graph: Any) -> float:
    """Bytes a row of the graph's neighbours, levels and offsets."""
    graph = graph.hnsw
    return (4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()) / graph.levels.size()


def main(argv: Sequence[str]) -> None:
    """Real, then million."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", "../shared/data"), help="folder of the data sets")
    parser.add_argument("--out", default="outputs/bench_search", type=Path, help="where all that is made is kept")
    parser.add_argument("--model", type=Path, help="folder of an encoder of 1792 dims; one is trained by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-million", action="store_true")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    real, queries, judged = embedded(args.out, args.model or trained(args.out, args.data), Path(args.data))
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    folder = Path(real.filename).parent
    answer: dict[str, Any] = {"real": compared("real", real, queries, folder, candidates())}
    answer["bytes_per_vector_ratio"] = round(answer["real"]["single"]["bytes_a_vector"]["funnel"] / (4 * DIM), 3)
    if not args.skip_million:
        effort = answer["real"]["single"]["hnsw_ef_search"]  # more rows do not need less
        best = [answer["real"][key]["settings"] for key in ("single", "batch64")]
        tried = [stages for settings in best for stages in longer([Stage(**stage) for stage in settings])]
        table = million(folder / "million.npy", real, judged)
        answer["million"] = compared("million", table, queries, folder, tried, effort)
    answer |= {"threads": args.threads, "seconds": round(time.perf_counter() - begin)}
    print(json.dumps(answer, ensure_ascii=False))


def longer(stages: list[Stage]) -> list[list[Stage]]:
    """The same stages with longer first shortlists: what was best for fewer rows, and what more may need."""
    if len(stages) == 1:
        return candidates()
    return [[replace(stages[0], shortlist=s), *stages[1:]] for s in SHORTLISTS if s >= stages[0].shortlist]


if __name__ == "__main__":
    main(sys.argv[1:])
