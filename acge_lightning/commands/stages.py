"""Several stages of training one after the other, and what each leaves of the earlier ones: `stages` in a training config."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.commands.single_run import checked, in_use, make_encoder, make_tasks, train
from acge_lightning.config.building import plain
from acge_lightning.config.secrets import recorded
from acge_lightning.continual.fisher import write_anchor
from acge_lightning.continual.forgetting import measures, old_index_recall, stage_means
from acge_lightning.continual.strategy import Strategy, averaged, ones, replay_weights
from acge_lightning.data.dataset import TaskDataset
from acge_lightning.data.evaluation_set import EvaluationSet
from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import FAMILIES, Dataset
from acge_lightning.evaluation.scoring import Model, evaluate, open_models
from acge_lightning.export.sentence_transformers import export
from acge_lightning.files.atomic import write_text
from acge_lightning.report.tables import forgetting_tables, show, write_result
from acge_lightning.training.resume import check_same
from acge_lightning.zoo.pretrained import load

START = "start"  # the encoder before the first stage, in tables
_CHANGES = ("pooling", "dense", "max_length", "prompts")  # of a pretrained folder, in its config


@dataclass(frozen=True)
class Stage:
    """A stage of a sequence.

    Args:
        task: names under `task`.
        train: False only for the first: the encoder has learnt these tasks already.
        set: what differs in its config, for example `{trainer: {max_epochs: 3}}`.
    """

    name: str
    task: tuple[str, ...]
    train: bool = True
    set: dict[str, Any] = field(default_factory=dict)


def sequence(cfg: DictConfig) -> float:
    """Train the stages, score all tasks after each, and write what was learnt and forgotten.

    Each stage is a training run of its own in `<output_dir>/<number>_<name>`, from the encoder that the stage before has left;
    what is done is not done again with `resume=auto`. The folder then holds `forgetting.json`, `results.json` (test splits),
    `results_dev.json`, `result.json`, and `export/`, the last encoder.

    Args:
        cfg: composed from `conf/train.yaml`, with `stages` and perhaps `strategy`.

    Returns:
        The mean dev score of all stages' tasks at the end, for sweeps.

    Raises:
        InputError: anything in the config or the data that cannot work.
    """
    config = checked(cfg)
    with in_use(Path(config["paths"]["output_dir"])):
        run = _Sequence(cfg, config)
        for place in range(len(run.stages)):
            run.stage(place)
            found = run.measure()
        output = run.hand_over(found)
    show(*forgetting_tables(found), f"The model is in {output}")
    return found["dev"]["measures"]["mean"]


class _Sequence:
    """What has been done, and how to go on."""

    def __init__(self, cfg: DictConfig, config: dict[str, Any]):
        self.cfg = cfg
        if config["resume"] not in (None, "auto"):
            raise InputError(f"resume={config['resume']}: stages go on with resume=auto, each from its newest checkpoint")
        if config["trainer"]["devices"] not in ("auto", 1, "1"):
            raise InputError(f"trainer.devices={config['trainer']['devices']}: stages are trained on one device: set it to 1")
        self.stages = read_stages(config)
        self.strategy = Strategy(**(config.get("strategy") or {}))
        self.folder, self.cache = (Path(config["paths"][k]).expanduser() for k in ("output_dir", "cache_dir"))
        self.again = config["resume"] == "auto"
        self.tasks = make_tasks(cfg)
        for task in self.tasks.values():
            task.data.open()
        self.start = self._start()
        self.models: dict[str, Path] = {} if not self.stages[0].train else {START: self.start}
        self.anchors: list[Path] = []

    def _start(self) -> Path:
        """The folder of the encoder that the first stage begins with."""
        node = self.cfg.encoder
        if node.get("path") and Path(node.path).is_dir() and all(node.get(key) is None for key in _CHANGES):
            return Path(node.path)
        if not self.stages[0].train and (not node.get("path") or node.get("dense")):
            raise InputError(
                f"stages.{self.stages[0].name}.train=false needs an encoder that has learnt it: encoder=pretrained"
            )
        folder, first = self.folder / START, self.stages[0].task
        config = recorded(self.cfg)
        made = {name: config[name] for name in ("seed", "encoder", "paths") if name in config}
        made["task"] = {name: config["task"][name] for name in first}
        if self.again and (folder / "modules.json").is_file():
            _check_made(folder, made)
            return folder
        torch.manual_seed(self.cfg.seed)
        trained = [self.tasks[name] for name in first if self.tasks[name].weight > 0]
        texts = Texts(lambda: (text for task in trained for text in task.data.train_texts()))
        learnt = _training_rows([Path(node.path)]) if node.get("path") else None
        return export(make_encoder(self.cfg, texts), folder, {"config": made}, learnt)

    @property
    def device(self) -> str:
        """Where encoders are scored and their Fisher information is estimated: where the trainer works."""
        return "cuda" if torch.cuda.is_available() and self.cfg.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu"

    # ---- a stage

    def stage(self, place: int) -> None:
        """Train it, merge its weights, and anchor them for the next."""
        stage = self.stages[place]
        show(f"Stage {place + 1} of {len(self.stages)}: {stage.name} ({', '.join(stage.task)})")
        model = self._trained(place) if stage.train else self.start
        self.models[stage.name] = model
        if self.strategy.anchor and place + 1 < len(self.stages):
            self.anchors.append(self._anchor(place, model))

    def folder_of(self, place: int) -> Path:
        """Where a stage's run lies."""
        return self.folder / f"{place + 1}_{self.stages[place].name}"

    def _trained(self, place: int) -> Path:
        folder, made = self.folder_of(place), self.config(place)
        if self.again and (folder / "result.json").is_file():
            _check_made(folder / "export", recorded(made))
        else:
            train(made)
        if self.strategy.merge is None or place == 0:
            return folder / "export"
        target, config = folder / "merged", {"strategy": {"merge": self.strategy.merge}}
        if self.again and (target / "modules.json").is_file():
            _check_made(target, config)
            return target
        before = load(self.models[self.stages[place - 1].name])
        encoder = averaged(before, load(folder / "export"), self.strategy.merge)
        return export(encoder, target, {"config": config}, _training_rows([folder / "export"]))

    def config(self, place: int) -> DictConfig:
        """The training config of a stage."""
        stage, made = self.stages[place], copy.deepcopy(self.cfg)
        OmegaConf.set_struct(made, False)
        try:
            made.merge_with(stage.set)
        except OmegaConfBaseException as error:
            raise InputError(f"stages.{stage.name}.set: {str(error).partition(chr(10))[0]}") from error
        folder = self.folder_of(place)
        folder.mkdir(parents=True, exist_ok=True)
        made.paths.output_dir, made.stages, made.strategy, made.test = str(folder), None, None, False
        made.trainer.devices = 1
        self._set_encoder(made, place)
        self._set_tasks(made, place)
        if self.anchors:
            made.callbacks = made.callbacks or {}
            made.callbacks.ewc = self.strategy.callback([str(file) for file in self.anchors])
        return made

    def _set_encoder(self, made: DictConfig, place: int) -> None:
        path = str(self.models[self.stages[place - 1].name] if place else self.start)
        if "path" in made.encoder:
            made.encoder.path, made.encoder.dense = path, None
        else:
            made.encoder = {"_target_": "acge_lightning.zoo.from_pretrained", "_convert_": "all", "path": path}

    def _set_tasks(self, made: DictConfig, place: int) -> None:
        """The stage's tasks, and with replay the earlier ones at their share."""
        mine = self.stages[place].task
        before = [name for stage in self.stages[:place] for name in stage.task if name not in mine]
        old = [name for name in dict.fromkeys(before) if self.tasks[name].weight > 0] if self.strategy.replay else []
        made.task = OmegaConf.masked_copy(made.task, [*old, *mine])
        if old:
            tasks = {name: self.tasks[name] for name in made.task}
            weights, batches = replay_weights(tasks, old, self.strategy.replay, float(made.mixture.temperature))
            for name in old:
                made.task[name].weight = weights[name]
            if made.trainer.get("limit_train_batches") is None:
                made.trainer.limit_train_batches = batches

    def _anchor(self, place: int, model: Path) -> Path:
        """What the next stages are held by; one that was made of the same encoder with the same settings is kept."""
        file = self.folder_of(place) / "anchor.safetensors"
        encoder = load(model, device=self.device)
        names = [name for name in self.stages[place].task if "train" in self.tasks[name].data.opened_splits]
        settings = {"seed": self.cfg.seed} | plain(self.cfg.fisher)
        asked = {"kind": self.strategy.anchor, "settings": settings, "encoder": encoder_hash(encoder)}
        text = json.dumps(asked | {"rows": {name: self.tasks[name].data.fingerprint() for name in names}}, indent=1)
        made = file.with_suffix(".json")
        if self.again and file.is_file() and made.is_file() and made.read_text(encoding="utf-8") == text:
            return file
        if self.strategy.anchor == "ones":
            ones(encoder).save(file)
        else:
            bf16 = settings.pop("bf16", False)
            write_anchor(file, encoder, {name: self.tasks[name] for name in names}, bf16, **settings, progress=True)
        write_text(made, text)
        return file

    # ---- scores

    def measure(self) -> dict[str, Any]:
        """Score all encoders so far on all tasks; `forgetting.json` as plain data."""
        models = open_models({name: str(path) for name, path in self.models.items()}, self.device)
        strategy = {key: getattr(self.strategy, key) for key in ("name", "strength", "replay", "merge", "anchor")}
        done = len(models) == len(self.stages) + (START in self.models)
        found: dict[str, Any] = {"tasks": [stage.name for stage in self.stages], "strategy": strategy}
        found |= self._scored(models, "test", self.folder / "results.json", done)
        found["dev"] = self._scored(models, "dev", self.folder / "results_dev.json", done)
        found["old_index"] = self._old_index(models) if done else []
        write_text(self.folder / "forgetting.json", json.dumps(_known(found), ensure_ascii=False, indent=1) + "\n")
        return found

    def _sets(self, split: str) -> list[_TaskSet]:
        """Each task's split; its dev split where it has no test split."""
        found = []
        for name, task in self.tasks.items():
            taken = split if split in task.data.opened_splits else "dev"
            if task.data.family in FAMILIES and taken in task.data.opened_splits:
                found.append(_TaskSet(task.data.family, Path(task.data.path), taken, task=name, data=task.data))
        return found

    def _scored(self, models: list[Model], split: str, out: Path, done: bool) -> dict[str, Any]:
        result = evaluate(models, self._sets(split), [], out, self.cache)
        for row in result["rows"]:
            if row["error"]:
                raise InputError(f"{row['encoder']} could not be scored on {row['dataset']}: {row['error']}")
        scores: dict[str, dict[str, float]] = {model.name: {} for model in models}
        for row in result["rows"]:
            scores[row["encoder"]][row["dataset"]] = row["value"]
        means = stage_means(scores, {stage.name: list(stage.task) for stage in self.stages})
        matrix = np.full((len(self.stages), len(self.stages)), np.nan)
        rows = means[1:] if START in self.models else means
        matrix[: len(rows)] = rows
        found = {"matrix": matrix.tolist(), "start": means[0].tolist(), "scores": scores}
        return found | ({"measures": measures(matrix, means[0])} if done else {})

    def _old_index(self, models: list[Model]) -> list[dict[str, Any]]:
        """Recall of every encoder's queries in every earlier encoder's index."""
        known = {model.name: Embeddings(model.encoder, self.cache / "embeddings") for model in models}
        found = []
        for one in self._sets("test"):
            if one.family == "retrieval":
                _, rows = one.open(self.cache)
                vectors = {name: embeddings.encode_set(rows) for name, embeddings in known.items()}
                for place, new in enumerate(vectors):
                    for old in list(vectors)[: place + 1]:
                        recall = old_index_recall(vectors[new], vectors[old], rows.labels)
                        found.append({"task": one.task, "documents": old, "queries": new, "recall": recall})
        return found

    # ---- the end

    def hand_over(self, found: dict[str, Any]) -> Path:
        """The last encoder and the scores, where those of any run lie."""
        models = [path for name, path in self.models.items() if name != START]
        config = {"config": recorded(self.cfg), "forgetting": found["measures"]}
        rows = _training_rows([path for path in models if path != self.start])
        output = export(load(models[-1]), self.folder / "export", _known(config), rows)
        before, after = {}, {}
        for prefix, part in (("val", found["dev"]), ("test", found)):
            before |= _named(prefix, found["tasks"], part["start"])
            after |= _named(prefix, found["tasks"], part["matrix"][-1])
            after |= {f"{prefix}/{key}": value for key, value in part["measures"].items() if key != "mean"}
        write_result(self.folder, _known(before), _known(after), output)
        return output


@dataclass(frozen=True)
class _TaskSet(Dataset):
    """A split of a task, as the evaluation takes it."""

    task: str = ""
    data: TaskDataset | None = None

    @property
    def name(self) -> str:
        return self.task

    def open(self, cache_dir: Path) -> tuple[TaskDataset, EvaluationSet]:
        return self.data, self.data.evaluation(self.split)


def read_stages(config: dict[str, Any]) -> list[Stage]:
    """The stages of a config, checked.

    Raises:
        InputError: one without tasks, a task that is not there or in no stage, or `train: false` after the first.
    """
    found = []
    for name, node in config["stages"].items():
        if not isinstance(node, dict) or set(node) - {"task", "train", "set"} or not node.get("task"):
            raise InputError(f"stages.{name} must have task, and may have train and set: {{task: [a, b], set: {{…}}}}")
        if not str(name).replace("_", "").replace("-", "").isalnum() or name == START:
            raise InputError(f"stages.{name}: a stage's name is made of letters, digits, - and _, and is not {START}")
        closed = ("stages", "strategy", "resume", "trusted")
        wrong = [key for key in node.get("set") or {} if key not in config or key in closed]
        if wrong:
            raise InputError(f"stages.{name}.set.{wrong[0]} is no key of a stage: choose from {sorted(config)}")
        found.append(Stage(str(name), tuple(node["task"]), node.get("train", True), node.get("set") or {}))
    used = [task for stage in found for task in stage.task]
    unknown = [task for task in used if task not in config["task"]]
    if unknown:
        raise InputError(f"stages: {unknown[0]} is not among the tasks: add it to task=[…], of {sorted(config['task'])}")
    unused = [task for task in config["task"] if task not in used]
    if unused:
        raise InputError(f"task {unused[0]} is in no stage: name it in one, or leave it out of task=[…]")
    if not all(stage.train for stage in found[1:]):
        raise InputError("stages: only the first may have train=false")
    return found


def _check_made(export: Path, config: dict[str, Any]) -> None:
    """What is not made again was made with the config that it would be made with now."""
    file = export / "training.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not say how {export} was made: remove {export.parent}, or give a new folder") from error
    check_same(export, before, json.loads(json.dumps(config, default=str)))


def _training_rows(models: list[Path]) -> np.ndarray | None:
    """The rows that encoders were trained on, as they say."""
    files = [path / "training_rows.npy" for path in models]
    parts = [np.load(file, allow_pickle=False) for file in files if file.is_file()]
    return np.concatenate(parts) if parts else None


def _named(prefix: str, names: list[str], values: list[float]) -> dict[str, float]:
    found = {f"{prefix}/{name}": value for name, value in zip(names, values, strict=True)}
    return found | {f"{prefix}/mean": float(np.mean(values))}


def _known(value: Any) -> Any:
    """Without numbers that JSON does not have: NaN becomes null, and is left out of mappings."""
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items() if not (isinstance(part, float) and math.isnan(part))}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
