"""Compare scores: which way is better, which come from the same rows, and which of those is the best."""

from __future__ import annotations

from collections.abc import Sequence

from acge_lightning.evaluation.scored_rows import SPLITS, entries_of, rows_hash
from acge_lightning.report.runs import Run

LOWER_IS_BETTER = frozenset({"loss", "forgetting", "penalty", "drift", "grad_norm"})  # of all other scores higher is better
NOT_RECORDED = "?"


def lower_is_better(key: str) -> bool:
    """Tell whether of a logged value or a score the lower one is better, by the last word of its name.

    >>> lower_is_better("test/forgetting"), lower_is_better("train/a/loss@64"), lower_is_better("val/mean")
    (True, True, False)
    """
    return key.rpartition("/")[2].partition("@")[0] in LOWER_IS_BETTER


def best(values: Sequence[float | None], rows: Sequence[str | None], lower: bool = False) -> set[int]:
    """Find the best of the scores that come from the same rows.

    Args:
        values: scores; None or NaN for none.
        rows: the hash of the rows of each; None if it is not known, or the score is not to be the best of any.
        lower: whether lower is better.

    Returns:
        Positions of the best of each group of the same rows; of a single score, or of equal ones, there is no best.

    >>> sorted(best([0.1, 0.3, 0.9, 0.2], ["a", "a", "b", "a"]))
    [1]
    """
    chosen: set[int] = set()
    for group in set(rows) - {None}:
        scores = {
            i: v for i, (v, row) in enumerate(zip(values, rows, strict=True)) if row == group and v is not None and v == v
        }
        if len(set(scores.values())) > 1:
            top = (min if lower else max)(scores.values())
            chosen |= {i for i, value in scores.items() if value == top}
    return chosen


def row_letters(runs: Sequence[Run], prefix: str) -> list[str]:
    """Give the runs that were scored on the same rows the same letter, `A` first; `""` where all were.

    Args:
        runs: to compare.
        prefix: `val` or `test`.
    """
    scored = [any(key.startswith(f"{prefix}/") for key in (*run.before, *run.after)) for run in runs]
    hashes = [rows_hash(f"{prefix}/mean", run.rows) for run in runs]
    distinct = list(dict.fromkeys(digest for digest, has in zip(hashes, scored, strict=True) if has))
    if len(distinct) < 2:
        return [""] * len(runs)
    known = [digest for digest in distinct if digest is not None]
    letter = {digest: _letter(number) for number, digest in enumerate(known)} | {None: NOT_RECORDED}
    return [letter[digest] if has else "" for digest, has in zip(hashes, scored, strict=True)]


def runs_by_rows(runs: Sequence[Run], prefix: str) -> dict[str, list[Run]]:
    """Group runs by the rows that they were scored on: `", rows A"` -> runs; `""` -> all, if all were scored on the same."""
    groups: dict[str, list[Run]] = {}
    for run, letter in zip(runs, row_letters(runs, prefix), strict=True):
        groups.setdefault(f", rows {letter}" if letter else "", []).append(run)
    return groups


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{number}"


def explain_letters(runs: Sequence[Run], prefix: str) -> str:
    """Say of which data the rows of each letter are, in a sentence; `""` where all runs were scored on the same rows."""
    letters = row_letters(runs, prefix)
    named: dict[str, str] = {}
    for run, letter in zip(runs, letters, strict=True):
        entries = entries_of(f"{prefix}/mean", run.rows)
        named.setdefault(letter, f"{', '.join(entries)} ({sum(entry['rows'] for entry in entries.values()):,} rows)")
    named = {letter: text for letter, text in named.items() if letter}
    if not named:
        return ""
    if NOT_RECORDED in named:
        named[NOT_RECORDED] = "not recorded"
    listed = "; ".join(f"{letter}: {text}" for letter, text in sorted(named.items()))
    return f"These runs were scored on different {SPLITS[prefix]} rows, so no best is marked between them. {listed}."
