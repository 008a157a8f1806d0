"""Say in one line what is wrong with overrides, with the key or the choice that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.config.folder import config_dir
from acge_lightning.config.targets import closest

_KEY = re.compile(
    r"(?:Could not override|Error merging override|Could not delete from config\.(?: The value of)?) '?([^'\s=]+)"
)
_MOST = 3  # keys that are suggested


def explained(error: Exception, name: str, config_name: str, overrides: Sequence[str]) -> str:
    """Describe an error of Hydra.

    Args:
        error: what Hydra or OmegaConf raised.
        name: of the command.
        config_name: of the config, the command's own or one of the user's.
        overrides: the arguments that Hydra was given.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_choice(error, name)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no key=value: {_first_line(error)}"
    if match := re.search(r"Ambiguous value for argument '((\S+?)=(.*))'", text):
        return f"{match[1]} gives several values: write {match[2]}=[{match[3]}] for a list, or add -m for a run with each"
    if match := re.search(r"Could not append to config\. An item is already at '(.+?)'", text):
        return f"+{match[1]}: the key {match[1]} is there already: leave out the plus"
    if match := re.search(r"Could not override '(\S+)'\. No match in the defaults list", text):
        return f"{match[1]} has no choice yet: write +{match[1]}=… to add one"
    if match := _KEY.search(text):
        return _unknown_key(match[1].lstrip("+~"), name, config_name, overrides, error)
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """Write an error, and the one that caused it, without Hydra's list of folders."""
    cause = f": {_first_line(error.__cause__)}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    words = str(error).partition("\nConfig search path:")[0].partition("\n    full_key")[0].split()
    return " ".join(words) + cause


# ---- choices


def _missing_choice(error: MissingConfigException, name: str) -> str:
    group, _, choice = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
    choices = sorted({*(error.options or ()), *(file.stem for file in (config_dir() / group).glob("*.yaml"))})
    if not group or not choices:
        return _first_line(error)
    near = closest(choice, choices)
    remedy = f"did you mean {near}?" if near else f"acge {name} --help {group} lists the {len(choices)} that are"
    return f"{group}={choice} is not there: {remedy}"


# ---- keys


def _unknown_key(key: str, name: str, config_name: str, overrides: Sequence[str], error: Exception) -> str:
    config = _composed(config_name, overrides, key)
    paths = list(_paths(config))
    if key in paths:  # a value that does not fit
        return _first_line(error)
    near = suggestions(key, paths, _group_names())
    if near:
        return f"there is no key {key}: did you mean {' or '.join(near)}?"
    override = next((text for text in overrides if text.lstrip("+~").startswith(f"{key}=")), f"{key}=…")
    parent: Any = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else None
    if OmegaConf.is_dict(parent):
        taker = parent.get("_target_", f"acge {name}")
        return f"there is no key {key}: if {taker} takes it, write +{override}"
    return f"there is no key {key}: acge {name} --cfg job shows all of them"


def _composed(config_name: str, overrides: Sequence[str], wrong: str) -> Any:
    """Compose the config without the override of a key that is wrong; without any override if others are wrong too."""
    good = [text for text in overrides if not text.startswith("-") and text.lstrip("+~").partition("=")[0] != wrong]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return compose(config_name, good)
        except (HydraException, OmegaConfBaseException):
            return compose(config_name)


def _paths(node: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted path of each key of a config."""
    data: Any = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for key, value in data.items() if isinstance(data, dict) else ():
        path = f"{where}.{key}" if where else str(key)
        yield path
        yield from _paths(value, path)


def _group_names() -> list[str]:
    return sorted(path.name for path in config_dir().iterdir() if path.is_dir())


def suggestions(key: str, paths: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    """List the keys that are meant by a wrong one, the likeliest first: spelt alike, or elsewhere under the same name.

    >>> suggestions("optim.lr", ["optim", "optim.optimizer", "optim.optimizer.lr", "trainer.max_steps"])
    ['optim.optimizer.lr']
    >>> suggestions("trainer.max_step", ["trainer", "trainer.max_steps", "trainer.max_epochs", "trainer.devices"])
    ['trainer.max_steps']
    >>> suggestions("seeed", ["seed", "name"])
    ['seed']
    """
    parent, _, last = key.rpartition(".")
    if not parent:
        alike = get_close_matches(key, {*groups, *(path for path in paths if "." not in path)}, 1, 0.7)
    else:
        siblings = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == parent}
        alike = [siblings[word] for word in get_close_matches(last, siblings, 1, 0.75)]
        alike = alike or get_close_matches(key, paths, 1, 0.85)
    elsewhere = sorted(
        (path for path in paths if path.rpartition(".")[2] == last and path != key),
        key=lambda path: (path.partition(".")[0] != key.partition(".")[0], path.count("."), path),
    )
    same_root = [path for path in elsewhere if parent and path.partition(".")[0] == key.partition(".")[0]]
    return alike or (same_root or elsewhere)[:_MOST]
