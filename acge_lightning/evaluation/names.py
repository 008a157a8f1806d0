"""Name runs, and the models that they export, as people know them: by the run's name and by what a sweep has set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import read_yaml
from acge_lightning.terminal import shortened

_EXPORTS = ("export", "backbone", "merged")  # folders of a run that hold its model
_DEFAULT = "train"  # the name of a run to which nobody has given one
_LONGEST = 28  # characters of a value


def run_names(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[str]:
    """Name runs and models by what people called them.

    A run, or a model in its `export`, is called as its config says (`name=`, or its experiment's). Those that share a name
    get the overrides in which they differ: `quickstart seed=1`. What has no name, and what is still the same, gets the
    shortest end of its path that no other has; a file is called as it was typed, if that is short.

    Args:
        paths: folders of runs, of their exports or of other models, or files.
        names: the name of each, `""` if it has none; by default those of their configs.

    Returns:
        A name for each path, all different if the paths are.
    """
    paths = [Path(path) for path in paths]
    given = [given_name(path) for path in paths] if names is None else list(names)
    overrides = [_overrides(path) for path in paths]
    labelled = [f"{name} {_differing(i, given, overrides)}".strip() if name else "" for i, name in enumerate(given)]
    labelled = [name or (_typed(path) if path.is_file() else "") for name, path in zip(labelled, paths, strict=True)]
    return [
        label if label and labelled.count(label) == 1 else _with_path(label or given[i], i, paths)
        for i, label in enumerate(labelled)
    ]


def _typed(file: Path) -> str:
    """Name a file as it was typed, if that is short."""
    return str(file) if len(str(file)) <= _LONGEST else ""


def given_name(path: Path) -> str:
    """Return the name in the config of a run, or of the run that exported a model; `""` if there is none.

    A run that nobody has named is called as its folder, if somebody has chosen that.
    """
    folder = _run_folder(path)
    config: Mapping[str, Any] = {}
    for file in (folder / ".hydra" / "config.yaml", *(folder / name / "training.json" for name in _EXPORTS)):
        config = config or _config(file)
    name, paths = str(config.get("name") or ""), config.get("paths")
    output_dir = str(paths.get("output_dir")) if isinstance(paths, dict) else "${…}"
    return name if name != _DEFAULT or "${" in output_dir else folder.resolve().name


def _run_folder(path: Path) -> Path:
    return path.parent if path.name in _EXPORTS else path


def _config(file: Path) -> Mapping[str, Any]:
    """Read the config of a run; nothing if it is missing or damaged, which whoever reads the run says."""
    try:
        if not file.is_file():
            return {}
        config = json.loads(file.read_text(encoding="utf-8"))["config"] if file.suffix == ".json" else read_yaml(file)
    except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _overrides(path: Path) -> dict[str, str]:
    """Read what the command line set for a run, by key."""
    try:
        lines = read_yaml(_run_folder(path) / ".hydra" / "overrides.yaml")
    except InputError:
        return {}
    pairs = [str(line).lstrip("+~").partition("=") for line in lines] if isinstance(lines, list) else []
    return {key: value for key, _, value in pairs if value}


def _differing(index: int, names: Sequence[str], overrides: Sequence[Mapping[str, str]]) -> str:
    """Write the overrides of a run that others of its name do not share."""
    others = [settings for name, settings in zip(names, overrides, strict=True) if name == names[index]]
    all_keys = dict.fromkeys(key for settings in others for key in settings)
    keys = [key for key in all_keys if key not in ("name", "paths.output_dir") and not key.startswith("hydra")]
    keys = [key for key in keys if len({settings.get(key) for settings in others}) > 1]
    last_words = [key.rpartition(".")[2] for key in keys]
    return " ".join(
        f"{word if last_words.count(word) == 1 else key}={_short(overrides[index][key])}"
        for key, word in zip(keys, last_words, strict=True)
        if key in overrides[index]
    )


def _short(value: str) -> str:
    """Shorten a value; of a path its end is kept."""
    return shortened(value, _LONGEST) if "/" not in value else "…" + value[1 - _LONGEST :] if len(value) > _LONGEST else value


def _with_path(name: str, index: int, paths: Sequence[Path]) -> str:
    """Name a path by its end, after the name that it shares with another."""
    end = _shortest_end(paths[index], paths)
    return end if not name or end.split("/")[-1] == name else f"{name} ({end})"


def _shortest_end(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other path has."""
    names = path_names(path)
    other_names = [other for other in map(path_names, others) if other != names]
    for count in range(1, len(names)):
        if all(other[-count:] != names[-count:] for other in other_names):
            return "/".join(names[-count:])
    return str(path)


def path_names(path: Path) -> tuple[str, ...]:
    """Split a path, without what all runs and evaluations have: `export`, `results.json`, and the suffix of a file."""
    path = path.resolve()
    if path.name in (*_EXPORTS, "results.json"):
        return path.parent.parts
    return (path.with_suffix("") if path.is_file() else path).parts
