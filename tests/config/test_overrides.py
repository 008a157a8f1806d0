"""What is typed on the command line is what arrives in the config, and Hydra's own forms keep their meaning."""

import os
import sys
from unittest.mock import patch

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from acge_lightning.commands import cli
from acge_lightning.commands.program import program
from acge_lightning.config.building import plain
from acge_lightning.config.overrides import arguments, restated


def composed(name, *typed):
    """The configs that the command's jobs get."""
    configs = []

    def keep(cfg):
        configs.append(plain(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])))

    no_check = patch("acge_lightning.commands.program.check")  # what is named here is not there
    with no_check, patch(f"acge_lightning.commands.{name}.run", keep), patch.object(sys, "argv", ["acge", name, *typed]):
        cli.main()
    return configs


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evaluated(*typed):
    (config,) = composed("evaluate", *(typed if any(t.startswith("model=") for t in typed) else ("model=m", *typed)))
    return config


def searched(*typed):
    (config,) = composed("search", "model=m", "source=s", *typed)
    return config


WORDS = [
    *(
        "数据/训练.jsonl",
        "模型",
        "notes (1)",
        "[求助] 怎么退货",
        '"退货" 怎么办',
        "'a' or 'b'",
        "a=b",
        "#1",
        "50%",
        "(",
        ":",
        "a, b",
    ),
    *(
        "$",
        "${x",
        "{x}",
        "a\\",
        '\\"',
        " x ",
        "\t",
        "😀",
        "true",
        "12",
        "1e5",
        "0x1",
        "str(3)",
        "range(1,4)",
        "it's",
        "~a",
        "[a",
    ),
    *("a]", "[a] [b]", "{a} b", "x" * 3000, "长" * 1000, "a\nb", "C:\\new (1)\\x", "1_000", "", "~/a", "a/../b", "nan"),
]


def test_words_arrive_as_they_are_typed():
    (config,) = composed("search", "model=模 型", "source=notes (1)", *(f"+paths.w{i}={word}" for i, word in enumerate(WORDS)))
    assert list(config["paths"].values()) == WORDS
    assert (config["model"], config["source"]) == ("模 型", "notes (1)")


@pytest.mark.parametrize("key", ["query", "model", "source", "out", "runs", "resume", "task.mine.data.path", "+encoder.path"])
def test_keys_that_hold_texts(key):
    assert [value_of(argument) for argument in arguments([f"{key}={word}" for word in WORDS])] == WORDS


def value_of(override):
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


LETTERS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
GRAMMAR = st.text(st.sampled_from("\\\"'$[]{}(),:=# %\t~+-@a1退😀.|&!`"), max_size=14)


def has_a_form(text, key):
    """Whether it is more than its letters, by the rule that the README gives."""
    whole = text[:1] + text[-1:]
    return text.lower() == "null" or whole in ("[]", "{}", "''", '""') or ("${" in text and key != "query") or text == "???"


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.heavy)])
def test_any_text_arrives_as_it_is_typed(count):
    @settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.one_of(LETTERS, GRAMMAR))
    def arrives(text):
        keys = [key for key in ("query", "model", "source", "paths.data") if not has_a_form(text, key)]
        config = searched(*(f"{'+' if '.' in key else ''}{key}={text}" for key in keys))
        config["paths.data"] = config.get("paths", {}).get("data")
        assert {key: config[key] for key in keys} == dict.fromkeys(keys, text)

    arrives()


@settings(max_examples=300, deadline=None)
@given(st.one_of(LETTERS, GRAMMAR), st.sampled_from(["query", "model", "paths.data", "name"]))
def test_a_job_of_a_multirun_says_it_again_in_the_same_words(text, key):
    """As the devices and processes of a multirun's job get it: through the sweep, then through our quoting once more."""
    if has_a_form(text, key):
        return
    assert value_of(arguments([f"{key}={text}"])[0]) == text
    if "," in text or "(" in text:  # perhaps a sweep
        return
    override = arguments([f"{key}={text}", "-m"])[0]
    ((job,),) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([override]), None)[0]
    assert [value_of(again) for again in (job, restated(job), *arguments([restated(job)]))] == [text] * 3


@pytest.mark.parametrize(
    ("typed", "key", "expected"),
    [
        ("dims=[64,256]", "dims", [64, 256]),
        ("dims=64", "dims", [64]),
        ("dims=64,256", "dims", [64, 256]),
        ("tasks=eprstmt", "tasks", ["eprstmt"]),
        ("tasks=问答,sts", "tasks", ["问答", "sts"]),
        ("tasks=null", "tasks", None),
        ("processes=2", "processes", 2),
        ("suite=null", "suite", None),
        ("model=[bm25,模型 (1),'a, b']", "model", ["bm25", "模型 (1)", "a, b"]),
        ("model={plain: 模型/一, mrl: b}", "model", {"plain": "模型/一", "mrl": "b"}),
        ("model=[1,2]", "model", ["1", "2"]),
        ("model='[退货]'", "model", "[退货]"),
        ('model="a b"', "model", "a b"),
        ("tasks=[问答,sts]", "tasks", ["问答", "sts"]),
        ("prompts={query: 问}", "prompts", {"query": "问"}),
        ("prompts={query: '问: '}", "prompts", {"query": "问: "}),
        ("out=null", "out", None),
        ("device=cuda:0", "device", "cuda:0"),
        ("+new={a: [1, 二], b: {c: 三}}", "new", {"a": [1, "二"], "b": {"c": "三"}}),
        ("paths.data_dir=${oc.env:HOME}/x", "paths.data_dir", os.environ["HOME"] + "/x"),
        ("paths.data_dir=${oc.env:HOME}/数据 (1)", "paths.data_dir", os.environ["HOME"] + "/数据 (1)"),
        ("++processes=3", "processes", 3),
        ("~processes", "processes", None),
    ],
)
def test_the_forms_of_hydra_keep_their_meaning(typed, key, expected):
    assert OmegaConf.select(OmegaConf.create(evaluated(typed)), key) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model=a,b", ["a", "b"]),
        ("model=模型 (1),b c", ["模型 (1)", "b c"]),
        ("model='a,b',3", ["a,b", "3"]),
        ("model=[模型,a],b", [["模型", "a"], "b"]),
        ("model=choice(a,b)", ["a", "b"]),
        ("model=一", ["一"]),
    ],
)
def test_a_sweep_is_one_and_its_values_are_quoted_too(typed, expected):
    assert [config["model"] for config in composed("evaluate", "-m", "hydra.sweep.dir=s", typed)] == expected


def test_sweeps_of_numbers():
    assert [c["processes"] for c in composed("evaluate", "-m", "hydra.sweep.dir=s", "model=m", "processes=1,2")] == [1, 2]
    assert [c["processes"] for c in composed("evaluate", "-m", "hydra.sweep.dir=s", "model=m", "processes=range(1,4)")] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("+labels={相似: 1, 不相似: 0}", {"相似": 1, "不相似": 0}),
        ("+labels={'说 不清': null, \"是\": 1, n/a: 0, 😀: x}", {"说 不清": None, "是": 1, "n/a": 0, "😀": "x"}),
        ("+labels={0: 1, 1: null, 一: {二: 三}}", {0: 1, 1: None, "一": {"二": "三"}}),
        ("+labels=[{甲: a}, b]", [{"甲": "a"}, "b"]),
    ],
)
def test_names_of_a_mapping_arrive_as_they_are_typed(typed, expected):
    assert evaluated(typed)["labels"] == expected


def test_names_of_models_may_be_chinese():
    assert evaluated("model={普通: a, b: c}")["model"] == {"普通": "a", "b": "c"}


def test_an_escape_that_is_not_ours_stays():
    assert evaluated(r"+labels={\U00000061: 1}")["labels"] == {r"\U00000061": 1}


def test_an_ambiguous_value_is_told():
    with pytest.raises(SystemExit) as stopped:
        evaluated("processes=1,2")
    assert stopped.value.code.startswith("\nerror: processes=1,2 gives several values: write processes=[1,2] for a list")


def test_every_program_takes_them_and_train_py_too(monkeypatch):
    (config,) = composed("train", "name=我的 (1)", "+paths.data=数据/训练.jsonl", "resume=检查点.ckpt", "~trainer.plugins")
    assert (config["name"], config["paths"]["data"], config["resume"]) == ("我的 (1)", "数据/训练.jsonl", "检查点.ckpt")
    typed = {"pca": "output=主 成分", "fisher": "output=锚 (1)", "vocabulary": "output=词表", "report": "out=报告 (1).html"}
    for name, text in (typed | {"longtail": "out=长尾 (1).json"}).items():
        key, _, value = text.partition("=")
        needed = {"report": ["runs=[运行 1,运行 2]"], "vocabulary": []}.get(name, ["model=模 型"])
        (config,) = composed(name, *needed, text, *(["tasks=[问答]"] if name == "longtail" else []))
        assert config[key] == value
        assert config.get("runs", ["运行 1", "运行 2"]) == ["运行 1", "运行 2"]
    configs = []
    monkeypatch.setattr(sys, "argv", ["train.py", "name=我的 (1)"])
    program("train", configs.append)()
    assert configs[0].name == "我的 (1)"
