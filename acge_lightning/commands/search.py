"""`acge search`: index texts of files, and search them from the terminal."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from acge_lightning.config.building import plain
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import check_replaceable
from acge_lightning.search.funnel import FunnelIndex
from acge_lightning.search.manifest import MANIFEST
from acge_lightning.search.stages import as_stages, label
from acge_lightning.search.storage import check_folder
from acge_lightning.search.text_files import digest, list_files, read_texts
from acge_lightning.terminal import one_line, shortened, show
from acge_lightning.zoo.pretrained import load

_WIDEST = 200  # characters of a query or a hit


def run(cfg: DictConfig) -> None:
    """Answer the queries of the config, or those of the standard input."""
    search(plain(cfg))


def search(config: Mapping[str, Any]) -> None:
    """Build or reuse the index, tune it if asked to, and answer the queries.

    Args:
        config: plain data of `conf/search.yaml`.

    Raises:
        InputError: a value of the config, or a file, cannot work.
    """
    encoder = load(config["model"], device=config["device"])
    index = _index(config, encoder)
    if config["tune"] is not None:
        _tune(config, index, encoder)
    query = config["query"]
    if query is None:
        query_count, failure_count = _answer(_typed_queries(), index, encoder, config["k"])
        if failure_count:
            show(f"{failure_count} of {query_count} queries had no answer", stderr=True)
    else:
        query_count, failure_count = _answer(
            map(str, query if isinstance(query, list) else [query]), index, encoder, config["k"]
        )
        if failure_count:
            raise InputError(f"{failure_count} of {query_count} queries had no answer: the reasons are above")


# ---- answers


def _answer(queries: Iterable[str], index: FunnelIndex, encoder: Encoder, k: int) -> tuple[int, int]:
    """Show the hits of each query; return how many queries there were, and how many had no answer."""
    query_count = failure_count = 0
    for query in queries:
        query_count += 1
        try:
            show(*_hits(query, index, encoder, k))
        except InputError as error:  # the others are answered all the same
            failure_count += 1
            show(one_line(f"{shortened(query, _WIDEST)!r} has no answer: {error}"), stderr=True)
    return query_count, failure_count


def _typed_queries() -> Iterator[str]:
    """Read the lines of the standard input that are not blank; bytes that are not UTF-8 become lone surrogates."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("query> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def _hits(query: str, index: FunnelIndex, encoder: Encoder, k: int) -> tuple[Table, str]:
    """Search; make a table of the hits, and a line about the time that they took."""
    start = time.perf_counter()
    vector = encoder.encode(query, index.dim, prompt=index.prompts.get("query"))
    encoding_seconds = time.perf_counter() - start
    hits = index.search(vector, k)
    table = Table(title=shortened(query, _WIDEST), title_justify="left", title_style="bold")
    table.add_column("cosine", justify="right")
    table.add_column("where", overflow="fold")
    table.add_column("text", overflow="fold")
    texts = index.rows.texts_of(hits.rows[0][hits.rows[0] >= 0])
    for score, source, text in zip(hits.scores[0].tolist(), hits.ids[0], texts, strict=False):
        table.add_row(f"{score:.4f}", one_line(source), shortened(text, _WIDEST))
    stages = [f"{stage.label} {seconds * 1e3:.2f} ms" for stage, seconds in zip(index.stages, hits.seconds, strict=True)]
    return table, f"of {len(index):,} texts; query encoded {encoding_seconds * 1e3:.2f} ms, {', '.join(stages)}"


# ---- the index


def _index(config: Mapping[str, Any], encoder: Encoder) -> FunnelIndex:
    """Load the saved index, if it is of this source, model and settings; else build and save a new one."""
    source = Path(config["source"]).expanduser()
    folder = None if config["index"] is None else Path(config["index"]).expanduser()
    if folder is not None:
        check_folder(folder)
    files = list_files(source)
    if config["tune"] is not None:
        _check_apart(Path(config["tune"]).expanduser(), files)
    state = {
        "source": digest(source, files),
        "model": encoder_hash(encoder),
        "settings": {key: config[key] for key in ("field", "on_bad_row", "prompts", "stages")},
    }
    index = None if folder is None else _kept_index(folder, encoder, state)
    if index is None:
        index = _new_index(config, encoder, source, files)
        index.note = state
        if folder is not None:
            show(f"The index is in {index.save(folder)}.")
    return index


def _kept_index(folder: Path, encoder: Encoder, state: Mapping[str, Any]) -> FunnelIndex | None:
    """Load the index of a folder; None if there is none, or if its state is another, which a line says."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        index = FunnelIndex.load(folder, encoder)
    except InputError as error:
        show(one_line(error), "It is built again.")
        return None
    changed = [key for key, value in state.items() if index.note.get(key) != value]
    if changed:
        show(f"The {' and the '.join(changed)} changed since {folder} was made: it is built again.")
        return None
    show(f"The index in {folder} is up to date.")
    return index


def _new_index(config: Mapping[str, Any], encoder: Encoder, source: Path, files: list[Path]) -> FunnelIndex:
    ids, texts = zip(*read_texts(source, files, **_reading(config)), strict=True)
    stages, prompts = as_stages(config["stages"]), dict(config["prompts"] or {})
    settings = {"ids": ids, "prompts": prompts, "force": config["force"], "progress": sys.stderr.isatty()}
    index = FunnelIndex.from_texts(texts, encoder, stages, **settings)
    show(f"{len(index):,} texts of {len(files)} files are indexed: {label(index.stages)}.")
    return index


def _reading(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("field", "on_bad_row", "max_bad_fraction")}


# ---- tuning


def _check_apart(queries: Path, files: Iterable[Path]) -> None:
    """Refuse queries to tune with that are indexed too: each would find itself."""
    shared = {file.resolve() for file in list_files(queries)} & {file.resolve() for file in files}
    if shared:
        raise InputError(
            f"tune={queries}: {min(shared)} is one of the texts that are indexed: keep the queries apart from them"
        )


def _tune(config: Mapping[str, Any], index: FunnelIndex, encoder: Encoder) -> None:
    """Tune the index by the queries of files, write and draw the settings that were tried, and save the index."""
    source, folder = Path(config["tune"]).expanduser(), Path(config["out"]).expanduser()
    check_replaceable(folder / "funnel.json", b'"points"', "what acge search has tried")
    ids, queries = zip(*read_texts(source, list_files(source), **_reading(config)), strict=True)
    vectors = encoder.encode(queries, index.dim, prompt=index.prompts.get("query"))
    usable = index.has_direction(vectors)
    if not usable.all():
        dropped = [query_id for query_id, is_usable in zip(ids, usable.tolist(), strict=True) if not is_usable]
        show(f"{len(dropped)} of {len(queries)} queries have no direction and are left out: {', '.join(dropped[:10])}")
    tuned = index.tune(vectors[usable], target=config["target"], measure="recall", batch=1, k=config["k"], progress=True)
    tuned.write(folder / "funnel.json")
    try:
        from acge_lightning.report.tuning import save_tuning_figure

        save_tuning_figure(tuned.to_rows(), folder / "funnel.png")
    except InputError as error:
        show(f"No picture: {error}")
    if config["index"] is not None:
        index.save(config["index"])
    best = tuned.chosen
    show(
        f"Of {len(tuned.points)} funnels, {label(best.stages)} is the fastest that finds {config['target']:.0%} of the exact "
        f"hits: {best.recall:.2%}, {best.speedup:.1f} times faster. All are in {folder}."
    )
