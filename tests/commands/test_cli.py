"""What is typed after `acge`: commands, help, words without a key, mistakes; and what a start loads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from acge_lightning import __version__
from acge_lightning.commands import cli
from acge_lightning.commands.checks import check
from acge_lightning.commands.usage import USAGE
from acge_lightning.commands.words import with_keys
from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import arguments
from acge_lightning.errors import InputError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "pytorch_lightning", "transformers", "pandas", "sklearn", "wandb", "pyarrow", "scipy")


def typed(monkeypatch, *words):
    """What `acge` prints for words in this process, and how it ends."""
    monkeypatch.setattr(sys, "argv", ["acge", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- help


def test_a_line_for_each_command(monkeypatch, capsys):
    assert typed(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for name, usage in USAGE.items():
        assert re.search(rf"^  {name} +{re.escape(usage.summary)}", shown, re.MULTILINE)
    assert typed(monkeypatch) == 2


def test_every_command_is_there_and_has_a_config():
    files = {file.stem for file in (ROOT / "conf").glob("*.yaml")}
    assert files == set(USAGE) - {"models"}
    assert all((ROOT / "acge_lightning" / "commands" / f"{name}.py").is_file() for name in USAGE)


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["models", "--version"]])
def test_the_version(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["acge", *words])
    cli.main()
    assert capsys.readouterr().out == f"acge {__version__}\n"


@pytest.mark.parametrize("name", sorted(set(USAGE) - {"models"}))
def test_the_help_of_a_command_is_that_of_its_yaml(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["acge", name, "--help"])
    cli.main()
    shown = " ".join(capsys.readouterr().out.split())
    file = config_dir() / f"{name}.yaml"
    for key in yaml.safe_load(file.read_text(encoding="utf-8")):
        assert key in ("defaults", "hydra", "paths", "mixture") or f" {key}" in shown, key
    for comment in re.findall(r"^(?! )\w+: .* # (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE):
        assert " ".join(comment.split()) in shown
    for example in USAGE[name].examples:
        assert example in shown
    assert len(USAGE[name].examples) == 3
    assert f"acge {name} --cfg job" in shown
    assert not [file.stem for file in (config_dir() / "task").glob("*_zh.yaml") if file.stem in shown and name == "train"]


def test_the_help_of_a_group_lists_its_choices(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["acge", "train", "--help", "optim"])
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["adamw", "adamw_static", "adamw_static_low"]
    assert "AdamW with warm-up" in lines[1]
    assert "did you mean task?" in typed(monkeypatch, "train", "--help", "tsk")
    for words in (["search", "m", "s", "--help"], ["search", "-h", "m"], ["train", "name=x", "-h"]):
        monkeypatch.setattr(sys, "argv", ["acge", *words])
        cli.main()
        assert f"usage: acge {words[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for usage in USAGE.values() for line in usage.examples], ids=str)
def test_an_example_composes(line):
    """With what stands for folders and names as it is."""
    name, *words = re.findall(r"""(?:[^\s"'{]|"[^"]*"|\{[^}]*\})+""", line.removeprefix("acge "))
    if name == "models":
        return
    words = [word.strip('"') for word in words if word != "-m"]
    overrides = [word.replace("seed=1,2,3", "seed=1") for word in arguments(with_keys(name, words))]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        assert compose(name, overrides)


# ---- words without a key


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("search", ["m", "s"], ["model=m", "source=s"]),
        ("search", ["m", "s", "怎么 退货"], ["model=m", "source=s", 'query="怎么 退货"']),
        ("search", ["m", "s", "[求助]"], ["model=m", "source=s", 'query="[求助]"']),
        ("search", ["m", "s", "null"], ["model=m", "source=s", 'query="null"']),
        ("search", ["m", "s", "E=mc²"], ["model=m", "source=s", 'query="E=mc²"']),
        ("search", ["m", "s", "价格=?"], ["model=m", "source=s", 'query="价格=?"']),
        ("search", ["m", "s", "x.y=3"], ["model=m", "source=s", 'query="x.y=3"']),
        ("search", ["m", "k=3", "s"], ["model=m", "source=s", "k=3"]),
        ("search", ["model=m", "source=s", "query=a=b"], ["model=m", "source=s", "query=a=b"]),
        ("search", ["m", "s", "hydra.run.dir=x"], ["model=m", "source=s", "hydra.run.dir=x"]),
        ("evaluate", ["m", "数据 (1)", "dims=64,128"], ["model=m", "paths.data_dir=数据 (1)", "dims=[64,128]"]),
        ("evaluate", ["[bm25,m]", "tasks=sts"], ["model=[bm25,m]", "tasks=sts"]),
        ("evaluate", ["m", "-m", "tasks=sts,pair"], ["model=m", "-m", "tasks=sts,pair"]),
        ("report", ["a", "b c", "out=x.html"], ['runs=["a","b c"]', "out=x.html"]),
        ("report", ["{a: x}"], ["runs={a: x}"]),
        ("fisher", ["m", "~dims"], ["model=m", "~dims"]),
        ("pca", ["C:\\models\\a b"], ["model=C:\\models\\a b"]),
        ("train", ["experiment=quickstart", "+experiment=x"], ["+experiment=quickstart", "+experiment=x"]),
        ("train", ["--config-dir=x", "-m", "seed=1,2"], ["--config-dir=x", "-m", "seed=1,2"]),
        ("train", ["--multi", "-r", "--resolve", "--cfg=job"], ["--multi", "-r", "--resolve", "--cfg=job"]),
    ],
)
def test_a_word_gets_its_key(name, words, expected):
    assert with_keys(name, words) == expected


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("search", ["m", "model=n"], "MODEL is given twice, as 'm' and as 'model=n': leave one of them out"),
        ("search", ["m", "s", "q", "r"], "'r' has no key: acge search takes MODEL SOURCE"),
        ("search", ["m", "s", "kk=3"], "there is no key kk: did you mean k=3? For a text write query='kk=3'"),
        ("report", ["a", "runs=[b]"], "FOLDER … is given twice"),
        ("train", ["quickstart"], "'quickstart' has no key: did you mean +experiment=quickstart?"),
        ("train", ["--lr", "2e-5"], "there is no flag --lr: settings have no dashes, lr=…"),
        ("train", ["--optim.optimizer.lr=2e-5"], "settings have no dashes, optim.optimizer.lr=2e-5"),
        ("train", ["pairs.csv"], "'pairs.csv' has no key: acge train takes key=value only"),
        ("evaluate", ["m", "data", "more"], "'more' has no key: acge evaluate takes MODEL DATA_DIR and key=value"),
    ],
)
def test_a_word_that_does_not_fit_is_told(name, words, message):
    with pytest.raises(InputError) as error:
        with_keys(name, words)
    assert message in str(error.value)


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=1e-4"], "there is no key optim.lr: did you mean optim.optimizer.lr?"),
        (["lr=1e-4"], "there is no key lr: did you mean optim.optimizer.lr?"),
        (["seeed=1"], "there is no key seeed: did you mean seed?"),
        (["~seeed"], "there is no key seeed: did you mean seed?"),
        (
            ["experiment=quickstart", "trainer.max_step=3"],
            "trainer.max_step is unknown to lightning.pytorch.Trainer: did you mean max_steps?",
        ),
        (["optimizer=adamw"], "there is no key optimizer: did you mean optim?"),
        (["seeed=1", "trainer.max_step=3"], "there is no key seeed: did you mean seed?"),
        (["-m", "seed=1,2", "seeed=1"], "there is no key seeed: did you mean seed?"),
        (["trainer.limit_val_batches=5"], "to score fewer rows, set max_dev=500"),
        (["optim.clip=1"], "there is no key optim.clip: if acge_lightning.training.Optim takes it, write +optim.clip=1"),
        (["xyz=1"], "there is no key xyz: acge train --cfg job shows all of them"),
        (["task=[scored_pair]"], "task=scored_pair is not there: did you mean scored_pairs?"),
        (["encoder=statik"], "encoder=statik is not there: did you mean static?"),
        (["encoder=一"], "encoder=一 is not there: acge train --help encoder lists the 10 that are"),
        (["+experiment=quikstart"], "experiment=quikstart is not there: did you mean quickstart?"),
        (["seed=1,2"], "seed=1,2 gives several values: write seed=[1,2] for a list, or add -m for a run with each"),
        (["+seed=1"], "+seed: the key seed is there already: leave out the plus"),
        (["strateg=ewc"], "there is no key strateg: did you mean strategy?"),
        (["学习率=3"], "'学习率=3' has no key: acge train takes key=value only"),
        (["+experiment=finetune"], "paths.data must be given: paths.data=…"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(words, message, monkeypatch):
    ended = typed(monkeypatch, "train", *words)
    assert ended.startswith("\nerror: ")
    assert message in ended
    assert "\n" not in ended.strip()
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_mistake_in_a_folder_of_ones_own(empty_folder, monkeypatch):
    own = empty_folder / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nextra_key: {inner: 1}\n", encoding="utf-8")
    told = typed(monkeypatch, "train", "--config-dir", "own", "+experiment=mine", "extra_key.iner=2")
    assert told.strip() == "error: there is no key extra_key.iner: did you mean extra_key.inner?"


def test_all_baselines_pass_as_models_where_they_are_scored(empty_folder):
    from acge_lightning.evaluation.lexical import LEXICAL

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        check("evaluate", compose("evaluate", [f"model=[{','.join(LEXICAL)}]", f"paths.data_dir={empty_folder}"]))
        cfg = compose("pca", ["model=tfidf", "output=x"])
    with pytest.raises(InputError, match="'tfidf' is no folder"):
        check("pca", cfg)


def test_an_unknown_command(monkeypatch, capsys):
    assert typed(monkeypatch, "trian") == 2
    assert capsys.readouterr().err == "error: there is no command 'trian': did you mean acge train?\n"
    assert typed(monkeypatch, "xyz\x1b[2J") == 2
    assert capsys.readouterr().err == "error: there is no command 'xyz\\x1b[2J': acge --help lists them all\n"


# ---- what a start loads


def loaded(*words, path):
    """Heavy libraries that `acge` with these words has loaded when it ends, and the last line of what it printed."""
    code = "import sys, atexit\nfrom acge_lightning.commands.cli import main\nsys.argv = ['acge', *sys.argv[1:]]\n"
    code += f"atexit.register(lambda: print('LOADED', *(name for name in {HEAVY} if sys.modules.get(name))))\nmain()"
    env = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=280)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:]), (done.stderr.strip() or done.stdout).splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--help"], "usage: acge COMMAND"),
        (["--version"], "acge "),
        (["models"], "acge_text_embedding"),
        (["trian"], "error: there is no command"),
        (["search", "--help"], "usage: acge search MODEL SOURCE"),
        (["train", "optim.lr=1"], "error: there is no key optim.lr"),
        (["evaluate"], "error: model must be given: acge evaluate MODEL [DATA_DIR]"),
        (["evaluate", "bm25", "nowhere"], "error: paths.data_dir=nowhere is not there: "),
        (["evaluate", "nowhere", "."], "error: 'nowhere' is no folder"),
        (["search", "aspire/acge_text_embedding", "nowhere"], "error: source=nowhere is not there: "),
        (["train", "task=scored_pairs", "+paths.data=nowhere.csv"], "error: task.scored_pairs.data.path=nowhere.csv"),
        (["train", "+experiment=finetune", "paths.data=x.csv", "encoder.path=nowhere"], "error: 'nowhere' is no folder"),
        (["train", "+experiment=zh_multitask", "paths.data_dir=nowhere"], "error: task."),
        (["train", "logger=wandb"], "error: logger=wandb needs wandb: pip install 'acge-lightning[log]'"),
    ],
)
def test_what_needs_nothing_large_loads_nothing_large(words, message, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n", encoding="utf-8")
    libraries, lines = loaded(*words, path=tmp_path)
    assert libraries == set()
    assert any(line.startswith(message) for line in lines), lines


# ---- the Tab key

ASK = """
eval "$(acge -sc install=bash)"
complete -p acge
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE)
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("acge tr", {"train"}),
        ("acge ", set(USAGE)),
        ("acge train optim=", {"optim=adamw", "optim=adamw_static", "optim=adamw_static_low"}),
        ("acge train -m optim=adamw optim.optimizer.l", {"optim.optimizer.lr="}),
        ("acge search outputs/x notes fie", {"field="}),
        ("acge nonsense x", set()),
    ],
)
def test_bash_completes_words_once_acge_is_registered(line, expected):
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", ASK, "bash", line], env=env, capture_output=True, text=True, timeout=280)
    registered, *words = done.stdout.splitlines()
    assert registered.endswith("-F hydra_bash_completion acge")
    assert set(" ".join(words).split()) == expected
    assert done.stderr == ""
