"""Check which classes and functions a config names as `_target_`, and the keys and values that it gives them.

A `_target_` is code that a text file chooses. Before anything is called, the whole node is checked:

- A target's text begins with an allowed package, and not with our own `commands` and `config`; else nothing is imported.
- It reads `module.Class`, `module.function` or `module.Class.classmethod`; no name leads through what a module imported.
- The object's own `__module__` lies in that package. All offer classes only: we ours of modules, callbacks and data, and four
  functions that were made for it; torch and torchmetrics modules, optimizers and schedulers.
- Refused are classes, and arguments of others, that would overwrite files, or run or send more than a run needs.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from acge_lightning.errors import InputError

_PACKAGE = "acge_lightning"
_MADE_FOR_CONFIGS = ("encoder.static", "encoder.transformer", "encoder.train_vocabulary", "zoo.from_pretrained", "zoo.grow")
_BARRED = (f"{_PACKAGE}.commands", f"{_PACKAGE}.config")  # modules that run and read configs
_KINDS = {  # of our own classes
    "torch.nn.modules.module.Module",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.fabric.plugins.io.checkpoint_io.CheckpointIO",
    f"{_PACKAGE}.training.optim.Optim",
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
# Prefix of a target -> the modules that may define it.
_ALLOWED_MODULES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (_PACKAGE, "torch.nn", "torch.optim")},
    "torchmetrics": tuple(f"torchmetrics.{name}" for name in _METRICS),  # the others load models
    **{f"lightning.pytorch.{n}": (f"lightning.pytorch.{n}",) for n in ("callbacks", "profilers", "strategies")},
    "lightning.pytorch.loggers": tuple(f"lightning.pytorch.loggers.{n}" for n in ("csv_logs", "tensorboard", "wandb")),
    "lightning.pytorch.plugins": (  # all but those of checkpoints
        *(f"lightning.pytorch.plugins.{name}" for name in ("layer_sync", "precision")),
        *(f"lightning.fabric.plugins.{name}" for name in ("environments", "precision")),
    ),
    "lightning.pytorch.Trainer": ("lightning.pytorch.trainer.trainer",),
}
_REFUSED: dict[str, tuple[str, ...] | None] = {  # of Lightning: arguments that overwrite files or upload; None: the whole class
    "OnExceptionCheckpoint": None,
    "ModelCheckpoint": ("enable_version_counter",),
    "CSVLogger": ("version",),
    "SpikeDetection": ("exclude_batches_path",),
    "Trainer": ("model_registry",),
    "WandbLogger": ("experiment",),
}
_WANDB = ("entity", "group", "job_type", "notes", "tags", "mode", "resume")  # that a WandbLogger passes to wandb.init
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)


def join(where: str, key: Any) -> str:
    """Join the key of a value to that of the config that holds it."""
    return f"{where}.{key}" if where else str(key)


def check_keys(target: Any, name: str, where: str, count: int, keys: list[Any], complete: bool) -> None:
    """Compare the keys of a node, and the number of its `_args_`, with the parameters of its target."""
    signature, allowed_keys = _signature(target), _allowed_keys(target)
    for key in keys:
        if not isinstance(key, str) or (allowed_keys is not None and key not in allowed_keys):
            close = closest(str(key), allowed_keys or ())
            remedy = f"did you mean {close}?" if close else f"it takes {', '.join(sorted(allowed_keys or ())) or 'no such key'}"
            raise InputError(f"conf key {join(where, key)} is unknown to {name}: {remedy}")
    for number, (key, parameter) in enumerate(signature.parameters.items()):
        needed = parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_")
        if complete and needed and number >= count and key not in keys:
            raise InputError(f"conf key {join(where, key)} must be given: {name} needs it")
    try:
        signature.bind_partial(*range(count), **dict.fromkeys(keys))
    except TypeError as error:
        raise InputError(f"conf key {join(where, '_args_')} does not fit {name}: {error}") from error


def check_refused(target: Any, name: str, where: str, count: int, keys: Iterable[Any]) -> None:
    """Refuse arguments by which a class of Lightning would overwrite files or upload."""
    if not (inspect.isclass(target) and under(target.__module__, ["lightning"])):
        return
    parameters = [*_signature(target).parameters]
    argument_names, refused = [*parameters[:count], *keys], _REFUSED.get(target.__name__) or ()
    if target.__name__ == "WandbLogger":
        refused = (*refused, *(key for key in argument_names if key not in (*parameters, *_WANDB)))
    for key in argument_names:
        if key in refused:
            raise InputError(
                f"conf key {join(where, key)} is refused: leave it out of {name}, or trust it: trusted=[lightning]"
            )


def check_types(target: Any, name: str, where: str, values: dict[str, Any]) -> None:
    """Compare plain values with the annotations of the signature, where these are plain types."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that are there for type checkers only
        return
    for key, value in values.items():
        if not isinstance(value, (str, int, float, bool)) or value == "???" or key not in hints:
            continue
        kinds = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
        if not all(inspect.isclass(kind) and get_origin(kind) is None for kind in kinds) or object in kinds:
            continue
        if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
            words = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            hint = "; in YAML write 1.0e-5, not 1e-5" if isinstance(value, str) and float in kinds else ""
            raise InputError(f"conf key {join(where, key)}={value!r} does not fit {name}: it takes {words}{hint}")


def _allowed_keys(target: Any) -> set[str] | None:
    """Return the keys that a target takes; None if it takes any. Our own classes pass their `**kwargs` to their base."""
    takers = [target]
    if inspect.isclass(target) and under(target.__module__, [_PACKAGE]):
        takers += [base for base in target.__mro__[1:-1] if "__init__" in vars(base)]
    allowed_keys: set[str] = set()
    for taker in takers:
        parameters = _signature(taker).parameters.values()
        allowed_keys |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return allowed_keys
    return None


def _signature(target: Any) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except ValueError:  # written in C: it checks its arguments itself
        return inspect.signature(lambda *args, **kwargs: None)


# ---- targets


def under(name: Any, prefixes: Iterable[str]) -> bool:
    """Tell whether a dotted name is one of the prefixes, or lies in a package that they name."""
    return any(name == prefix or str(name).startswith(f"{prefix}.") for prefix in prefixes)


def resolve_target(target: Any, where: str, trusted: tuple[str, ...]) -> Any:
    """Import the class or function that a target names, if a config may name it."""
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        raise InputError(f"{where}={target!r} is refused: write package.module.Class, without a leading underscore anywhere")
    if under(target, _BARRED) and not under(target, trusted):
        raise _refused(where, target, "configs need no such thing", target)
    allowed_modules = next(
        (allowed_modules for prefix, allowed_modules in _ALLOWED_MODULES.items() if under(target, [prefix])), None
    )
    if allowed_modules is None and not under(target, trusted):
        raise _refused(where, target, f"a target begins with {', '.join(_ALLOWED_MODULES)}", target)
    allowed_modules = allowed_modules or tuple(chain.from_iterable(_ALLOWED_MODULES.values()))
    module, names = _import(target, where)
    obj = getattr(module, names[0], None)
    if obj is None:
        close = closest(names[0], {*dir(module), *(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ())))})
        remedy = f"spell it as {'.'.join([module.__name__, close, *names[1:]])}" if close else "check its spelling"
        raise InputError(f"{where}={target} is not there: {module.__name__} has no {names[0]}: {remedy}")
    defined_in = [obj.__module__] if inspect.isclass(obj) or inspect.isroutine(obj) else []
    if defined_in and names[1:]:
        obj = getattr(obj, names[1], None)
        function = inspect.ismethod(obj) and len(names) == 2 and obj.__func__
        defined_in = [*defined_in, function.__module__] if function else []
    if not defined_in:
        raise InputError(f"{where}={target} is refused: write module.Class, module.function or module.Class.classmethod")
    for home in map(str, defined_in):
        if not under(home, (*allowed_modules, *trusted)):
            raise _refused(where, target, f"{home} defines it", home)
        if not under(home, trusted) and not _fits_configs(obj, home):
            raise _refused(where, target, "configs need no such thing", home)
    return obj


def _refused(where: str, target: str, reason: str, home: str) -> InputError:
    package = home.partition(".")[0]
    remedy = f"if you trust it, add its package: trusted=[{package}]"
    if package == _PACKAGE:
        remedy = f"name a module, callback or data module of {_PACKAGE}, or one of {', '.join(_MADE_FOR_CONFIGS)}"
    return InputError(f"{where}={target} is refused ({reason}): {remedy}")


def _import(target: str, where: str) -> tuple[Any, list[str]]:
    """Import the innermost module of a dotted name; return it and the names after it."""
    names = target.split(".")
    for cut in range(len(names) - 1, 0, -1):
        name = ".".join(names[:cut])
        try:
            return import_module(name), names[cut:]
        except ModuleNotFoundError as error:
            if not error.name or not under(name, [error.name]):  # something that the module needs
                raise InputError(f"{where}={target} needs {error.name}: install it") from error
        except Exception as error:
            raise InputError(f"{where}={target}: {name} cannot be imported: {error}") from error
    raise InputError(f"{where}={target} is not there: install {names[0]}, or put its folder on PYTHONPATH")


def _fits_configs(obj: Any, home: str) -> bool:
    """Tell whether an object that an allowed package defines is of a kind that configs need."""
    if under(home, _BARRED):
        return False
    if not inspect.isclass(obj):
        return under(home, [_PACKAGE]) and f"{home.split('.')[1]}.{obj.__qualname__}" in _MADE_FOR_CONFIGS
    if under(home, [_PACKAGE]):
        return not _KINDS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in obj.__mro__)
    if not home.startswith("torch"):
        return _REFUSED.get(obj.__name__, ()) is not None
    from torch import nn, optim

    return issubclass(obj, (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler))


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the word that is spelt most like this one; None if none is close."""
    words = sorted(words)
    names = {name.lower(): name for name in words}
    return next(iter(get_close_matches(word, words, 1) + [names[w] for w in get_close_matches(word.lower(), names, 1)]), None)
