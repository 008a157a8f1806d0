r"""Build plain values and objects from a config.

A whole node is checked by `config.targets` before anything is called, and the objects that were checked are called. Hydra's
`instantiate` would interpolate texts once more after the check: `\${oc.create:{_target_: …}}`, in a value or in a training text
that is an argument, would become a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from acge_lightning.config.secrets import concealing
from acge_lightning.config.targets import check_keys, check_refused, check_types, join, resolve_target, under
from acge_lightning.errors import InputError

_FLAGS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_CONVERT = ("all", "partial", "object")  # which all give plain dicts and lists of what a YAML may hold
Build = Callable[[], Any]


def plain(cfg: Any) -> dict[str, Any]:
    """Convert a config to plain data, interpolations resolved; for what is written to files see `secrets.recorded`.

    Raises:
        InputError: a key has no value yet, or an interpolation leads nowhere.
    """
    return _resolved(cfg, throw_on_missing=True)


def instantiate(node: Any, *, trusted: Sequence[str] = (), **extra: Any) -> Any:
    """Build the object that a config node describes; None for None.

    `_target_`, `_args_`, `_partial_` and `_recursive_` mean what they mean in Hydra. Objects always receive plain dicts and
    lists: `_convert_` is not needed, may be `all`, `partial` or `object` in what is pasted from elsewhere, and is refused as
    `none`.

    Args:
        node: a config, dict or list. Interpolations of a config are resolved; texts of a dict or list stay as they are.
        trusted: further packages or modules whose classes and functions may be named. Take it from the command line, never
            from a file.
        extra: arguments that override the node's; passed as they are.

    Raises:
        InputError: a target that is not allowed or not there, an unknown or missing key, a value that its target refused.

    >>> instantiate({"_target_": "acge_lightning.losses.InfoNCE", "temperature": 0.1}).temperature
    0.1
    """
    with concealing(node):
        return _prepare(node, _key(node), _trusted_names(trusted), extra)()


def instantiate_all(nodes: Any, *, trusted: Sequence[str] = ()) -> list[Any]:
    """Build the objects of a mapping name -> node, such as callbacks and loggers; a name set to null is left out.

    Raises:
        InputError: as in `instantiate`; a node without `_target_`.
    """
    nodes_by_key = {join(_key(nodes), name): node for name, node in (_resolved(nodes) or {}).items() if node is not None}
    for where, node in nodes_by_key.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise InputError(f"conf key {where} has no _target_: name its class, or set {where}=null")
    with concealing(nodes):
        return [build() for build in [_prepare(node, where, _trusted_names(trusted)) for where, node in nodes_by_key.items()]]


# ---- reading


def _resolved(node: Any, throw_on_missing: bool = False) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

    if not OmegaConf.is_config(node):
        return deepcopy(node) if throw_on_missing else node
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=throw_on_missing)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, MissingMandatoryValue):
            raise _missing(error.full_key) from error
        if isinstance(error, InterpolationToMissingValueError):
            raise _missing(reason.rpartition(" ")[2]) from error
        raise InputError(f"conf key {error.full_key} cannot be read: {reason}") from error


def _missing(where: Any) -> InputError:
    return InputError(f"conf key {where} must be given: {where}=…")


def _key(node: Any) -> str:
    """Return the full key of a config node; empty for a dict, a list and the root."""
    return node._get_full_key(None) if hasattr(node, "_get_full_key") else ""


def _trusted_names(trusted: Sequence[str]) -> tuple[str, ...]:
    if isinstance(trusted, str) or not all(isinstance(name, str) and name.strip(".") for name in trusted or ()):
        raise InputError(f"trusted={trusted!r} is no list of packages: write trusted=[my_package]")
    return tuple(name.rstrip(".") for name in trusted or ())


# ---- building


def _prepare(value: Any, where: str, trusted: tuple[str, ...], extra: dict[str, Any] | None = None, raw: bool = False) -> Build:
    """Check the value of the key `where` with all that is in it, and return what builds it.

    `extra` are further arguments of this node. A `raw` value goes unbuilt to an object that builds it later
    (`_recursive_: false`), so it may still lack values.
    """
    value = _resolved(value)
    if isinstance(value, dict) and "_target_" in value:
        return _prepare_call(value, where, trusted, extra or {}, raw)
    if extra:
        raise InputError(f"conf key {join(where, '_target_')} must be given: it takes {', '.join(extra)}")
    if isinstance(value, dict):
        children = {key: _prepare(child, join(where, key), trusted, raw=raw) for key, child in value.items()}
        return lambda: {key: build() for key, build in children.items()}
    if isinstance(value, list):
        items = [_prepare(item, f"{where}[{i}]", trusted, raw=raw) for i, item in enumerate(value)]
        return lambda: [build() for build in items]
    if isinstance(value, str) and value == "???" and not raw:
        raise _missing(where)
    return lambda: value


def _prepare_call(node: dict[Any, Any], where: str, trusted: tuple[str, ...], extra: dict[str, Any], raw: bool) -> Build:
    name, args = node["_target_"], node.get("_args_", [])
    is_partial, recursive = node.get("_partial_", False), node.get("_recursive_", True)
    target = resolve_target(name, join(where, "_target_"), trusted)
    if not (isinstance(is_partial, bool) and isinstance(recursive, bool) and isinstance(args, list)):
        raise InputError(f"conf key {where or name}: _partial_ and _recursive_ are true or false, _args_ is a list")
    if node.get("_convert_", "all") not in _CONVERT:
        setting = f"{join(where, '_convert_')}={node['_convert_']!r}"
        raise InputError(f"conf key {setting} is refused: objects receive plain dicts and lists, leave it out")
    keyword_arguments = {key: value for key, value in node.items() if key not in _FLAGS and key not in extra}
    if not under(target.__module__, trusted):
        check_refused(target, name, where, len(args), keyword_arguments)
    check_keys(target, name, where, len(args), [*keyword_arguments, *extra], complete=not (is_partial or raw))
    check_types(target, name, where, keyword_arguments)
    arguments: dict[str, Any] = {"_args_": args} | keyword_arguments
    builds = {
        key: _prepare(argument, join(where, key), trusted, raw=raw or not recursive) for key, argument in arguments.items()
    }

    def build() -> Any:
        values = {key: make() for key, make in builds.items()} if recursive else dict(arguments)
        call = partial(target, *values.pop("_args_"), **values, **extra)
        try:
            return call if is_partial else call()
        except InputError as error:
            raise InputError(f"{where or name}: {error}") from error
        except Exception as error:
            raise InputError(f"{where + ': ' if where else ''}{name} refused its values: {error}") from error

    return build
