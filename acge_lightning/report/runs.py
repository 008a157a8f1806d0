"""Read runs and evaluations from their folders as plain data; files that are missing or damaged are named in remarks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.evaluation.names import run_names
from acge_lightning.evaluation.results import FORMAT, Row, dataset_key
from acge_lightning.files.yaml_file import read_yaml

Curve = list[tuple[int, float]]
_INTERVAL = ("difference", "low", "high")


@dataclass
class Run:
    """A run or an evaluation, read from its files; fields without a file are empty.

    Args:
        name: in tables and legends.
        path: the folder or file.
        config: the settings, interpolations as they were written.
        before: scores before training.
        after: scores after it.
        rows: which rows the scores come from, as of `scored_rows`; empty if it is not recorded.
        curves: logged name -> (step, value), over all times that the run went on.
        training: the provenance of the export: `versions`, `data`, `steps`.
        forgetting: `tasks` and `matrix`: row: after training on a task, column: the score of a task; of a sequence also
            `measures` and the `strategy` that it was trained with.
        funnel: `label`, `recall`, `speedup` of searches in several steps.
        evaluation: `encoders`, `rows`, `differences`, `leaks`, `examples`.
        remarks: which files are missing or damaged.
    """

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    funnel: list[Row] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_runs(paths: str | Sequence[str] | Mapping[str, str]) -> list[Run]:
    """Read the runs and evaluations at some paths.

    Args:
        paths: folders of runs or multiruns, `results.json` files or folders with one; one, a list, or name -> path. Without a
            name, see `run_names`.

    Raises:
        InputError: nothing is there, or nothing of a run or an evaluation.
    """
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, Mapping):
        paths = [job for path in paths for job in _jobs(path)]
    if not paths:
        raise InputError("runs is empty: name folders of runs or results.json files, for example runs=[outputs/mine/TIME]")
    if isinstance(paths, Mapping):
        return [_read(Path(path).expanduser(), str(name)) for name, path in paths.items()]
    runs = [_read(Path(path).expanduser(), "") for path in dict.fromkeys(map(str, paths))]
    for run, name in zip(runs, run_names([run.path for run in runs]), strict=True):
        run.name = name
    return runs


def _jobs(path: str | Path) -> list[str]:
    """List the runs of a multirun's folder; any other path is listed itself."""
    folder = Path(path).expanduser()
    jobs = [] if (folder / ".hydra").is_dir() else [config.parent for config in folder.glob("*/.hydra")]
    return [str(job) for job in sorted(jobs, key=lambda job: (len(job.name), job.name))] or [str(path)]


def _read(path: Path, name: str) -> Run:
    if path.is_file():
        run = Run(name, path)
        _read_into(run, path, _evaluation, "evaluation")
        if run.remarks:
            raise InputError(f"{run.remarks[0]}: name a file that `acge evaluate` wrote, or the folder of a run")
        return run
    if not path.is_dir():
        raise InputError(f"runs: {path} is not there: name folders of runs or results.json files")
    run = Run(name, path)
    model = next((folder for folder in (path / "export", path / "backbone") if folder.is_dir()), path / "export")
    run_files = [
        _read_into(run, path / ".hydra" / "config.yaml", _config, "config"),
        _read_into(run, path / "result.json", _scores, "before", "after", "rows"),
        _read_into(run, path / "csv", partial(_curves, remarks=run.remarks), "curves"),
        _read_into(run, model / "training.json", _training, "training"),
    ]
    optional_readers = {"forgetting": _forgetting, "funnel": _funnel}
    optional_files = [
        _read_into(run, path / f"{key}.json", reader, key, optional=True) for key, reader in optional_readers.items()
    ]
    optional_files.append(_read_into(run, path / "results.json", _evaluation, "evaluation", optional=True))
    if not any(run_files):
        if not any(optional_files):
            raise InputError(f"runs: {path} holds neither a run nor an evaluation: name outputs/NAME/TIME or a results.json")
        run.remarks = [remark for remark in run.remarks if not remark.endswith(" is missing")]  # it is no run
    if "strategy" in run.forgetting:
        run.remarks = [remark for remark in run.remarks if remark != f"{path / 'csv'} is missing"]  # its stages have logs
        _read_stage_logs(run)
    if not run.config and run.training.get("config"):
        run.config = run.training["config"]
        run.remarks = [remark for remark in run.remarks if remark != f"{path / '.hydra' / 'config.yaml'} is missing"]
    return run


def _read_stage_logs(run: Run) -> None:
    """Read the drift that the callback of the last stage has logged."""
    folders = sorted(run.path.glob("*_*/csv"), key=lambda folder: int(re.sub(r"\D.*", "", folder.parent.name) or 0))
    last = Run(run.name, run.path)
    if folders and _read_into(last, folders[-1], partial(_curves, remarks=last.remarks), "curves"):
        run.curves |= {key: points for key, points in last.curves.items() if key.startswith("ewc/")}


def _read_into(run: Run, path: Path, reader: Callable[[Path], Any], *keys: str, optional: bool = False) -> bool:
    """Read fields of a run from a file, and remark on errors.

    Args:
        run: whose fields are set.
        path: of the file or folder.
        reader: returns the value of the field, or a tuple of the values of several.
        keys: the names of the fields.
        optional: whether it may be missing without a remark.

    Returns:
        Whether the path exists.
    """
    if not path.exists():
        run.remarks += [] if optional else [f"{path} is missing"]
        return False
    try:
        values = reader(path)
        for key, value in zip(keys, values if len(keys) > 1 else [values], strict=True):
            setattr(run, key, value)
    except KeyError as error:
        run.remarks.append(f"{path} is damaged: it has no {error}")
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        run.remarks.append(f"{path} is damaged: {' '.join(str(error).split()).removeprefix(f'{path}: ')}")
    return True


# ---- readers of single files, which raise whatever a wrong form leads to


def _json(path: Path) -> Any:
    return _clean(json.loads(_regular(path).read_text(encoding="utf-8")))


def _regular(path: Path) -> Path:
    """Refuse a path that is no regular file: a pipe would block, and a device has no end."""
    if not path.is_file():
        raise ValueError("it is no regular file")
    return path


def _clean(value: Any) -> Any:
    """Replace the characters that no page may hold: control characters and lone surrogates."""
    if isinstance(value, str):
        return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} stands where keys and values are expected")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} stands where a list is expected")
    return value


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return None if value is None else float(value)


def _numbers(values: Any) -> dict[str, float]:
    return {key: number for key, value in _mapping(values).items() if (number := _number(value)) is not None}


def _config(path: Path) -> dict[str, Any]:
    return _clean(_mapping(read_yaml(path)))


def _scores(path: Path) -> tuple[dict[str, float], dict[str, float], dict[str, dict[str, dict[str, Any]]]]:
    result = _mapping(_json(path))
    rows = {
        prefix: {
            task: {key: str(entry[key]) for key in ("family", "hash")} | {key: int(entry[key]) for key in ("rows", "seen")}
            for task, entry in _mapping(entries).items()
        }
        for prefix, entries in _mapping(result.get("data") or {}).items()
    }
    return _numbers(result["before"]), _numbers(result["after"]), rows


def _training(path: Path) -> dict[str, Any]:
    record = _mapping(_json(path))
    record["data"] = {task: _numbers(roles) for task, roles in _mapping(record.get("data") or {}).items()}
    record["versions"] = _mapping(record.get("versions") or {})
    record["config"] = _mapping(record.get("config") or {})
    record["steps"] = _number(record.get("steps"))
    return record


def _curves(folder: Path, remarks: list[str]) -> dict[str, Curve]:
    """Read the logs of all versions, the oldest first; values that a resumed run has logged again replace the earlier ones."""
    files = sorted(folder.rglob("metrics.csv"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.parent.name)])
    if not files:
        raise ValueError("there is no metrics.csv in it")
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        try:
            _add_log(file, curves)
        except (ValueError, csv.Error) as error:
            remarks.append(f"{file} is damaged: {error}; the lines before it are shown")
    return {_clean(key): sorted(points.items()) for key, points in curves.items()}


def _add_log(file: Path, curves: dict[str, dict[int, float]]) -> None:
    with _regular(file).open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                step = int(row["step"])
                values = {key: float(cell) for key, cell in row.items() if cell and key not in ("step", "epoch")}
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"line {rows.line_num} is not of numbers with a step") from None
            for key, value in values.items():
                curves.setdefault(key, {})[step] = value


def _forgetting(path: Path) -> dict[str, Any]:
    record = _mapping(_json(path))
    tasks = [str(task) for task in _list(record["tasks"])]
    matrix = [[_number(value) for value in _list(row)] for row in _list(record["matrix"])]
    if not tasks or [len(row) for row in matrix] != [len(tasks)] * len(tasks):
        raise ValueError(f"its matrix is not one of {len(tasks)} x {len(tasks)} tasks")
    details = {key: _mapping(record[key]) for key in ("measures", "strategy") if key in record}
    return (
        {"tasks": tasks, "matrix": matrix}
        | details
        | ({"measures": _numbers(details["measures"])} if "measures" in details else {})
    )


def _funnel(path: Path) -> list[Row]:
    points = _list(_mapping(_json(path))["points"])
    return [{"label": str(p["label"]), "recall": float(p["recall"]), "speedup": float(p["speedup"])} for p in points]


def _evaluation(path: Path) -> dict[str, Any]:
    result = _mapping(_json(path))
    if result.get("format") != FORMAT:
        raise ValueError(f"its format is {result.get('format')!r}, and {FORMAT} is what can be read")
    names = ("encoder", "family", "dataset")
    return {
        "encoders": [_mapping(card) | {"name": str(card["name"]), "dim": _number(card["dim"])} for card in result["encoders"]],
        "rows": [
            {key: str(row[key]) for key in (*names, "metric")}
            | {key: _number(row[key]) for key in ("dim", "value")}
            | {key: row.get(key) and str(row[key]) for key in ("split", "mark", "note", "error")}
            for row in result["rows"]
        ],
        "differences": [
            {key: str(row[key]) for key in (*names, "against")}
            | {key: float(row[key]) for key in _INTERVAL}
            | {"dim": _number(row.get("dim"))}
            | ({"unseen": row["unseen"] and {key: float(row["unseen"][key]) for key in _INTERVAL}} if "unseen" in row else {})
            for row in result.get("differences") or []
        ],
        "leaks": [
            {"encoder": str(row["encoder"]), "dataset": str(row["dataset"]), "found": int(row["found"])}
            | {"rows": int(row["rows"] if "rows" in row else row["texts"]), "family": str(row.get("family") or "")}
            | {"unseen": _number(row.get("unseen"))}
            for row in result.get("leaks") or []
            if row["found"] is not None  # null: it could not be checked
        ],
        "examples": {
            encoder: {name: _examples(example) for name, example in _mapping(sets).items()}
            for encoder, sets in _mapping(result.get("examples") or {}).items()
        },
    }


def _examples(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "points": [(float(x), float(y), str(label)) for x, y, label in example.get("points") or []],
        "neighbours": [
            {
                "query": str(row["query"]),
                "hits": [{"text": str(h["text"]), "score": float(h["score"]), "right": bool(h["right"])} for h in row["hits"]],
            }
            for row in example.get("neighbours") or []
        ],
        "errors": [
            {key: str(row[key]) for key in ("text", "text2", "expected", "found") if key != "text2" or row.get(key)}
            for row in example.get("errors") or []
        ],
    }


def evaluations(runs: Sequence[Run]) -> dict[str, Any]:
    """Combine the evaluations of all runs into one.

    Encoders that share a name and differ get the name of their run as a prefix, and one that has several names keeps its
    first; data sets that share a name and differ in their rows get the first 6 digits of their fingerprint as a suffix.
    """
    combined: dict[str, Any] = {key: [] for key in ("encoders", "rows", "differences", "leaks")} | {"examples": {}}
    hashes: dict[str, set[str]] = {}
    fingerprints: dict[str, set[str]] = {}
    first_names: dict[str, str] = {}  # hash of an encoder -> what it is called
    for run in runs:
        for card in run.evaluation.get("encoders", []):
            hashes.setdefault(card["name"], set()).add(str(card.get("hash") or run.name))
        for row in run.evaluation.get("rows", []):
            fingerprints.setdefault(dataset_key(row), set()).update({row["mark"]} - {None})
    for run in runs:
        cards = run.evaluation.get("encoders", [])
        names = {c["name"]: c["name"] if len(hashes[c["name"]]) == 1 else f"{run.name}: {c['name']}" for c in cards}
        names |= {c["name"]: first_names.setdefault(str(c["hash"]), names[c["name"]]) for c in cards if c.get("hash")}
        run_fingerprints = {dataset_key(row): row["mark"] for row in run.evaluation.get("rows", []) if row["mark"]}
        suffixes = {
            dataset: f" ({fingerprint[:6]})"
            for dataset, fingerprint in run_fingerprints.items()
            if len(fingerprints[dataset]) > 1
        }
        present = {card["name"] for card in combined["encoders"]}
        combined["encoders"] += [card | {"name": names[card["name"]]} for card in cards if names[card["name"]] not in present]
        for key in ("rows", "differences", "leaks"):
            for row in run.evaluation.get(key, []):
                renamed_fields = {k: names.get(row[k], row[k]) for k in ("encoder", "against") if k in row}
                renamed_fields["dataset"] = row["dataset"] + suffixes.get(dataset_key(row), "")
                renamed = row | renamed_fields
                is_new = renamed not in combined[key] and renamed.get("against") != renamed["encoder"]
                combined[key] += [renamed] if is_new else []
        for name, examples in run.evaluation.get("examples", {}).items():
            encoder_examples = combined["examples"].setdefault(names.get(name, name), {})
            encoder_examples.update({dataset + suffixes.get(dataset, ""): example for dataset, example in examples.items()})
    combined["encoders"] += [
        {"name": name, "dim": None}  # a damaged list of encoders does not hide their scores
        for name in dict.fromkeys(row["encoder"] for row in combined["rows"])
        if name not in {card["name"] for card in combined["encoders"]}
    ]
    return combined
