"""Write one page on what `acge clean` has left out: counts, histograms, and examples beside what they clash with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from acge_lightning.report.blocks import Block, gallery, grid, paragraph
from acge_lightning.report.page import render
from acge_lightning.report.style import COLOURS, GREY, Figure, finish_figure, new_axes
from acge_lightning.terminal import shortened

_EXAMPLES = 8  # of a reason
_LENGTH = 240  # characters of a text that are shown
_MOST_BARS = 30  # data sets in a picture
_MEASURES = {  # reason, or its beginning -> what its value is
    "too": "characters",
    "empty": "characters",
    "language": "share of characters and words in the languages asked for",
    "markup": "remains",
    "contradiction": "share of rows with its label, or difference",
    "doubtful": "probability of its label",
    "inconsistent": "rank of the positive",
}
Note = Mapping[str, Any]


def cleaning_page(folder: Path) -> str:
    """Render the page of a folder that `acge clean` has written: of its `manifest.json` and quarantine files."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    by_reason: dict[str, list[Note]] = {}
    for file in sorted(folder.glob("quarantine/*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for note in map(json.loads, lines):
                reason = note["reason"] if "value" in note else "unreadable"
                by_reason.setdefault(reason, []).append(note)
    counts = manifest["counts"]
    pictures = {"kept/rows": _bars(counts)} | _histograms(by_reason)
    sections: dict[str, list[Block]] = {
        "Rows": [paragraph(_summary(counts)), _table(counts), *gallery(pictures, "kept/", "Rows of each data set.")],
        "Values": gallery(pictures, "values/", "What was measured of the rows that were left out.", shared=False),
        "Examples": [block for reason in sorted(by_reason) for block in _examples(reason, by_reason[reason])],
        "Settings": [paragraph(json.dumps(manifest["settings"], ensure_ascii=False, indent=1), "pre")],
        "Sources": [paragraph(json.dumps(manifest["sources"], ensure_ascii=False, indent=1), "pre")],
    }
    return render("What was left out", sections)


def reasons_of(counts: Mapping[str, Any], key: str = "left_out") -> list[str]:
    """List the reasons that some data set has, the most frequent ones first."""
    totals: dict[str, int] = {}
    for count in counts.values():
        for reason, rows in count[key].items():
            totals[reason] = totals.get(reason, 0) + rows
    return sorted(totals, key=lambda reason: -totals[reason])


def _summary(counts: Mapping[str, Any]) -> str:
    read, kept = (sum(count[key] for count in counts.values()) for key in ("read", "kept"))
    share = f" ({1 - kept / read:.1%})" if read else ""
    return f"{read:,} rows were read, {kept:,} are kept, {read - kept:,}{share} are left out."


def _table(counts: Mapping[str, Any]) -> Block:
    reasons, reported = reasons_of(counts), reasons_of(counts, "reported")
    head = ["data set", "read", "kept", *reasons, "unreadable", "neutral", *(f"{reason} (kept)" for reason in reported)]
    rows = [
        [name, *(f"{count[key]:,}" for key in ("read", "kept"))]
        + [f"{count['left_out'].get(reason, 0):,}" for reason in reasons]
        + [f"{count[key]:,}" for key in ("unreadable", "neutral")]
        + [f"{count['reported'].get(reason, 0):,}" for reason in reported]
        for name, count in counts.items()
    ]
    return grid("Rows by what became of them", head, rows)


def _bars(counts: Mapping[str, Any]) -> Figure:
    """Draw for each data set the share of rows that are kept, and of each reason."""
    names = [name for name in counts if counts[name]["read"]]
    names = sorted(names, key=lambda name: counts[name]["kept"] / counts[name]["read"])[:_MOST_BARS][::-1]
    shares = {
        reason: [counts[n]["left_out"].get(reason, 0) / counts[n]["read"] for n in names] for reason in reasons_of(counts)
    }
    shares["unreadable, neutral"] = [(counts[n]["unreadable"] + counts[n]["neutral"]) / counts[n]["read"] for n in names]
    shares = {reason: values for reason, values in shares.items() if any(values)}
    axes = new_axes("Share of rows left out", "share of the rows read", height=1.2 + 0.22 * len(names) + 0.2 * len(shares))
    left, legend = np.zeros(len(names)), {}
    for number, (reason, values) in enumerate(shares.items()):
        colour = COLOURS[number] if number < len(COLOURS) else GREY
        axes.barh([shortened(name, 28) for name in names], values, left=left, color=colour)
        legend[reason] = {"color": colour, "linewidth": 6}
        left += values
    axes.set_xlim(0, max(0.01, left.max(initial=0) * 1.05))
    axes.grid(axis="y", visible=False)
    return finish_figure(axes, "share of rows that are left out of each data set, by reason", legend)


def _histograms(by_reason: Mapping[str, Sequence[Note]]) -> dict[str, Figure]:
    figures = {}
    for reason, notes in by_reason.items():
        values = [note["value"] for note in notes if note.get("value") is not None]
        if len(set(values)) > 1:
            axes = new_axes(f"{reason}: {len(values):,} rows", _measure(reason), "rows")
            axes.hist(values, bins=min(30, len(set(values))), color=COLOURS[0])
            figures[f"values/{reason}"] = finish_figure(axes, f"histogram of {_measure(reason)} of rows left out as {reason}")
    return figures


def _measure(reason: str) -> str:
    return next((measure for start, measure in _MEASURES.items() if reason.startswith(start)), "similarity, 0 to 1")


def _examples(reason: str, notes: Sequence[Note]) -> list[Block]:
    """Show rows of a reason, drawn from all over the data, each with the row that it clashes with."""
    step = max(1, len(notes) // _EXAMPLES)
    items = [_example(note) for note in islice(notes, 0, None, step)][:_EXAMPLES]
    labels = list(dict.fromkeys(label for item in items for label in item if label != "texts"))
    items = [{label: item.get(label, "") for label in ["texts", *labels]} for item in items]
    title = paragraph(f"{reason}: {len(notes):,} rows, {len(items)} of them here")
    return [title, {"kind": "errors", "items": items, "labels": labels}]


def _example(note: Note) -> dict[str, Any]:
    value, other = note.get("value"), note.get("clashes_with")
    item: dict[str, Any] = {"texts": list(_texts(note["row"])), "stands in": _where(note)}
    if "value" not in note:
        item["reason"] = note["reason"]
    if value is not None:
        item["value"] = f"{value:.3f}"
    if other is not None:
        item |= {"clashes with": " ‖ ".join(_texts(other["row"])), "which stands in": _where(other)}
    return item


def _where(note: Note) -> str:
    return f"{note.get('dataset', '')} {Path(note['file']).name}, line {note['line']}".strip()


def _texts(row: Any) -> Iterable[str]:
    for name, value in row.items() if isinstance(row, dict) else ():
        if isinstance(value, list):
            value = f"{len(value)} × {value[0]}" if value else ""
        if value not in (None, "") and name in ("text", "text1", "text2", "query", "positive", "label", "score"):
            yield shortened(f"{value}" if name not in ("label", "score") else f"{name} {value}", _LENGTH)
