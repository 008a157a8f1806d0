"""Damaged folders of runs, and results: they are shown, gone on from and added to, or refused in one line."""

import hashlib
import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE
from fuzz import VALUES, Case, damaged_files, damaged_json, outcomes
from hydra import compose, initialize_config_dir

from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.models import open_models
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.report.page import page
from acge_lightning.report.runs import read_runs

OVERRIDES = [
    *("task=[sample_sts]", "task.sample_sts.data.batch_size=12", "++task.sample_sts.data.max_train=24"),
    *("++task.sample_sts.data.max_dev=20", "optim=adamw_static", "encoder.dim=8", "trainer.max_epochs=2"),
    *("callbacks.steps.every=1", "callbacks=[guard,peers,randomness,checkpoint,steps,early_stopping,learning_rate]"),
]


def config(folder, *more):
    """Of a run in a folder, which it keeps its cache in."""
    paths = [f"paths.output_dir={folder}", f"paths.data_dir={SAMPLE}", f"paths.cache_dir={folder}/cache"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*OVERRIDES, *paths, *more])


def scored(folder):
    """Results of an evaluation in a folder."""
    datasets = find(SAMPLE, ["pair"])
    return evaluate(open_models("bm25"), datasets, out=folder / "results.json", cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that could go on for a third round, with results in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config(folder))
    scored(folder)
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "kept.ckpt")
    return folder


# ---- what is done with them


def show(folder):
    assert page(read_runs([str(folder)]))


def go_on(folder):
    train(config(folder, "resume=auto", "trainer.max_epochs=3"))


def add(folder):
    assert not [row for row in scored(folder)["rows"] if row["error"]]


# ---- damages


def damaged_checkpoints(seed, count):
    """Values of a checkpoint, none of the weights, changed by somebody who also writes its digest."""
    chance = random.Random(seed)
    for number in range(count):
        steps, value = [chance.random() for _ in range(8)], chance.choice([*VALUES, "missing", torch.ones(2), torch.tensor(-1)])
        yield Case(f"{number} {str(value)[:20]!r}", lambda folder, s=steps, v=value: _rewritten(folder / "checkpoints", s, v))


def _rewritten(folder, steps, value):
    content = torch.load(sorted(folder.glob("*.ckpt"))[0], weights_only=True)
    holder, key = content, _chosen({name: part for name, part in content.items() if name != "state_dict"}, steps[0])
    for step in steps[1:]:
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or step < 0.2:
            break
        holder, key = inner, _chosen(inner, step)
    if isinstance(value, str) and value == "missing":
        del holder[key]
    else:
        holder[key] = value
    for file in folder.iterdir():
        file.unlink()
    torch.save(content, folder / "last.ckpt")
    digest = hashlib.sha256((folder / "last.ckpt").read_bytes()).hexdigest()
    (folder / "last.ckpt.sha256").write_text(f"{digest}  last.ckpt\n")


def _chosen(parts, step):
    keys = sorted(parts, key=str) if isinstance(parts, dict) else range(len(parts))
    return keys[int(step * len(keys))]


def faults(found):
    return [f"{one.name}: {one.kind}: {one.text}" for one in found if not one.is_fine]


SHOWN = ("results.json", "result.json", ".hydra", "csv", "export/training.json")


@pytest.mark.heavy
def test_a_report_of_damaged_runs_is_written_or_refused(run, tmp_path):
    cases = [*damaged_files(run), *damaged_json(run, 0, 150, skip=("export/tokenizer.json", "export/config.json"))]
    cases = [case for case in cases if case.name.partition(" ")[2].startswith(SHOWN) or case.name.startswith(SHOWN)]
    assert faults(outcomes(run, random.Random(0).sample(cases, 90), "test_fuzz_runs:show", tmp_path)) == []


@pytest.mark.heavy
def test_results_are_added_to_damaged_ones_or_they_are_refused(run, tmp_path):
    cases = [*damaged_files(run), *damaged_json(run, 1, 400)]
    cases = [case for case in cases if "results.json" in case.name or case.name.startswith("results")]
    cases = [case for case in cases if not case.name.endswith((" a pipe", "/dev/zero"))]  # which are written to, if asked for
    assert faults(outcomes(run, random.Random(1).sample(cases, 60), "test_fuzz_runs:add", tmp_path)) == []


@pytest.mark.heavy
def test_a_damaged_run_goes_on_or_is_refused(run, tmp_path):
    cases = [case for case in damaged_files(run) if case.name.startswith(("checkpoints", "export", "csv", "result.json"))]
    chosen = random.Random(2).sample(cases, 30)
    assert faults(outcomes(run, [*chosen, *damaged_checkpoints(3, 50)], "test_fuzz_runs:go_on", tmp_path)) == []


def test_the_mutators_change_what_they_say(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}
    assert before
    for case in damaged_checkpoints(3, 1):
        case.apply(tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["last.ckpt", "last.ckpt.sha256"]
    assert {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()} == before
