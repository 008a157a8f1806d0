"""Stages one after the other: what each is trained from and held by, what is scored, and that a run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from acge_lightning import load
from acge_lightning.commands import stages as sequence
from acge_lightning.commands.single_run import checked
from acge_lightning.config.sources import config_dir
from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.strategy import Strategy, averaged, ones, replay_weights
from acge_lightning.data import STSDataModule
from acge_lightning.data.task import Task
from acge_lightning.errors import InputError
from acge_lightning.report.runs import read_runs

STAGES = "stages={one: {task: [sample_sts]}, two: {task: [sample_retrieval, sample_pair], set: {trainer: {max_epochs: 2}}}}"
SMALL = [
    "task=[sample_sts,sample_retrieval,sample_pair]",
    "encoder.dim=16",
    "encoder.tokenizer.vocab_size=900",
    "optim=adamw_static",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "fisher={samples: 20, pool: 10}",
    *(f"++task.sample_{name}.data.{key}" for name in ("sts", "retrieval", "pair") for key in ("max_train=64", "max_dev=40")),
    *(f"task.sample_{name}.data.batch_size=8" for name in ("sts", "retrieval", "pair")),
]
STRATEGIES = ("none", "l2sp", "ewc", "ewc_online", "replay", "ewc_replay", "merge")


@pytest.fixture
def composed(tmp_path, cache):
    def make(*overrides, out="run"):
        fixed = [f"paths.output_dir={tmp_path / out}", f"paths.cache_dir={cache}"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(
                "train", [*fixed, *SMALL, *({STAGES} if not any("stages" in o for o in overrides) else ()), *overrides]
            )

    return make


def weights(folder):
    return dict(load(folder).named_parameters())


def forgetting_of(folder):
    return json.loads((folder / "forgetting.json").read_text())


LONG = ("none", "l2sp", "ewc_online")  # of them in the long tests only: what they share with others is in these


def test_every_strategy_is_tried():
    assert {file.stem for file in (config_dir() / "strategy").glob("*.yaml")} == set(STRATEGIES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.heavy] * (name in LONG)) for name in STRATEGIES])
def test_a_strategy_through_two_stages(name, composed, tmp_path):
    returned = sequence.sequence(composed(f"strategy={name}"))
    folder, found = tmp_path / "run", forgetting_of(tmp_path / "run")
    assert found["tasks"] == ["one", "two"]
    assert np.array(found["matrix"]).shape == np.array(found["dev"]["matrix"]).shape == (2, 2)
    result = json.loads((folder / "result.json").read_text())
    assert returned == result["after"]["val/mean"] == pytest.approx(np.mean(found["dev"]["matrix"][1]))
    scores = found["dev"]["scores"]
    assert list(scores) == ["start", "one", "two"]
    assert found["dev"]["matrix"][1][1] == pytest.approx((scores["two"]["sample_retrieval"] + scores["two"]["sample_pair"]) / 2)
    assert found["dev"]["measures"]["forgetting"] == pytest.approx(scores["one"]["sample_sts"] - scores["two"]["sample_sts"])
    assert found["dev"]["measures"]["gain"] == pytest.approx(found["dev"]["matrix"][1][1] - found["dev"]["matrix"][0][1])
    assert found["dev"]["measures"]["gain"] > 0 or name != "none"
    assert {(row["documents"], row["queries"]) for row in found["old_index"]} == {
        *(("start", q) for q in ("start", "one", "two")),
        *(("one", q) for q in ("one", "two")),
        ("two", "two"),
    }
    (run,) = read_runs([str(folder)])
    assert [remark for remark in run.remarks if ".hydra" not in remark] == []
    assert run.forgetting["measures"]["gain"] == found["measures"]["gain"]
    assert {prefix: list(stages) for prefix, stages in run.rows.items()} == {"val": ["one", "two"], "test": ["one", "two"]}
    assert (run.rows["val"]["one"]["rows"], run.rows["val"]["one"]["seen"]) == (40, 0)
    how = Strategy(**{"name": name} | ({"anchor": "ones"} if name == "l2sp" else {}))
    second = json.loads((folder / "2_two" / "export" / "training.json").read_text())["config"]
    assert second["trainer"]["max_epochs"] == 2
    assert second["encoder"]["path"] == str(folder / "1_one" / "export")
    assert ("ewc" in second["callbacks"]) == ("ewc" in name or name == "l2sp")
    assert ("sample_sts" in second["task"]) == ("replay" in name)
    assert (folder / "2_two" / "merged").is_dir() == (name == "merge")
    assert bool(run.curves) == bool("ewc" in name or how.anchor)
    last = weights(folder / "export")
    if name == "merge":
        one, two = weights(folder / "1_one" / "export"), weights(folder / "2_two" / "export")
        assert all(torch.allclose(last[n], (one[n] + two[n]) / 2, atol=1e-7) for n in last)
    else:
        assert all(torch.equal(last[n], value) for n, value in weights(folder / "2_two" / "export").items())


def test_without_test_splits_nothing_is_called_test(composed, tmp_path, capsys):
    """One task has dev rows only: the stages are compared by the dev rows of all."""
    returned = sequence.sequence(composed("strategy=none", "++task.sample_sts.data.splits={test: null}"))
    folder, found = tmp_path / "run", forgetting_of(tmp_path / "run")
    assert found["split"] == "dev"
    assert found["matrix"] == found["dev"]["matrix"]
    result = json.loads((folder / "result.json").read_text())
    assert {key.partition("/")[0] for key in [*result["before"], *result["after"]]} == {"val"}
    assert returned == result["after"]["val/mean"]
    assert [path.name for path in folder.glob("results*.json")] == ["results_dev.json"]
    shown = capsys.readouterr().out
    assert "Dev scores" in shown  # the title may be broken
    assert "Test scores" not in shown
    assert "│ test" not in shown


def test_an_anchor_holds_and_one_without_strength_does_not(composed, tmp_path):
    last = {}
    for name, more in {"free": ["strategy=none"], "0": ["strategy=l2sp"], "10": ["strategy=l2sp"]}.items():
        sequence.sequence(composed(*more, *([] if name == "free" else [f"strategy.strength={name}.0"]), out=name))
        one, last[name] = (weights(tmp_path / name / folder / "export") for folder in ("1_one", "2_two"))
    moved = {name: sum(float((one[n] - found[n]).detach().square().sum()) for n in one) for name, found in last.items()}
    assert all(torch.equal(last["free"][n], last["0"][n]) for n in one)
    assert moved["free"] > 2 * moved["10"] > 0


class CutError(Exception):
    pass


LONG = [pytest.param(place, marks=pytest.mark.heavy) for place in ("trained", "scored", "last trained", "last scored")]


@pytest.mark.parametrize("place", ["anchored", *LONG])
def test_a_sequence_that_was_cut_goes_on_with_the_same_end(place, composed, tmp_path, monkeypatch):
    whole = sequence.sequence(composed("strategy=ewc", out="whole"))
    trained, asked, done = [], [], sequence.train
    at = {"trained": 1, "anchored": 1, "scored": 1, "last trained": 2, "last scored": 2}[place]

    def train(cfg):
        trained.append(Path(cfg.paths.output_dir).name)
        done(cfg)
        if "trained" in place and len(trained) == at and not asked:
            raise CutError

    def cut_after(name, count):
        inner = getattr(sequence._Sequence, name)

        def method(self, *args):
            value = inner(self, *args)
            asked.append(name)
            if len(asked) == count:
                raise CutError
            return value

        monkeypatch.setattr(sequence._Sequence, name, method)

    monkeypatch.setattr(sequence, "train", train)
    if "anchored" in place:
        cut_after("_anchor", 1)
    if "scored" in place:
        cut_after("measure", at)
    with pytest.raises(CutError):
        sequence.sequence(composed("strategy=ewc"))
    monkeypatch.undo()
    before, again = list(trained), []
    monkeypatch.setattr(sequence, "train", lambda cfg: (again.append(Path(cfg.paths.output_dir).name), done(cfg)))
    assert sequence.sequence(composed("strategy=ewc", "resume=auto")) == whole
    assert sorted(before + again) == ["1_one", "2_two"], "each stage is trained once"
    one, two = (weights(tmp_path / name / "export") for name in ("whole", "run"))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert forgetting_of(tmp_path / "run") == forgetting_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("optim.optimizer.lr=0.1", r"1_one/export was trained with another config: optim\.optimizer\.lr=0\.005 \(now 0\.1\)"),
        ("encoder.dim=8", r"run/start was trained with another config: encoder\.dim=16 \(now 8\)"),
        ("strategy.merge=0.2", r"2_two/merged was trained with another config: strategy\.merge=0\.5 \(now 0\.2\)"),
        ("fisher.samples=30", r"1_one/export was trained with another config: fisher\.samples=20 \(now 30\)"),
    ],
)
def test_what_is_done_is_not_kept_under_other_settings(changed, message, composed, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        sequence.sequence(composed("strategy=merge", "resume=auto", changed))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("sequence")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        fixed = [f"paths.output_dir={folder / 'run'}", f"paths.cache_dir={cache}", "strategy=merge"]
        sequence.sequence(compose("train", [*fixed, *SMALL, STAGES]))
    return folder / "run"


def test_a_finished_sequence_that_was_moved_is_gone_on_from(composed, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2_two" / "merged")
    monkeypatch.setattr(sequence, "train", lambda cfg: pytest.fail("it trained again"))
    sequence.sequence(composed("strategy=merge", "resume=auto"))
    moved, last = weights(tmp_path / "run" / "export"), weights(finished / "export")
    assert all(torch.equal(moved[n], last[n]) for n in last)


def test_an_anchor_of_another_kind_or_encoder_is_made_again(composed, tmp_path):
    cfg = composed("strategy=ewc")
    run = sequence._Sequence(cfg, checked(cfg))
    fisher = run._anchor(0, run.start).read_bytes()
    cfg = composed("strategy=l2sp", "resume=auto")
    run = sequence._Sequence(cfg, checked(cfg))
    anchor = run._anchor(0, run.start)
    assert Anchor.load(anchor).meta["estimator"] == "ones"
    assert anchor.read_bytes() != fisher
    written = anchor.stat().st_mtime_ns
    assert run._anchor(0, run.start).stat().st_mtime_ns == written


def test_the_encoder_has_learnt_the_first_stage_already(composed, small_encoder, tmp_path):
    stages = "stages={before: {task: [sample_sts], train: false}, new: {task: [sample_retrieval, sample_pair]}}"
    pretrained = ["encoder=pretrained", f"encoder.path={small_encoder}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        rest = [o for o in SMALL if not o.startswith("encoder")]
        cfg = compose("train", [f"paths.output_dir={tmp_path / 'run'}", *rest, *pretrained, stages, "strategy=ewc"])
    sequence.sequence(cfg)
    found = forgetting_of(tmp_path / "run")
    assert list(found["scores"]) == ["before", "new"]
    assert found["matrix"][0] == found["start"]
    assert not (tmp_path / "run" / "start").exists()
    anchor = Anchor.load(tmp_path / "run" / "1_before" / "anchor.safetensors")
    assert all(torch.equal(anchor.theta[n], p) for n, p in weights(small_encoder).items())


def test_what_the_config_changes_of_a_folder_is_there_from_the_first_score_on(composed, small_encoder, tmp_path):
    stages = "stages={before: {task: [sample_sts], train: false}, new: {task: [sample_retrieval, sample_pair]}}"
    pretrained = ["encoder=pretrained", f"encoder.path={small_encoder}", "encoder.max_length=3"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        rest = [o for o in SMALL if not o.startswith("encoder")]
        cfg = compose("train", [f"paths.output_dir={tmp_path / 'run'}", *rest, *pretrained, stages, "strategy=none"])
    sequence.sequence(cfg)
    short = load(small_encoder, max_length=3)
    start, last = load(tmp_path / "run" / "start"), load(tmp_path / "run" / "export")
    texts = ["a text of more than three tokens", "and another one"]
    assert torch.equal(start.encode(texts), short.encode(texts))
    assert not torch.allclose(start.encode(texts), load(small_encoder).encode(texts), atol=1e-4)
    assert start.tokenize.max_length == last.tokenize.max_length == 3


def test_a_damaged_record_of_the_start_encoder_is_named(small_encoder, tmp_path, cache):
    start = tmp_path / "pretrained"
    shutil.copytree(small_encoder, start)
    (start / "training_rows.npy").write_bytes(b"\x93NUMPY junk")
    pretrained = ["encoder=pretrained", f"encoder.path={start}", "encoder.max_length=3", STAGES]
    paths = [f"paths.output_dir={tmp_path / 'run'}", f"paths.cache_dir={cache}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*paths, *(o for o in SMALL if not o.startswith("encoder")), *pretrained])
    with pytest.raises(InputError, match=r"training_rows\.npy is damaged .*: export the encoder again"):
        sequence.sequence(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages={one: {}}"], r"stages\.one must have task"),
        (["stages={one: {task: [tnews]}}"], "tnews is not among the tasks"),
        (["stages={one: {task: [sample_sts]}}"], "task sample_retrieval is in no stage"),
        (["stages={one: {task: [sample_sts], train: false}, two: {task: [sample_retrieval, sample_pair]}}"], "has learnt it"),
        (["stages={a: {task: [sample_sts]}, b: {task: [sample_retrieval, sample_pair], train: false}}"], "only the first"),
        (["stages={a: {task: [sample_sts, sample_retrieval, sample_pair], set: {trainr: 1}}}"], r"set\.trainr is no key"),
        (["strategy={merge: 2}"], r"strategy\.merge=2"),
        (["strategy={replay: 1.0}"], r"strategy\.replay=1\.0"),
        (["strategy={anchor: twos}"], "choose fisher, ones or null"),
        (["trainer.devices=2"], "set it to 1"),
        (["resume=last.ckpt"], "there is no such checkpoint|go on with resume=auto"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(overrides, message, composed, tmp_path):
    with pytest.raises(InputError, match=message):
        sequence.sequence(composed(*overrides))
    assert not list((tmp_path / "run").glob("[12]_*/csv"))


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [("auto", True, "cuda"), ("gpu", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")],
)
def test_encoders_are_scored_and_anchored_where_the_trainer_works(accelerator, there, device, composed, monkeypatch):
    cfg = composed("strategy=l2sp")
    run = sequence._Sequence(cfg, checked(cfg))
    run.cfg.trainer.accelerator = accelerator
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    opened = []

    def on_a_cpu(real):
        return lambda what, device: opened.append(device) or real(what, device="cpu")

    monkeypatch.setattr(sequence, "load", on_a_cpu(sequence.load))
    monkeypatch.setattr(sequence, "open_models", on_a_cpu(sequence.open_models))
    run._anchor(0, run.start)
    run.measure()
    assert opened == [device, device]


# ---- the parts


def test_replay_gives_old_tasks_their_share(cache):
    from conftest import SAMPLE

    from acge_lightning.data.sampler import TaskBatchSampler

    sizes = {"old": (200, 2.0), "older": (60, 1.0), "new": (120, 1.0), "watched": (30, 0.0)}
    made = {
        n: STSDataModule(SAMPLE / "sts" / "sample_zh", 2, max_train=rows, cache_dir=cache) for n, (rows, _) in sizes.items()
    }
    tasks = {name: Task(data, weight=sizes[name][1]) for name, data in made.items()}
    for temperature in (1.0, 2.0):
        weights, batches = replay_weights(tasks, ["old", "older"], 0.25, temperature)
        drawn = TaskBatchSampler({n: made[n] for n in made if weights[n]}, {n: w for n, w in weights.items() if w}, temperature)
        shares = {name: count / len(drawn) for name, count in drawn.counts.items()}
        assert shares["old"] + shares["older"] == pytest.approx(0.25, abs=0.01)
        assert batches == 80, "60 of the new task, and a quarter of the whole on top"


def test_averaged_weights(small_encoder):
    old, new = load(small_encoder), load(small_encoder)
    torch.nn.init.normal_(new.backbone.embedding.weight)
    found = averaged(old, new, 0.25)
    for name, weight in found.named_parameters():
        expected = 0.75 * old.get_parameter(name).double() + 0.25 * new.get_parameter(name).double()
        assert (weight - expected).abs().max() < 1e-6


def test_an_anchor_of_ones_is_l2(small_encoder):
    encoder = load(small_encoder)
    anchor = ones(encoder)
    assert anchor.check(dict(encoder.named_parameters())) == []
    assert all((f == 1).all() for f in anchor.fisher.values())


def test_a_multirun_is_read_as_its_runs(tmp_path):
    for job, strength in enumerate((0.5, 5.0)):
        (tmp_path / str(job) / ".hydra").mkdir(parents=True)
        (tmp_path / str(job) / ".hydra" / "config.yaml").write_text("name: same\n")
        found = {
            "tasks": ["a", "b"],
            "matrix": [[0.5, 0.1], [0.4, 0.6 - job / 10]],
            "measures": {"gain": 0.5, "forgetting": 0.1},
        }
        found |= {"strategy": {"name": "ewc", "anchor": "fisher", "strength": strength}}
        (tmp_path / str(job) / "forgetting.json").write_text(json.dumps(found))
    runs = read_runs(str(tmp_path))
    assert [run.path.name for run in runs] == ["0", "1"]
    assert [run.forgetting["strategy"]["strength"] for run in runs] == [0.5, 5.0]
    shutil.rmtree(tmp_path / "1")
    assert len(read_runs([str(tmp_path), str(tmp_path / "0")])) == 1
