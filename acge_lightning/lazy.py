"""Import the public names of a package when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, **modules: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__all__`, `__getattr__` and `__dir__` of a package whose modules load when one of their names is used.

    Args:
        package: its dotted name, `__name__`.
        **modules: module of the package -> the public names that it defines, with spaces between them.

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
