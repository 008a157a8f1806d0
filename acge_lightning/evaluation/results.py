"""The scores of an evaluation: what its file holds, read and written, and means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files import spreadsheet
from acge_lightning.files.atomic import check_replaceable, lock, write_text

FORMAT = 1
NOT_IN_MEAN = ("triplet",)  # families whose tasks are none of MTEB's: see `protocols`
Row = dict[str, Any]


def failures(result: Mapping[str, Any]) -> list[Row]:
    """The rows without a score. What is noted of a score (queries that are left out) stands beside it."""
    return [row for row in result["rows"] if row["error"]]


def means(rows: Sequence[Row], encoder: str, dim: int | None) -> dict[str, float]:
    """Mean of the main scores of each family at a dim, and `mean`, that of the families; sets that failed are left out.

    Families of `NOT_IN_MEAN` count in `mean` only where there is no other.
    """
    families: dict[str, list[float]] = {}
    for row in rows:
        if row["encoder"] == encoder and row["dim"] == dim and row["value"] is not None:
            families.setdefault(row["family"], []).append(row["value"])
    by_family = {family: sum(values) / len(values) for family, values in sorted(families.items())}
    counted = [value for family, value in by_family.items() if family not in NOT_IN_MEAN] or list(by_family.values())
    return by_family | ({"mean": sum(counted) / len(counted)} if counted else {})


# ---- files

NOTHING: dict[str, Any] = {"encoders": [], "rows": [], "differences": [], "leaks": [], "examples": {}}


def earlier(file: Path) -> dict[str, Any]:
    """What earlier runs have left in a file; empty lists where it is not there.

    Raises:
        InputError: it is another file, or cannot be read.
    """
    if not file.is_file() or not file.stat().st_size:
        return dict(NOTHING)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found.get("kind", "evaluation") != "evaluation":
            raise ValueError(f"its format is {found['format']!r}, its kind {found.get('kind', 'evaluation')!r}")
        by_hashes(found["rows"])
        found = NOTHING | found
        merged(found, NOTHING)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"out={file} holds no results of an evaluation ({error}): give another file") from None


def by_hashes(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(encoder's hash, data's mark) -> the rows without an error."""
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["error"]:
            kept.setdefault((row["hash"], row["mark"]), []).append(row)
    return kept


def check(file: Path) -> None:
    """Refuse to write where something else lies.

    Raises:
        InputError: the file, or the table beside it, is there and is not of an evaluation.
    """
    if file.suffix == ".csv":
        raise InputError(f"out={file} is the name of the table beside the results: give a name that ends in .json")
    check_replaceable(file.with_suffix(".csv"), b"encoder,family,dataset,", "the table of an evaluation")


def add(file: Path, result: Mapping[str, Any], table: bool = False) -> None:
    """Put results into a file beside those that it holds; other processes may do the same at the same time.

    Args:
        file: of JSON.
        result: new results.
        table: whether the `.csv` beside the file is written too, with all rows of the file.
    """
    if file.exists() and not file.is_file():  # a pipe, which has no table beside it
        if not table:
            write(file, result)
        return
    with lock(file.with_name(f".{file.name}.lock")):
        whole = merged(earlier(file), result)
        write(file, whole)
        if table:
            write_csv(file.with_suffix(".csv"), whole["rows"])


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """New results, and those of old ones that were not measured again.

    An encoder is known by its hash and a data set by the mark of its rows, and bear the names that they had last. What has
    lost its name to another encoder, or to other rows, has the first 6 digits of its hash, or mark, behind it.
    """
    encoders = renamed(*({card["name"]: card["hash"] for card in part["encoders"]} for part in (old, new)))
    datasets = renamed(marks(old["rows"]), marks(new["rows"]))
    rows, differences, leaks = (
        [told(entry, encoders, datasets) for entry in old[key]] for key in ("rows", "differences", "leaks")
    )
    differences = [entry for entry in differences if entry["encoder"] != entry["against"]]
    examples = {name: dict(sets) for name, sets in new["examples"].items()}
    for name, sets in old["examples"].items():
        mine = examples.setdefault(encoders.get(name, name), {})
        for of, shown in sets.items():
            mine.setdefault(datasets.get(of, of), shown)
    cards = [{**card, "name": encoders[card["name"]]} for card in old["encoders"]]
    return {
        **new,
        "encoders": newest(cards, new["encoders"], "name"),
        "rows": newest(unless_again(rows, new["rows"]), new["rows"], "encoder", "family", "dataset", "dim", "error"),
        "differences": newest(differences, new["differences"], "encoder", "against", "family", "dataset"),
        "leaks": newest(leaks, new["leaks"], "encoder", "family", "dataset"),
        "examples": examples,
    }


def place(row: Mapping[str, Any]) -> str:
    """<family>/<name> of a data set."""
    return f"{row['family']}/{row['dataset']}"


def marks(rows: Sequence[Row]) -> dict[str, str]:
    """<family>/<name> of data sets -> mark of the rows that were scored."""
    return {place(row): row["mark"] for row in rows if row.get("mark")}


def renamed(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """What each old name becomes: the new one of the same thing, or a longer one where another thing has it now.

    >>> renamed({"mine": "a1b2c3d4", "bm25": "bm25"}, {"mine": "00ff00ff"})
    {'mine': 'mine (a1b2c3)', 'bm25': 'bm25'}
    """
    names, found = {digest: name for name, digest in reversed(new.items())}, {}
    for name, digest in old.items():
        taken = new.get(name, digest) != digest
        found[name] = name if new.get(name) == digest else names.get(digest, f"{name} ({digest[:6]})" if taken else name)
    return found


def told(entry: Row, encoders: Mapping[str, str], datasets: Mapping[str, str]) -> Row:
    """An entry by other names of its encoders, and of its data set (<family>/<name>)."""
    names = {key: encoders.get(entry[key], entry[key]) for key in ("encoder", "against") if key in entry}
    return entry | names | {"dataset": datasets.get(place(entry), place(entry)).partition("/")[2]}


def unless_again(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Without errors of what was tried again."""
    again = {(row["encoder"], place(row)) for row in new}
    return [row for row in old if not (row["error"] and (row["encoder"], place(row)) in again)]


def newest(old: Sequence[Row], new: Sequence[Row], *keys: str) -> list[Row]:
    """Old and new entries, of those that agree in the keys the last one."""
    found = {}
    for entry in (*old, *new):
        key = tuple(entry.get(name) for name in keys)
        found.pop(key, None)
        found[key] = entry
    return list(found.values())


def write(file: Path, result: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_text(file, json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """One line a row; whole or not at all, and safe to open as a spreadsheet."""
    columns = ["encoder", "family", "dataset", "split", "dim", "metric", "value", "n", "seconds", "note", "error"]
    spreadsheet.write_csv(file, columns, ([row.get(column, "") for column in columns] for row in rows))
