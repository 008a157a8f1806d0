"""Read and write the file of `acge longtail`; new results are added to those that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.evaluation.results import (
    dataset_fingerprints,
    latest_by_key,
    new_names,
    rename_entry,
    without_retried_errors,
    write,
)
from acge_lightning.files.atomic import lock

_SAME = ("head", "head_shots", "probe", "seeds")  # of the protocol: numbers of other values cannot be compared
_MEASURED = ("dim", "shots", "perturbation")


def check(file: Path, result: Mapping[str, Any]) -> None:
    """Refuse to add results to a file of another kind, or of another protocol.

    Raises:
        InputError: says what differs.
    """
    read(file, result["protocol"])


def add(file: Path, result: Mapping[str, Any]) -> None:
    """Put results into a file; those of other encoders, data sets and dims stay. Other processes may do the same meanwhile."""
    if file.exists() and not file.is_file():  # a pipe
        write(file, result)
        return
    with lock(file.with_name(f".{file.name}.lock")):
        existing = read(file, result["protocol"])
        write(file, _merge(existing, result) if existing else result)


def read(file: Path, protocol: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Read a file; None if it does not exist or is empty.

    Args:
        file: of `acge longtail`.
        protocol: that its results must be of.

    Raises:
        InputError: it is another file, or of another protocol.
    """
    if not file.is_file() or not file.stat().st_size:
        return None
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
        if contents["kind"] != "longtail":
            raise ValueError(f"its kind is {contents['kind']!r}")
        _merge(contents, {"encoders": [], "rows": [], "differences": []})
        other = {key: contents["protocol"][key] for key in _SAME if protocol and contents["protocol"][key] != protocol[key]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"out={file} holds no results of acge longtail ({error}): give another file") from None
    if protocol and other:
        differences = ", ".join(f"{key}={value}, not {protocol[key]}" for key, value in other.items())
        raise InputError(f"out={file} holds results of another protocol ({differences}): give another file")
    return contents


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    encoders = new_names(
        *({row["encoder"]: row["hash"] for row in contents["rows"] if row.get("hash")} for contents in (old, new))
    )
    datasets = new_names(dataset_fingerprints(old["rows"]), dataset_fingerprints(new["rows"]))
    rows = without_retried_errors([rename_entry(row, encoders, datasets) for row in old["rows"]], new["rows"])
    differences = [rename_entry(entry, encoders, datasets) for entry in old["differences"]]
    names = [encoders.get(name, name) for name in old["encoders"]]
    return {
        **new,
        "encoders": list(dict.fromkeys([*names, *new["encoders"]])),
        "rows": latest_by_key(rows, new["rows"], "encoder", "family", "dataset", *_MEASURED, "error"),
        "differences": latest_by_key(differences, new["differences"], "encoder", "against", "family", "dataset", *_MEASURED),
    }
