"""The main job: what it returns and leaves, and what it says of bad input."""

import gzip
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SAMPLE
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from sentence_transformers import SentenceTransformer

from acge_lightning import load
from acge_lightning.commands import single_run
from acge_lightning.commands.program import program as command
from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.data.epoch import batch_sizes
from acge_lightning.errors import InputError

TEXTS = ["怎么退货？", "明天的天气怎么样", "An order that never came", "银行卡丢了怎么办" * 30]
ROOT = Path(__file__).parents[2]


def lines_of(family, role):
    (file,) = (SAMPLE / family / "sample_zh").glob(f"{role}.jsonl*")
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        return list(lines)


@pytest.fixture
def compose_run(tmp_path, cache):
    def composed(*overrides, out="run"):
        fixed = [f"paths.output_dir={tmp_path / out}", f"paths.cache_dir={cache}", "callbacks.progress=null"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("train", [*fixed, "encoder.tokenizer.vocab_size=1200", "encoder.dim=64", *overrides])

    return composed


STS = ["task=[sample_sts]", "optim=adamw_static"]
FEW = ["+task.sample_sts.data.max_train=256", "task.sample_sts.data.max_dev=40"]


@pytest.fixture(scope="module")
def sts_run(tmp_path_factory, cache):
    """A finished run over the whole of sample_sts."""
    folder = tmp_path_factory.mktemp("sts") / "run"
    fixed = [f"paths.output_dir={folder}", f"paths.cache_dir={cache}", "callbacks.progress=null"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        train(compose("train", [*fixed, "encoder.tokenizer.vocab_size=1200", "encoder.dim=64", *STS]))
    return folder


def test_it_learns_and_leaves_one_export_that_others_read(compose_run, tmp_path):
    cfg = compose_run("task=[sample_sts,sample_retrieval]", "optim=adamw_static", "matryoshka={dims:[64,16]}", "test=true")
    mean = train(cfg)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert mean == result["after"]["val/mean"] > result["before"]["val/mean"] + 0.1
    assert mean == pytest.approx((result["after"]["val/sts"] + result["after"]["val/retrieval"]) / 2, abs=1e-6)
    assert result["after"]["test/mean"] > result["before"]["test/mean"] + 0.1
    scored = {prefix: {task: entry["seen"] for task, entry in tasks.items()} for prefix, tasks in result["data"].items()}
    assert scored == {prefix: {"sample_sts": 0, "sample_retrieval": 0} for prefix in ("val", "test")}
    exports = [p.parent for p in tmp_path.rglob("modules.json")]
    assert exports == [tmp_path / "run" / "export"]
    encoder = load(exports[0])
    assert encoder.matryoshka_dims == (64, 16)
    for dim in (64, 16, 7):
        other = SentenceTransformer(str(exports[0]), truncate_dim=dim, device="cpu")
        found = other.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
        assert (encoder.encode(TEXTS, dim) - found).abs().max() < 1e-5


def test_the_scores_before_are_those_of_an_untrained_run(compose_run, tmp_path):
    """A run of hardly any learning rate ends where it began; the seed decides where that is."""
    still = ["optim.optimizer.lr=1.0e-30", *STS, *FEW]
    first, second = train(compose_run(*still)), train(compose_run(*still, out="again"))
    assert first == second == json.loads((tmp_path / "run" / "result.json").read_text())["before"]["val/mean"]
    assert first != train(compose_run(*still, "seed=1", out="other"))


def test_the_head_may_begin_at_principal_components(compose_run, tmp_path):
    """At hardly any learning rate they are what is exported: the variances of the training texts fall from dim to dim."""
    train(compose_run("components=500", "optim.optimizer.lr=1.0e-30", *STS, "trainer.max_steps=1"))
    encoder, plain_rows = load(tmp_path / "run" / "export"), [json.loads(line) for line in lines_of("sts", "train")]
    texts = list(dict.fromkeys(row[key] for row in plain_rows for key in ("text1", "text2")))
    with torch.no_grad():
        vectors = encoder(encoder.tokenize(texts))
    assert encoder.dense.linear.out_features == encoder.dim == 64
    variances = vectors.var(0)
    assert variances[0] > 1.2 * variances[10] > 1.2 * variances[30] > 1.2 * variances[60]
    assert torch.corrcoef(vectors[:, :10].T).fill_diagonal_(0).abs().max() < 0.25


def test_the_same_seed_gives_the_same_weights(sts_run, compose_run, tmp_path):
    train(compose_run(*STS))
    first, again = (load(folder / "export").encode(TEXTS) for folder in (sts_run, tmp_path / "run"))
    assert torch.equal(first, again)


def test_the_best_weights_are_exported_not_the_last(compose_run, tmp_path):
    """The lowest score is made to count as the best one: that of the first validation, as training raises it."""
    cfg = compose_run(
        *STS,
        "trainer.max_epochs=3",
        "optim.schedule=constant",
        "trainer.val_check_interval=2",
        "+trainer.limit_train_batches=4",
        "callbacks.checkpoint.mode=min",
    )
    mean = train(cfg)
    lines = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/mean")
    seen = [float(v) for v in (line.split(",")[column] for line in lines[1:]) if v]
    assert mean == pytest.approx(min(seen[1:-1]), abs=1e-6)
    assert min(seen[1:-2]) < seen[-2]  # the last one of the training was not the best


def test_a_run_goes_on_from_a_checkpoint(compose_run, tmp_path):
    """Two rounds at once, or one and then another: the same weights."""
    steady = [*STS, *FEW, "optim.schedule=constant", "encoder.dropout=0.0"]
    train(compose_run(*steady, "trainer.max_epochs=2"))
    train(compose_run(*steady, "trainer.max_epochs=1", out="half"))
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    train(compose_run(*steady, "trainer.max_epochs=2", f"resume={last}", out="rest"))
    whole, rest = (torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True) for out in ("run", "rest"))
    assert whole["global_step"] == rest["global_step"] > 0
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, rest["state_dict"][name]), name


def test_a_variable_with_a_default_is_recorded_as_it_was_written(compose_run, tmp_path, monkeypatch):
    """Also one whose default is a path with a tilde, which loggers read again as an interpolation."""
    monkeypatch.setenv("ACGE_CACHE", str(tmp_path / "cache"))
    cfg = compose_run(*STS, *FEW, "trainer.max_steps=1")
    cfg.paths.cache_dir = '${oc.env:ACGE_CACHE,"~/.cache/acge_lightning"}'
    train(cfg)
    training = json.loads((tmp_path / "run" / "export" / "training.json").read_text())
    assert training["config"]["task"]["sample_sts"]["data"]["cache_dir"] == '${oc.env:ACGE_CACHE,"~/.cache/acge_lightning"}'


def test_a_checkpoint_holds_plain_values(sts_run):
    kept = torch.load(sts_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["config"]["task"]["sample_sts"]["data"]["batch_size"] == 64
    training = json.loads((sts_run / "export" / "training.json").read_text())
    assert training["config"] == json.loads(json.dumps(kept["hyper_parameters"]["config"]))
    assert training["data"]["sample_sts"] == {"train": 2000, "dev": 300, "test": 300}
    assert training["steps"] == kept["global_step"] == len(batch_sizes(2000, 64))
    assert set(training["versions"]) >= {"acge_lightning", "torch"}


def test_its_figures_go_to_loggers_that_take_pictures(compose_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = [*STS, *FEW, "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    train(compose_run(*short, "logger=[csv,tensorboard,wandb]", "logger.wandb.offline=true"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = {"scores", "curves/train/loss", "curves/val/mean"}
    assert names <= set(events.Tags()["images"])
    assert events.Images("scores")[0].step == 2
    kept = [path.as_posix() for path in (tmp_path / "run" / "wandb").rglob("*.png")]
    assert all(any(f"/images/{name}_" in path for path in kept) for name in names)


def test_without_matplotlib_it_says_so_once(compose_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("style", "figures"):
        monkeypatch.delitem(sys.modules, f"acge_lightning.report.{name}", raising=False)
    train(compose_run(*STS, *FEW, "trainer.max_steps=2", "logger=tensorboard"))
    assert capsys.readouterr().out.count("The loggers get no figures: figures need matplotlib: pip install") == 1


@pytest.mark.parametrize("fails", [False, True])
def test_loggers_are_closed_with_how_the_run_ended(fails, compose_run, monkeypatch):
    """The next job of a multirun must not log into the run of one that failed."""
    import wandb

    ended, finish = [], wandb.finish
    for name, logger in (("csv", CSVLogger), ("wandb", WandbLogger)):
        monkeypatch.setattr(logger, "finalize", lambda self, status, name=name: ended.append((name, status)))
    monkeypatch.setattr(wandb, "finish", lambda exit_code=None: (ended.append(("wandb's run", exit_code)), finish(exit_code)))
    wrong = ["optim.optimizer.lr=1.0e300", "optim.schedule=constant", "trainer.gradient_clip_val=null"]
    cfg = compose_run(
        *STS, *FEW, "trainer.max_steps=2", "logger=[csv,wandb]", "logger.wandb.offline=true", *(wrong if fails else [])
    )
    with pytest.raises(InputError, match="not finite") if fails else nullcontext():
        train(cfg)
    status = "failed" if fails else "success"
    assert ended[-3:] == [("csv", status), ("wandb", status), ("wandb's run", int(fails))]


# ---- bad input

ROWS = [{"text1": f"第{i}个句子", "text2": f"句子{i}号", "score": i % 5} for i in range(40)]


def as_lines(rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


BAD_FILES = {
    "a malformed row": (as_lines(ROWS[:3]) + b"{nonsense\n", ["rows.jsonl, line 4", "not JSON", "on_bad_row=skip"]),
    "an empty text": (as_lines([*ROWS[:2], ROWS[2] | {"text2": " "}]), ["line 3", "'text2' is empty", "on_bad_row=skip"]),
    "no text": (as_lines([ROWS[0] | {"text1": None}]), ["line 1", "'text1' is None, not a text"]),
    "a wrong label type": (as_lines([*ROWS[:4], ROWS[4] | {"score": "close"}]), ["line 5", "'score' is 'close', not a number"]),
    "a label that is NaN": (as_lines([ROWS[0] | {"score": float("nan")}]), ["line 1", "'score'", "not a finite number"]),
    "invalid UTF-8": (as_lines(ROWS[:1]) + b'{"text1": "\xff\xfe"}\n', ["line 2", "not valid UTF-8"]),
    "an empty file": (b"", ["rows.jsonl", "no rows"]),
    "a missing column": (
        as_lines([{"甲": "一", "text2": "二", "score": 1}]),
        ["rows.jsonl has no column for text1", "are 甲, text2, score", "task.scored_pairs.data.columns='{text1: 甲}'"],
    ),
}


@pytest.fixture
def earlier(tmp_path, small_encoder):
    """The export of an earlier run, in the folder that the next one would write to: it is the same at the end."""
    folder = tmp_path / "run" / "export"
    shutil.copytree(small_encoder, folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    yield folder
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gives_one_clear_error(kind, compose_run, tmp_path, earlier):
    content, words = BAD_FILES[kind]
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        train(compose_run("task=[scored_pairs]", f"+paths.data={tmp_path / 'rows.jsonl'}"))
    for word in words:
        assert word in str(caught.value)


def test_bad_rows_can_be_skipped(compose_run, tmp_path, caplog):
    rows = as_lines(ROWS) + b"{nonsense\n" + as_lines([ROWS[0] | {"score": "close"}]) + as_lines(ROWS)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(rows)
    own = [
        f"+paths.data={tmp_path / 'rows.jsonl.gz'}",
        "+task.scored_pairs.data.on_bad_row=skip",
        "+task.scored_pairs.data.max_bad_fraction=0.1",
        "optim=adamw_static",
    ]
    train(compose_run("task=[scored_pairs]", *own, "task.scored_pairs.data.batch_size=8"))
    assert "2 bad rows skipped, 80 kept" in caplog.text


BAD_CONFIGS = {
    "an unknown key": (["+task.sample_sts.data.batchsize=3"], ["task.sample_sts.data.batchsize", "did you mean batch_size?"]),
    "an unknown key of a task": (["+task.sample_sts.los=1"], ["task.sample_sts.los is unknown", "loss_weight"]),
    "a mistyped target": (["optim.optimizer._target_=torch.optim.AdamWW"], ["AdamWW is not there", "torch.optim.AdamW"]),
    "a forbidden target": (["optim.optimizer._target_=os.system"], ["os.system is refused", "trusted"]),
    "components of no texts": (["components=-5"], ["components=-5", "20000"]),
    "a dim above the model's": (["matryoshka={dims:[128,64]}"], ["128", "64 dims"]),
    "dims without the whole": (["matryoshka={dims:[32,16]}"], ["32", "full size 64", "add it"]),
    "a value of another type": (["trainer.max_epochs=many"], ["trainer.max_epochs='many'", "int"]),
    "a number written as text": (["optim.optimizer.lr='1e-5'"], ["optim.optimizer.lr", "1.0e-5"]),
    "no path": (["task.sample_sts.data.path=/no/such/folder"], ["/no/such/folder is not there"]),
    "an unknown schedule": (["optim.schedule=sideways"], ["optim.schedule='sideways'"]),
    "an unknown column": (["+task.sample_sts.data.columns={text3: x}"], ["columns.text3", "text1"]),
    "a prompt that is not there": (["+task.sample_sts.data.prompts={text: q}"], ["prompt 'q'", "sample_sts"]),
    "a checkpoint that is not there": (["resume=/no/last.ckpt"], ["resume=/no/last.ckpt"]),
    "nothing to score": (["+task.sample_sts.data={splits: {dev: null}, holdout: 0}"], ["no task has a dev split", "holdout"]),
    "a task name that is taken": (["+task.keys={data: ${task.sample_sts.data}}"], ["task name 'keys'", "choose another"]),
    "no tasks": (["task=[]"], ["no task"]),
    "nothing to train": (["+task.sample_sts.weight=0"], ["no task to train on"]),
    "a negative weight": (["+task.sample_sts.weight=-1"], ["weight=-1"]),
    "no steps between updates": (["trainer.accumulate_grad_batches=0"], ["trainer.accumulate_grad_batches=0 must be above 0"]),
    "no steps between logs": (["trainer.log_every_n_steps=0"], ["trainer.log_every_n_steps=0 must be above 0"]),
    "no rounds between scores": (["trainer.check_val_every_n_epoch=0"], ["check_val_every_n_epoch=0 must be above 0"]),
    "no steps between scores": (["trainer.val_check_interval=0"], ["trainer.val_check_interval=0 must be above 0"]),
    "scores after more steps than there are": (
        ["trainer.val_check_interval=100000", "optim=adamw_static"],
        ["trainer.val_check_interval=100000:", "number of the training batches (32)", "check_val_every_n_epoch=null"],
    ),
    "a negative clip": (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1 must be above 0"]),
    "nothing scored": (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0 leaves nothing to score"]),
    "some batches scored": (["+trainer.limit_val_batches=5"], ["trainer.limit_val_batches=5 would cut", "set max_dev=500"]),
    "a negative learning rate": (["optim.optimizer.lr=-1"], ["optim.optimizer.lr=-1 is no learning rate", "above 0"]),
    "no learning rate": (["optim.optimizer.lr=0"], ["optim.optimizer.lr=0 is no learning rate"]),
    "a learning rate without end": (["optim.optimizer.lr=inf"], ["optim.optimizer.lr=inf is no learning rate"]),
    "a learning rate that is none": (["optim.optimizer.lr=nan"], ["optim.optimizer.lr=nan is no learning rate"]),
    "a learning rate in words": (["optim.optimizer.lr=fast"], ["optim.optimizer.lr='fast' is no learning rate", "1.0e-5"]),
    "a negative weight decay": (["optim.weight_decay=-1"], ["optim.weight_decay=-1 must be 0 or more"]),
    "a value that torch refuses": (["optim.optimizer.eps=-1.0"], ["optim.optimizer refused its values", "epsilon"]),
    "no rows to score": (["max_dev=0"], ["max_dev=0 must be a number of rows"]),
    "less than a batch learnt": (["+trainer.limit_train_batches=0.00001"], ["trainer.limit_train_batches=1e-05:", "* 32 < 1"]),
    "batches that repeat": (["+trainer.overfit_batches=2"], ["trainer.overfit_batches", "limit_train_batches"]),
    "weights of half precision": (["trainer.precision=16-true"], ["trainer.precision=16-true", "16-mixed"]),
    "no devices": (["trainer.accelerator=cpu", "trainer.devices=0"], ["trainer: ", "devices=0"]),
    "a score that is not there": (
        ["callbacks.checkpoint.monitor=val/nothing", "optim=adamw_static", "trainer.val_check_interval=1"],
        ["trainer: ", "monitor='val/nothing'"],
    ),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_config_gives_one_clear_error(kind, compose_run, earlier):
    overrides, words = BAD_CONFIGS[kind]
    with pytest.raises(InputError) as caught:
        train(compose_run("task=[sample_sts]", *overrides))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [("export", "export/notes.txt"), ("result", "result.json")])
def test_a_folder_in_the_way_is_told_before_training(name, file, compose_run, tmp_path, monkeypatch):
    cfg = compose_run()
    mine = Path(cfg.paths.output_dir) / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    monkeypatch.setattr(single_run, "make_tasks", lambda cfg: pytest.fail("it has begun"))
    with pytest.raises(InputError, match=f"{name}.* it is kept"):
        train(cfg)
    assert mine.read_text() == "mine"


def test_diverged_weights_are_not_exported(compose_run, earlier):
    """A learning rate without measure makes NaN; what was there before stays."""
    with pytest.raises(InputError, match="not finite"):
        train(
            compose_run(*STS, *FEW, "optim.optimizer.lr=1.0e300", "optim.schedule=constant", "trainer.gradient_clip_val=null")
        )


# ---- the program


def program(*arguments, cwd):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_program_says_what_is_wrong_in_one_line(tmp_path, cache):
    done = program("task=[sample_sts]", "+trainer.max_step=3", f"paths.cache_dir={cache}", cwd=tmp_path)
    assert done.returncode == 1
    expected = "error: conf key trainer.max_step is unknown to lightning.pytorch.Trainer: did you mean max_steps?"
    assert done.stderr.strip().splitlines()[-1] == expected
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["zh_multitask", "zh_matryoshka", "simcse_zh"])
def test_other_tasks_take_the_place_of_an_experiment_s_own(name, tmp_path, cache, monkeypatch):
    """What its body sets for those is forgotten; what the command line sets for one that is not there is not."""
    monkeypatch.chdir(tmp_path)
    made = []

    def make(*more):
        given = [f"+experiment={name}", "task=[sample_sts,sample_pair]", f"paths.cache_dir={cache}", *more]
        monkeypatch.setattr(sys, "argv", ["acge", "train", *given])
        command("train", lambda cfg: made.append(single_run.make_tasks(cfg)))(2)

    make()
    assert made[0].keys() == {"sample_sts", "sample_pair"}
    with pytest.raises(SystemExit) as ended:
        make("+task.medical_q.weight=2")
    assert ended.value.code == "\nerror: task.medical_q.data is missing: say which data module and path"


def test_a_multirun_has_a_folder_a_job_and_one_summary(tmp_path, cache):
    """One of its jobs fails, and the others go on."""
    tiny = [
        "task=[sample_sts]",
        "encoder.dim=8",
        "encoder.tokenizer.vocab_size=1200",
        "debug=fast",
        f"paths.cache_dir={cache}",
        *FEW,
    ]
    done = program("-m", *tiny, "seed=1,2", "trainer.gradient_clip_val=1.0,none", cwd=tmp_path)
    assert done.returncode == 1
    (folder,) = (tmp_path / "multirun" / "train").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2", "3", "multirun.yaml", "summary.csv"]
    assert [(folder / str(i) / "export" / "modules.json").is_file() for i in range(4)] == [True, False, True, False]
    lines = (folder / "summary.csv").read_text().splitlines()
    assert lines[0] == "job,overrides,val/mean"
    scores = [json.loads((folder / i / "result.json").read_text())["after"]["val/mean"] for i in ("0", "2")]
    assert [float(line.rpartition(",")[2]) for line in lines[1:3]] == sorted(scores, reverse=True)
    assert "2 of the jobs failed" in done.stderr
    assert scores[0] != scores[1]


def test_a_config_folder_of_ones_own(tmp_path, cache, monkeypatch, capsys):
    """With --config-dir, an experiment and a data set need no file in the package."""
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "task").mkdir()
    shutil.copytree(SAMPLE / "pair" / "sample_zh", tmp_path / "pairs")
    data = {"_target_": "acge_lightning.data.PairDataModule", "path": str(tmp_path / "pairs")}
    (own / "task" / "mine.yaml").write_text(yaml.safe_dump({"mine": {"data": data | {"cache_dir": "${paths.cache_dir}"}}}))
    experiment = "# @package _global_\ndefaults:\n  - override /task: [mine]\nname: ours\nencoder: {dim: 8}\n"
    (own / "experiment" / "ours.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    given = ["--config-dir", str(own), "+experiment=ours", "debug=fast", f"paths.cache_dir={cache}"]
    monkeypatch.setattr(sys, "argv", ["acge", "train", *given])
    command("train")(2)
    (folder,) = (tmp_path / "outputs" / "ours").iterdir()
    assert "val/mine/ap" in json.loads((folder / "result.json").read_text())["after"]
    assert "The model is in" in capsys.readouterr().out
