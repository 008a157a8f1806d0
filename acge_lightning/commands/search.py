"""`acge search`: index texts of files, and search them from the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from acge_lightning.config.building import plain
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import check_replaceable
from acge_lightning.search.answers import Answer, Hit, answer
from acge_lightning.search.cutting import PlacedPassage, check_sizes, cut_documents
from acge_lightning.search.documents import read_documents
from acge_lightning.search.funnel import FunnelIndex
from acge_lightning.search.manifest import MANIFEST
from acge_lightning.search.passage_index import build
from acge_lightning.search.passages import VERSION
from acge_lightning.search.stages import as_stages, label
from acge_lightning.search.storage import check_folder
from acge_lightning.search.text_files import Source, check_apart, digest, list_files
from acge_lightning.search.words import words
from acge_lightning.terminal import highlighted, one_line, shortened, show, show_json
from acge_lightning.zoo.pretrained import load

_WIDEST = 200  # characters of a query or a hit
_MOST_NAMED = 10  # files that could not be read
_SETTINGS = ("field", "on_bad_row", "prompts", "stages", "passage_tokens", "overlap_tokens")  # of an index


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
    if config["format"] not in ("text", "json"):
        raise InputError(f"format={config['format']} is unknown: choose text or json")
    encoder = load(config["model"], device=config["device"])
    index = _index(config, encoder)
    if config["tune"] is not None:
        _tune(config, index, encoder)
    query = config["query"]
    if query is None:
        query_count, failure_count = _answer(_typed_queries(config), index, config)
        if failure_count:
            show(f"{failure_count} of {query_count} queries had no answer", stderr=True)
    else:
        query_count, failure_count = _answer(map(str, query if isinstance(query, list) else [query]), index, config)
        if failure_count:
            raise InputError(f"{failure_count} of {query_count} queries had no answer: the reasons are above")


def _tell(config: Mapping[str, Any], line: str) -> None:
    """Show a line about the work; beside JSON on the standard error."""
    show(line, stderr=config["format"] == "json")


# ---- answers


def _answer(queries: Iterable[str], index: FunnelIndex, config: Mapping[str, Any]) -> tuple[int, int]:
    """Show the answer to each query; return how many queries there were, and how many had none."""
    query_count = failure_count = 0
    for query in queries:
        query_count += 1
        try:
            _show_answer(answer(index, query, config["k"]), index, config)
        except KeyboardInterrupt:
            if config["query"] is not None or not sys.stdin.isatty():
                raise
            show("stopped", stderr=True)
        except Exception as error:  # the others are answered all the same
            failure_count += 1
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            show(one_line(f"{shortened(query, _WIDEST)!r} has no answer: {reason}"), stderr=True)
            if config["format"] == "json":
                show_json({"query": query, "error": reason})
    return query_count, failure_count


def _typed_queries(config: Mapping[str, Any]) -> Iterator[str]:
    """Read the lines of the standard input that are not blank; bytes that are not UTF-8 become lone surrogates."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    is_typed = sys.stdin.isatty()
    if is_typed:
        with suppress(ImportError):  # lines can be edited, and called again
            import readline  # noqa: F401
        show("Type a query; Ctrl-D ends.", stderr=True)
    while True:
        try:
            line = input("query> " if is_typed and config["format"] == "text" else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_typed:
                return
            show("Ctrl-D ends.", stderr=True)
            continue
        if line:
            yield line


def _show_answer(found: Answer, index: FunnelIndex, config: Mapping[str, Any]) -> None:
    if config["format"] == "json":
        milliseconds = {step: round(seconds * 1e3, 3) for step, seconds in found.seconds.items()}
        hits = [_hit_data(hit) for hit in found.hits]
        show_json({"query": found.query, "hits": hits, "passages": len(index), "milliseconds": milliseconds})
        return
    table = Table(title=shortened(found.query, _WIDEST), title_justify="left", title_style="bold", show_lines=True)
    table.add_column("cosine", justify="right")
    table.add_column("where", overflow="fold", max_width=40)
    table.add_column("text", overflow="fold", ratio=1)
    forms = {form for _, _, form in words(found.query)}
    for hit in found.hits:
        where = "\n".join([one_line(hit.place), *([one_line(" > ".join(hit.place.path))] if hit.place.path else [])])
        table.add_row(f"{hit.score:.4f}", where, _shown_text(hit, forms))
    steps = ", ".join(f"{step} {seconds * 1e3:.2f} ms" for step, seconds in list(found.seconds.items())[1:])
    show(table, f"of {len(index):,} passages; query encoded {found.seconds['encode'] * 1e3:.2f} ms, {steps}")


def _shown_text(hit: Hit, forms: set[str]) -> Any:
    """The part of a hit that fits the query best, in a line, with the words of the query in another style."""
    start, end = hit.part
    line = " ".join(hit.text[start:end].split())
    line = ("…" if start > 0 else "") + line + ("…" if end < len(hit.text) else "")
    text = highlighted(line, [(s, e) for s, e, form in words(line) if form in forms])
    return text.append(f"\n+{len(hit.like_it)} like it", "dim") if hit.like_it else text


def _hit_data(hit: Hit) -> dict[str, Any]:
    """A hit as plain data."""
    start, end = hit.part
    return {
        "score": round(hit.score, 6),
        "file": hit.place.file,
        "line": hit.place.line,
        "last_line": hit.place.last_line,
        "column": hit.place.column,
        "heading": " > ".join(hit.place.path) or None,
        "text": hit.text,
        "part": hit.text[start:end],
        "like_it": len(hit.like_it),
        "like_it_at": [str(place) for place in hit.like_it],
    }


# ---- the index


def _index(config: Mapping[str, Any], encoder: Encoder) -> FunnelIndex:
    """Load the saved index, if it is of this source, model and settings; else build and save a new one."""
    folder = None if config["index"] is None else Path(config["index"]).expanduser()
    if folder is not None:
        check_folder(folder)
    source = list_files(Path(config["source"]).expanduser())
    if config["tune"] is not None:
        check_apart(list_files(Path(config["tune"]).expanduser()), source)
    state = {
        "source": digest(source),
        "model": encoder_hash(encoder),
        "way of cutting": VERSION,
        "settings": {key: config[key] for key in _SETTINGS},
    }
    former = None if folder is None else _saved_index(config, folder, encoder)
    changed = [] if former is None else [key for key, value in state.items() if former.note.get(key) != value]
    if former is not None and not changed:
        _tell(config, f"The index in {folder} is up to date.")
        problems = former.note.get("problems")
        _tell_left_out(source, list(map(str, problems)) if isinstance(problems, list) else [])
        return former
    if former is not None:
        _tell(config, f"The {' and the '.join(changed)} changed since {folder} was made: it is built again.")
    index = _new_index(config, encoder, source, former if _has_vectors(former, state) else None)
    problems = [one_line(problem) for problem in source.problems]
    index.note = {**state, "problems": problems}
    _tell_left_out(source, problems)
    if folder is not None:
        _tell(config, f"The index is in {index.save(folder)}.")
    return index


def _saved_index(config: Mapping[str, Any], folder: Path, encoder: Encoder) -> FunnelIndex | None:
    """Load the index of a folder; None if there is none, or if it cannot be used, which a line says."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return FunnelIndex.load(folder, encoder)
    except InputError as error:
        _tell(config, f"{one_line(error)} It is built again.")
        return None


def _has_vectors(former: FunnelIndex | None, state: Mapping[str, Any]) -> bool:
    """Whether the vectors of a former index are those that the new one needs: of the same model, prompts and cutting."""
    if former is None or any(former.note.get(key) != state[key] for key in ("model", "way of cutting")):
        return False
    settings = former.note.get("settings")
    return isinstance(settings, dict) and settings.get("prompts") == state["settings"]["prompts"]


def _new_index(config: Mapping[str, Any], encoder: Encoder, source: Source, former: FunnelIndex | None) -> FunnelIndex:
    passages = _passages(config, encoder, source)
    stages, prompts = as_stages(config["stages"]), dict(config["prompts"] or {})
    index, kept = build(passages, encoder, stages, prompts, config["force"], former, progress=sys.stderr.isatty())
    file_count = len({passage.place.file for passage in passages})
    new = f", {len(passages) - kept:,} of them new" if former is not None else ""
    _tell(config, f"{len(index):,} passages of {file_count:,} files are indexed{new}: {label(index.stages)}.")
    return index


def _passages(config: Mapping[str, Any], encoder: Encoder, source: Source) -> list[PlacedPassage]:
    """The passages of a source."""
    prompt = (config["prompts"] or {}).get("document")
    sizes = check_sizes(encoder, config["passage_tokens"], config["overlap_tokens"], prompt)
    documents = read_documents(source, *(config[key] for key in ("field", "on_bad_row", "max_bad_fraction")))
    return list(cut_documents(documents, encoder.tokenize, *sizes))


def _tell_left_out(source: Source, problems: list[str]) -> None:
    """Show what of the source is not in the index, and why."""
    tell = partial(show, stderr=True)
    for problem in problems[:_MOST_NAMED]:
        tell(f"Left out: {one_line(problem)}")
    if len(problems) > _MOST_NAMED:
        tell(f"Left out: {len(problems) - _MOST_NAMED} more files that could not be read")
    told = source.told()
    if told is not None:
        tell(one_line(told))


# ---- tuning


def _tune(config: Mapping[str, Any], index: FunnelIndex, encoder: Encoder) -> None:
    """Tune the index by the queries of files, write and draw the settings that were tried, and save the index."""
    source, folder = list_files(Path(config["tune"]).expanduser()), Path(config["out"]).expanduser()
    check_replaceable(folder / "funnel.json", b'"points"', "what acge search has tried")
    passages = _passages(config, encoder, source)
    _tell_left_out(source, source.problems)
    vectors = encoder.encode([passage.text for passage in passages], index.dim, prompt=index.prompts.get("query"))
    usable = index.has_direction(vectors)
    if not usable.all():
        dropped = [str(p.place) for p, is_usable in zip(passages, usable.tolist(), strict=True) if not is_usable]
        few = one_line(", ".join(dropped[:_MOST_NAMED]))
        _tell(config, f"{len(dropped)} of {len(passages)} queries have no direction and are left out: {few}")
    tuned = index.tune(vectors[usable], target=config["target"], measure="recall", batch=1, k=config["k"], progress=True)
    tuned.write(folder / "funnel.json")
    try:
        from acge_lightning.report.tuning import save_tuning_figure

        save_tuning_figure(tuned.to_rows(), folder / "funnel.png")
    except InputError as error:
        _tell(config, f"No picture: {error}")
    if config["index"] is not None:
        index.save(config["index"])
    best = tuned.chosen
    _tell(
        config,
        f"Of {len(tuned.points)} funnels, {label(best.stages)} is the fastest that finds {config['target']:.0%} of the exact "
        f"hits: {best.recall:.2%}, {best.speedup:.1f} times faster. All are in {folder}.",
    )
