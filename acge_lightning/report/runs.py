"""What runs and evaluations have left behind, read as plain data; a file that is absent or damaged is named, the rest read."""

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
from acge_lightning.evaluation.results import FORMAT, Row, place
from acge_lightning.files.yaml_file import read_yaml

Curve = list[tuple[int, float]]


@dataclass
class Run:
    """A folder of a run, or a file of an evaluation; what it does not hold is empty.

    Args:
        name: in tables and legends.
        path: the folder or file.
        config: the settings, interpolations as they were written.
        before: scores before training.
        after: scores after it.
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
    curves: dict[str, Curve] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    funnel: list[Row] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_runs(paths: str | Sequence[str] | Mapping[str, str]) -> list[Run]:
    """The runs and evaluations at some paths.

    Args:
        paths: folders of runs or multiruns, `results.json` files or folders with one; one, a list, or name -> path. Without a
            name, a run is called as in its config, another by its folder, and as much of the path is added as tells them
            apart.

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
    names = [str(run.config.get("name") or _parts(run.path)[-1]) for run in runs]
    for run, name in zip(runs, names, strict=True):
        run.name = name if names.count(name) == 1 else _shortest(run.path, [other.path for other in runs if other is not run])
    return runs


def _jobs(path: str | Path) -> list[str]:
    """The runs of a multirun's folder; any other path itself."""
    folder = Path(path).expanduser()
    jobs = [] if (folder / ".hydra").is_dir() else [config.parent for config in folder.glob("*/.hydra")]
    return [str(job) for job in sorted(jobs, key=lambda job: (len(job.name), job.name))] or [str(path)]


def _parts(path: Path) -> tuple[str, ...]:
    path = path.resolve()
    return (path.parent if path.name == "results.json" else path.with_suffix("") if path.is_file() else path).parts


def _shortest(path: Path, others: Sequence[Path]) -> str:
    """The end of a path that no other path has."""
    parts = _parts(path)
    for count in range(1, len(parts)):
        if all(_parts(other)[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return str(path)


def _read(path: Path, name: str) -> Run:
    if path.is_file():
        run = Run(name, path)
        _take(run, path, _evaluation, "evaluation")
        if run.remarks:
            raise InputError(f"{run.remarks[0]}: name a file that `acge evaluate` wrote, or the folder of a run")
        return run
    if not path.is_dir():
        raise InputError(f"runs: {path} is not there: name folders of runs or results.json files")
    run = Run(name, path)
    model = next((folder for folder in (path / "export", path / "backbone") if folder.is_dir()), path / "export")
    of_a_run = [
        _take(run, path / ".hydra" / "config.yaml", _config, "config"),
        _take(run, path / "result.json", _scores, "before", "after"),
        _take(run, path / "csv", partial(_curves, remarks=run.remarks), "curves"),
        _take(run, model / "training.json", _training, "training"),
    ]
    others = {"forgetting": _forgetting, "funnel": _funnel}
    found = [_take(run, path / f"{key}.json", reader, key, optional=True) for key, reader in others.items()]
    found.append(_take(run, path / "results.json", _evaluation, "evaluation", optional=True))
    if not any(of_a_run):
        if not any(found):
            raise InputError(f"runs: {path} holds neither a run nor an evaluation: name outputs/NAME/TIME or a results.json")
        run.remarks = [remark for remark in run.remarks if not remark.endswith(" is missing")]  # it is no run
    if "strategy" in run.forgetting:
        run.remarks = [remark for remark in run.remarks if remark != f"{path / 'csv'} is missing"]  # its stages have logs
        _take_stage_logs(run)
    run.config = run.config or run.training.get("config", {})
    return run


def _take_stage_logs(run: Run) -> None:
    """What the callback of the last stage has logged of drift."""
    folders = sorted(run.path.glob("*_*/csv"), key=lambda folder: int(re.sub(r"\D.*", "", folder.parent.name) or 0))
    last = Run(run.name, run.path)
    if folders and _take(last, folders[-1], partial(_curves, remarks=last.remarks), "curves"):
        run.curves |= {key: points for key, points in last.curves.items() if key.startswith("ewc/")}


def _take(run: Run, path: Path, reader: Callable[[Path], Any], *keys: str, optional: bool = False) -> bool:
    """Read a part of a run and note what is wrong with it; whether anything is there."""
    if not path.exists():
        run.remarks += [] if optional else [f"{path} is missing"]
        return False
    try:
        found = reader(path)
        for key, part in zip(keys, found if len(keys) > 1 else [found], strict=True):
            setattr(run, key, part)
    except KeyError as error:
        run.remarks.append(f"{path} is damaged: it has no {error}")
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        run.remarks.append(f"{path} is damaged: {' '.join(str(error).split()).removeprefix(f'{path}: ')}")
    return True


# ---- the readers; whatever has another form raises


def _json(path: Path) -> Any:
    return _clean(json.loads(_regular(path).read_text(encoding="utf-8")))


def _regular(path: Path) -> Path:
    """A file; a pipe would be waited for, and a device has no end."""
    if not path.is_file():
        raise ValueError("it is no regular file")
    return path


def _clean(value: Any) -> Any:
    """Without the characters that no page may hold: control characters and lone surrogates."""
    if isinstance(value, str):
        return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


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


def _scores(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    found = _mapping(_json(path))
    return _numbers(found["before"]), _numbers(found["after"])


def _training(path: Path) -> dict[str, Any]:
    found = _mapping(_json(path))
    found["data"] = {task: _numbers(roles) for task, roles in _mapping(found.get("data") or {}).items()}
    found["versions"] = _mapping(found.get("versions") or {})
    found["config"] = _mapping(found.get("config") or {})
    found["steps"] = _number(found.get("steps"))
    return found


def _curves(folder: Path, remarks: list[str]) -> dict[str, Curve]:
    """All versions, the oldest first: what a run that went on has logged again stands in place of what was there."""
    files = sorted(folder.rglob("metrics.csv"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.parent.name)])
    if not files:
        raise ValueError("there is no metrics.csv in it")
    found: dict[str, dict[int, float]] = {}
    for file in files:
        try:
            _add_log(file, found)
        except (ValueError, csv.Error) as error:
            remarks.append(f"{file} is damaged: {error}; what stands before is shown")
    return {_clean(key): sorted(points.items()) for key, points in found.items()}


def _add_log(file: Path, found: dict[str, dict[int, float]]) -> None:
    with _regular(file).open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                step = int(row["step"])
                values = {key: float(cell) for key, cell in row.items() if cell and key not in ("step", "epoch")}
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"line {rows.line_num} is not of numbers with a step") from None
            for key, value in values.items():
                found.setdefault(key, {})[step] = value


def _forgetting(path: Path) -> dict[str, Any]:
    found = _mapping(_json(path))
    tasks = [str(task) for task in _list(found["tasks"])]
    matrix = [[_number(value) for value in _list(row)] for row in _list(found["matrix"])]
    if not tasks or [len(row) for row in matrix] != [len(tasks)] * len(tasks):
        raise ValueError(f"its matrix is not one of {len(tasks)} x {len(tasks)} tasks")
    more = {key: _mapping(found[key]) for key in ("measures", "strategy") if key in found}
    return {"tasks": tasks, "matrix": matrix} | more | ({"measures": _numbers(more["measures"])} if "measures" in more else {})


def _funnel(path: Path) -> list[Row]:
    points = _list(_mapping(_json(path))["points"])
    return [{"label": str(p["label"]), "recall": float(p["recall"]), "speedup": float(p["speedup"])} for p in points]


def _evaluation(path: Path) -> dict[str, Any]:
    found = _mapping(_json(path))
    if found.get("format") != FORMAT:
        raise ValueError(f"its format is {found.get('format')!r}, and {FORMAT} is what can be read")
    names = ("encoder", "family", "dataset")
    return {
        "encoders": [_mapping(card) | {"name": str(card["name"]), "dim": _number(card["dim"])} for card in found["encoders"]],
        "rows": [
            {key: str(row[key]) for key in (*names, "metric")}
            | {key: _number(row[key]) for key in ("dim", "value")}
            | {key: row.get(key) and str(row[key]) for key in ("split", "mark", "note", "error")}
            for row in found["rows"]
        ],
        "differences": [
            {key: str(row[key]) for key in (*names, "against")}
            | {key: float(row[key]) for key in ("difference", "low", "high")}
            | {"dim": _number(row.get("dim"))}
            for row in found.get("differences") or []
        ],
        "leaks": [
            {"encoder": str(row["encoder"]), "dataset": str(row["dataset"]), "found": int(row["found"])}
            | {"rows": int(row["rows"] if "rows" in row else row["texts"]), "family": str(row.get("family") or "")}
            for row in found.get("leaks") or []
            if row["found"] is not None  # it could not be told
        ],
        "examples": {
            encoder: {name: _examples(part) for name, part in _mapping(sets).items()}
            for encoder, sets in _mapping(found.get("examples") or {}).items()
        },
    }


def _examples(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "points": [(float(x), float(y), str(label)) for x, y, label in found.get("points") or []],
        "neighbours": [
            {
                "query": str(row["query"]),
                "hits": [{"text": str(h["text"]), "score": float(h["score"]), "right": bool(h["right"])} for h in row["hits"]],
            }
            for row in found.get("neighbours") or []
        ],
        "errors": [{key: str(row[key]) for key in ("text", "expected", "found")} for row in found.get("errors") or []],
    }


def evaluations(runs: Sequence[Run]) -> dict[str, Any]:
    """All evaluations as one.

    Encoders that share a name and are not the same bear the name of their run, and data sets that share a name and do not
    have the same rows the first 6 digits of their mark.
    """
    found: dict[str, Any] = {key: [] for key in ("encoders", "rows", "differences", "leaks")} | {"examples": {}}
    known: dict[str, set[str]] = {}
    marks: dict[str, set[str]] = {}
    for run in runs:
        for card in run.evaluation.get("encoders", []):
            known.setdefault(card["name"], set()).add(str(card.get("hash") or run.name))
        for row in run.evaluation.get("rows", []):
            marks.setdefault(place(row), set()).update({row["mark"]} - {None})
    for run in runs:
        cards = run.evaluation.get("encoders", [])
        names = {c["name"]: c["name"] if len(known[c["name"]]) == 1 else f"{run.name}: {c['name']}" for c in cards}
        marked = {place(row): row["mark"] for row in run.evaluation.get("rows", []) if row["mark"]}
        sets = {of: f" ({mark[:6]})" for of, mark in marked.items() if len(marks[of]) > 1}
        there = {card["name"] for card in found["encoders"]}
        found["encoders"] += [card | {"name": names[card["name"]]} for card in cards if names[card["name"]] not in there]
        for key in ("rows", "differences", "leaks"):
            for row in run.evaluation.get(key, []):
                told = {k: names.get(row[k], row[k]) for k in ("encoder", "against") if k in row}
                told["dataset"] = row["dataset"] + sets.get(place(row), "")
                found[key] += [row | told] if row | told not in found[key] else []
        for name, shown in run.evaluation.get("examples", {}).items():
            mine = found["examples"].setdefault(names.get(name, name), {})
            mine.update({of + sets.get(of, ""): part for of, part in shown.items()})
    found["encoders"] += [
        {"name": name, "dim": None}  # a damaged list of encoders does not hide their scores
        for name in dict.fromkeys(row["encoder"] for row in found["rows"])
        if name not in {card["name"] for card in found["encoders"]}
    ]
    return found
