"""Train several stages one after the other, and measure what each forgets of the earlier ones: `stages` in a config."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.commands.encoder_defaults import follow_encoder
from acge_lightning.commands.scored_rows import stage_rows
from acge_lightning.commands.single_run import checked, in_use, make_encoder, make_tasks, train
from acge_lightning.config.building import plain
from acge_lightning.config.secrets import recorded
from acge_lightning.continual.fisher import write_anchor
from acge_lightning.continual.forgetting import measures, old_index_recall, stage_means
from acge_lightning.continual.strategy import Strategy, averaged, ones, replay_weights
from acge_lightning.data.dataset import Role, TaskDataset
from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import FAMILIES, Dataset, labels_of
from acge_lightning.evaluation.leaks import read_training_rows
from acge_lightning.evaluation.models import Model, open_models
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.export.sentence_transformers import export
from acge_lightning.files.atomic import write_text
from acge_lightning.report.tables import forgetting_tables, write_result
from acge_lightning.terminal import show
from acge_lightning.training.resume import check_same
from acge_lightning.zoo.location import model_folder
from acge_lightning.zoo.pretrained import load

START = "start"  # the encoder before the first stage, in tables
_CHANGES = ("pooling", "dense", "max_length", "prompts", "positions", "dropout")  # of a pretrained folder, in its config


@dataclass(frozen=True)
class Stage:
    """A stage of a sequence.

    Args:
        name: in folders and tables.
        task: names under `task`.
        train: False only for the first: the encoder has learnt these tasks already.
        set: values that override its config, for example `{trainer: {max_epochs: 3}}`.
        hold: False leaves the weights that matter for its tasks free in later stages.
    """

    name: str
    task: tuple[str, ...]
    train: bool = True
    set: dict[str, Any] = field(default_factory=dict)
    hold: bool = True


def sequence(cfg: DictConfig) -> float:
    """Train the stages, score all tasks after each, and write what was learnt and forgotten.

    Each stage is a training run of its own in `<output_dir>/<number>_<name>`, from the encoder of the stage before; with
    `resume=auto`, finished stages are not trained again. The folder then holds `forgetting.json`, `results.json` (test splits,
    if all tasks have one), `results_dev.json`, `result.json`, and `export/`, the last encoder.

    Args:
        cfg: composed from `conf/train.yaml`, with `stages` and perhaps `strategy`.

    Returns:
        The mean dev score of all stages' tasks at the end, for sweeps.

    Raises:
        InputError: a value of the config, or the data, cannot work.
    """
    config = checked(cfg)
    with in_use(Path(config["paths"]["output_dir"])):
        run = _Sequence(cfg, config)
        for index in range(len(run.stages)):
            run.run_stage(index)
            record = run.measure()
        output = run.hand_over(record)
    show(*forgetting_tables(record), f"The model is in {output}")
    return record["dev"]["measures"]["mean"]


class _Sequence:
    """The state of a sequence of stages, and its steps."""

    def __init__(self, cfg: DictConfig, config: dict[str, Any]):
        self.cfg = cfg
        if config["resume"] not in (None, "auto"):
            raise InputError(f"resume={config['resume']}: stages go on with resume=auto, each from its newest checkpoint")
        if config["trainer"]["devices"] not in ("auto", 1, "1"):
            raise InputError(f"trainer.devices={config['trainer']['devices']}: stages are trained on one device: set it to 1")
        self.stages = read_stages(config)
        self.strategy = Strategy(**(config.get("strategy") or {}))
        self.folder, self.cache = (Path(config["paths"][k]).expanduser() for k in ("output_dir", "cache_dir"))
        self.resumes = config["resume"] == "auto"
        self.tasks = make_tasks(cfg)
        for task in self.tasks.values():
            task.data.open()
        self.start = self._start()
        self.models: dict[str, Path] = {} if not self.stages[0].train else {START: self.start}
        self.anchors: list[Path] = []

    def _start(self) -> Path:
        """Return the folder of the encoder that the first stage starts from, which is exported if need be."""
        node = self.cfg.encoder
        if node.get("path") and Path(node.path).is_dir() and all(node.get(key) is None for key in _CHANGES):
            return model_folder(Path(node.path))
        if not self.stages[0].train and (not node.get("path") or node.get("dense")):
            raise InputError(
                f"stages.{self.stages[0].name}.train=false needs an encoder that has learnt it: encoder=pretrained"
            )
        folder, first_tasks = self.folder / START, self.stages[0].task
        config = recorded(self.cfg)
        start_config: dict[str, Any] = {name: config[name] for name in ("seed", "encoder", "paths") if name in config}
        start_config["task"] = {name: config["task"][name] for name in first_tasks}
        if self.resumes and (folder / "modules.json").is_file():
            _check_config(folder, start_config)
            return folder
        torch.manual_seed(self.cfg.seed)
        trained = [self.tasks[name] for name in first_tasks if self.tasks[name].weight > 0]
        texts = Texts(lambda: (text for task in trained for text in task.data.train_texts()))
        earlier_rows = _training_rows([model_folder(Path(node.path))]) if node.get("path") else None
        return export(make_encoder(self.cfg, texts), folder, {"config": start_config}, earlier_rows)

    @property
    def device(self) -> str:
        """Return the device of the trainer; encoders are scored, and their Fisher information is estimated, there too."""
        return "cuda" if torch.cuda.is_available() and self.cfg.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu"

    # ---- a stage

    def run_stage(self, index: int) -> None:
        """Train a stage, and anchor its weights for the next stages."""
        stage = self.stages[index]
        show(f"Stage {index + 1} of {len(self.stages)}: {stage.name} ({', '.join(stage.task)})")
        model = self._train_stage(index) if stage.train else self.start
        self.models[stage.name] = model
        if self.strategy.anchor and stage.hold and index + 1 < len(self.stages):
            self.anchors.append(self._anchor(index, model))

    def folder_of(self, index: int) -> Path:
        """Return the folder of a stage's run."""
        return self.folder / f"{index + 1}_{self.stages[index].name}"

    def _train_stage(self, index: int) -> Path:
        """Train a stage and merge its weights, unless that is done already; return the folder of its encoder."""
        folder, stage_config = self.folder_of(index), self.config(index)
        if self.resumes and (folder / "result.json").is_file():
            _check_config(folder / "export", recorded(stage_config))
        else:
            train(stage_config)
        if self.strategy.merge is None or index == 0:
            return folder / "export"
        target, config = folder / "merged", {"strategy": {"merge": self.strategy.merge}}
        if self.resumes and (target / "modules.json").is_file():
            _check_config(target, config)
            return target
        before = load(self.models[self.stages[index - 1].name])
        encoder = averaged(before, load(folder / "export"), self.strategy.merge)
        return export(encoder, target, {"config": config}, _training_rows([folder / "export"]))

    def config(self, index: int) -> DictConfig:
        """Make the training config of a stage."""
        stage, stage_config = self.stages[index], copy.deepcopy(self.cfg)
        OmegaConf.set_struct(stage_config, False)
        try:
            stage_config.merge_with(stage.set)
        except OmegaConfBaseException as error:
            raise InputError(f"stages.{stage.name}.set: {str(error).partition(chr(10))[0]}") from error
        folder = self.folder_of(index)
        folder.mkdir(parents=True, exist_ok=True)
        stage_config.paths.output_dir, stage_config.test = str(folder), False
        stage_config.stages = stage_config.strategy = None
        stage_config.trainer.devices = 1
        self._set_encoder(stage_config, index)
        show(*follow_encoder(stage_config, load(stage_config.encoder.path)))
        self._set_tasks(stage_config, index)
        if self.anchors:
            stage_config.callbacks = stage_config.callbacks or {}
            stage_config.callbacks.ewc = self.strategy.callback([str(file) for file in self.anchors])
        return stage_config

    def _set_encoder(self, stage_config: DictConfig, index: int) -> None:
        path = str(self.models[self.stages[index - 1].name] if index else self.start)
        if "path" in stage_config.encoder:
            stage_config.encoder.path = path
            for key in {"dense", "positions"} & set(stage_config.encoder):  # the start has them already
                stage_config.encoder[key] = None
        else:
            stage_config.encoder = {"_target_": "acge_lightning.zoo.from_pretrained", "path": path}

    def _set_tasks(self, stage_config: DictConfig, index: int) -> None:
        """Set the stage's tasks, and with replay the earlier ones at their share."""
        stage_tasks = self.stages[index].task
        earlier = dict.fromkeys(name for stage in self.stages[:index] for name in stage.task if name not in stage_tasks)
        replayed = [name for name in earlier if self.tasks[name].weight > 0] if self.strategy.replay else []
        stage_config.task = OmegaConf.masked_copy(stage_config.task, [*replayed, *stage_tasks])
        if replayed:
            tasks = {name: self.tasks[name] for name in stage_config.task}
            weights, batches = replay_weights(tasks, replayed, self.strategy.replay, float(stage_config.mixture.temperature))
            for name in replayed:
                stage_config.task[name].weight = weights[name]
            if stage_config.trainer.get("limit_train_batches") is None:
                stage_config.trainer.limit_train_batches = batches

    def _anchor(self, index: int, model: Path) -> Path:
        """Make the anchor of the next stages; one of the same encoder and settings is kept."""
        file = self.folder_of(index) / "anchor.safetensors"
        encoder = load(model, device=self.device)
        names = [name for name in self.stages[index].task if "train" in self.tasks[name].data.opened_splits]
        settings = {"seed": self.cfg.seed} | plain(self.cfg.fisher)
        source = {"kind": self.strategy.anchor, "settings": settings, "encoder": encoder_hash(encoder)}
        text = json.dumps(source | {"rows": {name: self.tasks[name].data.fingerprint() for name in names}}, indent=1)
        source_file = file.with_suffix(".json")
        if self.resumes and file.is_file() and source_file.is_file() and source_file.read_text(encoding="utf-8") == text:
            return file
        if self.strategy.anchor == "ones":
            ones(encoder).save(file)
        else:
            bf16 = settings.pop("bf16", False)
            write_anchor(file, encoder, {name: self.tasks[name] for name in names}, bf16, **settings, progress=True)
        write_text(source_file, text)
        return file

    # ---- scores

    def measure(self) -> dict[str, Any]:
        """Score all encoders so far on all tasks; write and return the contents of `forgetting.json`."""
        models = open_models({name: str(path) for name, path in self.models.items()}, self.device)
        strategy = {key: getattr(self.strategy, key) for key in ("name", "strength", "replay", "merge", "anchor")}
        done = len(models) == len(self.stages) + (START in self.models)
        record: dict[str, Any] = {"tasks": [stage.name for stage in self.stages], "strategy": strategy}
        record["dev"] = self._scored(models, "dev", self.folder / "results_dev.json", done)
        record["split"] = self.split
        if self.split == "test":
            record |= self._scored(models, "test", self.folder / "results.json", done)
        else:
            record |= record["dev"]
        record["old_index"] = self._old_index(models) if done else []
        write_text(self.folder / "forgetting.json", json.dumps(_without_nan(record), ensure_ascii=False, indent=1) + "\n")
        return record

    @property
    def scored_tasks(self) -> dict[str, TaskDataset]:
        """The data of the tasks that have something to score."""
        scored = {name: task.data for name, task in self.tasks.items() if task.data.family in FAMILIES}
        return {name: data for name, data in scored.items() if {"dev", "test"} & data.opened_splits.keys()}

    @property
    def split(self) -> Role:
        """What stages are compared by: the test splits if all tasks have one, else the dev splits."""
        return "test" if all("test" in data.opened_splits for data in self.scored_tasks.values()) else "dev"

    def _sets(self, split: Role) -> list[_TaskSet]:
        """List the split of each task that has it."""
        return [
            _TaskSet(data.family, Path(data.path), split, task=name, data=data)
            for name, data in self.scored_tasks.items()
            if split in data.opened_splits
        ]

    def _scored(self, models: list[Model], split: Role, out: Path, done: bool) -> dict[str, Any]:
        result = evaluate(models, self._sets(split), [], out, self.cache)
        for row in result["rows"]:
            if row["error"]:
                raise InputError(f"{row['encoder']} could not be scored on {row['dataset']}: {row['error']}")
        scores: dict[str, dict[str, float]] = {model.name: {} for model in models}
        for row in result["rows"]:
            scores[row["encoder"]][row["dataset"]] = row["value"]
        tasks_of = {stage.name: list(stage.task) for stage in self.stages}
        means = stage_means(scores, tasks_of)
        matrix = np.full((len(self.stages), len(self.stages)), np.nan)
        rows = means[1:] if START in self.models else means
        matrix[: len(rows)] = rows
        record = {"matrix": matrix.tolist(), "start": means[0].tolist(), "scores": scores}
        record["rows"] = stage_rows(result, tasks_of, models[-1].name)
        return record | ({"measures": measures(matrix, means[0])} if done else {})

    def _old_index(self, models: list[Model]) -> list[dict[str, Any]]:
        """Compute the recall of every encoder's queries in every earlier encoder's index."""
        embeddings_of = {model.name: Embeddings(model.require_encoder(), self.cache / "embeddings") for model in models}
        rows = []
        for task_set in self._sets(self.split):
            if task_set.family == "retrieval":
                _, evaluation_set = task_set.open(self.cache)
                vectors = {name: embeddings.encode_set(evaluation_set) for name, embeddings in embeddings_of.items()}
                for position, new in enumerate(vectors):
                    for old in list(vectors)[: position + 1]:
                        recall = old_index_recall(vectors[new], vectors[old], labels_of(evaluation_set))
                        rows.append({"task": task_set.task, "documents": old, "queries": new, "recall": recall})
        return rows

    # ---- the end

    def hand_over(self, record: dict[str, Any]) -> Path:
        """Export the last encoder and write the scores, as a single run does."""
        models = [path for name, path in self.models.items() if name != START]
        config = {"config": recorded(self.cfg), "forgetting": record["measures"]}
        rows = _training_rows([path for path in models if path != self.start])
        output = export(load(models[-1]), self.folder / "export", _without_nan(config), rows)
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        split_records = {"val": record["dev"]} | ({"test": record} if record["split"] == "test" else {})
        for prefix, split_record in split_records.items():
            before |= _prefixed(prefix, record["tasks"], split_record["start"])
            after |= _prefixed(prefix, record["tasks"], split_record["matrix"][-1])
            after |= {f"{prefix}/{key}": value for key, value in split_record["measures"].items() if key != "mean"}
        scored = {prefix: split_record["rows"] for prefix, split_record in split_records.items()}
        write_result(self.folder, _without_nan(before), _without_nan(after), output, scored)
        return output


@dataclass(frozen=True, kw_only=True)
class _TaskSet(Dataset):
    """The split of a task, as a data set of the evaluation."""

    task: str
    data: TaskDataset

    @property
    def name(self) -> str:
        return self.task

    def task_dataset(self, cache_dir: str | Path, roles: Collection[Role]) -> TaskDataset:
        return self.data


def read_stages(config: dict[str, Any]) -> list[Stage]:
    """Read the stages of a config, and check them.

    Raises:
        InputError: a stage without tasks, an unknown task or one in no stage, or `train: false` after the first.
    """
    stages = []
    for name, node in config["stages"].items():
        if not isinstance(node, dict) or set(node) - {"task", "train", "set", "hold"} or not node.get("task"):
            raise InputError(f"stages.{name} must have task, and may have train, hold and set: {{task: [a, b], set: {{…}}}}")
        if not str(name).replace("_", "").replace("-", "").isalnum() or name == START:
            raise InputError(f"stages.{name}: a stage's name is made of letters, digits, - and _, and is not {START}")
        closed = ("stages", "strategy", "resume", "trusted")
        wrong = [key for key in node.get("set") or {} if key not in config or key in closed]
        if wrong:
            raise InputError(f"stages.{name}.set.{wrong[0]} is no key of a stage: choose from {sorted(config)}")
        stages.append(
            Stage(str(name), tuple(node["task"]), node.get("train", True), node.get("set") or {}, node.get("hold", True))
        )
    used = [task for stage in stages for task in stage.task]
    unknown = [task for task in used if task not in config["task"]]
    if unknown:
        raise InputError(f"stages: {unknown[0]} is not among the tasks: add it to task=[…], of {sorted(config['task'])}")
    unused = [task for task in config["task"] if task not in used]
    if unused:
        raise InputError(f"task {unused[0]} is in no stage: name it in one, or leave it out of task=[…]")
    if not all(stage.train for stage in stages[1:]):
        raise InputError("stages: only the first may have train=false")
    return stages


def _check_config(export: Path, config: dict[str, Any]) -> None:
    """Refuse an export that was made with another config."""
    file = export / "training.json"
    try:
        recorded_config = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not say how {export} was made: remove {export.parent}, or give a new folder") from error
    check_same(export, recorded_config, json.loads(json.dumps(config, default=str)))


def _training_rows(models: list[Path]) -> np.ndarray | None:
    """Read the recorded training rows of encoders; None if none has a record."""
    arrays = [rows for path in models if (rows := read_training_rows(path)) is not None]
    return np.concatenate(arrays) if arrays else None


def _prefixed(prefix: str, names: list[str], values: list[float]) -> dict[str, float]:
    scores = {f"{prefix}/{name}": value for name, value in zip(names, values, strict=True)}
    return scores | {f"{prefix}/mean": float(np.mean(values))}


def _without_nan(value: Any) -> Any:
    """Remove NaN, which JSON does not have: in lists it becomes null, in mappings it is left out."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items() if not (isinstance(item, float) and math.isnan(item))}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
