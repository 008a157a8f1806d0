"""What lacks a library of an extra says so, and which extra, before the work begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("matplotlib", ["longtail", "m", "tasks=x"], "acge longtail needs matplotlib: pip install 'acge-lightning[report]'"),
        ("matplotlib", ["report", "x"], "acge report needs matplotlib: pip install 'acge-lightning[report]'"),
        ("jinja2", ["report", "x"], "acge report needs jinja2: pip install 'acge-lightning[report]'"),
        ("opencc", ["longtail", "m", "tasks=x"], "the perturbation script needs opencc: pip install 'acge-lightning[eval]'"),
        ("bm25s", ["evaluate", "[bm25,tfidf]", "."], "model=bm25 needs bm25s: pip install 'acge-lightning[eval]'"),
        ("mteb", ["evaluate", "m", "suite=cmteb"], "suite=cmteb needs mteb: pip install 'acge-lightning[eval]'"),
        ("wandb", ["train", "logger=wandb"], "logger=wandb needs wandb: pip install 'acge-lightning[log]'"),
        ("tensorboard", ["report", "x", "logger=tensorboard"], "logger=tensorboard needs tensorboard: pip install"),
        ("faiss", ["search", "m", "s", "stages=[{dim: 64, index: hnsw}]"], "an index other than exact needs faiss: pip"),
    ],
)
def test_a_missing_library_is_named_with_its_extra_first(module, words, message, tmp_path):
    """In an interpreter that cannot import it, and before anything that is not there is looked for."""
    code = f"import sys\nsys.modules[{module!r}] = None\nfrom acge_lightning.commands.cli import main\n"
    code += "sys.argv = ['acge', *sys.argv[1:]]\nmain()"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"error: {message}")
    assert len(done.stderr.strip().splitlines()) == 1
