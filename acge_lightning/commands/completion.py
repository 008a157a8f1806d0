"""Complete words by the Tab key: `eval "$(acge -sc install=bash)"` registers `acge`; Hydra knows keys and choices."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress

from acge_lightning.commands.usage import USAGE
from acge_lightning.terminal import show

_LINE = "COMP_LINE"  # environment variable by which a shell passes on what was typed


def complete(words: Sequence[str]) -> None:
    """Install or remove the completion of a shell, or print what may come next.

    Args:
        words: `-sc` and one of `install=bash`, `uninstall=bash`, `query=bash`; `fish` in place of `bash` works too.
    """
    if not any(word.startswith("query=") for word in words):
        _run_hydra("train", words)
        return
    typed = os.environ.get(_LINE, "").split()[1:]
    is_new_word = os.environ.get(_LINE, "").endswith((" ", "\t"))
    if len(typed) + is_new_word <= 1:
        show(" ".join(name for name in USAGE if name.startswith(typed[0] if typed else "")))
    elif typed[0] in USAGE and typed[0] != "models":
        last = [] if is_new_word else typed[-1:]
        before = [word for word in typed[1 : len(typed) - len(last)] if "=" in word and not word.startswith(("-", "hydra."))]
        os.environ[_LINE] = " ".join(["acge", *before, *last]) + (" " if is_new_word else "")
        with suppress(Exception, SystemExit), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
            _run_hydra(typed[0], words)  # what it says of a line that is not whole yet is of no use


def _run_hydra(name: str, words: Sequence[str]) -> None:
    """Have Hydra do it, over the config of a command."""
    import hydra

    from acge_lightning.config.folder import config_dir

    sys.argv = [sys.argv[0], *words]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(lambda cfg: None)()
