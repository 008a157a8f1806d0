"""Every YAML under conf/ composes and builds what it names: experiments and sample tasks train, the others make one batch.

A new file without a case here fails.
"""

import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from acge_lightning.callbacks.matryoshka import MatryoshkaSchedule
from acge_lightning.commands.encoder_defaults import follow_encoder
from acge_lightning.commands.single_run import checked, make_encoder, make_tasks, make_trainer, train
from acge_lightning.commands.stages import sequence
from acge_lightning.config.building import instantiate
from acge_lightning.config.secrets import recorded
from acge_lightning.config.sources import config_dir
from acge_lightning.continual.strategy import ones
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.zoo.pretrained import load

CONF = config_dir()
FILES = sorted(str(p.relative_to(CONF).with_suffix("")) for p in CONF.rglob("*.yaml"))
ONE_TASK = "task=[sample_sts]"
TINY = ["encoder.dim=16", "encoder.tokenizer.vocab_size=900"]
SMALL = ["encoder=pretrained", "encoder.path={encoder}"]
BERT = [
    "encoder.config.hidden_size=16",
    "encoder.config.num_hidden_layers=1",
    "encoder.config.num_attention_heads=2",
    "encoder.config.intermediate_size=32",
    "encoder.tokenizer.vocab_size=900",
]
QUICK = ["++encoder.max_length=24", "trainer.accelerator=cpu"]
# What a file needs beside `<group>=<name>` to be tried in a moment; None: it is no part of a training run.
CASES = {
    "train": [],
    "vocabulary": None,
    "report": None,
    "pca": None,
    "search": None,
    "clean": None,
    "mine": None,
    "fisher": None,
    "evaluate": None,
    "longtail": None,
    "sweep/quickstart": None,
    "callbacks/ewc": [ONE_TASK, *SMALL, "callbacks.ewc.anchors={anchor}"],
    **dict.fromkeys(("experiment/continual_zh", "experiment/continual_en", "experiment/adapt")),  # several runs: see below
    **{
        f"experiment/{name}": None for name in ("simcse_zh", "m3e", "piccolo2", "stella_mrl", "acge")
    },  # test_recipes.py has them
    "experiment/zoo_nano": None,  # `make zoo-check` has it
    **{f"strategy/{file.stem}": None for file in (CONF / "strategy").glob("*.yaml")},  # commands/test_stages.py has them all
    "callbacks/refresh_negatives": ["task=[sample_retrieval]", *SMALL],
    "callbacks/evaluation": [ONE_TASK, *SMALL, "callbacks.evaluation.tasks=[stsb_zh]"],
    "debug/fast": [ONE_TASK, *SMALL],
    **{f"encoder/static{kind}": [ONE_TASK, *TINY] for kind in ("", "_small", "_large", "_dropout", "_zh")},
    "encoder/bert_mini": [ONE_TASK, *BERT],
    "encoder/bert_base": [ONE_TASK, *BERT],
    "encoder/acge_large": [ONE_TASK, *BERT, "encoder.dense=24"],
    "encoder/pretrained": [ONE_TASK, "encoder.path={encoder}"],
    "encoder/grown": [ONE_TASK, "encoder.path={encoder}", "encoder.num_hidden_layers=1"],
    "experiment/quickstart": ["encoder.tokenizer.vocab_size=900"],
    "experiment/zh_multitask": ["encoder.tokenizer.vocab_size=900"],
    "experiment/zh_matryoshka": [
        *("encoder.tokenizer.vocab_size=900", "encoder.dense=64", "matryoshka.dims=[64,56,48,32,16,8,4]", "components=400")
    ],
    "experiment/zoo_static": ["encoder.tokenizer.vocab_size=900", "paths.passages={data}/unlabelled/laws"],
    "experiment/zoo_weak": [
        *("encoder.path={encoder}", "encoder.dim=16", "encoder.num_hidden_layers=1", "encoder.num_attention_heads=2"),
        "paths.passages={data}/unlabelled/laws",
    ],
    "experiment/to_matryoshka": ["encoder.path={encoder}", "matryoshka.dims=[16,14,12,10,8,6,4]"],
    "experiment/finetune": ["encoder.path={encoder}", "paths.data={data}/sts/stsb_zh"],
    "experiment/pretrain_zh": BERT,
    "module/embedding": [ONE_TASK, *SMALL],
    "module/masked_lm": ["task=[sample_unlabelled]", "++task.sample_unlabelled.data.holdout=0.1", "encoder=bert_mini", *BERT],
    "matryoshka/halves": [ONE_TASK, *SMALL],
    **{
        f"matryoshka/{name}": [ONE_TASK, *SMALL, "encoder.dense=1792"]
        for name in (
            *("acge", "acge_tempered", "coarse_to_fine", "multiples_of_128", "multiples_of_256", "none", "random", "stages"),
        )
    },
    "logger/wandb": [ONE_TASK, *SMALL, "logger.wandb.offline=true"],
    "loss/info_nce": ["task=[sample_retrieval]", *SMALL],
    "loss/info_nce_symmetric": ["task=[sample_retrieval]", *SMALL],
    "loss/info_nce_own": ["task=[sample_reranking]", *SMALL],
    "loss/sim_cse": ["task=[sample_unlabelled,sample_sts]", *SMALL],
    "loss/cosent": ["task=[sample_sts]", *SMALL],
    "loss/label_contrast": ["task=[sample_classification]", *SMALL],
}
for _file in FILES:
    if _file.startswith(("callbacks/", "logger/", "optim/", "paths/", "trainer/")):
        CASES.setdefault(_file, [ONE_TASK, *SMALL])
OWN_DATA = {
    "scored_pairs": "sts/stsb_zh",
    "labelled_pairs": "pair/bustm",
    "triplets": "reranking/qbqtc_ltr",
    "texts": "unlabelled/laws",
    "labelled_texts": "classification/tnews",
    "reranking_lists": "reranking/qbqtc_ltr",
    "passages": "unlabelled/laws",
}


def composed(overrides, name="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def selecting(file):
    """The overrides that bring a file into the composition."""
    group, _, name = file.rpartition("/")
    if group == "experiment":
        return [f"+experiment={name}"]
    if group == "callbacks":
        return [f"callbacks=[{name}]" if name == "progress" else f"callbacks=[progress,{name}]"]
    return [f"{group}={name}"] if group and group != "loss" else []


def filled(overrides, out, data, encoder, cache):
    """The whole config of a case."""
    given = [o.replace("{encoder}", str(encoder)).replace("{data}", str(data)) for o in overrides]
    if any("{anchor}" in o for o in given):
        file = ones(load(encoder)).save(out / "old.safetensors")
        given = [o.replace("{anchor}", str(file)) for o in given]
    given += QUICK if any("debug" in o for o in given) else ["debug=fast", *QUICK]
    cfg = composed([*given, f"paths.output_dir={out}", f"paths.data_dir={data}", f"paths.cache_dir={cache}"])
    for task in cfg.task.values():
        OmegaConf.update(task, "data.max_dev", 40, force_add=True)
    return cfg


def run(*case):
    """Train under a case's config; it, and the score."""
    cfg = filled(["callbacks.progress=null", *case[0]], *case[1:])
    return cfg, (sequence if cfg.stages else train)(cfg)


def built(*case):
    """Make what `train` makes of a case's config, up to its first batch: the module, the trainer, the mixture, the batch."""
    cfg = filled(*case)
    checked(cfg)
    tasks = make_tasks(cfg)
    given = {"tasks": {n: t.data for n, t in tasks.items()}, "weights": {n: t.weight for n, t in tasks.items()}}
    mixture = instantiate(cfg.mixture, **given)
    mixture.setup()
    encoder = make_encoder(cfg, Texts(mixture.train_texts))
    mixture.bind(encoder)
    follow_encoder(cfg, encoder)
    module = instantiate(cfg.module, encoder=encoder, tasks=tasks, config=recorded(cfg))
    module.trainer = mixture.trainer = trainer = make_trainer(cfg)
    module.log = lambda *args, **kwargs: None
    optimizer = module.optim.configure(module, 10)["optimizer"]
    for schedule in (c for c in trainer.callbacks if isinstance(c, MatryoshkaSchedule)):
        schedule.on_fit_start(trainer, module)
        schedule.on_train_batch_start(trainer, module, None, 0)
    batch = next(iter(mixture.train_dataloader()))
    module.training_step(batch).backward()
    assert sum(float(p.grad.abs().sum()) for group in optimizer.param_groups for p in group["params"]) > 0
    optimizer.step()
    return module, mixture, batch


def scores_of(module, mixture):
    """Those of the dev splits by task, as in a validation."""
    for batch in (batch for loader in mixture.val_dataloader() for batch in loader):
        module.validation_step(batch, 0)
    return {name: metric.compute() for name, metric in module.metrics.items() if metric.update_called}


def test_no_file_is_without_a_case():
    tasks = {f for f in FILES if f.startswith("task/")}  # those of families are part of each of their tasks
    assert set(FILES) - tasks == set(CASES)
    assert len(tasks) > 40


@pytest.mark.parametrize("file", [f for f, extra in CASES.items() if f.startswith("experiment/") and extra is not None])
def test_an_experiment_trains(file, tmp_path, data_sets, small_encoder, cache):
    _, mean = run([*selecting(file), *CASES[file]], tmp_path, data_sets, small_encoder, cache)
    assert 0 <= mean <= 1
    outputs = [p for p in ("export", "backbone") if (tmp_path / p).is_dir()]
    assert len(outputs) == 1
    assert json.loads((tmp_path / outputs[0] / "training.json").read_text())["metrics"]["val/mean"] == mean
    assert json.loads((tmp_path / "result.json").read_text())["after"]["val/mean"] == mean
    assert [p.parent.name for p in tmp_path.rglob("modules.json")] == (["export"] if outputs == ["export"] else [])


@pytest.mark.parametrize("file", [f for f, extra in CASES.items() if not f.startswith("experiment/") and extra is not None])
def test_a_file_builds_what_takes_a_step(file, tmp_path, data_sets, small_encoder, cache):
    extra = CASES[file]
    group, _, name = file.partition("/")
    if group == "loss":
        task = extra[0].partition("[")[2].rstrip("]").split(",")[0]
        extra = [*extra, f"+loss@task.{task}.loss={name}"]
    module, mixture, batch = built([*selecting(file), *extra], tmp_path, data_sets, small_encoder, cache)
    assert len(batch) > 1
    if group == "callbacks":
        target = yaml.safe_load((CONF / f"{file}.yaml").read_text(encoding="utf-8"))[name]["_target_"].rpartition(".")[2]
        assert target in [type(callback).__name__ for callback in module.trainer.callbacks]
    assert all(len(mixture.evaluation(name, "dev")) for name in mixture.evaluated("dev"))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("continual_zh", TINY),
        ("continual_en", ["encoder.path={encoder}"]),
        ("adapt", ["encoder.path={encoder}", "paths.data={data}/sts/stsb_zh", "strategy=ewc_replay"]),
    ],
)
def test_an_experiment_of_several_stages_runs(name, extra, tmp_path, data_sets, small_encoder, cache):
    extra = [*extra, "fisher={samples: 40, pool: 40}"]
    cfg, mean = run([f"+experiment={name}", *extra], tmp_path, data_sets, small_encoder, cache)
    found = json.loads((tmp_path / "forgetting.json").read_text())
    assert found["tasks"] == list(cfg.stages)
    assert json.loads((tmp_path / "result.json").read_text())["after"]["val/mean"] == mean
    assert (tmp_path / "export" / "modules.json").is_file()


@pytest.mark.parametrize("name", ["quickstart", "zh_multitask"])
def test_any_experiment_takes_a_pretrained_encoder(name, tmp_path, data_sets, small_encoder, cache):
    dim = load(small_encoder).dim
    module, *_ = built([f"+experiment={name}", *SMALL], tmp_path, data_sets, small_encoder, cache)
    assert "tokenizer" not in module.hparams["config"]["encoder"]
    assert module.encoder.matryoshka_dims == (dim, dim // 2)
    assert module.encoder.dim == dim


TASKS = sorted(f.partition("/")[2] for f in FILES if f.startswith("task/") and f.count("/") == 1)


def of_task(name, data):
    """Overrides for a task beside sample_sts, which scores the family without a score, and trains where the task does not."""
    watched = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text(encoding="utf-8"))[name].get("weight") == 0
    key = "paths.passages" if name == "passages" else "paths.data"
    own = [f"+{key}={data}/{OWN_DATA[name]}"] if name in OWN_DATA else []
    if name == "sample_sts":
        return [*SMALL, "task=[sample_sts]"], watched
    return [*SMALL, *own, f"task=[{name},sample_sts]", *([] if watched else ["+task.sample_sts.weight=0"])], watched


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("sample_")])
def test_a_family_trains(name, tmp_path, data_sets, small_encoder, cache):
    overrides, _ = of_task(name, data_sets)
    run([*overrides, "trainer.log_every_n_steps=1"], tmp_path, data_sets, small_encoder, cache)
    scored = json.loads((tmp_path / "result.json").read_text())["after"]
    assert any(key.startswith(f"val/{name}/") for key in scored) or name == "sample_unlabelled"
    logged = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().partition("\n")[0].split(",")
    assert f"train/{name}/loss" in logged


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("sample_")])
def test_a_task_makes_a_batch_and_is_scored(name, tmp_path, data_sets, small_encoder, cache):
    overrides, watched = of_task(name, data_sets)
    module, mixture, batch = built(overrides, tmp_path, data_sets, small_encoder, cache)
    assert batch.task == ("sample_sts" if watched else name)
    unscored = module.tasks[name].data.family == "unlabelled" or name.startswith("pairs_")  # all of whose rows are trained on
    assert set(scores_of(module, mixture)) == ({"sample_sts"} if unscored else {name, "sample_sts"})


def test_the_vocabulary_program(tmp_path, cache):
    cfg = composed([f"output={tmp_path}", f"paths.cache_dir={cache}", "vocabulary.vocab_size=600"], "vocabulary")
    from acge_lightning.commands.vocabulary import run as vocabulary_command

    vocabulary_command(cfg)
    from acge_lightning.encoder.build import read_tokenizer

    assert 300 < len(read_tokenizer(tmp_path)) <= 600


def test_the_component_program(tmp_path, small_encoder, cache):
    from acge_lightning.commands.pca import run as pca_command
    from acge_lightning.zoo.pretrained import load

    given = [f"model={small_encoder}", f"output={tmp_path}", f"paths.cache_dir={cache}", "texts=500"]
    pca_command(composed(given, "pca"))
    vectors = load(tmp_path).encode(["今天天气很好", "how do I return this"])
    assert vectors.shape == (2, load(small_encoder).dim)


def test_the_fisher_program(tmp_path, small_encoder, cache, capsys):
    from acge_lightning.commands.fisher import run as fisher_command
    from acge_lightning.continual.anchor import Anchor
    from acge_lightning.errors import InputError
    from acge_lightning.zoo.pretrained import load

    given = [f"model={small_encoder}", f"paths.cache_dir={cache}", "samples=20", "pool=20", "bf16=true"]
    fisher_command(composed([*given, f"output={tmp_path}/deep/old.safetensors"], "fisher"))
    anchor = Anchor.load(tmp_path / "deep" / "old.safetensors")
    assert anchor.check(dict(load(small_encoder).named_parameters())) == []
    assert set(anchor.meta["tasks"]) == {"sample_retrieval", "sample_sts", "sample_classification"}
    assert "20 of sample_sts" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["old.safetensors"]
    fisher_command(
        composed([*given, f"output={tmp_path}/true.safetensors", "estimator=true", "task=[sample_retrieval]"], "fisher")
    )
    assert Anchor.load(tmp_path / "true.safetensors").meta["estimator"] == "true", "which YAML reads as a boolean"
    assert "(true, samples" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        fisher_command(composed([*given, f"output={tmp_path}/old"], "fisher"))


def test_the_evaluation_program(tmp_path, small_encoder, cache, capsys):
    sample = Path(__file__).parents[1] / "acge_lightning" / "sample"
    out = tmp_path / "results.json"
    overrides = [f"model=[tfidf,{small_encoder}]", f"paths.data_dir={sample}", f"out={out}", f"paths.cache_dir={cache}"]
    overrides.append("paths.output_dir=.")
    from acge_lightning.commands.evaluate import run as evaluate_command

    evaluate_command(composed([*overrides, "tasks=[sts,pair]", "dims=[8]"], "evaluate"))
    assert {row["dim"] for row in json.loads(out.read_text())["rows"]} == {None, 16, 8}
    assert "Leak check" in capsys.readouterr().out


def test_the_longtail_program(tmp_path, small_encoder, cache, capsys):
    sample = Path(__file__).parents[1] / "acge_lightning" / "sample"
    out = tmp_path / "longtail.json"
    overrides = [f"model={small_encoder}", f"paths.data_dir={sample}", f"out={out}", f"paths.cache_dir={cache}"]
    overrides += ["paths.output_dir=.", "tasks=classification", "dims=[8]", "protocol.shots=[1,3]", "protocol.head_shots=8"]
    from acge_lightning.commands.longtail import run as longtail_command

    longtail_command(composed([*overrides, "protocol.seeds=2", "protocol.perturbations=[clean,width]"], "longtail"))
    assert {row["dim"] for row in json.loads(out.read_text())["rows"]} == {16, 8, None}
    assert {file.name for file in tmp_path.glob("*.png")} == {"longtail-sample_zh.png", "longtail-sample_zh-perturbed.png"}
    assert "accuracy on tail" in capsys.readouterr().out


def test_the_report_program(tmp_path, capsys):
    (tmp_path / "result.json").write_text('{"before": {}, "after": {"val/mean": 0.125}}')
    out = tmp_path / "page.html"
    from acge_lightning.commands.report import run as report_command

    report_command(composed([f"runs=[{tmp_path}]", f"out={out}"], "report"))
    assert "0.1250" in out.read_text(encoding="utf-8")
    said = capsys.readouterr()
    assert said.out == f"The report is in {out}\n"
    assert f"{tmp_path / 'csv'} is missing" in said.err


def test_the_figures_of_a_report_are_written_as_pictures(tmp_path, capsys):
    from PIL import Image

    from acge_lightning.commands.report import run as report_command

    (tmp_path / "result.json").write_text('{"before": {"val/mean": 0.1}, "after": {"val/mean": 0.125}}')
    given = [f"runs=[{tmp_path}]", f"out={tmp_path / 'page.html'}", f"pictures={tmp_path / 'new' / 'pictures'}"]
    report_command(composed(given, "report"))
    files = list((tmp_path / "new" / "pictures").glob("*.png"))
    assert [file.name for file in files] == ["scores.png"]
    with Image.open(files[0]) as picture:
        assert picture.width > 600
        assert len(set(picture.convert("L").tobytes())) > 20, "something is drawn"
    assert "1 pictures are in" in capsys.readouterr().out


def test_the_figures_of_a_report_go_to_a_logger_too(tmp_path, capsys):
    from acge_lightning.commands.report import run as report_command
    from acge_lightning.errors import InputError

    (tmp_path / "result.json").write_text('{"before": {}, "after": {"val/mean": 0.125}}')
    asked = [f"runs=[{tmp_path}]", f"out={tmp_path / 'page.html'}", f"paths.output_dir={tmp_path}"]
    report_command(composed([*asked, "logger=tensorboard"], "report"))
    assert pictures(tmp_path / "tensorboard") == {"scores"}
    with pytest.raises(InputError, match="CSVLogger takes no pictures"):
        report_command(composed([*asked, "logger=csv"], "report"))


def pictures(folder):
    """Names of the pictures in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return set(EventAccumulator(str(folder)).Reload().Tags()["images"])


def test_the_command_lines_of_a_sweep_work(tmp_path, data_sets, small_encoder, cache):
    """As the agent expands them: one value a parameter, in place of ${args_no_hyphens}."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    for file in (CONF / "sweep").glob("*.yaml"):
        sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert sweep["metric"] == {"name": "val/mean", "goal": "maximize"}
        assert (Path(__file__).parents[1] / sweep["program"]).is_file()
        for last in (False, True):
            values = {k: {"value": v["values"][-1 if last else 0]} for k, v in sweep["parameters"].items()}
            line = create_sweep_command_args({"args": values})["args_no_hyphens"]
            command = sweep["command"]
            overrides = [*command[command.index("${program}") + 1 : command.index("${args_no_hyphens}")], *line]
            assert command[-1] == "${args_no_hyphens}"
            extra = ["logger.wandb.offline=true", "encoder.tokenizer.vocab_size=900"]
            module, *_ = built([*overrides, *extra], tmp_path / str(last), data_sets, small_encoder, cache)
            config = OmegaConf.create(module.hparams["config"])
            for key, value in values.items():
                assert OmegaConf.select(config, key) == value["value"]


@pytest.mark.parametrize("file", FILES)
def test_comments_say_what_it_is(file):
    """A file is read by people first."""
    text = (CONF / f"{file}.yaml").read_text(encoding="utf-8")
    group = file.partition("/")[0]
    assert group in ("callbacks", "logger", "paths", "task", "trainer") or "# " in text


def test_the_losses_of_the_yaml_are_the_defaults_of_the_families():
    from acge_lightning import data as families

    by_default = {
        "info_nce": families.RetrievalDataModule,
        "info_nce_own": families.RerankingDataModule,
        "cosent": families.STSDataModule,
        "label_contrast": families.ClusteringDataModule,
        "sim_cse": families.UnlabelledDataModule,
    }
    for name, family in by_default.items():
        made = instantiate(composed([f"+loss@loss={name}"]).loss)
        expected = family.default_loss()
        assert type(made) is type(expected)
        assert vars(made).keys() == vars(expected).keys()
        plain = {k: v for k, v in vars(expected).items() if not k.startswith("_")}
        assert {k: vars(made)[k] for k in plain} == plain
