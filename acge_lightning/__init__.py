"""Train text-embedding models and use them: the importable names, loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acge_lightning.encoder import Encoder as Encoder
    from acge_lightning.encoder import similarity as similarity
    from acge_lightning.errors import InputError as InputError
    from acge_lightning.pretrained import load as load

__version__ = "0.1.0"
_HOME = {
    "Encoder": "encoder",
    "InputError": "errors",
    "load": "pretrained",
    "similarity": "encoder",
}
__all__ = ["Encoder", "InputError", "load", "similarity"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"acge_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'acge_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
