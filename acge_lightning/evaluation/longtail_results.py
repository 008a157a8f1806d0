"""The file of `acge longtail`: results are added to those that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.evaluation.results import marks, newest, renamed, told, unless_again, write
from acge_lightning.files.atomic import lock

_SAME = ("head", "head_shots", "probe", "seeds")  # of the protocol: with other ones the numbers are not to be compared
_MEASURED = ("dim", "shots", "perturbation")


def check(file: Path, result: Mapping[str, Any]) -> None:
    """Refuse to add results to a file that is another one, or of another protocol.

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
        known = read(file, result["protocol"])
        write(file, _merged(known, result) if known else result)


def read(file: Path, protocol: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What a file holds; None if it is not there.

    Args:
        file: of `acge longtail`.
        protocol: the one that it must be of.

    Raises:
        InputError: it is another file, or of another protocol.
    """
    if not file.is_file() or not file.stat().st_size:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["kind"] != "longtail":
            raise ValueError(f"its kind is {found['kind']!r}")
        _merged(found, {"encoders": [], "rows": [], "differences": []})
        wrong = [key for key in _SAME if protocol is not None and found["protocol"][key] != protocol[key]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"out={file} holds no results of acge longtail ({error}): give another file") from None
    if wrong:
        other = ", ".join(f"{key}={found['protocol'][key]}, not {protocol[key]}" for key in wrong)
        raise InputError(f"out={file} holds results of another protocol ({other}): give another file")
    return found


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    encoders = renamed(*({row["encoder"]: row["hash"] for row in part["rows"] if row.get("hash")} for part in (old, new)))
    datasets = renamed(marks(old["rows"]), marks(new["rows"]))
    rows = unless_again([told(row, encoders, datasets) for row in old["rows"]], new["rows"])
    differences = [told(entry, encoders, datasets) for entry in old["differences"]]
    names = [encoders.get(name, name) for name in old["encoders"]]
    return {
        **new,
        "encoders": list(dict.fromkeys([*names, *new["encoders"]])),
        "rows": newest(rows, new["rows"], "encoder", "family", "dataset", *_MEASURED, "error"),
        "differences": newest(differences, new["differences"], "encoder", "against", "family", "dataset", *_MEASURED),
    }
