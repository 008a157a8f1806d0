"""Find the folder of the package's YAML files."""

from __future__ import annotations

from pathlib import Path

from acge_lightning.errors import InputError


def config_dir() -> Path:
    """Return the folder of YAML files: in the package once installed, beside it in a checkout.

    Raises:
        InputError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"{package} holds no conf/train.yaml, nor does the folder above: install acge-lightning again")
