r"""From a config to objects: where the YAML tree lies, and which classes and functions a config may name.

A `_target_` is code that a text file chooses. Before anything is called, the whole node is checked:

- A target's text begins with an allowed package; else nothing is imported.
- It reads `module.Class`, `module.function` or `module.Class.classmethod`; no name leads through what a module imported.
- The object's own `__module__` lies in that package. All offer classes only: we ours of modules, callbacks and data, and four
  functions that were made for it; torch and torchmetrics modules, optimizers and schedulers.
- What would write over files, run or send more than a run needs is out: some classes, and some arguments of others.

The objects that were checked are the ones called. Hydra's `instantiate` would read texts once more after the check:
`\${oc.create:{_target_: …}}`, in a value or in a training text handed over, would come out of it as a call.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from acge_lightning.errors import InputError
from acge_lightning.secret import concealing

_OWN = "acge_lightning"
_MADE_FOR_CONFIGS = ("fresh.static", "fresh.transformer", "pretrained.from_pretrained", "vocabulary.train_vocabulary")
_FUNCTIONS = {f"{_OWN}.{name}" for name in _MADE_FOR_CONFIGS}
_KINDS = {  # of our own classes
    "torch.nn.modules.module.Module",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.fabric.plugins.io.checkpoint_io.CheckpointIO",
    f"{_OWN}.optim.Optim",
}
_METRICS = (
    "aggregation",
    "classification",
    "clustering",
    "collections",
    "metric",
    "nominal",
    "regression",
    "retrieval",
    "wrappers",
)
# How a target may begin -> the modules that may define it.
_HOMES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (_OWN, "torch.nn", "torch.optim")},
    "torchmetrics": tuple(f"torchmetrics.{name}" for name in _METRICS),  # the others load models
    **{f"lightning.pytorch.{n}": (f"lightning.pytorch.{n}",) for n in ("callbacks", "profilers", "strategies")},
    "lightning.pytorch.loggers": tuple(f"lightning.pytorch.loggers.{n}" for n in ("csv_logs", "tensorboard", "wandb")),
    "lightning.pytorch.plugins": (  # but those of checkpoints
        *(f"lightning.pytorch.plugins.{name}" for name in ("layer_sync", "precision")),
        *(f"lightning.fabric.plugins.{name}" for name in ("environments", "precision")),
    ),
    "lightning.pytorch.Trainer": ("lightning.pytorch.trainer.trainer",),
}
_REFUSED: dict[str, tuple[str, ...] | None] = {  # of Lightning: classes, None, and arguments that write over files or upload
    "OnExceptionCheckpoint": None,
    "ModelCheckpoint": ("enable_version_counter",),
    "CSVLogger": ("version",),
    "SpikeDetection": ("exclude_batches_path",),
    "Trainer": ("model_registry",),
    "WandbLogger": ("experiment",),
}
_WANDB = ("entity", "group", "job_type", "notes", "tags", "mode", "resume")  # that a WandbLogger hands on to wandb.init
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
_FLAGS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_CONVERT = ("all", "partial", "object")  # which all give plain dicts and lists of what a YAML may hold
Build = Callable[[], Any]


def config_dir() -> Path:
    """The folder of YAML files: in the package once installed, beside it in a checkout.

    Raises:
        InputError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"{package} holds no conf/train.yaml, nor does the folder above: install acge-lightning again")


def plain(cfg: Any) -> dict[str, Any]:
    """A config as plain data, interpolations resolved, to be used; `secret.recorded` is what is written down.

    Raises:
        InputError: a key has no value yet, or an interpolation leads nowhere.
    """
    return _resolved(cfg, throw_on_missing=True)


def instantiate(node: Any, *, trusted: Sequence[str] = (), **extra: Any) -> Any:
    """The object that a config node describes; None for None.

    `_target_`, `_args_`, `_partial_` and `_recursive_` mean what they mean in Hydra. Objects always receive plain dicts and
    lists: `_convert_` is not needed, may be `all`, `partial` or `object` in what is pasted from elsewhere, and is refused as
    `none`.

    Args:
        node: a config, dict or list. Interpolations of a config are resolved; texts of a dict or list stay as they are.
        trusted: further packages or modules whose classes and functions may be named. Take it from the command line, never
            from a file.
        extra: arguments that win over the node's; handed over as they are.

    Raises:
        InputError: a target that is not allowed or not there, an unknown or missing key, a value that its target refused.

    >>> instantiate({"_target_": "acge_lightning.losses.InfoNCE", "temperature": 0.1}).temperature
    0.1
    """
    with concealing(node):
        return _prepare(node, _key(node), _checked(trusted), extra)()


def instantiate_all(nodes: Any, *, trusted: Sequence[str] = ()) -> list[Any]:
    """The objects of a mapping name -> node, as callbacks and loggers come; a name set to null is left out.

    Raises:
        InputError: as in `instantiate`; a node without `_target_`.
    """
    named = {_join(_key(nodes), name): node for name, node in (_resolved(nodes) or {}).items() if node is not None}
    for where, node in named.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise InputError(f"conf key {where} has no _target_: name its class, or set {where}=null")
    with concealing(nodes):
        return [build() for build in [_prepare(node, where, _checked(trusted)) for where, node in named.items()]]


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
    """Where a config stands in the whole; empty for a dict, a list and the root."""
    return node._get_full_key(None) if hasattr(node, "_get_full_key") else ""


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _checked(trusted: Sequence[str]) -> tuple[str, ...]:
    if isinstance(trusted, str) or not all(isinstance(name, str) and name.strip(".") for name in trusted or ()):
        raise InputError(f"trusted={trusted!r} is no list of packages: write trusted=[my_package]")
    return tuple(name.rstrip(".") for name in trusted or ())


def _close(word: str, words: Iterable[str]) -> str | None:
    words = sorted(words)
    names = {name.lower(): name for name in words}
    return next(iter(get_close_matches(word, words, 1) + [names[w] for w in get_close_matches(word.lower(), names, 1)]), None)


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
        raise InputError(f"conf key {_join(where, '_target_')} must be given: it takes {', '.join(extra)}")
    if isinstance(value, dict):
        parts = {key: _prepare(part, _join(where, key), trusted, raw=raw) for key, part in value.items()}
        return lambda: {key: build() for key, build in parts.items()}
    if isinstance(value, list):
        items = [_prepare(item, f"{where}[{i}]", trusted, raw=raw) for i, item in enumerate(value)]
        return lambda: [build() for build in items]
    if isinstance(value, str) and value == "???" and not raw:
        raise _missing(where)
    return lambda: value


def _prepare_call(node: dict[Any, Any], where: str, trusted: tuple[str, ...], extra: dict[str, Any], raw: bool) -> Build:
    name, args = node["_target_"], node.get("_args_", [])
    later, recursive = node.get("_partial_", False), node.get("_recursive_", True)
    target = _resolve(name, _join(where, "_target_"), trusted)
    if not (isinstance(later, bool) and isinstance(recursive, bool) and isinstance(args, list)):
        raise InputError(f"conf key {where or name}: _partial_ and _recursive_ are true or false, _args_ is a list")
    if node.get("_convert_", "all") not in _CONVERT:
        given = f"{_join(where, '_convert_')}={node['_convert_']!r}"
        raise InputError(f"conf key {given} is refused: objects receive plain dicts and lists, leave it out")
    given = {key: value for key, value in node.items() if key not in _FLAGS and key not in extra}
    if not _under(target.__module__, trusted):
        _check_refused(target, name, where, len(args), given)
    _check_keys(target, name, where, len(args), [*given, *extra], complete=not (later or raw))
    _check_types(target, name, where, given)
    parts: dict[str, Any] = {"_args_": args} | given
    builds = {key: _prepare(part, _join(where, key), trusted, raw=raw or not recursive) for key, part in parts.items()}

    def build() -> Any:
        values = {key: make() for key, make in builds.items()} if recursive else dict(parts)
        call = partial(target, *values.pop("_args_"), **values, **extra)
        try:
            return call if later else call()
        except InputError as error:
            raise InputError(f"{where or name}: {error}") from error
        except Exception as error:
            raise InputError(f"{where + ': ' if where else ''}{name} refused its values: {error}") from error

    return build


def _check_keys(target: Any, name: str, where: str, count: int, keys: list[Any], complete: bool) -> None:
    """Compare the keys of a node, and the number of its `_args_`, with what its target takes."""
    signature, known = _signature(target), _known(target)
    for key in keys:
        if not isinstance(key, str) or (known is not None and key not in known):
            close = _close(str(key), known or ())
            remedy = f"did you mean {close}?" if close else f"it takes {', '.join(sorted(known or ())) or 'no such key'}"
            raise InputError(f"conf key {_join(where, key)} is unknown to {name}: {remedy}")
    for number, (key, parameter) in enumerate(signature.parameters.items()):
        needed = parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_")
        if complete and needed and number >= count and key not in keys:
            raise InputError(f"conf key {_join(where, key)} must be given: {name} needs it")
    try:
        signature.bind_partial(*range(count), **dict.fromkeys(keys))
    except TypeError as error:
        raise InputError(f"conf key {_join(where, '_args_')} does not fit {name}: {error}") from error


def _check_refused(target: Any, name: str, where: str, count: int, given: Iterable[Any]) -> None:
    """Refuse what a class of Lightning would do to files, and to others, by these arguments."""
    if not (inspect.isclass(target) and _under(target.__module__, ["lightning"])):
        return
    takes = [*_signature(target).parameters]
    named, refused = [*takes[:count], *given], _REFUSED.get(target.__name__, ())
    if target.__name__ == "WandbLogger":
        refused = (*refused, *(key for key in named if key not in (*takes, *_WANDB)))
    for key in named:
        if key in refused:
            raise InputError(
                f"conf key {_join(where, key)} is refused: leave it out of {name}, or trust it: trusted=[lightning]"
            )


def _check_types(target: Any, name: str, where: str, given: dict[str, Any]) -> None:
    """Compare plain values with the types that the signature states, where it states plain ones."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that are there for type checkers only
        return
    for key, value in given.items():
        if not isinstance(value, (str, int, float, bool)) or value == "???" or key not in hints:
            continue
        kinds = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
        if not all(inspect.isclass(kind) and get_origin(kind) is None for kind in kinds) or object in kinds:
            continue
        if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
            words = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            hint = "; in YAML write 1.0e-5, not 1e-5" if isinstance(value, str) and float in kinds else ""
            raise InputError(f"conf key {_join(where, key)}={value!r} does not fit {name}: it takes {words}{hint}")


def _known(target: Any) -> set[str] | None:
    """The keys that a target takes; None if it takes any. Our own classes hand their `**kwargs` to their base."""
    takers = [target]
    if inspect.isclass(target) and _under(target.__module__, [_OWN]):
        takers += [base for base in target.__mro__[1:-1] if "__init__" in vars(base)]
    known: set[str] = set()
    for taker in takers:
        parameters = _signature(taker).parameters.values()
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return known
    return None


def _signature(target: Any) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except ValueError:  # written in C: it checks its arguments itself
        return inspect.signature(lambda *args, **kwargs: None)


# ---- targets


def _under(name: Any, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or str(name).startswith(f"{prefix}.") for prefix in prefixes)


def _resolve(target: Any, where: str, trusted: tuple[str, ...]) -> Any:
    """The class or function that a target names, if a config may name it."""
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        raise InputError(f"{where}={target!r} is refused: write package.module.Class, without a leading underscore anywhere")
    homes = next((homes for prefix, homes in _HOMES.items() if _under(target, [prefix])), None)
    if homes is None and not _under(target, trusted):
        raise _refused(where, target, f"a target begins with {', '.join(_HOMES)}", target)
    homes = homes or tuple(chain.from_iterable(_HOMES.values()))
    module, names = _import(target, where)
    found = getattr(module, names[0], None)
    if found is None:
        close = _close(names[0], {*dir(module), *(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ())))})
        remedy = f"spell it as {'.'.join([module.__name__, close, *names[1:]])}" if close else "check its spelling"
        raise InputError(f"{where}={target} is not there: {module.__name__} has no {names[0]}: {remedy}")
    defined_in = [found.__module__] if inspect.isclass(found) or inspect.isroutine(found) else []
    if defined_in and names[1:]:
        found = getattr(found, names[1], None)
        function = inspect.ismethod(found) and len(names) == 2 and found.__func__
        defined_in = [*defined_in, function.__module__] if function else []
    if not defined_in:
        raise InputError(f"{where}={target} is refused: write module.Class, module.function or module.Class.classmethod")
    for home in map(str, defined_in):
        if not _under(home, (*homes, *trusted)):
            raise _refused(where, target, f"{home} defines it", home)
        if not _under(home, trusted) and not _fit(found, home):
            raise _refused(where, target, "configs need no such thing", home)
    return found


def _refused(where: str, target: str, reason: str, home: str) -> InputError:
    package = home.partition(".")[0]
    remedy = f"if you trust it, add its package: trusted=[{package}]"
    if package == _OWN:
        remedy = f"name a module, callback or data module of {_OWN}, or one of {', '.join(_MADE_FOR_CONFIGS)}"
    return InputError(f"{where}={target} is refused ({reason}): {remedy}")


def _import(target: str, where: str) -> tuple[Any, list[str]]:
    """The innermost module of a dotted name, and the names after it."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            return import_module(name), parts[cut:]
        except ModuleNotFoundError as error:
            if not error.name or not _under(name, [error.name]):  # something that the module needs
                raise InputError(f"{where}={target} needs {error.name}: install it") from error
        except Exception as error:
            raise InputError(f"{where}={target}: {name} cannot be imported: {error}") from error
    raise InputError(f"{where}={target} is not there: install {parts[0]}, or put its folder on PYTHONPATH")


def _fit(found: Any, home: str) -> bool:
    """Whether an object that an allowed package defines is of a kind that configs need."""
    if not inspect.isclass(found):
        return f"{home}.{found.__qualname__}" in _FUNCTIONS
    if _under(home, [_OWN]):
        return not _KINDS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in found.__mro__)
    if not home.startswith("torch"):
        return _REFUSED.get(found.__name__, ()) is not None
    from torch import nn, optim

    return issubclass(found, (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler))
