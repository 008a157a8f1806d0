"""Draws rows of docs/forensics/findings.tsv.gz to be read by hand, and shows each beside the row that it clashes with.

    python tools/forensics_sample.py ../shared/data > to_read.txt

Of each reason so many rows, of its data sets in turn, so that small sets are read too: these shares weigh data sets, not rows.
Then some of the data sets that have most rows of a reason. Who reads writes a line a row into docs/forensics/verdicts.tsv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from forensics import FINDINGS, FOLDER, Row, datasets, read, table, where

from acge_lightning.mining.cleaning.training_rows import Rows
from acge_lightning.terminal import shortened, show

READ = {  # reason -> rows that are read
    "leak, exact": 5,
    "leak, edited": 25,
    "leak, embedded": 20,
    "exact duplicate": 5,
    "re-ordered duplicate": 10,
    "near duplicate": 40,
    "near duplicate, short": 10,
    "contradiction": 25,
    "doubtful label": 50,
    "inconsistent pair": 10,
}
LARGEST = {  # reason, data set -> rows that are read besides: sets that have most rows of a reason
    ("leak, edited", "classification/weibo_emotion_virus"): 10,
    ("leak, embedded", "classification/weibo_emotion_virus"): 10,
    ("leak, edited", "sts/sick_en"): 10,
    ("near duplicate", "unlabelled/laws"): 10,
    ("near duplicate", "unlabelled/news_2023"): 10,
}
SHOWN = 600  # characters of a text


def drawn(findings: Sequence[Row], seed: int = 0) -> Iterator[Row]:
    """Draw rows: of each reason one of each data set in turn, until there are enough; then those of the largest sets."""
    rng = np.random.default_rng(seed)
    drawn_of_sets: dict[tuple[str, str], list[Row]] = {}
    for reason, number in READ.items():
        by_set: dict[str, list[Row]] = {}
        for i in rng.permutation(len(findings)).tolist():
            if findings[i]["reason"] == reason:
                by_set.setdefault(findings[i]["dataset"], []).append(findings[i])
        drawn_of_sets |= {(reason, name): rows for name, rows in by_set.items()}
        in_turn = [rows[turn] for turn in range(number) for rows in by_set.values() if turn < len(rows)]
        yield from sorted(in_turn[:number], key=lambda row: (row["dataset"], int(row["row"])))
    for key, number in LARGEST.items():
        yield from drawn_of_sets.get(key, [])[-number:]


def texts(record: Mapping[str, object]) -> str:
    """The fields of a row, a line each."""
    filled = ((name, value) for name, value in record.items() if value not in (None, (), ""))
    return "\n".join(f"   {name}: {shortened(str(value), SHOWN)}" for name, value in filled)


def main() -> None:
    """Show the rows that are drawn."""
    parser = argparse.ArgumentParser(description="Draw rows to be read by hand.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--findings", type=Path, default=FOLDER / FINDINGS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = list(drawn(table(args.findings), args.seed))
    names = {row[key] for row in chosen for key in ("dataset", "other_dataset")}
    sets = [one for one in datasets(args.data) if one.name in names]
    records: dict[tuple[str, str, str], tuple[Rows, int]] = {}
    for rows in (*read(sets, "train"), *read(sets, "evaluation")):
        records |= {where(rows, row): (rows, row) for row in range(len(rows))}
    for number, row in enumerate(chosen, 1):
        print(f"\n{number}. {row['reason']} {row['value']}: {row['dataset']} {row['file']} {row['row']}")
        for key in ((row["dataset"], row["file"], row["row"]), (row["other_dataset"], row["other_file"], row["other_row"])):
            if key in records:
                rows, position = records[key]
                print(f"   -- {' '.join(key)}\n{texts(rows.record(position))}")
    show(f"{len(chosen)} rows")


if __name__ == "__main__":
    main()
