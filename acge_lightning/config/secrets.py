"""Keep values of environment variables out of records and messages: there, `${oc.env:NAME}` replaces them."""

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

_SHORTEST = 6  # letters of a value that is hidden from messages: shorter ones, such as 1 or false, occur in many words


def recorded(cfg: Any) -> dict[str, Any]:
    """Convert a config to plain data for checkpoints, exports and loggers.

    As `building.plain`, but a set variable stays the text `${oc.env:NAME}`, also within a longer text and where another key
    refers to it. What cannot be resolved without the value stays as it was written.
    """
    from omegaconf import OmegaConf

    if not OmegaConf.is_config(cfg):
        return deepcopy(cfg)
    with _replaced_variables(lambda text, value: text):
        return _plain(cfg)


def concealed(message: str, cfg: Any) -> str:
    """Replace the values of a config's variables in a message by their names; paths that exist stay."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_config(cfg) or explodes(OmegaConf.to_container(cfg, resolve=False)):  # too large to resolve
        return message
    names_by_value: dict[str, str] = {}
    with _replaced_variables(lambda text, value: names_by_value.setdefault(value, text) and value):
        _plain(cfg)
    for value in sorted(names_by_value, key=len, reverse=True):
        if len(value) >= _SHORTEST and not os.path.exists(value):
            for form in (value, repr(value)[1:-1]):
                message = message.replace(form, names_by_value[value])
    return message


@contextmanager
def concealing(cfg: Any) -> Iterator[None]:
    """Hide values of environment variables in the InputErrors of the block."""
    try:
        yield
    except InputError as error:
        error.args = (concealed(str(error), cfg),)
        raise


@contextmanager
def _replaced_variables(replaced: Callable[[str, str], str]) -> Iterator[None]:
    """Resolve `${oc.env:…}` of a set variable, in the block, to what `replaced` returns for that text and the value."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(key: str, *default: Any) -> Any:
        value = oc.env(key, *default)
        if value is None or key not in os.environ:
            return value
        return replaced(f"${{oc.env:{','.join([key, *map(_default_text, default)])}}}", value)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _default_text(default: Any) -> str:
    """Write a default in the grammar of interpolations."""
    if default is None or isinstance(default, (bool, int, float)):
        return json.dumps(default)
    plain = re.fullmatch(r"(?!(?i:null|true|false|nan|inf)\Z)[A-Za-z_][\w./-]*", str(default), re.ASCII)
    return str(default) if plain else '"' + str(default).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(node: Any) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = {}
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        try:
            value = node[key]
        except OmegaConfBaseException:
            unresolved: Any = OmegaConf.to_container(node, resolve=False)
            value = unresolved[key]
        values[key] = _plain(value) if OmegaConf.is_config(value) else value
    return values if isinstance(node, DictConfig) else list(values.values())
