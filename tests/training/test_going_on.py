"""Going on from a checkpoint: under which config, with which files, whatever the checkpoint says; and one run a folder."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from acge_lightning import load
from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import lock
from acge_lightning.training.checkpoint import newest, read
from acge_lightning.training.resume import LENGTH_KEYS, RUN_KEYS, check_config, check_same, differences

ROOT = Path(__file__).parents[2]
SMALL = [
    "task=[sample_sts]",
    "+task.sample_sts.data={max_train: 64, max_dev: 40, batch_size: 16}",
    "optim=adamw_static",
    "optim.schedule=constant",
    "encoder.dim=8",
    "encoder.tokenizer.vocab_size=600",
    "callbacks.progress=null",
    "callbacks.early_stopping=null",
    "trainer.accelerator=cpu",
    "logger=none",
]


def composed(folder, cache, *overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [f"paths.output_dir={folder}", f"paths.cache_dir={cache}", *SMALL, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run of two rounds, of which the second is not the best: it counts the lowest score as such."""
    folder = tmp_path_factory.mktemp("going_on") / "run"
    train(composed(folder, cache, "trainer.max_epochs=2", "callbacks.checkpoint.mode=min"))
    kept = sorted(file.name for file in (folder / "checkpoints").glob("*.ckpt"))
    assert kept == ["last.ckpt", "step-4.ckpt"]
    return folder


@pytest.fixture
def run(finished, tmp_path, cache):
    """The same, elsewhere: a folder that was moved; and how to go on in it."""
    shutil.copytree(finished, tmp_path / "moved")

    def go_on(*overrides, resume="auto", folder=tmp_path / "moved"):
        given = ["trainer.max_epochs=2", "callbacks.checkpoint.mode=min", f"resume={resume}", *overrides]
        return train(composed(folder, cache, *{o.partition("=")[0]: o for o in given}.values()))

    go_on.folder = tmp_path / "moved"
    return go_on


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def state_of(checkpoint, name="ModelCheckpoint"):
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith(name))
    return state


def rewrite(file, change):
    """Change what a checkpoint holds, as somebody may who also writes its manifest."""
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, file)
    file.with_name(f"{file.name}.sha256").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- the config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["seed=5", "optim.optimizer.lr=0.5"], ["seed=0 (now 5)", "optim.optimizer.lr=0.005 (now 0.5)"]),
        (["encoder.dim=16"], ["encoder.dim=8 (now 16)"]),
        (["matryoshka={dims: [8, 4]}"], ["matryoshka.dims=null (now [8, 4])"]),
        (["task.sample_sts.data.batch_size=8"], ["task.sample_sts.data.batch_size=16 (now 8)"]),
        (["loss@task.sample_sts.loss=cosent"], ["task.sample_sts.loss=null (now acge_lightning.losses.CoSENT)"]),
        (["callbacks.checkpoint.mode=max"], ["callbacks.checkpoint.mode=min (now max)"]),
        (["trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches=1 (now 2)"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if "(now" not in value[0] else "",
)
def test_another_config_is_refused_and_nothing_changes(changed, said, run):
    before = contents(run.folder)
    given = [o if not o.startswith("loss@") else f"+{o}" for o in changed]
    with pytest.raises(InputError) as caught:
        run(*given)
    message = str(caught.value)
    assert message.startswith(f"{run.folder}/checkpoints/last.ckpt was trained with another config: ")
    assert all(words in message for words in said)
    assert message.count("(now ") == len(said)  # what follows from a key is not told again
    assert "put it back, or begin a new run with another paths.output_dir" in message
    assert contents(run.folder) == before


def test_what_may_differ_and_a_run_that_has_ended(run, finished, cache, tmp_path):
    """Where it runs, what it tells, and how far it goes; with nothing to do, the same model is exported again."""
    place = ["name=other", "test=true", "trainer.log_every_n_steps=1", "callbacks.steps.every=7", "module.batch_tokens=512"]
    place += ["mixture.num_workers=1", "trainer.precision=bf16-mixed", "callbacks.guard=null", "logger=csv"]
    run(*place)
    exports = [folder / "export" / "model.safetensors" for folder in (run.folder, finished)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    assert result_of(run.folder)["before"] == result_of(finished)["before"] != {}
    training = json.loads((run.folder / "export" / "training.json").read_text())
    assert training["before"] == result_of(finished)["before"]


def test_differences_are_told_shortly():
    before = {
        "seed": 0,
        "encoder": {"_target_": "a.A", "dim": 8, "path": "/old/models/x"},
        "paths": {"output_dir": "/old/runs/1", "models": "/old/models"},
        "stages": [1, {"x": 2}],
        "callbacks": {"ewc": {"anchors": ["/old/runs/0/a.safetensors"]}},
    }
    moved = json.loads(json.dumps(before).replace("/old", "/new"))
    assert differences(before, moved, ["paths*"]) == {}
    assert differences(before, {**before, "encoder": {"_target_": "a.B", "rank": 1}}, ["paths*"])["encoder"][1]["rank"] == 1
    assert differences(before, {**before, "new": None}, []) == {}
    assert differences(before, {**before, "stages": [1, {"x": 3}]}, []) == {"stages.1.x": (2, 3)}
    many = {str(i): i for i in range(20)}
    with pytest.raises(InputError, match=r"f was trained with another config: 0=0 \(now null\), .* and 12 more: put it back"):
        check_same("f", many, {})


def test_changed_rows_that_are_agreed_to_are_no_other_config():
    def config(**data):
        return {"task": {"a": {"data": {"_target_": "x.Y", **data}, "weight": 1.0}}}

    check_config("f", config(path="a"), config(path="b"))
    with pytest.raises(InputError, match=r"task\.a\.data\.columns=null \(now \[1\]\)"):
        check_config("f", config(), config(columns=[1]))
    check_config("f", config(), config(columns=[1]) | {"resume_changed_data": True})
    other = config()
    other["task"]["a"]["weight"] = 2.0
    with pytest.raises(InputError, match=r"task\.a\.weight=1\.0 \(now 2\.0\)"):
        check_config("f", config(), other | {"resume_changed_data": True})


# ---- its files


def test_a_moved_run_keeps_its_best_checkpoint(run, finished):
    """Mode min: the first round is the best one, and stays it."""
    assert run("trainer.max_epochs=4") == result_of(finished)["after"]["val/mean"]
    names = sorted(file.name for file in (run.folder / "checkpoints").glob("*.ckpt"))
    assert names == ["last.ckpt", "step-4.ckpt"]
    assert read(run.folder / "checkpoints" / "last.ckpt")["global_step"] == 16


def test_the_best_so_far_of_a_checkpoint_in_another_folder_counts_and_stays(run, finished, tmp_path):
    """`resume=FILE`: it is exported if nothing better follows, and never removed."""
    before = contents(finished)
    found = run("trainer.max_epochs=4", resume=finished / "checkpoints" / "last.ckpt", folder=tmp_path / "new")
    assert found == result_of(finished)["after"]["val/mean"]
    assert contents(finished) == before


def test_a_best_checkpoint_that_is_gone_is_told(run, caplog):
    for file in (run.folder / "checkpoints").glob("step-4*"):
        file.unlink()
    run("trainer.max_epochs=3")
    assert "step-4.ckpt, of the best checkpoints so far" in caplog.text
    assert [file.name for file in (run.folder / "checkpoints").glob("step*.ckpt")] == ["step-12.ckpt"]


def test_paths_in_a_checkpoint_lead_to_no_other_file(run, tmp_path):
    """None is read, exported, overwritten or removed."""
    precious = tmp_path / "precious"
    shutil.copytree(run.folder / "checkpoints", precious)
    (precious / "thesis.txt").write_text("thesis")
    checkpoints = run.folder / "checkpoints"
    rewrite(precious / "step-4.ckpt", lambda c: [v.fill_(7.0) for v in c["state_dict"].values()])
    before = contents(precious)

    def name_others(checkpoint):
        state, where = state_of(checkpoint), f"{checkpoints}/../../precious"
        state |= {
            "dirpath": str(checkpoints),
            "best_model_path": f"{where}/step-4.ckpt",
            "last_model_path": f"{where}/last.ckpt",
        }
        state |= {"kth_best_model_path": f"{where}/thesis.txt", "best_k_models": {f"{where}/thesis.txt": torch.tensor(5.0)}}

    rewrite(checkpoints / "last.ckpt", name_others)
    run("trainer.max_epochs=4")
    assert contents(precious) == before
    assert not (load(run.folder / "export").backbone.embedding.weight == 7.0).any()


def with_state(name, **values):
    return lambda checkpoint: state_of(checkpoint, name).update(values)


HOSTILE = {
    "no callbacks": lambda c: c.pop("callbacks"),
    "callbacks that are none": lambda c: c.update(callbacks=[1]),
    "best models that are a list": with_state("ModelCheckpoint", best_k_models=["a"]),
    "a path that is a number": with_state("ModelCheckpoint", best_k_models={3: torch.tensor(1.0)}),
    "a score that is a text": with_state("ModelCheckpoint", best_k_models={"step-4.ckpt": "high"}),
    "scores before that are none": lambda c: c.update(before={"val/mean": "x"}),
    "scores before that are a list": lambda c: c.update(before=[1]),
    "a config that is a list": lambda c: c["hyper_parameters"].update(config=[1]),
    "hyper-parameters that are a text": lambda c: c.update(hyper_parameters="x"),
    "tasks that are a list": lambda c: c["hyper_parameters"]["config"].update(task=[1]),
    "paths that are a text": lambda c: c["hyper_parameters"]["config"].update(paths="x"),
    "no weights": lambda c: c.update(state_dict={}),
    "weights of another shape": lambda c: c["state_dict"].update({n: torch.zeros(3) for n in c["state_dict"]}),
    "no optimizer": lambda c: c.update(optimizer_states=[]),
    "loops that are a text": lambda c: c.update(loops="x"),
    "no fingerprints": lambda c: c.update(MixtureDataModule={}),
    "no version": lambda c: c.pop("pytorch-lightning_version"),
}


HARMLESS = ("no callbacks", "no optimizer")  # what is not there begins anew


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_state_is_one_error(kind, run):
    last = run.folder / "checkpoints" / "last.ckpt"
    rewrite(last, HOSTILE[kind])
    before = contents(run.folder)
    if kind in HARMLESS:
        run("trainer.max_epochs=3", resume=last)
        return
    with pytest.raises(InputError, match="checkpoint") as caught:
        run("trainer.max_epochs=3", resume=last)
    assert "\n" not in str(caught.value)
    assert contents(run.folder) == before


def test_the_patience_of_the_config_counts(cache, tmp_path):
    """Lightning takes that of the checkpoint, so that a longer one would have no effect."""
    folder = tmp_path / "stopped"
    for patience, rounds in ((1, 2), (4, 5)):
        cfg = composed(folder, cache, "trainer.max_epochs=9", "resume=auto")
        stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/mean", "mode": "max"}
        cfg.callbacks.early_stopping = stop | {"min_delta": 1.0, "patience": patience}
        train(cfg)
        assert read(newest(folder / "checkpoints"))["global_step"] == 4 * rounds


# ---- Slurm


def test_a_requeued_job_of_slurm_exports_what_it_ends_with(run, monkeypatch):
    """Lightning loads such a checkpoint unasked, in each fit and in each validation."""
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODELIST", "here")
    checkpoints = run.folder / "checkpoints"
    for end in ("", ".sha256"):
        (checkpoints / f"last.ckpt{end}").rename(run.folder / f"hpc_ckpt_1.ckpt{end}")
    with pytest.raises(InputError, match=r"hpc_ckpt_1\.ckpt was trained with another config: seed=0 \(now 5\)"):
        run("seed=5", resume="null")
    shutil.rmtree(run.folder / "export")
    mean = run("trainer.max_epochs=6", resume="null")
    last = read(checkpoints / "last.ckpt")
    assert last["global_step"] == 24
    best = read(Path(state_of(last)["best_model_path"]))["state_dict"]
    exported = load(run.folder / "export").backbone.embedding.weight
    assert any(value.shape == exported.shape and torch.equal(value, exported) for value in best.values())
    assert mean == pytest.approx(float(state_of(last)["best_model_score"]), abs=1e-6)


# ---- one run a folder


def test_a_second_run_in_a_folder_is_refused(run):
    before = contents(run.folder)
    with lock(run.folder / ".lock", wait=False):
        with pytest.raises(InputError, match=rf"moved is in use by process {os.getpid()} on .*another"):
            run("trainer.max_epochs=3")
        (run.folder / ".lock").unlink()
    assert contents(run.folder) == before
    (run.folder / ".lock").write_text("process 1 on elsewhere\n")  # of a run that was killed
    run()
    assert not (run.folder / ".lock").exists()


def test_a_new_run_needs_a_folder_of_its_own(run):
    before = contents(run.folder)
    with pytest.raises(
        InputError, match=r"moved holds a run already \(result\.json\): resume=auto goes on with it, and a new run"
    ):
        run("seed=5", resume="null")
    assert contents(run.folder) == before
    (run.folder / "result.json").rename(run.folder / "kept.json")
    with pytest.raises(InputError, match=r"holds a run already \(checkpoints/last\.ckpt\)"):
        run("seed=5", resume="null")
    (run.folder / "kept.json").rename(run.folder / "result.json")
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(InputError, match=r"holds a run already \(result\.json\): a new run needs a folder of its own"):
        run("seed=5")


def test_the_processes_of_other_devices_take_no_lock(run, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with lock(run.folder / ".lock", wait=False):
        run()
        assert (run.folder / ".lock").exists()


@pytest.mark.parametrize(("where", "said"), [("file", "is a file: name a folder"), ("file/x", "cannot be written")])
def test_a_folder_that_cannot_be_is_one_error(where, said, run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=said) as caught:
        run(resume="null", folder=tmp_path / where)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"


LIMITED = """
import resource, sys
from acge_lightning.commands.cli import call
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
call("train", 1)
"""
MINIMUM = "callbacks.checkpoint.mode=min"
NO_CHECKPOINTS = [f"~callbacks.{name}" for name in ("checkpoint", "steps", "signals")] + ["+trainer.enable_checkpointing=false"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("limit", "more", "said"),
    [
        (17_000, [MINIMUM, "resume=auto"], r"checkpoints/[\w.-]+\.ckpt cannot be written \(File too large\)"),
        (17_000, NO_CHECKPOINTS, r"export cannot be written \(.*File too large"),
        (500, [MINIMUM, "resume=auto", "logger=csv", "trainer.log_every_n_steps=1"], "cannot be written"),
    ],
    ids=["checkpoint", "export", "log"],
)
def test_a_disk_that_is_full_is_one_error_and_costs_nothing(limit, more, said, run, cache, tmp_path):
    if more is NO_CHECKPOINTS:  # a new run, beside an export that is to be replaced
        (run.folder / "result.json").unlink()
        shutil.rmtree(run.folder / "checkpoints")
    before = contents(run.folder)
    given = [f"paths.output_dir={run.folder}", f"hydra.run.dir={tmp_path / 'hydra'}", "hydra.output_subdir=null"]
    given += [f"paths.cache_dir={cache}", *SMALL, "trainer.max_epochs=3", *more]
    given = [o for o in given if o != "logger=none" or "logger=csv" not in more]
    command = [sys.executable, "-c", LIMITED, str(limit), *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert re.search(rf"^error: .*{said}", lines[-1]), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    after = contents(run.folder)
    assert {file: after.get(file) for file in before} == before


@pytest.mark.heavy
def test_a_killed_run_with_workers_goes_on_at_once(cache, tmp_path):
    given = [f"paths.output_dir={tmp_path / 'run'}", f"paths.cache_dir={cache}", *SMALL, "mixture.num_workers=2"]
    command = [sys.executable, str(ROOT / "train.py"), *given]
    first = subprocess.Popen([*command, "trainer.max_epochs=5000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt.sha256"
    while not last.is_file():
        assert first.poll() is None
    second = subprocess.run([*command, "seed=1"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert f"in use by process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)  # which closes the pipe
    reached = read(newest(last.parent))["global_step"]
    again = [*command, "resume=auto", f"trainer.max_epochs={reached // 4 + 1}"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert result_of(tmp_path / "run")["before"]


def test_the_documentation_names_what_may_differ():
    text = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    for pattern in (*RUN_KEYS, *LENGTH_KEYS):
        if pattern != "fisher*":  # of no effect in a run, and the same in a sequence
            assert f"{pattern.removesuffix('*').rpartition('.')[2]}" in text, pattern
