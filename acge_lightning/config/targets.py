"""Which classes and functions a config may name as `_target_`, and which keys and values they take.

A `_target_` is code that a text file chooses. Before anything is called, the whole node is checked:

- A target's text begins with an allowed package, and not with our own `commands` and `config`; else nothing is imported.
- It reads `module.Class`, `module.function` or `module.Class.classmethod`; no name leads through what a module imported.
- The object's own `__module__` lies in that package. All offer classes only: we ours of modules, callbacks and data, and four
  functions that were made for it; torch and torchmetrics modules, optimizers and schedulers.
- What would write over files, run or send more than a run needs is out: some classes, and some arguments of others.
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

_OWN = "acge_lightning"
_MADE_FOR_CONFIGS = ("encoder.static", "encoder.transformer", "encoder.train_vocabulary", "zoo.from_pretrained")
_BARRED = (f"{_OWN}.commands", f"{_OWN}.config")  # what runs and reads configs is not for them to name
_KINDS = {  # of our own classes
    "torch.nn.modules.module.Module",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.fabric.plugins.io.checkpoint_io.CheckpointIO",
    f"{_OWN}.training.optim.Optim",
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


def join(where: str, key: Any) -> str:
    """The key of a value within the config at `where`."""
    return f"{where}.{key}" if where else str(key)


def check_keys(target: Any, name: str, where: str, count: int, keys: list[Any], complete: bool) -> None:
    """Compare the keys of a node, and the number of its `_args_`, with what its target takes."""
    signature, known = _signature(target), _known(target)
    for key in keys:
        if not isinstance(key, str) or (known is not None and key not in known):
            close = closest(str(key), known or ())
            remedy = f"did you mean {close}?" if close else f"it takes {', '.join(sorted(known or ())) or 'no such key'}"
            raise InputError(f"conf key {join(where, key)} is unknown to {name}: {remedy}")
    for number, (key, parameter) in enumerate(signature.parameters.items()):
        needed = parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_")
        if complete and needed and number >= count and key not in keys:
            raise InputError(f"conf key {join(where, key)} must be given: {name} needs it")
    try:
        signature.bind_partial(*range(count), **dict.fromkeys(keys))
    except TypeError as error:
        raise InputError(f"conf key {join(where, '_args_')} does not fit {name}: {error}") from error


def check_refused(target: Any, name: str, where: str, count: int, given: Iterable[Any]) -> None:
    """Refuse what a class of Lightning would do to files, and to others, by these arguments."""
    if not (inspect.isclass(target) and under(target.__module__, ["lightning"])):
        return
    takes = [*_signature(target).parameters]
    named, refused = [*takes[:count], *given], _REFUSED.get(target.__name__, ())
    if target.__name__ == "WandbLogger":
        refused = (*refused, *(key for key in named if key not in (*takes, *_WANDB)))
    for key in named:
        if key in refused:
            raise InputError(
                f"conf key {join(where, key)} is refused: leave it out of {name}, or trust it: trusted=[lightning]"
            )


def check_types(target: Any, name: str, where: str, given: dict[str, Any]) -> None:
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
            raise InputError(f"conf key {join(where, key)}={value!r} does not fit {name}: it takes {words}{hint}")


def _known(target: Any) -> set[str] | None:
    """The keys that a target takes; None if it takes any. Our own classes hand their `**kwargs` to their base."""
    takers = [target]
    if inspect.isclass(target) and under(target.__module__, [_OWN]):
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


def under(name: Any, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of the prefixes, or lies in a package that they name."""
    return any(name == prefix or str(name).startswith(f"{prefix}.") for prefix in prefixes)


def resolve_target(target: Any, where: str, trusted: tuple[str, ...]) -> Any:
    """The class or function that a target names, if a config may name it."""
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        raise InputError(f"{where}={target!r} is refused: write package.module.Class, without a leading underscore anywhere")
    if under(target, _BARRED) and not under(target, trusted):
        raise _refused(where, target, "configs need no such thing", target)
    homes = next((homes for prefix, homes in _HOMES.items() if under(target, [prefix])), None)
    if homes is None and not under(target, trusted):
        raise _refused(where, target, f"a target begins with {', '.join(_HOMES)}", target)
    homes = homes or tuple(chain.from_iterable(_HOMES.values()))
    module, names = _import(target, where)
    found = getattr(module, names[0], None)
    if found is None:
        close = closest(names[0], {*dir(module), *(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ())))})
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
        if not under(home, (*homes, *trusted)):
            raise _refused(where, target, f"{home} defines it", home)
        if not under(home, trusted) and not _fit(found, home):
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
            if not error.name or not under(name, [error.name]):  # something that the module needs
                raise InputError(f"{where}={target} needs {error.name}: install it") from error
        except Exception as error:
            raise InputError(f"{where}={target}: {name} cannot be imported: {error}") from error
    raise InputError(f"{where}={target} is not there: install {parts[0]}, or put its folder on PYTHONPATH")


def _fit(found: Any, home: str) -> bool:
    """Whether an object that an allowed package defines is of a kind that configs need."""
    if under(home, _BARRED):
        return False
    if not inspect.isclass(found):
        return under(home, [_OWN]) and f"{home.split('.')[1]}.{found.__qualname__}" in _MADE_FOR_CONFIGS
    if under(home, [_OWN]):
        return not _KINDS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in found.__mro__)
    if not home.startswith("torch"):
        return _REFUSED.get(found.__name__, ()) is not None
    from torch import nn, optim

    return issubclass(found, (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler))


def closest(word: str, words: Iterable[str]) -> str | None:
    """The word that is spelt most like this one, if any is."""
    words = sorted(words)
    names = {name.lower(): name for name in words}
    return next(iter(get_close_matches(word, words, 1) + [names[w] for w in get_close_matches(word.lower(), names, 1)]), None)
