"""`acge search`: texts of files, indexed and searched from the terminal."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from acge_lightning.adaptive import FunnelIndex
from acge_lightning.adaptive.files import MANIFEST, check_folder, is_index
from acge_lightning.adaptive.stages import as_stages, label
from acge_lightning.data.readers import SUFFIXES, rows
from acge_lightning.data.records import RowError, valid
from acge_lightning.data.store import MAX_BAD, RowIssues
from acge_lightning.embeddings import encoder_hash
from acge_lightning.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.files import check_replaceable
from acge_lightning.pretrained import load
from acge_lightning.terminal import one_line, show

_LOG = logging.getLogger(__name__)
_PLAIN = (".txt", ".txt.gz", ".md", ".md.gz")
_KNOWN = (*_PLAIN, *SUFFIXES)
_WIDEST = 200  # characters of a query or a hit that are shown


def search(config: Mapping[str, Any]) -> None:
    """Build or reuse the index, tune it if asked to, and answer the queries.

    Args:
        config: plain data of `conf/search.yaml`.

    Raises:
        InputError: anything in the config or the files that cannot work.
    """
    encoder = load(config["model"], device=config["device"])
    index = _index(config, encoder)
    if config["tune"] is not None:
        _tune(config, index)
    given = config["query"]
    queries = _typed() if given is None else map(str, given if isinstance(given, list) else [given])
    asked = failed = 0
    for query in queries:
        asked += 1
        try:
            show(*_answer(query, index, config["k"]))
        except InputError as error:  # the others are answered all the same
            failed += 1
            show(one_line(f"{_cut(query)!r} has no answer: {error}"), stderr=True)
    if failed:
        message = f"{failed} of {asked} queries had no answer"
        if given is not None:
            raise InputError(f"{message}: the reasons are above")
        show(message, stderr=True)


def _typed() -> Iterator[str]:
    """Lines of the standard input that are not blank; bytes that are no text become lone surrogates."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("query> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def _answer(query: str, index: FunnelIndex, k: int) -> tuple[Table, str]:
    start = time.perf_counter()
    vector = index.encoder.encode(query, index.dim, prompt=index.prompts.get("query"))
    encoded = time.perf_counter() - start
    hits = index.search(vector, k)
    table = Table(title=_cut(query), title_justify="left", title_style="bold")
    table.add_column("cosine", justify="right")
    table.add_column("where", overflow="fold")
    table.add_column("text", overflow="fold")
    there = hits.rows[0][hits.rows[0] >= 0]
    for score, place, text in zip(hits.scores[0].tolist(), hits.ids[0], index.rows.texts_of(there), strict=False):
        table.add_row(f"{score:.4f}", one_line(place), _cut(text))
    stages = [f"{stage.label} {seconds * 1e3:.2f} ms" for stage, seconds in zip(index.stages, hits.seconds, strict=True)]
    return table, f"of {len(index):,} texts; query encoded {encoded * 1e3:.2f} ms, {', '.join(stages)}"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


# ---- the index


def _index(config: Mapping[str, Any], encoder: Encoder) -> FunnelIndex:
    """The one that is kept, if it is of this source, model and settings; else a new one, kept in its place."""
    source = Path(config["source"]).expanduser()
    folder = None if config["index"] is None else Path(config["index"]).expanduser()
    if folder is not None:
        check_folder(folder)
    files = _files(source)
    if config["tune"] is not None:
        _check_apart(Path(config["tune"]).expanduser(), files)
    state = {
        "source": _digest(source, files),
        "model": encoder_hash(encoder),
        "settings": {key: config[key] for key in ("field", "on_bad_row", "prompts", "stages")},
    }
    if folder is not None and (folder / MANIFEST).is_file():
        try:
            index = FunnelIndex.load(folder, encoder)
            changed = [key for key, value in state.items() if index.note.get(key) != value]
            if not changed:
                show(f"The index in {folder} is up to date.")
                return index
            show(f"The {' and the '.join(changed)} changed since {folder} was made: it is built again.")
        except InputError as error:
            show(one_line(error), "It is built again.")
    places, texts = zip(*_texts(source, files, **_reading(config)), strict=True)
    stages, prompts = as_stages(config["stages"]), dict(config["prompts"] or {})
    made = {"ids": places, "prompts": prompts, "force": config["force"], "progress": sys.stderr.isatty()}
    index = FunnelIndex.from_texts(texts, encoder, stages, **made)
    index.note = state
    show(f"{len(index):,} texts of {len(files)} files are indexed: {label(index.stages)}.")
    if folder is not None:
        show(f"The index is in {index.save(folder)}.")
    return index


def _check_apart(queries: Path, files: Iterable[Path]) -> None:
    """An error if queries to tune with are indexed too: each would find itself."""
    both = {file.resolve() for file in _files(queries)} & {file.resolve() for file in files}
    if both:
        raise InputError(f"tune={queries}: {min(both)} is one of the texts that are indexed: keep the queries apart from them")


def _tune(config: Mapping[str, Any], index: FunnelIndex) -> None:
    source, folder = Path(config["tune"]).expanduser(), Path(config["out"]).expanduser()
    check_replaceable(folder / "funnel.json", b'"points"', "what acge search has tried")
    places, queries = zip(*_texts(source, _files(source), **_reading(config)), strict=True)
    vectors = index.encoder.encode(queries, index.dim, prompt=index.prompts.get("query"))
    kept = index.has_direction(vectors)
    if not kept.all():
        others = [place for place, has in zip(places, kept.tolist(), strict=True) if not has]
        show(f"{len(others)} of {len(queries)} queries have no direction and are left out: {', '.join(others[:10])}")
    tuned = index.tune(vectors[kept], target=config["target"], measure="recall", batch=1, k=config["k"], progress=True)
    tuned.write(folder / "funnel.json")
    try:
        tuned.draw(folder / "funnel.png")
    except InputError as error:
        show(f"No picture: {error}")
    if config["index"] is not None:
        index.save(config["index"])
    best = tuned.chosen
    show(
        f"Of {len(tuned.points)} funnels, {label(best.stages)} is the fastest that finds {config['target']:.0%} of the exact "
        f"hits: {best.recall:.2%}, {best.speedup:.1f} times faster. All are in {folder}."
    )


# ---- texts of files


def _files(source: Path) -> list[Path]:
    """The files of known kinds, but hidden ones, and what earlier calls have written there: indexes, and what tuning tried."""
    if source.is_dir():
        files, others = _within(source)
        if others:
            named = ", ".join(map(str, others[:10])) + (" …" if len(others) > 10 else "")
            _LOG.warning("%s: %d entries that are no files of their own are left out: %s", source, len(others), named)
    else:
        files = [source] if source.is_file() else []
        if files and not source.name.endswith(_KNOWN):
            raise InputError(f"{source}: unknown kind of file: give one of {', '.join(_KNOWN)}")
    if not files:
        what = (
            f"holds no file of {', '.join(_KNOWN)}" if source.is_dir() else "is no file" if source.exists() else "is not there"
        )
        raise InputError(f"{source} {what}: name a file or a folder of texts")
    return files


def _within(source: Path) -> tuple[list[Path], list[Path]]:
    """Files of texts, and what has such a name, or leads to a folder, and cannot be read as one: pipes, links to nowhere."""
    files, others = [], []
    for folder, names, found in os.walk(source, onerror=_raise):
        place = Path(folder)
        others += [place / name for name in names if (place / name).is_symlink() and not name.startswith(".")]
        names[:] = [name for name in names if not name.startswith(".") and not is_index(place / name)]
        for name in found:
            if name.endswith(_KNOWN) and not name.startswith(".") and not _is_tuned(place / name):
                (files if (place / name).is_file() else others).append(place / name)
    return sorted(files), sorted(others)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): give it rights, or move it away") from error


def _is_tuned(file: Path) -> bool:
    """Whether a file is a `funnel.json` that `tune` has written."""
    if file.name != "funnel.json" or not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(64).split()[:3] == [b"{", b'"points":', b"["]


def _digest(source: Path, files: Iterable[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as content:
                digest.update(f"{_place(source, file)}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}): give it rights, or move it away") from error
    return digest.hexdigest()


def _place(source: Path, file: Path) -> str:
    """The file's name within the source; bytes that are not UTF-8 are written out."""
    name = file.relative_to(source) if source.is_dir() else file.name
    return os.fsencode(name).decode(errors="backslashreplace")


def _reading(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("field", "on_bad_row", "max_bad_fraction")}


def _texts(
    source: Path, files: Iterable[Path], field: str, on_bad_row: str = "raise", max_bad_fraction: float = MAX_BAD
) -> list[tuple[str, str]]:
    """(file:line, text) of all texts that are not blank; a row without one is an error, or skipped and counted."""
    if on_bad_row not in ("raise", "skip"):
        raise InputError(f"on_bad_row={on_bad_row!r} is unknown: choose raise or skip")
    texts, issues = [], RowIssues(None)
    for file in files:
        for line, text in _plain(file) if file.name.endswith(_PLAIN) else _fields(file, field):
            if not isinstance(text, RowError):
                texts += [(f"{_place(source, file)}:{line}", text.strip())] if text.strip() else []
            elif on_bad_row == "raise":
                raise InputError(f"{file}, line {line}: {text}")
            else:
                issues.bad(file, line, text, text)
    issues.report(source, len(texts), max_bad_fraction)
    if not texts:
        raise InputError(f"{source} holds no text: its files are empty")
    return texts


def _plain(file: Path) -> Iterator[tuple[int, str | RowError]]:
    """Lines of a txt, paragraphs of a md, each with the number of its first line."""
    paragraphs = ".md" in file.suffixes
    block, first = [], 0
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not paragraphs:
                    yield number, _valid(line)
                elif line.strip():
                    first = first if block else number
                    block.append(line.strip())
                elif block:
                    yield first, _valid(" ".join(block))
                    block = []
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error}): it may be incomplete, copy it again") from error
    if block:
        yield first, _valid(" ".join(block))


def _fields(file: Path, field: str) -> Iterator[tuple[int, str | RowError]]:
    """The texts of a column; those that are empty are told."""
    empty = []
    for line, row in rows(file, {field}):
        if isinstance(row, RowError):
            yield line, row
        elif isinstance(text := row.get(field), str):
            yield line, _valid(text, field)
            empty += [] if text.strip() else [line]
        else:
            there = sorted(key for key, value in row.items() if isinstance(value, str))
            yield line, RowError(None, f"has no text in {field!r}: choose another, field=…, of {there}, or on_bad_row=skip")
    if empty:
        _LOG.warning("%s: %d rows of an empty %s are left out, the first in line %d", file, len(empty), field, empty[0])


def _valid(text: str, field: str | None = None) -> str | RowError:
    try:
        return valid(text, field)
    except RowError as error:
        return error
