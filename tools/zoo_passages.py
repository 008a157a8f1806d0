"""Writes the passages that the encoders of the package learn search from: documents in their order, cut to like lengths.

python tools/zoo_passages.py CLEANED OUT

CLEANED is what `acge clean` has written of the sources; OUT, which must hold nothing else, gets `train.jsonl.gz`. A passage is
neighbouring paragraphs of an article or law, joined up to 220 characters, or the text of a pair, which is left as it is.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from acge_lightning.errors import InputError
from acge_lightning.files.folder import whole_folder

LONGEST, SHORTEST = 220, 60  # characters of joined paragraphs; of a passage
ARTICLES = ("unlabelled/lctt_tech", "unlabelled/laws")
SENTENCES = {"crosswoz_paraphrase", "exercises_en", "medquad_en", "questions_paraphrase", "questions_topic", "smile", "tatoeba"}
_ENDS = "。！？；.!?"


def joined(paragraphs: Iterable[str], longest: int = LONGEST) -> Iterator[str]:
    """Neighbouring paragraphs, joined as long as they have `longest` characters at most; a longer one stays alone.

    >>> list(joined(["一", "二。", "三四五"], 4))
    ['一，二。', '三四五']
    """
    passage = ""
    for paragraph in paragraphs:
        more = paragraph if not passage else passage + ("" if passage[-1] in _ENDS else "，") + paragraph
        if passage and len(more) > longest:
            yield passage
            more = paragraph
        passage = more
    if passage:
        yield passage


def rows(folder: Path) -> Iterator[dict]:
    """The training rows of a data set."""
    with gzip.open(folder / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def passages(cleaned: Path) -> Iterator[str]:
    """All passages of 60 characters or more: those of articles and laws, then those of the pairs."""
    for name in ARTICLES:
        yield from joined(row["text"] for row in rows(cleaned / name))
    for folder in sorted((cleaned / "pairs").iterdir()):
        if not any(folder.name.startswith(name) for name in SENTENCES):
            yield from (text for row in rows(folder) for text in row["positive"])


def main(arguments: list[str]) -> None:
    """Write the passages."""
    if len(arguments) != 2:
        sys.exit("give two folders: python tools/zoo_passages.py CLEANED OUT")
    cleaned, out = map(Path, arguments)
    missing = [name for name in (*ARTICLES, "pairs") if not (cleaned / name).is_dir()]
    if missing:
        raise InputError(f"{cleaned} has no {missing[0]}: give the folder that `acge clean` has written of the sources")
    written = left_out = 0
    with (
        whole_folder(out) as new,
        (new / "train.jsonl.gz").open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
    ):
        for text in passages(cleaned):
            if len(text) < SHORTEST:
                left_out += 1
                continue
            file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
            written += 1
    print(f"{written:,} passages are in {out}; {left_out:,} of fewer than {SHORTEST} characters were left out")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
