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

from acge_lightning.data.readers import rows
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.search import FunnelIndex, Stage
from acge_lightning.search.stages import label
from acge_lightning.search.tune import mean_ndcg
from acge_lightning.zoo.pretrained import load

DIM, K, TARGET, SHARE = 1792, 10, 0.995, 0.99
QUERIES = {"real": {"dev": 1500, "test": 2048}, "million": {"dev": 1000, "test": 1024}}  # at most
DIMS = [1792, 1536, 1024, 768, 512, 256, 128]
ROWS, MILLION, CLUSTERS = 300_000, 1_000_000, 1024
STEPS = 1000
LINKS, BREADTH, GRAPH_DIM = 32, 128, 256  # of HNSW
EFFORTS = (256, 512, 1024, 2048, 4096)
SHORTLISTS = (50, 100, 200, 300, 500, 800, 1200, 2000)
CONSOLE = Console(stderr=True)
Grades = dict[int, float]  # row -> grade of a query
Judged = dict[str, list[tuple[str, Grades]]]  # split -> (query, grades)


@dataclass
class Queries:
    """Vectors Float32[q, D], and the grades of each query's relevant rows."""

    vectors: np.ndarray
    grades: list[Grades]

    def sample(self, count: int) -> Queries:
        """At most `count` queries, evenly spaced."""
        chosen = np.linspace(0, len(self.vectors) - 1, min(count, len(self.vectors))).round().astype(int)
        return Queries(self.vectors[chosen], [self.grades[i] for i in chosen])


def show_seconds(text: str, start: float) -> None:
    CONSOLE.print(f"{text}: {time.perf_counter() - start:.0f} s", highlight=False)


# ---- the vectors


def trained_encoder(out: Path, data: str) -> Path:
    """The folder of the encoder, trained if it is not there."""
    folder = out / "encoder"
    if not (folder / "export" / "modules.json").is_file():
        start = time.perf_counter()
        command = [sys.executable, "-m", "acge_lightning", "train", "+experiment=zh_matryoshka"]
        command += [f"trainer.max_steps={STEPS}", "logger=none"]
        command += [f"paths.data_dir={data}", f"paths.output_dir={folder}", f"paths.cache_dir={out / 'rows'}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        show_seconds("training", start)
    return folder / "export"


def collect_texts(data: Path) -> tuple[list[str], Judged]:
    """ROWS distinct texts, and the judged queries of the dev and test splits."""
    texts: dict[str, int] = {}
    queries: Judged = {"dev": [], "test": []}
    for folder in sorted((data / "retrieval").iterdir()):
        if folder.name.endswith("_en"):
            continue
        row_of_document: dict[str, int] = {}
        for _, row in rows(folder / "corpus.jsonl.gz"):
            row_of_document[str(row["_id"])] = texts.setdefault(f"{row.get('title') or ''} {row['text']}".strip(), len(texts))
        query_texts = {str(row["_id"]): row["text"] for _, row in rows(folder / "queries.jsonl.gz")}
        for split, judged_queries in queries.items():
            judged: dict[str, Grades] = {}
            for file in (folder / "qrels").glob(f"{split}.tsv"):
                for _, row in rows(file):
                    if float(row["score"]) > 0:
                        judged.setdefault(row["query-id"], {})[row_of_document[row["corpus-id"]]] = float(row["score"])
            judged_queries += [(query_texts[key], grades) for key, grades in judged.items()]
    query_set = {text for judged_queries in queries.values() for text, _ in judged_queries}
    unlabelled = (row["text"] for file in sorted((data / "unlabelled").glob("*/*.jsonl.gz")) for _, row in rows(file))
    pool = list(dict.fromkeys(text for text in unlabelled if text not in texts and text not in query_set))
    drawn = np.random.default_rng(0).permutation(len(pool))[: ROWS - len(texts)]
    documents = [*texts, *(pool[i] for i in np.sort(drawn))]
    if len(documents) < ROWS:
        sys.exit(f"{data} holds {len(documents)} texts, and {ROWS} are needed")
    return documents, queries


def embed_texts(out: Path, model: Path, data: Path) -> tuple[np.ndarray, dict[str, Queries], int]:
    """Float32[ROWS, D] on disk, the queries, and how many rows are documents of the retrieval sets."""
    encoder = load(model)
    folder = out / encoder_hash(encoder)
    if not (folder / "queries.json").is_file():
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        documents, queries = collect_texts(data)
        table = np.lib.format.open_memmap(folder / "real.npy", "w+", np.float32, (len(documents), DIM))
        for start_row in range(0, len(documents), 20_000):
            block = slice(start_row, start_row + 20_000)
            table[block] = encoder.encode(documents[block]).numpy()
        table.flush()
        for split, judged_queries in queries.items():
            np.save(folder / f"{split}.npy", encoder.encode([text for text, _ in judged_queries]).numpy())
        answers = {split: [sorted(grades.items()) for _, grades in judged_queries] for split, judged_queries in queries.items()}
        answers["judged"] = 1 + max(row for pairs in queries.values() for _, grades in pairs for row in grades)
        (folder / "queries.json").write_text(json.dumps(answers))
        show_seconds(f"embedding of {len(documents):,} texts", start)
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
    cluster_of_row = clusters.index.search(short, 1)[1][:, 0]
    order = np.argsort(cluster_of_row, kind="stable")
    sizes = np.bincount(cluster_of_row, minlength=CLUSTERS)
    starts = np.cumsum(sizes) - sizes
    means = np.zeros((CLUSTERS, DIM), np.float32)
    for at in range(0, len(real), 20_000):
        np.add.at(means, cluster_of_row[at : at + 20_000], real[at : at + 20_000])
    means /= np.maximum(sizes, 1)[:, None]
    draft = file.with_suffix(".draft")
    table = np.lib.format.open_memmap(draft, "w+", np.float16, (MILLION, DIM))
    table[:judged] = real[:judged]
    for at in range(judged, MILLION, 10_000):
        rows = min(10_000, MILLION - at)
        cluster = cluster_of_row[rng.integers(0, len(real), rows)]
        drawn = [order[starts[cluster] + (rng.random(rows) * sizes[cluster]).astype(np.int64)] for _ in range(3)]
        residuals = [real[row] - means[cluster] for row in drawn]
        vectors = means[cluster] + (residuals[0] + (residuals[1] - residuals[2]) / 2**0.5) / 2**0.5
        table[at : at + rows] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    table.flush()
    draft.rename(file)
    show_seconds(f"{MILLION:,} synthetic vectors", start)
    return np.load(file, mmap_mode="c")


# ---- the sides


def full_dim(vectors: np.ndarray, file: Path) -> tuple[Any, Any]:
    """IndexFlatIP, and HNSW over its vectors, whose neighbours are found by their first GRAPH_DIM dims."""
    flat = faiss.IndexFlatIP(DIM)
    if not file.is_file():
        start = time.perf_counter()
        graph = faiss.IndexHNSWFlat(GRAPH_DIM, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BREADTH
        for block in blocks_of(vectors):
            short = np.ascontiguousarray(block[:, :GRAPH_DIM])
            faiss.normalize_L2(short)
            graph.add(short)
        faiss.write_index(graph, str(file))
        show_seconds(f"HNSW of {len(vectors):,} rows", start)
        del graph
    for block in blocks_of(vectors):
        flat.add(block)
    graph = faiss.read_index(str(file))
    short = faiss.downcast_index(graph.storage)
    short.thisown = True  # goes with the name
    graph.own_fields, graph.storage, graph.d = False, flat, DIM
    return flat, graph


def blocks_of(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Float32[up to 10,000, D] at a time, as FAISS takes them."""
    for at in range(0, len(vectors), 10_000):
        yield np.ascontiguousarray(vectors[at : at + 10_000], dtype=np.float32)


def candidates() -> list[list[Stage]]:
    """First stages of several prefixes, each with several shortlists, with a middle stage and without."""
    last, middle = Stage(DIM, store="int8"), Stage(512, 50, "int8")
    pipelines = []
    for dim in (128, 256, 512):
        for shortlist in SHORTLISTS:
            start = Stage(dim, shortlist, "int8")
            pipelines += [[start, last], *([[start, middle, last]] if dim < middle.dim else [])]
    return pipelines


def quality(search: Callable[[np.ndarray], np.ndarray], queries: Queries) -> float:
    """nDCG@10 of a search."""
    rows_of_queries = np.concatenate([search(queries.vectors[at : at + 64]) for at in range(0, len(queries.vectors), 64)])
    return mean_ndcg(rows_of_queries.tolist(), queries.grades, K)


def seconds(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    """Seconds a query, over all of them in batches."""
    start = time.perf_counter()
    for at in range(0, len(queries), batch):
        search(queries[at : at + batch])
    return (time.perf_counter() - start) / len(queries)


def time_sides(sides: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int) -> dict[str, list[float]]:
    """Seconds a query of each side, a number a round; exact ones get fewer queries."""
    exact_count, count, rounds = (8, 32, 5) if batch == 1 else (batch, 2 * batch, 4)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):  # the first one warms caches
        rolled = np.roll(queries, -turn * count, axis=0)
        for name, search in sides.items():
            exact = name in ("flat", "gemv")
            if turn >= 0:
                times[name].append(seconds(search, rolled[: exact_count if exact else count], batch))
            elif not exact:
                seconds(search, rolled[:count], batch)
    return times


def choose_effort(graph: Any, queries: Queries, full: float, minimum: int) -> int:
    """The lowest efSearch, from a minimum on, that keeps the share."""
    for effort in (e for e in EFFORTS if e >= minimum):
        graph.hnsw.efSearch = effort
        if quality(lambda q: graph.search(q, K)[1], queries) >= TARGET * full:
            break
    return effort


def gemv(flat: Any) -> Callable[[np.ndarray], Any]:
    """Exact search as one product of torch."""
    table = torch.from_numpy(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * DIM).reshape(-1, DIM))
    return lambda q: (torch.from_numpy(q) @ table.T).topk(K)


def compare(
    name: str, vectors: np.ndarray, queries: dict[str, Queries], folder: Path, pipelines: list[list[Stage]], effort: int = 0
) -> dict[str, Any]:
    """All sides over the same vectors and queries; HNSW has at least this efSearch."""
    flat, graph = full_dim(vectors, folder / f"{name}.faiss")
    queries = {split: split_queries.sample(QUERIES[name][split]) for split, split_queries in queries.items()}
    test, dev = queries["test"], queries["dev"]
    start = time.perf_counter()
    exact = gemv(flat)  # by far the faster one for many queries
    full = {split: quality(lambda q: exact(q).indices.numpy(), split_queries) for split, split_queries in queries.items()}
    graph.hnsw.efSearch = effort = choose_effort(graph, dev, full["dev"], effort)
    show_seconds(f"{name}: full-dim nDCG@10 {full['test']:.4f}, HNSW efSearch {effort}", start)
    index = FunnelIndex.build(vectors, [Stage(DIM, store="int8")], matryoshka_dims=DIMS)
    answer: dict[str, Any] = {
        "rows": len(vectors),
        "queries": {s: len(q.grades) for s, q in queries.items()},
        "ndcg": full["test"],
    }
    cache: dict[Any, Any] = {}
    hnsw_share = {"hnsw": quality(lambda q: graph.search(q, K)[1], test) / full["test"]}
    for key, batch in (("single", 1), ("batch64", 64)):
        start = time.perf_counter()
        tuned = index.tune(dev.vectors, dev.grades, k=K, target=TARGET, batch=batch, candidates=pipelines, cache=cache)
        tuned.write(folder / f"{name}_{key}" / "funnel.json")
        sides = {
            "flat": lambda q: flat.search(q, K)[1],
            "gemv": exact,
            "hnsw": lambda q: graph.search(q, K)[1],
            "funnel": lambda q: index.search(q, K).rows,
        }
        times = time_sides(sides, test.vectors, batch)
        shares = hnsw_share | {"funnel": quality(sides["funnel"], test) / full["test"]}
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
                "hnsw": round(4 * DIM + link_bytes(graph)),
                "funnel": round(sum(index.nbytes) / len(index)),
                "funnel_in_memory": round(index.nbytes[0] / len(index)),
            },
        }
        show_seconds(f"{name}, {key}: {json.dumps(answer[key], ensure_ascii=False)}", start)
    return answer


def link_bytes(graph: Any) -> float:
    """Bytes a row of the graph's neighbours, levels and offsets."""
    graph = graph.hnsw
    return (4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()) / graph.levels.size()


def main(argv: Sequence[str]) -> None:
    """Real, then million."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ACGE_DATA", "../shared/data"), help="folder of the data sets")
    parser.add_argument("--out", default="outputs/bench_search", type=Path, help="where models, vectors and indexes are kept")
    parser.add_argument("--model", type=Path, help="folder of an encoder of 1792 dims; one is trained by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-million", action="store_true")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    real, queries, judged = embed_texts(args.out, args.model or trained_encoder(args.out, args.data), Path(args.data))
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    folder = Path(real.filename).parent
    answer: dict[str, Any] = {"real": compare("real", real, queries, folder, candidates())}
    answer["bytes_per_vector_ratio"] = round(answer["real"]["single"]["bytes_a_vector"]["funnel"] / (4 * DIM), 3)
    if not args.skip_million:
        effort = answer["real"]["single"]["hnsw_ef_search"]  # more rows do not need less
        best = [answer["real"][key]["settings"] for key in ("single", "batch64")]
        pipelines = [stages for settings in best for stages in with_longer_shortlists([Stage(**stage) for stage in settings])]
        table = million(folder / "million.npy", real, judged)
        answer["million"] = compare("million", table, queries, folder, pipelines, effort)
    answer |= {"threads": args.threads, "seconds": round(time.perf_counter() - begin)}
    print(json.dumps(answer, ensure_ascii=False))


def with_longer_shortlists(stages: list[Stage]) -> list[list[Stage]]:
    """The stages that were best for fewer rows, with the same and longer first shortlists, which more rows may need."""
    if len(stages) == 1:
        return candidates()
    return [[replace(stages[0], shortlist=s), *stages[1:]] for s in SHORTLISTS if s >= stages[0].shortlist]


if __name__ == "__main__":
    main(sys.argv[1:])
