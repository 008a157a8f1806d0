"""Every fenced command of the READMEs and of docs/ works as it is written, from an empty folder with the installed `acge`.

A page is run from its first to its last block: blocks that show a file (the line before names it) are written, shell blocks go
to bash, Python blocks to Python. What a reader has at hand lies there under the very names that the pages use: `workplace`.
`NOT_RUN` lists what a machine of the tests lacks; those commands are composed instead. One page runs in the default suite, the
others are long.
"""

import csv
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pages
import pytest
from conftest import SAMPLE
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from acge_lightning.commands.usage import USAGE
from acge_lightning.commands.words import with_keys
from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import arguments

NOT_RUN = {  # pattern of a command -> what it needs
    r"make ": "an environment of its own, and minutes: .ci/run and the heavy tests run these targets",
    r"pip install ": "a package index",
    r"wandb ": "an account of W&B",
    r".*suite=cmteb": "benchmark data from the hub, and hours",
    r".*paths\.data_dir=DIR(?!.*suite=local)": "benchmark data",
    r"torchrun ": "several machines",
    r"ray start ": "several machines",
    r".*ray_address=": "a cluster",
    r".*trainer\.(devices=[48]|num_nodes)": "several GPUs",
}
MEASURED = (  # whose commands need benchmark data and hours, or files of a reader
    "docs/matryoshka.md",
    "docs/continual.md",
    "docs/evaluation.md",
    "docs/forensics.md",
)
SAME = {"公司数据.csv": "pairs.csv"}  # of a Chinese page -> of its English one


def why_not(command):
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def english(page):
    """The page that a Chinese one says in Chinese."""
    name = pages.name(page).replace("docs/zh/", "docs/").replace("README.zh.md", "README.md")
    return pages.ROOT / name


CHINESE = [page for page in pages.PAGES if english(page) != page]
KEPT = [page for page in pages.PAGES if page not in CHINESE and pages.name(page) not in MEASURED]
RUN = [page for page in KEPT if any(why_not(command) is None for command in pages.commands(page))]


# ---- what a reader has at hand


def rows(name, limit=None):
    [file] = SAMPLE.glob(f"{name}.jsonl*")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:limit]


def write_csv(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8-sig", newline="") as lines:
        writer = csv.DictWriter(lines, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


@pytest.fixture
def workplace(tmp_path, small_encoder):
    """A folder with what the pages name: an encoder, files of rows, a folder of data sets, notes."""
    shutil.copytree(small_encoder, tmp_path / "FOLDER")
    for name in ("pairs.csv", "公司数据.csv"):
        write_csv(tmp_path / name, rows("sts/sample_zh/train", 400))
    for split in ("train", "test"):
        write_csv(tmp_path / "data" / "sts" / "company" / f"{split}.csv", rows(f"sts/sample_zh/{split}"))
    (tmp_path / "data" / "retrieval").mkdir()
    shutil.copytree(SAMPLE / "retrieval" / "sample_zh", tmp_path / "data" / "retrieval" / "faq")
    shutil.copytree(tmp_path / "data", tmp_path / "DIR")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "售后.md").write_text(
        "# 售后\n\n签收后七天内可以无理由退货。\n\n退款三个工作日内原路退回。\n", encoding="utf-8"
    )
    (tmp_path / "notes" / "常见问题.txt").write_text("发票可以在订单页面申请。\n会员积分每年年底清零。\n", encoding="utf-8")
    (tmp_path / "questions.txt").write_text("怎么退货\n发票在哪里开\n积分会清零吗\n", encoding="utf-8")
    return tmp_path


# ---- all commands compose


def test_there_is_something_to_check():
    every = [command for page in pages.PAGES for command in pages.commands(page)]
    assert len(every) > 60
    assert pages.kinds() == set()
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, command) for command in every)] == []
    assert not any("train.py" in command for command in every)  # which a wheel lacks


def write_files(page, folder):
    for block in pages.blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")


def acge_commands(page):
    """The commands of a page that compose a config, in words."""
    every = [words for words in map(shlex.split, pages.commands(page)) if "acge" in words]
    return [words for words in every if not {"--help", "--version"} & set(words)]


def overrides(words, folder):
    """The overrides of a command for a composition in this process; of the values of a sweep the first."""
    name, words = words[words.index("acge") + 1], words[words.index("acge") + 2 :]
    if "--config-dir" in words:
        at = words.index("--config-dir")
        words[at : at + 2] = [f"hydra.searchpath=[file://{folder / words[at + 1]}]"]
    if "-m" in words:
        words = [re.sub(r"^([\w.]+=[^,\[{]+),.*", r"\1", word) for word in words if word != "-m"]
    for odd, length in (("--cfg", 2), ("<", 2)):
        if odd in words:
            del words[words.index(odd) : words.index(odd) + length]
    flags = [word for word in words if word.startswith("hydra.searchpath")]
    return [*flags, *arguments(with_keys(name, [word for word in words if word not in flags]))]


@pytest.mark.parametrize("page", [p for p in pages.PAGES if acge_commands(p) and p not in CHINESE], ids=pages.name)
def test_commands_compose(page, tmp_path):
    write_files(page, tmp_path)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for words in acge_commands(page):
            name = words[words.index("acge") + 1]
            assert name in USAGE
            assert compose(name, overrides(words, tmp_path)), words


KEY = re.compile(r"`([a-z_]+(?:[.][\w.]+)?)=[^`…]+`")
NO_KEY = {"key", "debug", "install", "offline", "weight", "task.NAME.data.per_label"}  # a group, or a key in short
PYTHON = {"gather_across_devices", "normalize_embeddings", "scale", "use_distributed_sampler"}  # arguments of a function


def has_key(node, words):
    """Whether a config has a dotted key."""
    for word in words:
        if not isinstance(node, DictConfig) or word not in node:
            return False
        node = node._get_node(word)
    return True


def test_keys_in_the_text_are_there():
    every = {key for page in pages.PAGES for key in KEY.findall(page.read_text(encoding="utf-8"))} - NO_KEY - PYTHON
    own = "task=[scored_pairs,labelled_pairs,triplets,texts]"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = [compose(name) for name in USAGE if name != "models"]
        adapt = ["+experiment=adapt", "encoder.path=FOLDER", "callbacks=[peers,ewc]"]
        composed += [compose("train", adapt), compose("train", [own])]
    assert len(every) > 20
    assert sorted(key for key in every if not any(has_key(node, key.split(".")) for node in composed)) == []


def test_all_strategies_are_listed():
    text = (pages.ROOT / "docs" / "tutorials" / "domain.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE))
    assert listed == {file.stem for file in (config_dir() / "strategy").glob("*.yaml")}


def test_what_is_installed_is_there():
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (pages.ROOT / "Makefile").read_text(encoding="utf-8")
    every = [command for page in pages.PAGES for command in pages.commands(page)]
    for extras in re.findall(r"\[([a-z,]+)\]'?$", "\n".join(c for c in every if c.startswith("pip install")), re.MULTILINE):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for target in [command.split()[1] for command in every if command.startswith("make ")]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", CHINESE, ids=pages.name)
def test_a_chinese_page_has_the_commands_of_its_english_one(page):
    def plain(text):
        for chinese, name in SAME.items():
            text = text.replace(chinese, name)
        return text

    assert [plain(c) for c in pages.commands(page)] == pages.commands(english(page))


@pytest.mark.parametrize("page", [page for page in CHINESE if "tutorials" in page.parts], ids=pages.name)
def test_a_chinese_tutorial_shows_the_files_of_its_english_one(page):
    assert [b.file for b in pages.blocks(page)] == [b.file for b in pages.blocks(english(page))]


# ---- pages run


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The encoder that the tutorials begin with, made by the first one's own command."""
    folder = tmp_path_factory.mktemp("start")
    [command] = {c for p in pages.PAGES for c in pages.commands(p) if c.endswith("paths.output_dir=start")}
    run(["bash", "-c", command], folder)
    return folder / "start"


def run(command, folder):
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "PYTHONPATH": str(pages.ROOT),
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("page", RUN, ids=pages.name)
def test_a_page_from_its_first_to_its_last_block(page, workplace, request):
    text = page.read_text(encoding="utf-8")
    if "start/export" in text and not any(c.endswith("paths.output_dir=start") for c in pages.commands(page)):
        shutil.copytree(request.getfixturevalue("start"), workplace / "start")
    write_files(page, workplace)
    for block in pages.blocks(page):
        for command in block.commands:
            if why_not(command) is None:
                run(["bash", "-c", command], workplace)
        if block.kind == "python" and not block.file:
            run([sys.executable, "-c", block.text], workplace)
