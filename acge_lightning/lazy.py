"""Import what may be late or missing: public names of a package when they are used, and libraries of an extra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from acge_lightning.errors import InputError

# Extra of pyproject.toml -> the modules that its packages install.
EXTRAS = {
    "log": ("wandb", "tensorboard"),
    "report": ("matplotlib", "jinja2", "markupsafe"),
    "st": ("sentence_transformers",),
    "eval": ("bm25s", "mteb", "opencc"),
    "search": ("faiss",),
    "mining": ("rensa", "rapidfuzz", "opencc", "faiss"),
    "ray": ("ray",),
    "excel": ("python_calamine",),
}


def require(module: str, beginning: str) -> None:
    """Check that a library of an extra is installed, without importing it.

    Args:
        module: of `EXTRAS`.
        beginning: of the message, before the module's name: what needs it.

    Raises:
        InputError: it is not installed.

    >>> require("matplotlib", "figures need")
    """
    try:
        is_installed = find_spec(module) is not None
    except (ImportError, ValueError):
        is_installed = False
    if not is_installed:
        raise _missing(module, beginning)


@contextmanager
def naming_extra(beginning: str, end: str = "") -> Iterator[None]:
    """Name the extra of a library that is imported in the block and not installed.

    Args:
        beginning: of the message, as in `require`.
        end: of the message, another remedy.

    Raises:
        InputError: a library of an extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not any(module in modules for modules in EXTRAS.values()):
            raise
        raise _missing(module, beginning, end) from error


def _missing(module: str, beginning: str, end: str = "") -> InputError:
    extra = next(name for name, modules in EXTRAS.items() if module in modules)
    return InputError(f"{beginning} {module}: pip install 'acge-lightning[{extra}]'{end}")


def lazy_names(package: str, **modules: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__all__`, `__getattr__` and `__dir__` of a package whose modules load when one of their names is used.

    Args:
        package: its dotted name, `__name__`.
        **modules: module of the package, or of a part of it (`part.module`) -> its public names, with spaces between them.

    >>> __all__, __getattr__, __dir__ = lazy_names("acge_lightning", errors="InputError")
    >>> __getattr__("InputError").__module__
    'acge_lightning.errors'
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}
    public = sorted(module_of)

    def getattribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return public, getattribute, names
