"""What the cards of the encoders of the package say beyond any exported card: scores, data, what was never seen, limits.

`tools/zoo.py` calls it. By itself it writes the page of both and its picture, from the results of `acge evaluate`:

    python tools/zoo_card.py RESULTS.json DATA.json [--docs docs]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.evaluation.results import means

FAMILIES = ("sts", "pair", "classification", "clustering", "retrieval", "reranking")
OWN = ("acge-nano-zh", "acge-static-zh")
LEXICAL = "tfidf"
METRICS = "Metrics: Spearman, average precision, accuracy of a linear probe on 16 texts a class, v-measure, nDCG@10, MAP."
LICENCE = "CC-BY-SA-4.0"
LIMITS = f"""\
- Small encoders learn what texts are about, and lose single words: where a question and its passage share names and numbers,
  BM25 finds more (`tools/study_fusion.py` ranks by both).
- They learnt from technical documentation, laws, medicine, school, reviews and everyday questions; from no news.
- Sentences that differ only in the order of their words are nearly the same to them (pawsx_zh).
- Chinese; a little English, of which two sets are among the data. Traditional characters give the vectors of simplified ones.
- The licence of the weights is {LICENCE}, that of the strictest of its sources; it is a reading of ours, not legal advice."""


def scores(results: Mapping[str, Any]) -> str:
    """Tables of family means at every dim, and of each data set with its difference from TF-IDF."""
    rows = [row for row in results["rows"] if not row["error"]]
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    lines = ["| encoder | dims | " + " | ".join(families) + " | mean |", "| --- | ---: |" + " ---: |" * (len(families) + 1)]
    for card in results["encoders"]:
        for dim in dict.fromkeys(row["dim"] for row in rows if row["encoder"] == card["name"]):
            mean = means(rows, card["name"], dim)
            cells = [f"{100 * mean[key]:.1f}" if key in mean else "" for key in families]
            complete = f"{100 * mean['mean']:.2f}" if all(cells) else ""  # a mean of some families is no mean of all
            lines.append(f"| {card['name']} | {dim or ''} | {' | '.join(cells)} | {complete} |")
    return "\n".join(lines)


def differences(results: Mapping[str, Any], name: str) -> str:
    """A table of an encoder's scores at full size on each data set, and their differences from TF-IDF with intervals."""
    size = next(card["dim"] for card in results["encoders"] if card["name"] == name)
    values = {
        (row["family"], row["dataset"]): row
        for row in results["rows"]
        if row["encoder"] == name and row["dim"] == size and not row["error"]
    }
    against = {
        (row["family"], row["dataset"]): row
        for row in results["differences"]
        if row["encoder"] == name and row["against"] == LEXICAL
    }
    lines = ["| data set | metric | rows | score | minus TF-IDF | 95 % |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for family in FAMILIES:
        for key, row in values.items():
            if key[0] == family:
                cells = ["", ""]
                if key in against:
                    low, middle, high = (100 * against[key][part] for part in ("low", "difference", "high"))
                    cells = [f"{middle:+.1f}", f"{low:+.1f} to {high:+.1f}"]
                score = f"{100 * row['value']:.1f}"
                lines.append(f"| {family}/{key[1]} | {row['metric']} | {row['n']:,} | {score} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def sources(data: Mapping[str, Any]) -> str:
    """A table of the training data: origin, licence, rows."""
    lines = ["| data set | from | licence | rows | left out |", "| --- | --- | --- | ---: | ---: |"]
    for name, record in data.items():
        left_out = sum(record["left_out"].values())
        lines.append(f"| {name} | {', '.join(record['from'])} | {record['licence']} | {record['kept']:,} | {left_out:,} |")
    return "\n".join(lines)


def never_seen(results: Mapping[str, Any], data: Mapping[str, Any], name: str) -> str:
    """Which of the data sets were not trained on at all, and how many rows of the tests were."""
    trained = {source.partition("/")[2] for source in data}
    datasets = dict.fromkeys(row["dataset"] for row in results["rows"])
    unseen = ", ".join(dataset for dataset in datasets if dataset not in trained) or "none"
    found = sum(leak["found"] for leak in results["leaks"] if leak["encoder"] == name)
    rows = sum(leak["rows"] for leak in results["leaks"] if leak["encoder"] == name)
    others = ", ".join(dataset for dataset in datasets if dataset in trained)
    return (
        f"Data sets of which no row was trained on: {unseen}. Of these, the training rows were: {others}. Of"
        f" the {rows:,} test rows that could be checked, {found:,} equal a training row."
    )


def origin_and_limits(data: Mapping[str, Any]) -> list[str]:
    """The lines with which the cards and the page end."""
    return ["## Where the training data come from", "", sources(data), "", "## Limits", "", LIMITS, ""]


def card(results: Mapping[str, Any], data: Mapping[str, Any], name: str) -> str:
    """The sections that a card gets."""
    return "\n".join(
        [
            "## Scores",
            "",
            f"`acge evaluate` on test rows, times 100. {METRICS}",
            "",
            scores(results),
            "",
            differences(results, name),
            "",
            "## What it never saw",
            "",
            never_seen(results, data, name),
            "",
            *origin_and_limits(data),
            "## How to make it again",
            "",
            "`make zoo DATA=DIR`; the settings are in `conf/experiment/zoo_*.yaml`, the data sets in `tools/zoo_sources.yaml`.",
            "",
        ]
    )


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw the means of families of the Matryoshka encoders by dim, the others as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results["rows"] if not row["error"]]
    families = {row["family"] for row in rows}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, entry in enumerate(results["encoders"]):
        dims = sorted({row["dim"] for row in rows if row["encoder"] == entry["name"] and row["dim"]})
        values = {dim: means(rows, entry["name"], dim) for dim in dims or [None]}
        curve = [100 * value["mean"] for value in values.values() if families <= set(value)]
        colour = f"C{number}"
        if len(curve) == len(dims) > 1:
            axes.plot(dims, curve, marker="o", color=colour, label=entry["name"])
        elif curve:
            axes.axhline(curve[0], linestyle="--", color=colour, label=entry["name"])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("dims")
    axes.set_ylabel("mean of the families (test)")
    axes.legend(loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page(results: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The page of the encoders of the package, in Markdown."""
    names = [name for name in OWN if any(entry["name"] == name for entry in results["encoders"])]
    parts = [f"## {name}: each data set\n\n{differences(results, name)}\n\n{never_seen(results, data, name)}" for name in names]
    return "\n".join(
        [
            "# The encoders in the package",
            "",
            "```python",
            "from acge_lightning import load",
            "",
            f'load("{names[0]}").encode(["今天天气不错"])',
            "```",
            "",
            f"Their scores on test rows, times 100, beside other encoders. {METRICS}",
            "",
            scores(results),
            "",
            "![Means of families by dims](pictures/zoo.png)",
            "",
            *parts,
            "",
            *origin_and_limits(data),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("results", type=Path, help="what `acge evaluate` wrote")
    parser.add_argument("data", type=Path, help="`package/data.json` of `make zoo`")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page and its picture go")
    options = parser.parse_args(arguments)
    results, data = (json.loads(file.read_text(encoding="utf-8")) for file in (options.results, options.data))
    (options.docs / "zoo.md").write_text(page(results, data), encoding="utf-8")
    draw(results, options.docs / "pictures" / "zoo.png")


if __name__ == "__main__":
    main(sys.argv[1:])
