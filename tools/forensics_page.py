"""Writes the tables and the picture of docs/forensics.md from the files of docs/forensics/, without the data.

python tools/forensics_page.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path

import numpy as np
from forensics import EVALUATION, FINDINGS, FOLDER, SETS, Row, table

from acge_lightning.files.atomic import whole
from acge_lightning.report.style import COLOURS, Figure, figure_style, finish_figure, new_axes, save_figure

PAGE, PICTURE = FOLDER.parent / "forensics.md", FOLDER.parent / "pictures" / "forensics.png"
ROW = ("reason", "dataset", "file", "row")  # what a finding and a verdict are matched by
VERDICTS = "verdicts.tsv"  # of rows that were read: draw, reason, dataset, file, row, verdict, why
COLUMNS = {  # of the main table and the picture -> reasons, or their beginnings
    "leaks": ("leak",),
    "contradictions": ("contradiction",),
    "exact copies": ("exact", "re-ordered"),
    "near copies": ("near duplicate",),
}
REPORTED = (
    "near duplicate, short",
    "doubtful label",
    "inconsistent pair",
)  # kept by default; the last two are steps to turn on


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def by_column(findings: Sequence[Row]) -> dict[str, Counter[str]]:
    """Column -> data set -> rows, of what is left out."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    for row in findings:
        for name, reasons in COLUMNS.items():
            if row["reason"] not in REPORTED and row["reason"].startswith(reasons):
                counts[name][row["dataset"]] += 1
    return counts


def share(count: int, rows: int) -> str:
    """A count and what share of the rows it is."""
    percent = f"{count / rows:.1%}" if count >= 0.001 * rows else "< 0.1%"
    return f"{count:,} ({percent})" if count else ""


def sets_table(sets: Sequence[Row], findings: Sequence[Row]) -> str:
    """Rows left out of each data set, by reason, and those that are only reported; largest shares first."""
    columns = by_column(findings)
    reported = [Counter(row["dataset"] for row in findings if row["reason"] == reason) for reason in REPORTED[:2]]
    lines = []
    for one in sets:
        name, rows = one["dataset"], int(one["rows"])
        counts = [column[name] for column in columns.values()]
        cells = [name, f"{rows:,}", share(sum(counts), rows), *(share(count, rows) for count in counts)]
        lines.append((sum(counts) / rows, [*cells, *(share(column[name], rows) for column in reported)]))
    head = ["data set", "rows", "left out", *COLUMNS, "kept: short near copies", "kept: least believed labels"]
    return markdown(head, [cells for _, cells in sorted(lines, key=lambda line: -line[0])])


def leaks_table(findings: Sequence[Row], least: int = 10) -> str:
    """Training sets and the evaluation splits that they leak, by how."""
    kinds = ("exact", "edited", "embedded")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row in findings:
        if row["reason"].startswith("leak"):
            split = row["other_file"].replace("queries", "dev or test")
            pair = row["dataset"], f"{row['other_dataset']}, {split}"
            counts.setdefault(pair, Counter())[row["reason"].removeprefix("leak, ")] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    lines = [[*pair, *(f"{n[kind]:,}" if n[kind] else "" for kind in kinds)] for pair, n in ordered if n.total() >= least]
    rest = [n for _, n in ordered if n.total() < least]
    if rest:
        sums = [f"{sum(n[kind] for n in rest):,}" for kind in kinds]
        lines.append([f"{len(rest)} more pairs of sets, below {least} rows each", "", *sums])
    return markdown(["training set", "evaluation split", *kinds], lines)


def evaluation_table(shared: Sequence[Row], least: int = 10) -> str:
    """Evaluation splits that have the same rows."""
    chosen = [row for row in shared if int(row["shared"]) >= least]
    lines = []
    for row in chosen:
        splits = [f"{row[key + 'dataset']}, {row[key + 'file']}" for key in ("", "other_")]
        counts = [f"{int(row[key]):,}" for key in ("rows", "other_rows", "shared")]
        lines.append([splits[0], counts[0], splits[1], *counts[1:]])
    return markdown(["evaluation split", "distinct rows", "the other one", "distinct rows", "in both"], lines)


def wilson(right: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927).

    >>> tuple(round(bound, 3) for bound in wilson(8, 10))
    (0.49, 0.943)
    """
    z = 1.959964
    p, z = right / total, 1.959964
    centre, half = p + z * z / (2 * total), z * sqrt(p * (1 - p) / total + (z / total / 2) ** 2)
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


def verdicts_table(verdicts: Sequence[Row], findings: Sequence[Row], draw: str, keys: Sequence[str]) -> str:
    """What the reader says of the rows of a draw that are still listed, by columns of theirs."""
    listed = {tuple(row[key] for key in ROW) for row in findings}
    by_key: dict[tuple[str, ...], Counter[str]] = {}
    for row in verdicts:
        if row["draw"] == draw and tuple(row[key] for key in ROW) in listed:
            by_key.setdefault(tuple(row[key] for key in keys), Counter())[row["verdict"]] += 1
    all_rows, lines = Counter(tuple(row[key] for key in keys) for row in findings), []
    for values, n in by_key.items():
        low, high = wilson(n["right"], n.total())
        counts = [str(n[verdict]) for verdict in ("right", "arguable", "wrong")]
        interval = f"{n['right'] / n.total():.0%}, {low:.0%} to {high:.0%}"
        lines.append([*values, f"{all_rows[values]:,}", str(n.total()), *counts, interval])
    head = [*("data set" if key == "dataset" else key for key in keys), "rows", "read", "right", "arguable", "wrong"]
    return markdown([*head, "right, 95 % interval"], lines)


def sources_table(sets: Sequence[Row]) -> str:
    """Where each training set comes from."""
    return markdown(["data set", "source"], [[one["dataset"], one["source"]] for one in sets])


def picture(sets: Sequence[Row], findings: Sequence[Row], most: int = 20) -> Figure:
    """Draw the share of rows that are left out of each set, by reason."""
    columns, rows = by_column(findings), {one["dataset"]: int(one["rows"]) for one in sets}
    totals = {name: sum(column[name] for column in columns.values()) / rows[name] for name in rows}
    names = sorted(totals, key=lambda name: totals[name])[-most:]
    axes = new_axes("Share of training rows left out", "share of the rows", height=2 + 0.2 * len(names))
    left, legend = np.zeros(len(names)), {}
    for colour, (reason, column) in zip(COLOURS, columns.items(), strict=False):
        values = np.array([column[name] / rows[name] for name in names])
        axes.barh(names, values, left=left, color=colour)
        legend[reason] = {"color": colour, "linewidth": 6}
        left += values
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    axes.grid(axis="y", visible=False)
    return finish_figure(axes, "share of training rows left out of each data set, by reason", legend)


def rendered(page: str, folder: Path) -> str:
    """The page, with the tables that the files give between its marks."""
    sets, findings, verdicts = (table(folder / name) for name in (SETS, FINDINGS, VERDICTS))
    tables = {
        "sets": sets_table(sets, findings),
        "leaks": leaks_table(findings),
        "evaluation": evaluation_table(table(folder / EVALUATION)),
        "verdicts": verdicts_table(verdicts, findings, "in turn", ["reason"]),
        "largest": verdicts_table(verdicts, findings, "largest", ["reason", "dataset"]),
        "sources": sources_table(sets),
    }
    for name, text in tables.items():
        begin, end = f"<!-- {name}: made by tools/forensics_page.py -->", f"<!-- end of {name} -->"
        page, count = re.subn(f"{begin}.*?{end}", lambda _, t=f"{begin}\n\n{text}\n\n{end}": t, page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} must have once: {begin} … {end}")
    return page


def main() -> None:
    """Write the page and the picture."""
    page = rendered(PAGE.read_text(encoding="utf-8"), FOLDER)
    with whole(PAGE) as new:
        new.write_text(page, encoding="utf-8")
    with figure_style():
        save_figure(picture(table(FOLDER / SETS), table(FOLDER / FINDINGS)), PICTURE)


if __name__ == "__main__":
    main()
