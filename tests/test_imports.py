"""Arrows of imports: which rooms may import what, that imports do not go round in a circle, and what starts light."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.metadata import version
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
    "search": "encoder data metrics",
    "mining": "encoder metrics data embed",
    "classify": "",
    "zoo": "encoder",
    "export": "encoder zoo",
    "continual": "encoder losses metrics data",
    "evaluation": "encoder metrics data embed classify zoo",
    "training": "encoder losses metrics data export",
    "callbacks": "encoder losses data embed mining evaluation continual training",
    "report": "encoder data evaluation",
    "config": "",
    "commands": "*",
    "__init__": "encoder zoo search classify",
    "__main__": "commands",
}
LIGHTNING = ("lightning", "pytorch_lightning")
# What comes from outside -> the files of the package (globs, `!` takes out) that may import it, wherever in a file.
OUTSIDE = {
    LIGHTNING: "data/modules.py data/mixture.py training/* callbacks/* commands/*",
    ("hydra", "omegaconf"): "config/* commands/*",
    ("mteb", "datasets"): "evaluation/mteb/*",
    ("faiss",): "search/ann.py mining/negatives/neighbours.py",
    ("rensa",): "mining/cleaning/signatures.py",
    ("ray",): "mining/engine/ray.py",
    ("opencc",): "encoder/script_folding.py mining/normalise.py evaluation/perturb.py",
    ("tools", "tests"): "",
}
# Files of a room -> what of the rooms that it may import they may not.
# (data/modules.py has those of each family, data/task.py those of a task)
NARROWER = {"data/[!mt]*.py data/mixture.py": ("acge_lightning.losses", "acge_lightning.metrics")}
# Rooms of pure maths -> what they may import besides the standard library and rooms.
PURE = {
    "metrics/* losses/* encoder/* classify/*": "torch torchmetrics transformers tokenizers safetensors numpy scipy sklearn "
    "joblib threadpoolctl opencc",
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
    for files, packages in NARROWER.items():
        bad |= {name for name in names if under(name, packages) and selected(path, files)}
    for files, packages in PURE.items():
        if selected(path, files):
            known = {*sys.stdlib_module_names, "acge_lightning", *packages.split()}
            bad |= {name for name in names if name.split(".")[0] not in known}
    return sorted(bad)


def test_every_file_keeps_to_its_room():
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    assert {Path(path).parts[0].removesuffix(".py") for path in files} == set(ROOMS)
    for part in " ".join([*OUTSIDE.values(), *NARROWER, *PURE]).split():
        assert any(fnmatch(path, part) for path in files), f"no file matches {part} of the tables"
    assert not [path for path in files if "utils" in path]
    broken = {path: violations(path, file.read_text(encoding="utf-8")) for path, file in files.items()}
    assert {path: names for path, names in broken.items() if names} == {}


def defined_in(name):
    """The file that a dotted name of the package comes from, through the tables of contents of its rooms; None if outside."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        path = PACKAGE.parent.joinpath(*words[:end])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            names = imports(path.relative_to(PACKAGE) / "__init__.py", read(path / "__init__.py"))
            table = {name.rpartition(".")[2]: name for name in names}
            inside = table.get(words[end]) if end < len(words) else None
            return defined_in(inside) if inside else path / "__init__.py"
    return None


def read(file):
    return file.read_text(encoding="utf-8")


def test_imports_do_not_go_round_in_a_circle():
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py"]
    arrows = {file: {defined_in(name) for name in imports(file.relative_to(PACKAGE), read(file))} - {None} for file in files}
    assert sum(map(len, arrows.values())) > 200
    list(TopologicalSorter(arrows).static_order())  # raises at a circle, and names its files
    rooms = {}
    for file, others in arrows.items():
        for other in others - {PACKAGE / "__init__.py"}:
            ends = [path.relative_to(PACKAGE).parts[0] for path in (file, other)]
            rooms.setdefault(ends[0], set()).update(set(ends[1:]) - {ends[0]})
    list(TopologicalSorter(rooms).static_order())


def test_contributing_says_the_same():
    lines = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1:4] for line in lines if line.startswith("| `")]
    table = {name: re.findall(r"`(\w+)`", may) for names, _, may in cells for name in re.findall(r"`(\w+)`", names)}
    for room, allowed in ROOMS.items():
        if room not in ("commands", "__init__", "__main__"):
            assert sorted(table[room]) == sorted(allowed.split()), room


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
        ("data/sts.py", "from ..training import M\nfrom acge_lightning.files import N", ["acge_lightning.training.M"]),
        ("data/pair.py", "from acge_lightning.metrics.ranking import ndcg", ["acge_lightning.metrics.ranking.ndcg"]),
        ("search/funnel.py", "def f():\n    import faiss\n    import lightning", ["faiss", "lightning"]),
        ("evaluation/x.py", "from acge_lightning import commands", ["acge_lightning.commands"]),
        ("evaluation/x.py", "from acge_lightning.report import style", ["acge_lightning.report.style"]),
        ("files/x.py", "from acge_lightning.terminal import show", ["acge_lightning.terminal.show"]),
    ],
)  # fmt: skip
def test_checker_catches_a_wrong_import(path, source, expected):
    assert violations(path, source) == expected


TABLES = sorted(
    ".".join(["acge_lightning", *file.parent.relative_to(PACKAGE).parts])
    for file in PACKAGE.rglob("__init__.py")
    if "lazy_names(" in read(file)
)


@pytest.mark.parametrize("room", TABLES)
def test_a_table_of_contents_lists_what_is_there(room):
    """Each name is that of a thing which a file of the room defines, and type checkers are told the same names."""
    package = import_module(room)
    file = Path(package.__file__)
    told = [name for name in imports(file.relative_to(PACKAGE), read(file)) if under(name, ["acge_lightning"])]
    assert package.__all__ == sorted({name.rpartition(".")[2] for name in told} - {"lazy_names"})
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert getattr(package, name).__module__.startswith(room)
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchName'"):
        package.NoSuchName  # noqa: B018


def loaded(statement, *names):
    """Those of `names` that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*({set(names)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HYDRA = ("hydra", "omegaconf")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        # nothing large is loaded by tables of contents, nor by the command line before a command is called
        (f"import {', '.join(TABLES)}, acge_lightning.commands.cli", set()),
        ("import acge_lightning.commands.program", {*HYDRA}),
        ("from acge_lightning import *", {"torch", "pyarrow", "sklearn"}),
        (
            "from acge_lightning.data import STSDataset, RetrievalDataset, Task, Collate\n"
            "import acge_lightning.evaluation.scoring, acge_lightning.evaluation.mteb.tasks\n"
            "import acge_lightning.continual.fisher, acge_lightning.continual.strategy",
            {"torch", "pyarrow"},
        ),
        ("import acge_lightning.commands.evaluate, acge_lightning.commands.search", {"torch", "pyarrow", "omegaconf"}),
    ],
)
def test_what_an_import_loads(statement, expected):
    large = ("torch", "pyarrow", "sklearn", "lightning", "pytorch_lightning", "faiss", "mteb", "datasets", *HYDRA)
    light = {"sklearn"} - expected  # torchmetrics loads it, if it is installed
    assert loaded(statement, *large) - light == expected


@pytest.mark.skipif(
    version("transformers").startswith("5.0."), reason="transformers 5.0 loads scikit-learn and torch._dynamo by itself"
)
def test_a_static_encoder_loads_none_of_the_models_of_transformers(small_encoder):
    used = f"from acge_lightning import load\nassert load({str(small_encoder)!r}).encode(['x']).shape == (1, 16)"
    names = ("transformers.modeling_utils", "torch._dynamo", "scipy", "sklearn", "torchmetrics", "lightning")
    assert loaded(used, "transformers", *names) == {"transformers"}


def test_a_funnel_at_work_loads_neither_lightning_nor_hydra_nor_faiss():
    used = ["import tempfile, torch", "from acge_lightning.search import FunnelIndex"]
    used += ["with tempfile.TemporaryDirectory() as d:", "    FunnelIndex.load(FunnelIndex.build(torch.ones(3, 4)).save(d))"]
    assert loaded("\n".join(used), "lightning", "pytorch_lightning", "faiss", *HYDRA) == set()
