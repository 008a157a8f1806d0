"""Make pairs of text without labels: a heading and its section, passages that follow each other, a title and its body."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError, valid
from acge_lightning.data.source import has_rows
from acge_lightning.errors import InputError
from acge_lightning.files.digest import file_sha256
from acge_lightning.mining.negatives.positives import Pair, headings_and_sections, neighbouring_passages, titles_and_bodies
from acge_lightning.search.documents import Document, read_documents
from acge_lightning.search.markdown import structure
from acge_lightning.search.text_files import Source, list_files

_TITLE, _TEXT = "title", "text"  # columns of rows
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class UnlabelledPairs:
    """Pairs in a file.

    Args:
        count: how many there are.
        digests: `file` and `sha256` of each file that was read.
        told: sentences on what was made and what was left out.
    """

    count: int
    digests: list[dict[str, str]]
    told: list[str]


def write_pairs(paths: Sequence[str], kind: str, file: Path) -> UnlabelledPairs:
    """Write `query, positive` rows, each pair once.

    Args:
        paths: files or folders of texts, as `acge search` reads them.
        kind: a key of `KINDS`.
        file: where to write.

    Raises:
        InputError: an unknown kind, a source that cannot be read, or one that makes no pair.
    """
    if kind not in KINDS:
        raise InputError(f"pairs={kind} is unknown: choose from {', '.join(KINDS)}")
    digests, told, written = [], [], set()
    with file.open("w", encoding="utf-8", newline="") as lines:
        for path in paths:
            source = list_files(Path(path).expanduser())
            for pair in KINDS[kind](source):
                if pair not in written:
                    written.add(pair)
                    lines.write(json.dumps({"query": pair[0], "positive": [pair[1]]}, ensure_ascii=False) + "\n")
            digests += [{"file": source.name(name), "sha256": file_sha256(name)} for name in source.files]
            told += [line for line in (source.told(), *source.problems) if line]
    if not written:
        raise InputError(f"source={', '.join(paths)} makes no pair of {kind}: {_NEEDS[kind]}")
    told.append(f"{len(written):,} pairs of {kind} were made of {len(digests):,} files")
    return UnlabelledPairs(len(written), digests, told)


def _headings(source: Source) -> Iterator[Pair]:
    for document in _markdown(source):
        sections = [section for section in structure(document.text)[0] if section.path]
        titles = [[heading.title for heading in section.path if heading.title] for section in sections]
        bodies = [document.text[section.path[-1].end : section.end] for section in sections]
        yield from headings_and_sections(zip(titles, bodies, strict=True))


def _passages(source: Source) -> Iterator[Pair]:
    documents = [document for document in read_documents(source, _TEXT) if document.kind != "row"]
    for _, of_file in groupby(documents, key=lambda document: document.file):
        for lines in _runs(list(of_file)):
            yield from neighbouring_passages([lines])


def _runs(documents: Sequence[Document]) -> Iterator[list[str]]:
    """The passages of a file that follow each other: its lines, or the paragraphs of each section of Markdown."""
    if documents[0].kind == "text":
        yield [document.text for document in documents]
        return
    for section in structure(documents[0].text)[0]:
        start = section.path[-1].end if section.path else section.start
        body = documents[0].text[start : section.end]
        yield [paragraph for paragraph in _PARAGRAPH_END.split(body) if paragraph.strip()]


def _titles(source: Source) -> Iterator[Pair]:
    for file in source.files:
        if not has_rows(file):
            source.leave_out(file, "without rows")
            continue
        for line, row in rows(file, {_TITLE, _TEXT}):
            if isinstance(row, RowError):
                raise InputError(f"{file}, line {line}: {row}")
            title, text = row.get(_TITLE), row.get(_TEXT)
            if not (isinstance(title, str) and isinstance(text, str)):
                raise InputError(f"{file}, line {line} has no {_TITLE!r} and {_TEXT!r}: it has {', '.join(map(str, row))}")
            try:
                yield from titles_and_bodies([(valid(title, _TITLE), valid(text, _TEXT))])
            except RowError as error:
                raise InputError(f"{file}, line {line}: {error}") from None


def _markdown(source: Source) -> Iterator[Document]:
    return (document for document in read_documents(source, _TEXT) if document.kind == "markdown")


KINDS: dict[str, Callable[[Source], Iterator[Pair]]] = {"headings": _headings, "passages": _passages, "titles": _titles}
_NEEDS = {
    "headings": "they need Markdown files with text under headings",
    "passages": "they need text files of several lines, or Markdown files of several paragraphs",
    "titles": f"they need rows with a {_TITLE} and a {_TEXT} that differ",
}
