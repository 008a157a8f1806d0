"""Check what a command is given before anything large is imported: keys without a value, paths, names, missing extras."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.commands.usage import USAGE
from acge_lightning.data.source import nearest
from acge_lightning.errors import InputError
from acge_lightning.lazy import require
from acge_lightning.zoo.location import check_name

_BASELINES = {  # command -> its models that are no encoders
    **dict.fromkeys(("evaluate", "longtail"), ("bm25", "tfidf")),
    "mine": ("bm25",),
}
_LOGGERS = {"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}  # class of Lightning -> the library that it needs
_LIBRARIES = {  # command -> those of extras that it always needs
    "clean": ("rapidfuzz", "rensa", "opencc", "matplotlib", "jinja2"),
    "longtail": ("matplotlib",),
    "mine": ("opencc",),
    "report": ("matplotlib", "jinja2"),
}
_ROLES = ("query", "document")
_REMEDIES = {"paths.data_dir": "give the folder that holds FAMILY/DATASET folders"}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FILE = re.compile(r".*\.(jsonl?|csv|tsv|parquet|xlsx|txt)(\.gz)?", re.IGNORECASE)


def check(name: str, cfg: DictConfig) -> None:
    """Raise an error for what cannot work, whatever the data hold.

    Args:
        name: of the command.
        cfg: its composed config.

    Raises:
        InputError: a key without a value, a file or a model that is not there, a library that is not installed.
    """
    _check_missing(name, cfg)
    _check_extras(name, cfg)
    is_pretrained = str(_value(cfg, "encoder._target_")).rpartition(".")[2] == "from_pretrained"
    baselines = _BASELINES.get(name, ())
    for path in [*_texts(_value(cfg, "model")), *(_texts(_value(cfg, "encoder.path")) if is_pretrained else [])]:
        if path not in baselines:
            _check_model(path, baselines)
    for key, path in _paths(name, cfg):
        if not Path(path).expanduser().exists():
            remedy = f": {_REMEDIES[key]}" if key in _REMEDIES else ""
            raise InputError(f"{key}={path} is not there: {nearest(Path(path).expanduser())}{remedy}")


def checked_prompts(prompts: Mapping[str, str] | None, known: Mapping[str, str], key: str) -> Mapping[str, str]:
    """Check which prompts an encoder is to use.

    Args:
        prompts: role (query, document) -> name of a prompt.
        known: the encoder's prompts.
        key: of the config, for messages.

    Raises:
        InputError: no role, or no prompt of the encoder.
    """
    for role, name in (prompts or {}).items():
        if role not in _ROLES:
            raise InputError(f"{key}.{role} is no role: choose from {', '.join(_ROLES)}")
        if name not in known:
            raise InputError(f"{key}.{role}={name} is unknown: this encoder has {sorted(known) or 'no prompts'}")
    return prompts or {}


def _check_model(path: str, baselines: Sequence[str]) -> None:
    try:
        check_name(path)
    except InputError as error:
        if not baselines or "/" in path or Path(path).exists():
            raise
        raise InputError(f"{error}; baselines without an encoder are {' and '.join(baselines)}") from None


def _value(cfg: DictConfig, key: str) -> Any:
    """Read a key; None where it is not there, or cannot be resolved, which the command itself will say."""
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return None


def _texts(value: Any) -> list[str]:
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return [value] if isinstance(value, str) else [item for item in values if isinstance(item, str)]


def _check_missing(name: str, cfg: DictConfig) -> None:
    titles = {key.rstrip("!…"): title for title, key in USAGE[name].positionals}
    for key in (*(str(key) for key in cfg if key != "hydra"), "paths.data", "paths.data_dir", "encoder.path"):
        parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
        if OmegaConf.is_dict(parent) and OmegaConf.is_missing(parent, key.rpartition(".")[2]):
            how = f"{USAGE[name].line(name)}, or {key}=…" if key in titles else f"{key}=…"
            raise InputError(f"{key} must be given: {how}")


def _check_extras(name: str, cfg: DictConfig) -> None:
    for module in _LIBRARIES.get(name, ()):
        require(module, f"acge {name} needs")
    if name == "evaluate":
        if "bm25" in _texts(_value(cfg, "model")):
            require("bm25s", "model=bm25 needs")
        if _value(cfg, "suite"):
            require("mteb", f"suite={cfg.suite} needs")
    if name == "longtail" and "script" in _texts(_value(cfg, "protocol.perturbations")):
        require("opencc", "the perturbation script needs")
    if name == "search" and any(stage.get("index", "exact") != "exact" for stage in _value(cfg, "stages") or ()):
        require("faiss", "an index other than exact needs")
    if name == "mine":
        _check_extras_of_mining(cfg)
    _check_extras_of_loggers(cfg)


def _check_extras_of_mining(cfg: DictConfig) -> None:
    require("bm25s" if _value(cfg, "model") == "bm25" else "faiss", "acge mine needs")
    if _value(cfg, "near") is not None:
        require("rapidfuzz", "near=… needs")


def _check_extras_of_loggers(cfg: DictConfig) -> None:
    for key, logger in (_value(cfg, "logger") or {}).items():
        target = str((logger or {}).get("_target_")).rpartition(".")[2]
        if target in _LOGGERS:
            require(_LOGGERS[target], f"logger={key} needs")


def _paths(name: str, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield the keys and paths of files and folders that are read, and that can only be local."""
    if name == "search":
        for key in ("source", "tune"):
            yield from ((key, path) for path in _texts(_value(cfg, key)) if not _has_pattern(path))
    elif name == "clean":
        yield from (("evaluation", path) for path in _texts(_value(cfg, "evaluation")))
    elif name == "mine":
        for key in ("source", "corpus"):
            paths = _texts(_value(cfg, key))
            yield from ((key, p) for p in paths if not (p.startswith("sample:") or _has_pattern(p) or _may_be_of_the_hub(p)))
    elif name == "longtail" or (name == "evaluate" and _value(cfg, "suite") in (None, "local")):
        yield "paths.data_dir", str(_value(cfg, "paths.data_dir"))
    for task in _value(cfg, "task") or {} if name != "evaluate" else ():
        key = f"task.{task}.data.path"
        for path in _texts(_value(cfg, key)):
            if not (path.startswith("sample:") or _has_pattern(path) or _may_be_of_the_hub(path)):
                yield key, path


def _has_pattern(path: str) -> bool:
    return bool(set("*?[") & set(path))


def _may_be_of_the_hub(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not _FILE.fullmatch(path)
