"""What is used of libraries that they do not promise: an upgrade that removes one of these fails here by its name."""

import ast
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FILES = sorted(file for name in ("acge_lightning", "tools") for file in (ROOT / name).rglob("*.py"))


def trainer():
    from lightning.pytorch import Trainer

    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def indexed():
    from bm25s import BM25

    library = BM25(method="lucene")
    library.index(([[0], [1, 0]], {"a": 0, "b": 1}), show_progress=False)
    return library


def sdpa_config():
    from transformers import BertConfig

    return BertConfig(attn_implementation="sdpa")


def launcher():
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies.launchers import subprocess_script

    return subprocess_script._SubprocessScriptLauncher(LightningEnvironment(), 2, 1)


def fused_optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)


# (name, the files that use it, what for, what has it where that is not a module or a class)
PRIVATE = [
    (
        "torch._int_mm",
        "search/vectors.py",
        "products of whole numbers: no other function of torch multiplies int8 matrices",
        None,
    ),
    ("torch._foreach_copy_", "callbacks/ewc.py", "one call for all weights", None),
    (
        "torch.distributed.distributed_c10d._get_default_store",
        "callbacks/peers.py",
        "signs of life go through the store that the devices share already",
        None,
    ),
    (
        "Optimizer._step_supports_amp_scaling",
        "callbacks/ewc.py training/optimized_module.py",
        "whether an optimizer unscales gradients within its step, which is too late for clipping and for a penalty",
        fused_optimizer,
    ),
    (
        "PreTrainedConfig._attn_implementation",
        "encoder/packing.py continual/sample_gradients.py export/sentence_transformers.py",
        "which attention a backbone has; there is a public way to set it, none to ask",
        sdpa_config,
    ),
    (
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        "encoder/packed_attention.py",
        "attention of texts that are not packed",
        None,
    ),
    ("transformers.masking_utils.sdpa_mask", "encoder/packed_attention.py", "masks of texts that are not packed", None),
    (
        "Trainer._accelerator_connector",
        "callbacks/save_on_signal.py",
        "its `cluster_environment` tells whether Slurm runs the job; that of the strategy is there under several devices only",
        trainer,
    ),
    ("Trainer._accelerator_connector.cluster_environment", "callbacks/save_on_signal.py", "the same", trainer),
    ("Trainer.fit_loop.epoch_loop", "callbacks/steps.py", "has the next two", trainer),
    (
        "Trainer.fit_loop.epoch_loop._should_accumulate",
        "callbacks/steps.py",
        "whether a batch ended an optimizer step",
        trainer,
    ),
    (
        "Trainer.fit_loop.epoch_loop._num_ready_batches_reached",
        "callbacks/steps.py",
        "whether a batch ended the round",
        trainer,
    ),
    (
        "Trainer.fit_loop.epoch_loop._should_check_val_fx",
        "callbacks/steps.py",
        "whether a validation comes next",
        trainer,
    ),
    ("Trainer.fit_loop._data_fetcher", "callbacks/steps.py", "the argument of the one before", trainer),
    ("_SubprocessScriptLauncher.kill", "callbacks/peers.py", "ends the processes of the other devices", launcher),
    ("_SubprocessScriptLauncher.procs", "commands/single_run.py", "those that are waited for", launcher),
    ("omegaconf.base.Node._get_full_key", "config/building.py", "where in the whole config an error is", None),
    (
        "hydra.plugins.config_source.ConfigSource._normalize_file_name",
        "config/sources.py",
        "a source of our own reads files as Hydra's",
        None,
    ),
    ("hydra.plugins.config_source.ConfigSource._get_header_dict", "config/sources.py", "the same: `# @package`", None),
    ("hydra.plugins.config_source.ConfigSource._list_add_result", "config/sources.py", "the same: names for completion", None),
    ("hydra.core.plugins.Plugins.register", "config/sources.py", "how that source becomes one of Hydra's", None),
    (
        "hydra.core.override_parser.overrides_parser.OverridesParser.parse_override",
        "config/sources.py config/overrides.py",
        "what an argument means to Hydra",
        None,
    ),
    ("BM25.scores", "evaluation/lexical.py", "the weights as a sparse matrix: data, indices, indptr", indexed),
]
OURS = {"os._exit"}  # of Python, and documented


def resolved(name, holder):
    """The object of a dotted name: below the longest module of that name, or below what `holder` makes."""
    words = name.split(".")
    if holder is not None:
        return reduce(getattr, words[1:], holder())
    for end in range(len(words) - 1, 0, -1):
        try:
            module = import_module(".".join(words[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, words[end:], module)
    raise ModuleNotFoundError(words[0])


@pytest.mark.parametrize(("name", "holder"), [(name, holder) for name, _, _, holder in PRIVATE], ids=lambda v: v if v else "")
def test_what_is_private_is_still_there(name, holder):
    resolved(name, holder)


def test_the_weights_of_bm25s_are_a_sparse_matrix_by_documents():
    scores = indexed().scores
    assert [scores[key].ndim for key in ("data", "indices", "indptr")] == [1, 1, 1]
    assert len(scores["indptr"]) == 3


def private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree):
    """Names that a file defines or assigns, as variables, attributes, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def foreign(tree, everywhere):
    """Dotted underscore names of other libraries that a file uses: attributes that no file of ours defines, and imports."""
    here = set(defined(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            if node.attr not in (everywhere if owner in ("self", "cls", "super()") else here):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "attrgetter"):
            yield from (f"{ast.unparse(node.args[0])}.{a.value}" for a in node.args[1:2] if is_private_text(a))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            names = [base + alias.name for alias in node.names]
            yield from (n for n in names if any(map(private, n.split("."))) and not n.startswith("acge_lightning."))


def is_private_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and private(node.value)


def test_no_private_name_is_used_that_is_not_in_the_table():
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    everywhere = {name for tree in trees.values() for name in defined(tree)}
    listed = {(name.rpartition(".")[2], file) for name, files, *_ in PRIVATE for file in files.split()}
    used = set()
    for file, tree in trees.items():
        path = file.relative_to(ROOT).as_posix().removeprefix("acge_lightning/")
        used |= {(name, path) for name in foreign(tree, everywhere) if name not in OURS}
    last = {(name.rpartition(".")[2], path) for name, path in used}
    assert {(name, path) for name, path in used if (name.rpartition(".")[2], path) not in listed} == set()
    assert {(name, path) for name, path in listed if private(name)} - last == set(), "the table names what is no longer used"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch._int_mm(a, b)", {"torch._int_mm"}),
        ("from torch._C import Node", {"torch._C.Node"}),
        ("import faiss._swigfaiss", {"faiss._swigfaiss"}),
        ("from a.b import _c", {"a.b._c"}),
        ("getattr(config, '_attn', None)", {"config._attn"}),
        ("class A(B):\n    def f(self):\n        return self._of_the_base", {"self._of_the_base"}),
        ("class A:\n    def f(self, other):\n        self._x = other._x = 1\n        return other._x, other.__dict__", set()),
    ],
)
def test_the_scan_sees_foreign_names(source, expected):
    tree = ast.parse(source)
    assert set(foreign(tree, set(defined(tree)))) == expected
