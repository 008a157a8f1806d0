"""Arrows of imports: which rooms may import what, that imports do not go round in a circle, and what starts light."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "acge_lightning"
BASE = {"errors", "lazy", "terminal", "files"}  # rooms that every other may import
# Room (a folder, or a file beside them) -> the other rooms that it may import besides those.
ROOMS = {
    "errors": "",
    "lazy": "",
    "terminal": "",
    "files": "",
    "metrics": "",
    "encoder": "",
    "losses": "",
    "data": "encoder losses metrics",
    "embed": "encoder data",
    "search": "encoder data",
    "classify": "",
    "zoo": "encoder",
    "export": "encoder zoo",
    "continual": "encoder losses metrics data training",
    "evaluation": "encoder metrics data embed search classify zoo",
    "training": "encoder losses metrics data export",
    "callbacks": "encoder losses data embed evaluation continual training",
    "report": "encoder data search evaluation",
    "config": "",
    "commands": "*",
    "__init__": "encoder zoo search classify",
    "__main__": "commands",
}
LIGHTNING = ("lightning", "pytorch_lightning")
# What comes from outside -> the files of the package (globs, `!` takes out) that may import it, wherever in a file.
OUTSIDE = {
    LIGHTNING: "data/* training/* callbacks/* commands/* evaluation/mteb/*",
    ("hydra", "omegaconf"): "config/* commands/*",
    ("mteb", "datasets"): "evaluation/mteb/*",
    ("faiss",): "search/ann.py",
    ("tools", "tests"): "",
}
# Rooms of pure maths -> what they may import besides the standard library and rooms.
PURE = {
    "metrics/* losses/* encoder/* classify/*": "torch torchmetrics transformers tokenizers safetensors numpy scipy sklearn "
    "joblib threadpoolctl",
    "files/*": "numpy safetensors yaml",
    "errors.py lazy.py": "",
}


def selected(path, patterns):
    return any(fnmatch(path, pattern) for pattern in patterns.split())


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


def room_of(name):
    """The room that a dotted name lies in, None for what comes from outside, and for the package's own facts."""
    words = name.split(".")
    return words[1] if words[0] == "acge_lightning" and len(words) > 1 and words[1] in ROOMS else None


def violations(path, source):
    """The imports in a file that break a rule of the tables."""
    names = sorted(imports(path, source))
    room = Path(path).parts[0].removesuffix(".py")
    allowed = {room, *BASE, *ROOMS[room].split()} if room not in BASE else {room, "errors"}
    bad = {name for name in names if room_of(name) not in (None, *allowed) and ROOMS[room] != "*"}
    for packages, files in OUTSIDE.items():
        bad |= {name for name in names if under(name, packages) and not selected(path, files)}
    for files, packages in PURE.items():
        if selected(path, files):
            known = {*sys.stdlib_module_names, "acge_lightning", *packages.split()}
            bad |= {name for name in names if name.split(".")[0] not in known}
    return sorted(bad)


def test_every_file_keeps_to_its_room():
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    assert {Path(path).parts[0].removesuffix(".py") for path in files} == set(ROOMS)
    for part in " ".join([*OUTSIDE.values(), *PURE]).split():
        assert any(fnmatch(path, part) for path in files), f"no file matches {part} of the tables"
    assert not [path for path in files if "utils" in path]
    broken = {path: violations(path, file.read_text(encoding="utf-8")) for path, file in files.items()}
    assert {path: names for path, names in broken.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("losses/x.py", "import lightning as L", ["lightning"]),
        ("losses/x.py", "def f():\n    from lightning.pytorch import Trainer", ["lightning.pytorch.Trainer"]),
        ("losses/x.py", "from ..data import sts\nfrom .. import errors", ["acge_lightning.data.sts"]),
        ("losses/x.py", "import math\nimport pandas.io\nfrom torch import nn", ["pandas.io"]),
        ("export/x.py", "from importlib import import_module\nimport_module('lightning')", ["lightning"]),
        ("callbacks/ewc.py", "def f():\n    import hydra.utils", ["hydra.utils"]),
        ("commands/train.py", "import hydra\nfrom lightning import Trainer\nfrom tools import x", ["tools.x"]),
        ("data/sts.py", "from ..training import M\nfrom acge_lightning.losses import N", ["acge_lightning.training.M"]),
        ("search/funnel.py", "def f():\n    import faiss\n    import lightning", ["faiss", "lightning"]),
        ("evaluation/x.py", "from acge_lightning import commands", ["acge_lightning.commands"]),
        ("evaluation/x.py", "from acge_lightning.report import style", ["acge_lightning.report.style"]),
        ("files/x.py", "from acge_lightning.terminal import show", ["acge_lightning.terminal.show"]),
    ],
)  # fmt: skip
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
    assert (
        loaded("import acge_lightning.evaluation.mteb.benchmark, acge_lightning.evaluation.scoring", "mteb", "datasets")
        == set()
    )


def test_the_funnel_loads_neither_lightning_nor_hydra_nor_faiss():
    names = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "faiss")
    assert loaded("import acge_lightning.search, acge_lightning.classify", "torch", "pyarrow", "sklearn", *names) == set()
    used = ["import tempfile, torch", "from acge_lightning.search import FunnelIndex"]
    used += ["with tempfile.TemporaryDirectory() as d:", "    FunnelIndex.load(FunnelIndex.build(torch.ones(3, 4)).save(d))"]
    assert loaded("\n".join(used), *names) == set()


def test_the_importable_model_loads_neither_lightning_nor_hydra():
    names = ("lightning", "pytorch_lightning", "hydra", "omegaconf")
    assert loaded("from acge_lightning import *", "torch", *names) == {"torch"}
