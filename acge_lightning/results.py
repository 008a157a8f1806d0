"""The scores of an evaluation: what its file holds, read and written, and means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning import sheet
from acge_lightning.errors import InputError
from acge_lightning.files import write_text

FORMAT = 1
Row = dict[str, Any]


def failures(result: Mapping[str, Any]) -> list[Row]:
    """The rows without a score. What is noted of a score (queries that are left out) stands beside it."""
    return [row for row in result["rows"] if row["error"]]


def means(rows: Sequence[Row], encoder: str, dim: int | None) -> dict[str, float]:
    """Mean of the main scores of each family at a dim, and `mean`, that of the families; sets that failed are left out."""
    families: dict[str, list[float]] = {}
    for row in rows:
        if row["encoder"] == encoder and row["dim"] == dim and row["value"] is not None:
            families.setdefault(row["family"], []).append(row["value"])
    found = {family: sum(values) / len(values) for family, values in sorted(families.items())}
    return found | ({"mean": sum(found.values()) / len(found)} if found else {})


# ---- files


def earlier(file: Path) -> dict[str, Any]:
    """What an earlier run has left in a file, if it is there."""
    if not file.is_file():
        return {"rows": [], "differences": [], "examples": {}}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        by_hashes(found["rows"])
        return {key: found[key] for key in ("rows", "differences", "examples")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"out={file} holds no results of an evaluation ({error}): give another file") from None


def by_hashes(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(encoder's hash, data's mark) -> the rows without an error."""
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["error"]:
            kept.setdefault((row["hash"], row["mark"]), []).append(row)
    return kept


def write(file: Path, result: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_text(file, json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """One line a row; whole or not at all, and safe to open as a spreadsheet."""
    columns = ["encoder", "family", "dataset", "split", "dim", "metric", "value", "n", "seconds", "note", "error"]
    sheet.write_csv(file, columns, ([row.get(column, "") for column in columns] for row in rows))
