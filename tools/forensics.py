"""Finds leaks, copies, contradictions and likely label errors in a folder of data sets, by row number, without their texts.

    python tools/forensics.py ../shared/data   # writes docs/forensics/{findings.tsv.gz,sets.tsv,evaluation.tsv}
    python tools/forensics_page.py             # writes the tables and the picture of docs/forensics.md

The steps are those of `acge clean`. Sets of query and positives in `pairs/`, which it does not know, count as triplets. Rows
are lines of a file, from 1; of sets with a corpus lines of `queries.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from acge_lightning.mining.cleaning.pile import Pile, Reason
from acge_lightning.mining.cleaning.steps import QUERIES, clean
from acge_lightning.mining.cleaning.training_rows import DataFiles, ReadingSettings, Rows, find_datasets, read_rows
from acge_lightning.mining.normalise import row_keys
from acge_lightning.terminal import show, track

FOLDER = Path(__file__).parents[1] / "docs" / "forensics"
FINDINGS, SETS, EVALUATION = "findings.tsv.gz", "sets.tsv", "evaluation.tsv"
STEPS = {"leaks": {}, "contradictions": {}, "duplicates": {}, "labels": {"share": 0.02}}
CONSISTENT = {"share": 0.02}
SHARING = ("retrieval/cmrc2018", "sts/stsb_en", "sts/stsb_zh", "pairs/howtocook", "pairs/kdconv")  # in which pairs are ranked
COLUMNS = ("reason", "dataset", "file", "row", "digest", "value", "other_dataset", "other_file", "other_row")
Row = Mapping[str, str]


def datasets(data: Path) -> list[DataFiles]:
    """The sets of the folder, and those of `pairs/`."""
    pairs = [(find_datasets(path, "triplet", None)[0], f"pairs/{path.name}") for path in sorted(data.glob("pairs/*"))]
    return [*find_datasets(data, None, None), *(replace(one, name=name) for one, name in pairs)]


def read(sets: Sequence[DataFiles], role: str) -> list[Rows]:
    """The rows of a role, `train` or `evaluation`, of the sets that have any."""
    with TemporaryDirectory() as folder:
        bad, settings = Path(folder) / "bad.jsonl", ReadingSettings()
        jobs = [(one, getattr(one, role)) for one in sets if getattr(one, role)]
        return [read_rows(one, files, settings, bad) for one, files in track(jobs, f"read {role}", "data sets")]


def examine(pile: Pile, sharing: Sequence[str]) -> None:
    """Take the steps; pairs that do not belong together are looked for in the sets of `sharing` alone."""
    for result in clean(pile, STEPS):
        show(f"{result.name}: {result.dropped:,} of {result.rows:,} rows, {result.reported:,} reported, {result.seconds:.0f} s")
    numbers = [i for i, rows in enumerate(pile.rows) if rows.data.name in sharing]
    part = Pile([pile.rows[i] for i in numbers], [])
    part.kept = [pile.kept[i].copy() for i in numbers]
    list(clean(part, {"consistency": CONSISTENT}))
    for number, inconsistent in zip(numbers, part.dropped, strict=True):
        for row, reason in inconsistent.items():
            other = reason.other and (number, reason.other[1])
            pile.reported[number].setdefault(row, replace(reason, other=other))


def findings(pile: Pile) -> Iterator[list[str]]:
    """A line for each row that is left out or reported: reason, where it stands, what was measured, what it clashes with."""
    for number, rows in enumerate(pile.rows):
        table: dict[int, Reason] = pile.reported[number] | pile.dropped[number]
        for row, reason in sorted(table.items(), key=lambda item: (item[1].reason, item[0])):
            clash = pile.clash(reason)
            value = "" if np.isnan(reason.value) else f"{reason.value:.3g}"
            yield [reason.reason, *where(rows, row), digest(rows, row), value, *(where(*clash) if clash else ("", "", ""))]


def where(rows: Rows, row: int) -> tuple[str, str, str]:
    """The data set, the file without its endings, and the line of a row."""
    return rows.data.name, rows.files[rows.file[row]].name.split(".")[0], str(rows.line[row])


def digest(rows: Rows, row: int) -> str:
    """The beginning of the SHA-256 of a row's text, pair (with a line feed between) or query, without white space."""
    fields = [name for name in ("text", "text1", "text2", "query") if name in rows.columns]
    texts = ["".join(rows.columns[name][row].split()) for name in fields]
    return sha256("\n".join(texts).encode(errors="replace")).hexdigest()[:8]


def shared_rows(evaluation: Sequence[Rows]) -> list[list[str]]:
    """Of each two evaluation splits that have the same rows, by key: family, split, rows, split, rows, keys of both."""
    keys: dict[tuple[str, str, str], set[str]] = {}
    for rows in evaluation:
        family = "pair" if rows.data.family in ("sts", "pair") else "query" if rows.data.family in QUERIES else "text"
        columns = rows.columns if family != "query" else {"text": rows.columns["query"]}
        row_key = row_keys(columns, "pair" if family == "pair" else "unlabelled").to_pylist()
        for row, key in enumerate(row_key):
            keys.setdefault((family, *where(rows, row)[:2]), set()).add(key)
    pairs = [(one, other, len(keys[one] & keys[other])) for one, other in combinations(sorted(keys), 2) if one[0] == other[0]]
    pairs.sort(key=lambda pair: -pair[2])
    return [[*one, str(len(keys[one])), *other[1:], str(len(keys[other])), str(n)] for one, other, n in pairs if n]


def sources(readme: str) -> dict[str, str]:
    """Data set -> where it comes from, of the tables of the folder's README."""
    source, column = {}, 0
    for cells in ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in readme.splitlines()):
        names = [number for number, cell in enumerate(cells) if cell.startswith("source")]
        column = names[0] if names else column
        if cells and re.fullmatch(r"\w+/\w+", cells[0]):
            source[cells[0]] = cells[column]
    return source


def write(file: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table, tabs between its cells; the same bytes for the same rows."""
    text = io.StringIO()
    lines = csv.writer(text, "excel-tab", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    lines.writerows([head, *rows])
    content = text.getvalue().encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content, 9, mtime=0) if file.suffix == ".gz" else content)


def table(file: Path) -> list[Row]:
    """The rows of a file of docs/forensics."""
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), dialect="excel-tab", quoting=csv.QUOTE_NONE))


def main() -> None:
    """Examine the folder that is given."""
    parser = argparse.ArgumentParser(description="Find leaks, copies, contradictions and likely label errors.")
    parser.add_argument("data", type=Path, help="a folder of data sets, <family>/<name>/, with a README.md of their sources")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--sharing", nargs="*", default=SHARING, help="data sets in which pairs are ranked")
    args = parser.parse_args()
    sets = datasets(args.data)
    pile = Pile(read(sets, "train"), read(sets, "evaluation"))
    examine(pile, args.sharing)
    write(args.out / FINDINGS, COLUMNS, findings(pile))
    source = sources((args.data / "README.md").read_text(encoding="utf-8"))
    counts = [[r.data.name, str(len(r)), str(r.neutral), str(len(r.unread)), source.get(r.data.name, "")] for r in pile.rows]
    write(args.out / SETS, ("dataset", "rows", "neutral", "unread", "source"), counts)
    head = ("kind", "dataset", "file", "rows", "other_dataset", "other_file", "other_rows", "shared")
    write(args.out / EVALUATION, head, shared_rows(pile.evaluation))


if __name__ == "__main__":
    main()
