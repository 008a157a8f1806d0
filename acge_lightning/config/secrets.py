"""Values of environment variables in a config: they are used, and what is recorded keeps `${oc.env:NAME}` in their place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import explodes

_SHORTEST = 6  # letters of a value that is hidden from a message: shorter ones, such as 1 or false, stand in many words


def recorded(cfg: Any) -> dict[str, Any]:
    """A config as plain data for checkpoints, exports and loggers.

    As `building.plain`, but a set variable stays the text `${oc.env:NAME}`, also within a longer text and where another key
    refers to it. What cannot be resolved without the value stays as it was written.
    """
    from omegaconf import OmegaConf

    if not OmegaConf.is_config(cfg):
        return deepcopy(cfg)
    with _environment(lambda text, value: text):
        return _plain(cfg)


def concealed(message: str, cfg: Any) -> str:
    """A message without the values of the variables that a config names; those that are paths which exist stay."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_config(cfg) or explodes(OmegaConf.to_container(cfg, resolve=False)):  # which is not resolved at all
        return message
    found: dict[str, str] = {}
    with _environment(lambda text, value: found.setdefault(value, text) and value):
        _plain(cfg)
    for value in sorted(found, key=len, reverse=True):
        if len(value) >= _SHORTEST and not os.path.exists(value):
            for form in (value, repr(value)[1:-1]):
                message = message.replace(form, found[value])
    return message


@contextmanager
def concealing(cfg: Any) -> Iterator[None]:
    """What is said against a config in the block says it without values of the environment."""
    try:
        yield
    except InputError as error:
        error.args = (concealed(str(error), cfg),)
        raise


@contextmanager
def _environment(replaced: Callable[[str, str], str]) -> Iterator[None]:
    """In the block, `${oc.env:…}` of a set variable is what `replaced` makes of that text and the value."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(key: str, *default: Any) -> Any:
        value = oc.env(key, *default)
        return replaced(f"${{oc.env:{','.join([key, *map(_written, default)])}}}", value) if key in os.environ else value

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _written(default: Any) -> str:
    """A default as it may stand in an interpolation."""
    if default is None or isinstance(default, (bool, int, float)):
        return json.dumps(default)
    plain = re.fullmatch(r"(?!(?i:null|true|false|nan|inf)\Z)[A-Za-z_][\w./-]*", str(default), re.ASCII)
    return str(default) if plain else '"' + str(default).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(node: Any) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    found = {}
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        try:
            value = node[key]
        except OmegaConfBaseException:
            value = OmegaConf.to_container(node, resolve=False)[key]
        found[key] = _plain(value) if OmegaConf.is_config(value) else value
    return found if isinstance(node, DictConfig) else list(found.values())
