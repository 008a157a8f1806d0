"""Read, merge and write the file of an evaluation, and average its scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files import spreadsheet
from acge_lightning.files.atomic import check_replaceable, lock, write_text

FORMAT = 1
NOT_IN_MEAN = ("triplet",)  # families whose tasks are none of MTEB's: see `datasets`
Row = dict[str, Any]


def failures(result: Mapping[str, Any]) -> list[Row]:
    """List the rows without a score; a row with a note, such as of queries that are left out, has a score."""
    return [row for row in result["rows"] if row["error"]]


def means(rows: Sequence[Mapping[str, Any]], encoder: str, dim: float | None) -> dict[str, float]:
    """Average the main scores of each family at a dim, and as `mean` those of `families_in_mean`; failed sets are left out."""
    families: dict[str, list[float]] = {}
    for row in rows:
        if row["encoder"] == encoder and row["dim"] == dim and row["value"] is not None:
            families.setdefault(row["family"], []).append(row["value"])
    by_family = {family: sum(values) / len(values) for family, values in sorted(families.items())}
    in_mean = [by_family[family] for family in families_in_mean(by_family)]
    return by_family | ({"mean": sum(in_mean) / len(in_mean)} if in_mean else {})


def families_in_mean(families: Iterable[str]) -> list[str]:
    """List the families that count in the mean of families: those of `NOT_IN_MEAN` only where there is no other.

    >>> families_in_mean(["sts", "triplet"]), families_in_mean(["triplet"])
    (['sts'], ['triplet'])
    """
    families = sorted(set(families))
    return [family for family in families if family not in NOT_IN_MEAN] or families


def mean_exception(families: Iterable[str]) -> str:
    """Say which families do not count in the mean of families, as words that follow its name.

    >>> "mean" + mean_exception(["sts", "triplet"]), "mean" + mean_exception(["sts"])
    ('mean without triplet', 'mean')
    """
    families = set(families)
    left_out = sorted(families - set(families_in_mean(families)))
    return f" without {', '.join(left_out)}" if left_out else ""


# ---- files

NOTHING: dict[str, Any] = {"encoders": [], "rows": [], "differences": [], "leaks": [], "examples": {}}


def read_results(file: Path) -> dict[str, Any]:
    """Read the results of earlier runs; empty lists if the file does not exist.

    Raises:
        InputError: it is another file, or cannot be read.
    """
    if not file.is_file() or not file.stat().st_size:
        return dict(NOTHING)
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
        if contents["format"] != FORMAT or contents.get("kind", "evaluation") != "evaluation":
            raise ValueError(f"its format is {contents['format']!r}, its kind {contents.get('kind', 'evaluation')!r}")
        by_hashes(contents["rows"])
        contents = NOTHING | contents
        _check_texts(contents)
        rows_with_leaks(merge(contents, NOTHING))
        return contents
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"out={file} holds no results of an evaluation ({error}): give another file") from None


def _check_texts(contents: Mapping[str, Any]) -> None:
    """Raise a ValueError if a name or a digest of some results is no text."""
    texts = {"encoders": ("name", "hash"), "rows": ("encoder", "family", "dataset"), "leaks": ("encoder", "family", "dataset")}
    for kind, keys in texts.items():
        for entry in contents[kind]:
            wrong = [key for key in keys if not isinstance(entry[key], str)]
            if wrong or not isinstance(entry.get("mark") or "", str):
                raise ValueError(f"{kind} have a {(wrong or ['mark'])[0]} that is no text")


def by_hashes(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group the rows without an error by the encoder's hash and the data set's fingerprint."""
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["error"]:
            rows_of.setdefault((row["hash"], row["mark"]), []).append(row)
    return rows_of


def check(file: Path) -> None:
    """Refuse to replace a file of another kind.

    Raises:
        InputError: the name is that of the table, or the table beside the file is not of an evaluation.
    """
    if file.suffix == ".csv":
        raise InputError(f"out={file} is the name of the table beside the results: give a name that ends in .json")
    check_replaceable(file.with_suffix(".csv"), b"encoder,family,dataset,", "the table of an evaluation")


def add(file: Path, result: Mapping[str, Any], table: bool = False) -> None:
    """Add results to those of a file; other processes may do the same at the same time.

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
        combined = merge(read_results(file), result)
        write(file, combined)
        if table:
            write_csv(file.with_suffix(".csv"), rows_with_leaks(combined))


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge new results with the old ones that were not measured again.

    An encoder is identified by its hash and a data set by the fingerprint of its rows; both get the names that they had last.
    One whose name another has now gets the first 6 digits of its hash, or fingerprint, as a suffix.
    """
    encoders = new_names(*({card["name"]: card["hash"] for card in contents["encoders"]} for contents in (old, new)))
    datasets = new_names(dataset_fingerprints(old["rows"]), dataset_fingerprints(new["rows"]))
    rows, differences, leaks = (
        [rename_entry(entry, encoders, datasets) for entry in old[key]] for key in ("rows", "differences", "leaks")
    )
    differences = [entry for entry in differences if entry["encoder"] != entry["against"]]
    examples = {name: dict(sets) for name, sets in new["examples"].items()}
    for name, sets in old["examples"].items():
        encoder_examples = examples.setdefault(encoders.get(name, name), {})
        for dataset, example in sets.items():
            encoder_examples.setdefault(datasets.get(dataset, dataset), example)
    cards = [{**card, "name": encoders[card["name"]]} for card in old["encoders"]]
    return {
        **new,
        "encoders": latest_by_key(cards, new["encoders"], "name"),
        "rows": latest_by_key(
            without_retried_errors(rows, new["rows"]), new["rows"], "encoder", "family", "dataset", "dim", "error"
        ),
        "differences": latest_by_key(differences, new["differences"], "encoder", "against", "family", "dataset"),
        "leaks": latest_by_key(leaks, new["leaks"], "encoder", "family", "dataset"),
        "examples": examples,
    }


def dataset_key(row: Mapping[str, Any]) -> str:
    """Return <family>/<name> of a data set."""
    return f"{row['family']}/{row['dataset']}"


def dataset_fingerprints(rows: Sequence[Row]) -> dict[str, str]:
    """Map <family>/<name> of data sets to the fingerprints of the rows that were scored."""
    return {dataset_key(row): row["mark"] for row in rows if row.get("mark")}


def new_names(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Map each old name to the new one of the same digest, or to a longer one if another digest has it now.

    >>> new_names({"mine": "a1b2c3d4", "bm25": "bm25"}, {"mine": "00ff00ff"})
    {'mine': 'mine (a1b2c3)', 'bm25': 'bm25'}
    """
    name_of = {digest: name for name, digest in reversed(list(new.items()))}
    result = {}
    for name, digest in old.items():
        is_taken = new.get(name, digest) != digest
        result[name] = name if new.get(name) == digest else name_of.get(digest, f"{name} ({digest[:6]})" if is_taken else name)
    return result


def rename_entry(entry: Row, encoders: Mapping[str, str], datasets: Mapping[str, str]) -> Row:
    """Return an entry with the new names of its encoders, and of its data set (<family>/<name>)."""
    names = {key: encoders.get(entry[key], entry[key]) for key in ("encoder", "against") if key in entry}
    return entry | names | {"dataset": datasets.get(dataset_key(entry), dataset_key(entry)).partition("/")[2]}


def without_retried_errors(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Drop the errors of encoders and data sets that were scored again."""
    retried = {(row["encoder"], dataset_key(row)) for row in new}
    return [row for row in old if not (row["error"] and (row["encoder"], dataset_key(row)) in retried)]


def latest_by_key(old: Sequence[Row], new: Sequence[Row], *keys: str) -> list[Row]:
    """Concatenate old and new entries, and of those that agree in the keys keep the last one."""
    latest: dict[tuple[Any, ...], Row] = {}
    for entry in (*old, *new):
        key = tuple(entry.get(name) for name in keys)
        latest.pop(key, None)
        latest[key] = entry
    return list(latest.values())


def write(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all."""
    write_text(file, json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def rows_with_leaks(result: Mapping[str, Any]) -> list[Row]:
    """Return the rows with `seen`, how many of the scored ones the encoder was trained on, and `unseen`, the score without."""
    full = {card["name"]: card["dim"] for card in result["encoders"]}
    leaks = {(leak["encoder"], dataset_key(leak)): leak for leak in result["leaks"]}
    rows = []
    for row in result["rows"]:
        leak = leaks.get((row["encoder"], dataset_key(row)), {})
        unseen = leak.get("unseen") if row["dim"] == full.get(row["encoder"]) else None
        rows.append({**row, "seen": leak.get("found"), "unseen": unseen})
    return rows


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as a table that is safe to open as a spreadsheet, whole or not at all."""
    columns = [
        "encoder",
        "family",
        "dataset",
        "split",
        "dim",
        "metric",
        "value",
        "n",
        "seen",
        "unseen",
        "seconds",
        "note",
        "error",
    ]
    spreadsheet.write_csv(file, columns, ([row.get(column, "") for column in columns] for row in rows))
