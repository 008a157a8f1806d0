"""What a config may name and build: hostile targets, unknown and missing keys, and what `trusted` opens."""

import functools
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from acge_lightning.config import building, folder
from acge_lightning.config.building import instantiate, instantiate_all, plain
from acge_lightning.config.folder import config_dir
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import InfoNCE

LOSS = "acge_lightning.losses.InfoNCE"
CSV = "lightning.pytorch.loggers.CSVLogger"
ADAM = "torch.optim.AdamW"
CANARY = "canary.txt"
PYTHON = f"open({CANARY!r}, 'w').close()"
SHELL = f"touch {CANARY}"

# Targets, each with arguments that would leave the canary or at least run if the target were called.
HOSTILE = {
    # plain names of dangerous things
    "os.system": [SHELL],
    "posix.system": [SHELL],
    "os.popen": [SHELL],
    "os.remove": ["x"],
    "builtins.eval": [PYTHON],
    "builtins.exec": [PYTHON],
    "builtins.__import__": ["antigravity"],
    "builtins.open": [CANARY, "w"],
    "subprocess.Popen": [["touch", CANARY]],
    "subprocess.run": [["touch", CANARY]],
    "importlib.import_module": ["antigravity"],
    "pickle.loads": [""],
    "yaml.unsafe_load": [f"!!python/object/apply:os.system [{SHELL}]"],
    "shutil.rmtree": ["x"],
    "functools.partial": ["x"],
    "pathlib.Path": ["x"],
    "hydra.utils.call": [{"path": "x"}],
    "hydra.utils.instantiate": [{"path": "x"}],
    "hydra.utils.get_object": ["os.system"],
    "torch.load": ["x"],
    "torch.hub.load": ["x", "y"],
    "torch.utils.cpp_extension.load": ["x", "y"],
    "transformers.AutoModel.from_pretrained": ["x"],
    "lightning.fabric.utilities.cloud_io._load": ["x"],
    "lightning.fabric.Fabric": [],
    "lightning.pytorch.utilities.migration.pl_legacy_patch": [],
    "lightning.pytorch.trainer.trainer.os.system": [SHELL],
    "lightning.pytorch.Trainer.fit": [],
    "lightning.pytorch.TrainerX": [],
    # allowed words in front
    "torch.nn.modules.module.torch.load": ["x"],
    "torch.nn.modules.module.functools.partial": ["x"],
    "torch.nn.modules.module.warnings.warn": ["x"],
    "torch.nn.modules.container.operator.index": [1],
    "torch.nn.init.normal_": [0],
    "torch.nn.functional.relu": [0],
    "torch.nn.utils.clip_grad_norm_": [0],
    "torch.nn.Parameter": [],
    "torch.nn.Module.load_state_dict": [{}],
    "torch.nn.Embedding.from_pretrained": [0],
    "torch.optim.Adam.load_state_dict": [{}],
    "torch.optim.lr_scheduler.warnings.warn": ["x"],
    "torch.optim.optimizer.torch.load": ["x"],
    "torch.nnx.Linear": [1, 1],
    "torch.optimizer.Adam": [],
    "torchmetrics.metric.functools.partial": ["x"],
    "torchmetrics.metric.deepcopy": ["x"],
    "torchmetrics.metric.torch.load": ["x"],
    "torchmetrics.utilities.data.dim_zero_cat": [0],
    "torchmetrics.Metric.load_state_dict": [{}],
    "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree": ["x"],
    "lightning.pytorch.callbacks.model_checkpoint.os.remove": ["x"],
    "lightning.pytorch.loggers.csv_logs.os.remove": ["x"],
    "lightning.pytorch.loggers.csv_logs.rank_zero_only": ["x"],
    "lightning.pytorch.strategies.launchers.subprocess_script.subprocess.Popen": [["touch", CANARY]],
    "lightning.pytorch.callbacks.ModelCheckpoint.to_yaml": ["x"],
    # classes of libraries that load models, write over files, send them away, or leave out our checks of checkpoints
    "torchmetrics.text.BERTScore": ["x"],
    "torchmetrics.text.infolm.InfoLM": ["x"],
    "torchmetrics.multimodal.CLIPScore": ["x"],
    "torchmetrics.image.fid.FrechetInceptionDistance": [],
    "torchmetrics.audio.dnsmos.DeepNoiseSuppressionMeanOpinionScore": [16000, False],
    "lightning.pytorch.callbacks.OnExceptionCheckpoint": ["x"],
    "lightning.pytorch.loggers.neptune.NeptuneLogger": [],
    "lightning.pytorch.loggers.mlflow.MLFlowLogger": ["x", "http://127.0.0.1:1"],
    "lightning.pytorch.loggers.comet.CometLogger": [],
    "lightning.pytorch.loggers.litlogger.LitLogger": [],
    "lightning.pytorch.plugins.io.TorchCheckpointIO": [],
    "lightning.pytorch.plugins.io.AsyncCheckpointIO": [],
    "lightning.pytorch.plugins.io.XLACheckpointIO": [],
    # our own package as a door: what a file imports, what it defines that is no part of a model, and whole rooms
    "acge_lightning.config.sources.Path": ["x"],
    "acge_lightning.config.sources.Path.unlink": ["x"],
    "acge_lightning.config.targets.re.compile": ["x"],
    "acge_lightning.config.targets.import_module": ["antigravity"],
    "acge_lightning.config.targets.inspect.sys.modules.clear": [],
    "acge_lightning.config.targets.inspect.os.system": [SHELL],
    "acge_lightning.config.targets.resolve_target": ["os.system", "x", ["os"]],
    "acge_lightning.config.building.instantiate": [{"path": "x"}],
    "acge_lightning.config.building.partial": ["x"],
    "acge_lightning.config.sources.CheckedSource": ["main", "checked://x"],
    "acge_lightning.config.secrets.concealed": ["x", {}],
    "acge_lightning.config.overrides.arguments": [["x"]],
    "acge_lightning.commands.cli.main": [],
    "acge_lightning.commands.cli.call": ["models", 1],
    "acge_lightning.commands.program.program": ["train"],
    "acge_lightning.commands.single_run.train": [{}],
    "acge_lightning.commands.stages.sequence": [{}],
    "acge_lightning.commands.jobs.status_of": [["touch", CANARY], "."],
    "acge_lightning.commands.summary.Summary": [],
    "acge_lightning.files.folder.shutil.rmtree": ["x"],
    "acge_lightning.files.folder.os.system": [SHELL],
    "acge_lightning.files.folder.whole_folder": [CANARY],
    "acge_lightning.files.atomic.write_text": [CANARY, "x"],
    "acge_lightning.files.atomic.whole": [CANARY],
    "acge_lightning.files.spreadsheet.write_csv": [CANARY, [], []],
    "acge_lightning.files.yaml_file.read_yaml": ["x"],
    "acge_lightning.lazy.import_module": ["antigravity"],
    "acge_lightning.lazy.lazy_names": ["acge_lightning"],
    "acge_lightning.terminal.show": ["x"],
    "acge_lightning.export.export": [None, "x"],
    "acge_lightning.export.sentence_transformers.torch.load": ["x"],
    "acge_lightning.zoo.load": ["x"],
    "acge_lightning.zoo.pretrained.logging.os.system": [SHELL],
    "acge_lightning.training.EmbeddingModule.load_from_checkpoint": ["x"],
    "acge_lightning.training.resume.os.system": [SHELL],
    "acge_lightning.data.STSDataModule.load_from_checkpoint": ["x"],
    "acge_lightning.data.STSDataModule.from_datasets": [],
    "acge_lightning.data.source.locate": ["x"],
    "acge_lightning.data.store.Store": ["x"],
    "acge_lightning.evaluation.Model": ["x", "y"],
    "acge_lightning.evaluation.results.write_csv": [[], CANARY],
    "acge_lightning.report.report": ["x", CANARY],
    "acge_lightning.report.runs.read_runs": ["x"],
    "acge_lightning.search.FunnelIndex": [1],
    "acge_lightning.search.FunnelIndex.load": ["x"],
    "acge_lightning.continual.Anchor.load": ["x"],
    "acge_lightning.embed.Embeddings": [None, "x"],
    "acge_lightning.encoder.encoder.Tensor": [],
    "acge_lightning.data.STSDataset": ["x"],
    "acge_lightning.data.pair.STSDataset": ["x"],
    "acge_lightning.data.Task": ["x"],
    "acge_lightning.data.Collate": ["t", None, None],
    "acge_lightning.losses.InfoNCE.forward": [0],
    "acge_lightning.losses.InfoNCE.__init__": [],
    "acge_lightning.losses.InfoNCE.__init__.__globals__.get": ["os"],
    "acge_lightning.losses.contrastive.full_precision.__call__": [0],
    "acge_lightning.losses.contrastive.DIRECTIONS": [],
    "acge_lightning.losses.contrastive.DIRECTIONS.count": ["x"],
    "acge_lightning.losses.contrastive.torch": [],
    "acge_lightning.losses.contrastive.nn.Linear": [1, 1],
    "acge_lightning.losses": [],
    "acge_lightning.__dict__": [],
}

NOWHERE = {
    "lightning.pytorch.TrainerX",
    "torch.nnx.Linear",
    "torch.optimizer.Adam",
}  # begin like allowed packages

# Texts that are no dotted name of something public.
NO_NAMES = [
    "",
    ".",
    "system",
    "os:system",
    "../evil.Class",
    f"{LOSS}.",
    f".{LOSS}",
    f" {LOSS}",
    f"{LOSS} ",
    f"{LOSS}\n",
    "acge_lightning..losses.InfoNCE",
    "acge_lightning.losses.InfoNCE()",
    "acge_lightning.losses.ＩｎｆｏＮＣＥ",
    "acge_lightning.losses.InfoNCＥ",
    "${evil}",
    "acge_lightning",
    "acge_lightning.__main__",
    "acge_lightning.__builtins__.eval",
    "acge_lightning.losses.InfoNCE.__class__",
    "acge_lightning.losses._private",
]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Targets that were called; the working folder is one where the canary would appear."""
    seen = []

    def spy(target, *args, **kwargs):
        seen.append(target)
        return functools.partial(target, *args, **kwargs)

    monkeypatch.setattr(building, "partial", spy)
    monkeypatch.chdir(tmp_path)
    yield seen
    assert not (tmp_path / CANARY).exists()


def refuse(node, match=None, **options):
    with pytest.raises(InputError, match=match):
        instantiate(node, **options)


def test_the_payloads_would_leave_a_canary_and_the_spy_sees_calls(tmp_path, calls):
    for run in (lambda: os.system(SHELL), lambda: eval(PYTHON), lambda: subprocess.run(["touch", CANARY], check=True)):
        run()
        (tmp_path / CANARY).unlink()  # raises where there is none
    instantiate({"_target_": LOSS})
    instantiate({"_target_": "os.getcwd"}, trusted=["os", "posix"])
    assert calls == [InfoNCE, os.getcwd]


def reached(name):
    """What a dotted name leads to by plain Python; an error if it leads nowhere."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        with suppress(ModuleNotFoundError):
            return functools.reduce(getattr, words[end:], import_module(".".join(words[:end])))
    raise AssertionError(f"{name} leads nowhere")


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_target_is_refused(target, calls):
    if target not in NOWHERE:
        reached(target)  # a bar before a thing that is no longer there would prove nothing
    node = {"_target_": target, "_args_": HOSTILE[target]}
    refuse(node, r"^_target_=\S+ (is refused|is not there: acge_lightning)|^_target_='\S+' is refused")
    refuse(node | {"_partial_": True})
    assert calls == []


@pytest.mark.parametrize("home", ["acge_lightning.commands.jobs", "acge_lightning.config.overrides"])
def test_commands_and_config_are_barred_whatever_they_define(home, calls, monkeypatch):
    """A class of the kind that configs may name elsewhere, defined there, under its own name and as another file's import."""
    barred = type("Barred", (torch.nn.Module,), {"__module__": home})
    allowed = type("Allowed", (torch.nn.Module,), {"__module__": "acge_lightning.losses.contrastive"})
    monkeypatch.setattr(f"{home}.Barred", barred, raising=False)
    monkeypatch.setattr("acge_lightning.losses.contrastive.Barred", barred, raising=False)
    monkeypatch.setattr("acge_lightning.losses.contrastive.Allowed", allowed, raising=False)
    for place in (home, "acge_lightning.losses.contrastive"):
        refuse({"_target_": f"{place}.Barred"}, "configs need no such thing")
    assert calls == []
    assert isinstance(instantiate({"_target_": "acge_lightning.losses.contrastive.Allowed"}), allowed)


@pytest.mark.parametrize("target", NO_NAMES)
def test_a_text_that_is_no_public_name_is_refused(target, calls):
    refuse({"_target_": target, "_args_": [SHELL]}, r"^_target_='.*' is refused: write package\.module\.Class")
    assert calls == []


@pytest.mark.parametrize("target", ["os.system", "torch.nn.modules.module.torch.load", "acge_lightning.files.folder.os.system"])
@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (
            lambda evil: {"a": {"_target_": LOSS, "directions": [{"x": {"y": [evil]}}]}},
            r"a\.directions\[0\]\.x\.y\[0\]\._target_",
        ),
        (lambda evil: {"_target_": LOSS, "_args_": [evil]}, r"_args_\[0\]\._target_"),
        (lambda evil: {"_target_": LOSS, "_partial_": True, "temperature": evil}, r"temperature\._target_"),
        (lambda evil: {"_target_": LOSS, "_recursive_": False, "temperature": {"z": evil}}, r"temperature\.z\._target_"),
        (lambda evil: [0, [evil]], r"\[1\]\[0\]\._target_"),
        (lambda evil: {"_target_": LOSS, "temperature": {"_target_": ADAM, "_partial_": True, "lr": evil}}, r"lr\._target_"),
        (lambda evil: {"a": {"_target_": LOSS}, "b": OmegaConf.create({"c": evil})}, r"b\.c\._target_"),
    ],
)
def test_nested_hostile_target_is_refused_before_anything_is_built(wrap, where, target, calls):
    node = wrap({"_target_": target, "_args_": [SHELL]})
    refuse(node, where)
    refuse(OmegaConf.create(node), where)
    assert calls == []


def test_interpolated_targets_are_resolved_and_then_checked(calls):
    cfg = OmegaConf.create(
        {
            "evil": "os.system",
            "made": {"_target_": "os.system", "_args_": [SHELL]},
            "half": {"_target_": "${evil}", "_args_": [SHELL]},
            "parts": {"_target_": "acge_lightning.files.folder.${evil}"},
            "whole": {"_target_": LOSS, "temperature": "${made}"},
            "created": {"_target_": LOSS, "temperature": f"${{oc.create:{{_target_: os.system, _args_: ['{SHELL}']}}}}"},
        }
    )
    for key in ("half", "parts", "whole", "created"):
        refuse(cfg[key], rf"^{key}\.(temperature\.)?_target_=\S*os\.system is refused")
    assert calls == []


@pytest.mark.parametrize("where", ["value", "extra", "dict"])
def test_an_escaped_interpolation_stays_text(where, calls):
    """Hydra's own instantiate makes a node of it, and calls that node's target."""
    text = f"${{oc.create:{{_target_: os.system, _args_: ['{SHELL}']}}}}"
    if where == "value":
        made = instantiate(OmegaConf.create({"_target_": CSV, "_partial_": True, "name": "\\" + text}))
    elif where == "extra":
        made = instantiate({"_target_": CSV, "_partial_": True}, name=text)
    else:
        made = instantiate({"_target_": CSV, "_partial_": True, "name": text})
    assert made.keywords == {"name": text}
    assert calls == [CSVLogger]


@pytest.mark.parametrize("target", [os.system, InfoNCE, print, 3, None, True, ["os.system"], {"_target_": LOSS}, b"os.system"])
def test_a_target_that_is_no_text_is_refused(target, calls):
    refuse({"a": {"_target_": target, "_args_": [SHELL]}}, r"^a\._target_=")
    refuse(OmegaConf.create({"a": {"_target_": target}}, flags={"allow_objects": True}).a, r"^a\._target_=")
    assert calls == []


def package(folder, name, text):
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


EVIL = f"""
import os, functools
from torch import nn
open({CANARY!r}, "w").close()
"""


def test_a_module_outside_the_allowed_packages_is_never_imported(tmp_path, monkeypatch, calls):
    package(tmp_path, "evil_module_q", EVIL)
    package(tmp_path, "acge_lightning_evil_q", EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil_module_q", "acge_lightning_evil_q"):
        refuse({"_target_": f"{name}.Thing"}, f"is refused.*trusted=\\[{name}\\]")
        refuse({"_target_": f"{name}.Thing"}, "is refused", trusted=["evil_module", "acge_lightning_evil", "other"])
        assert name not in sys.modules
    assert calls == []


MINE = """
import os
from functools import partial
from torch.optim import AdamW
from torch.nn.init import normal_

class Thing:
    def __init__(self, size, colour="red"):
        self.size, self.colour = size, colour

    @classmethod
    def large(cls):
        return cls(100)

    def paint(self):
        pass

def twice(x):
    return 2 * x
"""


def test_trusted_packages_may_be_named(tmp_path, monkeypatch):
    package(tmp_path, "my_things_q", MINE)
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_things_q.Thing", "size": 3}
    refuse(node, "is refused")
    for trusted in (["my_things_q"], ("my_things_q.",), OmegaConf.create(["my_things_q"])):
        assert instantiate(node, trusted=trusted).size == 3
    assert instantiate_all({"a": node}, trusted=["my_things_q"])[0].colour == "red"
    trusted = ["my_things_q"]
    assert instantiate({"_target_": "my_things_q.Thing.large"}, trusted=trusted).size == 100
    assert instantiate({"_target_": "my_things_q.twice", "x": 4}, trusted=trusted) == 8
    assert instantiate({"_target_": "my_things_q.AdamW", "_partial_": True}, trusted=trusted).func is torch.optim.AdamW
    refuse({"_target_": "my_things_q.os.system", "_args_": [SHELL]}, "is refused", trusted=trusted)
    refuse({"_target_": "my_things_q.partial"}, "functools defines it.*trusted=\\[functools\\]", trusted=trusted)
    refuse({"_target_": "my_things_q.normal_"}, "configs need no such thing", trusted=trusted)
    refuse({"_target_": "my_things_q.Thing.paint"}, "is refused", trusted=trusted)
    refuse(
        {"_target_": "my_things_q.Thing", "size": 1, "color": "blue"}, "color is unknown .*did you mean colour", trusted=trusted
    )


@pytest.mark.parametrize("trusted", ["os", ["os", 3], [""], ["."], [None]])
def test_trusted_must_be_a_list_of_names(trusted):
    refuse({"_target_": "os.getcwd"}, "write trusted=", trusted=trusted)


def test_a_node_cannot_trust_for_itself(calls):
    refuse({"_target_": "os.system", "_args_": [SHELL], "trusted": ["os", "posix"]}, "is refused")
    refuse({"_target_": "acge_lightning.config.building.instantiate", "node": {}, "trusted": ["os"]}, "is refused")
    assert calls == []


LIGHT = "lightning.pytorch"


@pytest.mark.parametrize(
    ("target", "given", "key"),
    [
        (f"{LIGHT}.callbacks.ModelCheckpoint", {"dirpath": "x", "enable_version_counter": False}, "enable_version_counter"),
        (f"{LIGHT}.loggers.CSVLogger", {"save_dir": "x", "version": "old"}, "version"),
        (f"{LIGHT}.loggers.CSVLogger", {"_args_": ["x", "csv", "old"]}, "version"),
        (f"{LIGHT}.loggers.csv_logs.CSVLogger", {"save_dir": "x", "version": "old", "_partial_": True}, "version"),
        (f"{LIGHT}.callbacks.SpikeDetection", {"exclude_batches_path": "x.json"}, "exclude_batches_path"),
        (f"{LIGHT}.Trainer", {"model_registry": "org/name"}, "model_registry"),
        (f"{LIGHT}.loggers.WandbLogger", {"settings": {"git_root": "x"}}, "settings"),
        (f"{LIGHT}.loggers.WandbLogger", {"save_code": True}, "save_code"),
        (f"{LIGHT}.loggers.WandbLogger", {"experiment": {"_target_": LOSS}}, "experiment"),
    ],
)
def test_arguments_that_write_over_files_or_upload_are_refused(target, given, key, calls):
    """CSVLogger removes the metrics.csv of a version that is there; W&B asks the git of a folder, which runs its hooks."""
    node = {"_target_": target} | given
    refuse(node, rf"^conf key {key} is refused: leave it out of lightning\S+, or trust it: trusted=\[lightning\]")
    refuse({"a": [node]}, rf"^conf key a\[0\]\.{key} is refused")
    assert calls == []


def test_arguments_that_were_refused_can_be_trusted(tmp_path):
    node = {"_target_": f"{LIGHT}.loggers.CSVLogger", "save_dir": str(tmp_path), "version": "mine"}
    assert instantiate(node, trusted=["lightning"]).version == "mine"
    wandb = {"_target_": f"{LIGHT}.loggers.WandbLogger", "_partial_": True, "project": "p", "tags": ["a"], "group": "g"}
    assert instantiate(wandb).keywords == {"project": "p", "tags": ["a"], "group": "g"}


def test_a_csv_logger_of_a_config_removes_nothing(tmp_path):
    old = tmp_path / "csv" / "version_0" / "metrics.csv"
    old.parent.mkdir(parents=True)
    old.write_text("step,a\n1,2\n", encoding="utf-8")
    logger = instantiate({"_target_": f"{LIGHT}.loggers.CSVLogger", "save_dir": str(tmp_path), "name": "csv"})
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    assert old.read_text(encoding="utf-8") == "step,a\n1,2\n"


# ---- what builds


def test_libraries_and_our_own_classes_build(tmp_path):
    cfg = OmegaConf.create(
        {
            "folder": str(tmp_path),
            "trainer": {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "logger": False, "max_steps": 3},
            "checkpoint": {
                "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                "dirpath": "${folder}",
                "monitor": "val/mean",
            },
            "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "${folder}"},
            "slurm": {"_target_": "lightning.pytorch.plugins.environments.SLURMEnvironment", "auto_requeue": False},
            "strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy", "find_unused_parameters": True},
            "profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler"},
            "linear": {"_target_": "torch.nn.Linear", "_args_": [2, 3]},
            "metric": {"_target_": "torchmetrics.MeanMetric"},
            "accuracy": {"_target_": "torchmetrics.Accuracy", "task": "binary"},
            "loss": {"_target_": LOSS, "temperature": 0.1, "directions": ["query_to_doc", "doc_to_query"]},
        }
    )
    built = {key: instantiate(node) for key, node in cfg.items() if key != "folder"}
    names = [
        "Trainer",
        "ModelCheckpoint",
        "CSVLogger",
        "SLURMEnvironment",
        "DDPStrategy",
        "SimpleProfiler",
        "Linear",
        "MeanMetric",
    ]
    assert [type(thing).__name__ for thing in built.values()] == [*names, "BinaryAccuracy", "InfoNCE"]
    assert built["trainer"].max_steps == 3
    assert built["checkpoint"].dirpath == str(tmp_path)
    assert (built["loss"].temperature, instantiate(cfg.loss, temperature=0.2).temperature) == (0.1, 0.2)
    assert type(built["loss"].directions) in (list, tuple)
    whole = instantiate(cfg)
    assert (whole["folder"], type(whole["linear"])) == (str(tmp_path), torch.nn.Linear)


def test_partials_take_the_rest_later_and_pickle():
    node = {"_target_": ADAM, "_partial_": True, "lr": 0.5}
    for made in (instantiate(node), instantiate(OmegaConf.create(node), weight_decay=0.25)):
        assert made.func is torch.optim.AdamW
        optimizer = pickle.loads(pickle.dumps(made))([torch.nn.Parameter(torch.ones(1))])
        assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.25
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 2}
    assert instantiate(schedule)(optimizer).step_size == 2


@pytest.mark.parametrize("convert", ["all", "partial", "object", None])
@pytest.mark.parametrize("as_config", [True, False])
def test_objects_receive_plain_containers_and_extras_as_they_are(tmp_path, monkeypatch, convert, as_config):
    package(tmp_path, "keeper_q", "def keep(**given):\n    return given\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "keeper_q.keep", "a": {"b": [1, {"c": 2}]}, "d": {"_target_": "keeper_q.keep", "e": [3]}}
    if convert:
        node["_convert_"] = convert
    texts, settings = ["${oc.env:HOME}", "???"], OmegaConf.create({"x": 1})
    made = instantiate(OmegaConf.create(node) if as_config else node, trusted=["keeper_q"], texts=texts, settings=settings)
    assert made == {"a": {"b": [1, {"c": 2}]}, "d": {"e": [3]}, "texts": texts, "settings": settings}
    assert made["texts"] is texts
    assert made["settings"] is settings
    assert {type(made["a"]), type(made["d"])} == {dict}
    assert {type(made["a"]["b"]), type(made["d"]["e"])} == {list}


@pytest.mark.parametrize("convert", ["none", None, True, ["all"]])
def test_a_conversion_that_is_not_done_is_refused(convert):
    with pytest.raises(InputError, match=r"conf key loss\._convert_=.* is refused: objects receive plain dicts and lists"):
        instantiate(OmegaConf.create({"loss": {"_target_": LOSS, "_convert_": convert}}).loss)


def test_without_recursion_the_inner_node_stays_a_dict(tmp_path, monkeypatch):
    package(tmp_path, "keeper_r", "def keep(inner):\n    return inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    inner = {"_target_": ADAM, "lr": "???"}
    assert instantiate({"_target_": "keeper_r.keep", "_recursive_": False, "inner": inner}, trusted=["keeper_r"]) == inner


def test_nothing_builds_nothing():
    assert instantiate(None) is None
    assert instantiate(DictConfig(None)) is None
    assert instantiate_all(None) == instantiate_all({}) == []


def test_instantiate_all_skips_what_is_switched_off():
    cfg = OmegaConf.create({"callbacks": {"a": {"_target_": LOSS}, "b": None, "c": {"_target_": "torchmetrics.MeanMetric"}}})
    assert [type(thing).__name__ for thing in instantiate_all(cfg.callbacks)] == ["InfoNCE", "MeanMetric"]
    cfg.callbacks.b = {"patience": 3}
    with pytest.raises(InputError, match=r"callbacks\.b has no _target_"):
        instantiate_all(cfg.callbacks)


def test_instantiate_all_checks_all_before_it_builds_any(calls):
    with pytest.raises(InputError, match=r"b\._target_=os\.system is refused"):
        instantiate_all({"a": {"_target_": LOSS}, "b": {"_target_": "os.system", "_args_": [SHELL]}})
    assert calls == []


# ---- messages


DATA = {"_target_": "acge_lightning.data.STSDataModule", "path": "x"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            DATA | {"batchsize": 2},
            "conf key k.batchsize is unknown to acge_lightning.data.STSDataModule: did you mean batch_size?",
        ),
        ({"_target_": LOSS, "Temperature": 2}, f"conf key k.Temperature is unknown to {LOSS}: did you mean temperature?"),
        (
            {"_target_": LOSS, "xyz": 2},
            f"conf key k.xyz is unknown to {LOSS}: it takes directions, in_batch, partition, temperature",
        ),
        (
            {"_target_": ADAM, "_partial_": True, "learning": 2},
            "conf key k.learning is unknown to torch.optim.AdamW: it takes amsgrad",
        ),
        (
            {"_target_": "acge_lightning.data.ClassificationDataModule", "path": "x", "batchsize": 2},
            "conf key k.batchsize is unknown to acge_lightning.data.ClassificationDataModule: did you mean batch_size?",
        ),
        ({"_target_": DATA["_target_"]}, "conf key k.path must be given: acge_lightning.data.STSDataModule needs it"),
        ({"_target_": ADAM}, "conf key k.params must be given: torch.optim.AdamW needs it"),
        (DATA | {"path": "???"}, "conf key k.path must be given: k.path=…"),
        (DATA | {"path": "${hole}"}, "conf key hole must be given: hole=…"),
        (DATA | {"path": "${nowhere}"}, "conf key k.path cannot be read: Interpolation key 'nowhere' not found"),
        (
            {"_target_": LOSS, "_args_": [1, 2, 3, 4, 5]},
            f"conf key k._args_ does not fit {LOSS}: too many positional arguments",
        ),
        ({"_target_": LOSS, "_args_": 3}, "conf key k: _partial_ and _recursive_ are true or false, _args_ is a list"),
        ({"_target_": LOSS, "_partial_": "yes"}, "conf key k: _partial_ and _recursive_ are"),
        ({"_target_": LOSS, 3: 4}, "conf key k.3 is unknown to"),
        ({"_target_": LOSS, "temperature": -1}, "k: temperature=-1 must be above 0: try 0.05"),
        ({"_target_": "torch.nn.Linear", "_args_": [1, 1], "dtype": "x"}, "k: torch.nn.Linear refused its values: "),
        (
            {"_target_": "acge_lightning.losses.InfoNC"},
            f"k._target_=acge_lightning.losses.InfoNC is not there: acge_lightning.losses has no InfoNC: spell it as {LOSS}",
        ),
        (
            {"_target_": "acge_lightning.loses.InfoNCE"},
            f"k._target_=acge_lightning.loses.InfoNCE is not there: acge_lightning has no loses: spell it as {LOSS}",
        ),
        ({"_target_": "torch.nn.Qwxyz"}, "k._target_=torch.nn.Qwxyz is not there: torch.nn has no Qwxyz: check its spelling"),
        ({"_target_": "os.system"}, "k._target_=os.system is refused (a target begins with acge_lightning, "),
    ],
)
def test_messages_name_key_target_and_remedy(node, message):
    cfg = OmegaConf.create({"k": node, "hole": "???"})
    with pytest.raises(InputError) as caught:
        instantiate(cfg.k)
    assert str(caught.value).startswith(message)


def test_the_cause_is_kept_and_only_the_innermost_key_named():
    with pytest.raises(InputError, match=r"^a\.b\[0\]: temperature=-1 must") as caught:
        instantiate(OmegaConf.create({"a": {"b": [{"_target_": LOSS, "temperature": -1}]}}).a)
    assert type(caught.value.__cause__) is InputError
    with pytest.raises(InputError, match=r"^torch\.nn\.Linear refused its values: ") as caught:
        instantiate({"_target_": "torch.nn.Linear", "_args_": [1, 1], "dtype": "x"})
    assert type(caught.value.__cause__) is TypeError


def test_an_extra_fills_a_missing_value():
    node = {"_target_": DATA["_target_"], "path": "???"}
    assert instantiate(node, path="here").path == instantiate(OmegaConf.create(node), path="here").path == "here"
    refuse(node, "k.path must be given|path must be given", batch_size=4)
    refuse(node, "bathc_size is unknown .*did you mean batch_size", path="x", bathc_size=4)
    refuse({"a": 1}, "_target_ must be given: it takes path", path="x")


def test_a_trusted_module_that_cannot_be_loaded_is_told_apart(tmp_path, monkeypatch):
    package(tmp_path, "needs_q", "import nothing_of_that_name_q\n")
    package(tmp_path, "broken_q", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    refuse({"_target_": "needs_q.X"}, "needs nothing_of_that_name_q: install it", trusted=["needs_q"])
    refuse({"_target_": "broken_q.X"}, "broken_q cannot be imported: division by zero", trusted=["broken_q"])
    refuse({"_target_": "absent_q.x.X"}, "install absent_q", trusted=["absent_q"])


# ---- plain, config_dir


def test_plain_resolves_and_names_what_is_missing():
    cfg = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": [1, {"e": "${b.c}"}]}, "f": "\\${a}"})
    made = plain(cfg)
    assert made == {"a": 1, "b": {"c": 1, "d": [1, {"e": 1}]}, "f": "${a}"}
    assert {type(made), type(made["b"]), type(made["b"]["d"])} == {dict, list}
    assert plain(made) == made
    assert plain(made)["b"] is not made["b"]
    with pytest.raises(InputError, match=r"^conf key encoder\.path must be given: encoder\.path=…$"):
        plain(OmegaConf.create({"encoder": {"path": "???"}}))
    with pytest.raises(InputError, match=r"^conf key a cannot be read: .*'ACGE_NOT_SET' not found"):
        plain(OmegaConf.create({"a": "${oc.env:ACGE_NOT_SET}"}))


def test_config_dir_in_a_checkout_in_a_wheel_and_nowhere(tmp_path, monkeypatch):
    assert config_dir() == Path(__file__).parents[2] / "conf"
    package_folder = tmp_path / "acge_lightning"
    monkeypatch.setattr(folder, "__file__", str(package_folder / "config" / "folder.py"))
    (tmp_path / "conf").mkdir()  # someone else's
    with pytest.raises(InputError, match=r"holds no conf/train\.yaml"):
        config_dir()
    (package_folder / "conf").mkdir(parents=True)
    (package_folder / "conf" / "train.yaml").touch()
    assert config_dir() == package_folder / "conf"


def test_import_is_light():
    code = "import sys, acge_lightning.config\nprint(*({'torch', 'hydra', 'omegaconf', 'lightning'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
