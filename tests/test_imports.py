"""Arrows of imports: which files may import what, and that `import acge_lightning` stays light."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "acge_lightning"
MATHS = "encoder.py cut.py dropout.py packed.py batch.py losses.py matryoshka.py metrics.py ranking.py optim.py errors.py"
MATHS += " files.py ewc.py anchor.py per_sample.py frozen.py probe.py terminal.py"
MODEL = "pca.py encoder.py export.py swap.py pretrained.py folder.py claims.py fresh.py card.py vocabulary.py"
LIGHTNING = ["lightning", "pytorch_lightning"]

# Files of the package (globs, `!` takes out) -> what they may not import, wherever in the file the import stands.
FORBIDDEN = {
    "*": ["tools", "tests"],
    "* !train.py !sequence.py !cli.py !config.py !jobs.py !overrides.py !secret.py !sources.py": ["hydra", "omegaconf"],
    "* !benchmark.py !mteb_*.py": ["mteb", "datasets"],
    f"{MATHS} {MODEL}": LIGHTNING,
    "adaptive/*": [*LIGHTNING, "acge_lightning.data", "acge_lightning.train", "acge_lightning.cli"],
    "* !adaptive/first.py": ["faiss"],
    "data/*": [f"acge_lightning.{name}" for name in ("module", "pretrain", "train", "sequence", "cli", "callbacks")],
}
# What the maths files may import besides the standard library.
ALLOWED = [
    "torch",
    "torchmetrics",
    "transformers",
    "sklearn",
    "scipy",
    "joblib",
    "safetensors",
    "threadpoolctl",
    "rich",
    "numpy",
] + [f"acge_lightning.{name.removesuffix('.py')}" for name in MATHS.split()]


def selected(path, pattern):
    parts = pattern.split()
    out = [p[1:] for p in parts if p.startswith("!")]
    return any(fnmatch(path, p) for p in parts) and not any(fnmatch(path, p) for p in out)


def under(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imports(path, source):
    """Dotted names that the file of the package at `path` imports: at its top, in functions, and by `import_module`."""
    package = ["acge_lightning", *Path(path).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violations(path, source):
    """The imports in a file that break a rule of the tables."""
    names = list(imports(path, source))
    bad = {n for pattern, prefixes in FORBIDDEN.items() if selected(path, pattern) for n in names if under(n, prefixes)}
    if selected(path, MATHS):
        bad |= {n for n in names if n.split(".")[0] not in sys.stdlib_module_names and not under(n, ALLOWED)}
    return sorted(bad)


def test_every_file_keeps_to_its_layer():
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    for part in " ".join(FORBIDDEN).split():
        assert part.startswith("!") or any(fnmatch(path, part) for path in files), f"no file matches {part} of the table"
    assert not [path for path in files if selected(path, "utils* */utils*")]
    found = {path: violations(path, file.read_text(encoding="utf-8")) for path, file in files.items()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("losses.py", "import lightning as L", ["lightning"]),
        ("losses.py", "def f():\n    from lightning.pytorch import Trainer", ["lightning.pytorch.Trainer"]),
        ("losses.py", "from .data import sts\nfrom . import errors", ["acge_lightning.data.sts"]),
        ("losses.py", "import math\nimport pandas.io\nfrom torch import nn", ["pandas.io"]),
        ("export.py", "from importlib import import_module\nimport_module('lightning')", ["lightning"]),
        ("callbacks/ewc.py", "def f():\n    import hydra.utils", ["hydra.utils"]),
        ("train.py", "import hydra\nfrom lightning import Trainer\nfrom tools import x", ["tools.x"]),
        ("data/sts.py", "from ..module import M\nfrom acge_lightning.pretrained import load", ["acge_lightning.module.M"]),
        ("adaptive/funnel.py", "def f():\n    import faiss\n    import lightning", ["faiss", "lightning"]),
        ("data/sts.py", "from acge_lightning import cli\nfrom lightning import Trainer", ["acge_lightning.cli"]),
    ],
)
def test_checker_catches_a_wrong_import(path, source, expected):
    assert violations(path, source) == expected


def loaded(statement, *names):
    """Those of `names` that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*({set(names)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_none_of_its_large_dependencies():
    names = ("torch", "transformers", "lightning", "hydra", "omegaconf", "sklearn", "pyarrow")
    assert loaded("import acge_lightning", *names) == set()


def test_mteb_is_loaded_only_when_it_is_used():
    assert loaded("import acge_lightning.benchmark, acge_lightning.evaluation", "mteb", "datasets") == set()


def test_the_funnel_loads_neither_lightning_nor_hydra_nor_faiss():
    names = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "faiss")
    assert loaded("import acge_lightning.adaptive", "torch", "pyarrow", "sklearn", *names) == set()
    used = ["import tempfile, torch", "from acge_lightning.adaptive import FunnelIndex"]
    used += ["with tempfile.TemporaryDirectory() as d:", "    FunnelIndex.load(FunnelIndex.build(torch.ones(3, 4)).save(d))"]
    assert loaded("\n".join(used), *names) == set()


def test_the_importable_model_loads_neither_lightning_nor_hydra():
    names = ("lightning", "pytorch_lightning", "hydra", "omegaconf")
    assert loaded("from acge_lightning import *", "torch", *names) == {"torch"}
