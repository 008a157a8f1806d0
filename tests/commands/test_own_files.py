"""Commands on files as people have them: names of columns and labels in Chinese, and what an error gives to paste."""

import csv
import json
import math
import shlex

import pytest
import torch
from test_conf import composed

from acge_lightning import load
from acge_lightning.commands import evaluate
from acge_lightning.commands.single_run import make_tasks, train
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.errors import InputError


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


ROWS = [(f"第{i}个问题", f"答案{i}号", ("基本一致", "无关")[i % 2]) for i in range(40)]


def typed(name, *words):
    """The config of words as they are typed."""
    return with_names(composed(arguments(words), name))


def test_a_training_error_gives_what_to_paste_for_its_task(tmp_path, cache):
    path = write(tmp_path / "数据 (1)" / "怪 [a].csv", ["甲", "乙", "标签"], ROWS)
    words = ["task=[labelled_pairs]", f"+paths.data={path}", f"paths.cache_dir={cache}"]
    for remedy in ("columns={text1: 甲, text2: 乙}", "labels={基本一致: 1, …: 0}"):
        with pytest.raises(InputError) as caught:
            make_tasks(typed("train", *words))["labelled_pairs"].data.open()
        (word,) = shlex.split(str(caught.value).rpartition(": task")[2])
        assert word == f".labelled_pairs.data.{remedy}"
        words.append(f"task{word.replace('…', '无关')}")
    data = make_tasks(typed("train", *words))["labelled_pairs"].data
    assert data.train.store.column("label").to_pylist() == [1, 0] * 20


def test_evaluate_gives_and_takes_keys_of_its_own(tmp_path, small_encoder, cache):
    write(tmp_path / "数据 (1)" / "pair" / "公司" / "test.csv", ["甲", "乙", "标签"], ROWS)
    out = tmp_path / "out.json"
    paths = {"data_dir": tmp_path / "数据 (1)", "cache_dir": cache, "output_dir": tmp_path}
    words = [f"model={small_encoder}", f"out={out}", *(f"paths.{key}={path}" for key, path in paths.items())]
    for remedy in ("columns={text1: 甲, text2: 乙}", "labels={基本一致: 1, …: 0}"):
        with pytest.raises(SystemExit):
            evaluate.run(typed("evaluate", *words))
        (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
        assert shlex.split(row["error"])[-1] == remedy
        words.append(remedy.replace("…", "无关"))
        out.unlink()
    evaluate.run(typed("evaluate", *words))
    (row,) = (row for row in json.loads(out.read_text(encoding="utf-8"))["rows"] if row["dim"] == 16)
    assert (row["error"], row["n"]) == (None, 40)


@pytest.fixture
def fine_tuning(tmp_path, small_encoder, cache):
    """The config of a run on a file."""

    def config(path, *words):
        paths = {"data": path, "cache_dir": cache, "output_dir": tmp_path / "run"}
        typed_paths = (f"{'+' if key == 'data' else ''}paths.{key}={path}" for key, path in paths.items())
        return typed(
            "train", "encoder=pretrained", f"encoder.path={small_encoder}", "callbacks.progress=null", *typed_paths, *words
        )

    return config


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "文本.csv", ["序号", "文本"], [(i, f"今天第{i}句，我们去公园") for i in range(40)])


def test_texts_alone_train_and_the_end_says_how_to_score(fine_tuning, texts, tmp_path, small_encoder, capsys):
    settings = ["task.texts.data.batch_size=8", "trainer.max_epochs=2", "test=true", "optim=adamw_static"]
    assert math.isnan(train(fine_tuning(texts, "task=[texts]", *settings)))
    printed = " ".join(capsys.readouterr().out.split())
    assert "Nothing was scored: texts have no labels." in printed
    for advice in ("task=[texts,sample_sts] +task.sample_sts.weight=0", "acge evaluate model=… paths.data_dir=…"):
        assert advice in printed
    assert json.loads((tmp_path / "run" / "result.json").read_text())["after"] == {}
    trained, start = load(tmp_path / "run" / "export"), load(small_encoder)
    assert not torch.equal(trained.encode(["今天我们去公园"]), start.encode(["今天我们去公园"]))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    weights = {f"encoder.{name}": value for name, value in trained.state_dict().items()}
    assert all(torch.equal(last["state_dict"][name], value) for name, value in weights.items())  # not those of epoch 1


def test_the_advice_at_the_end_of_texts_alone_works(fine_tuning, texts):
    advice = ["task=[texts,sample_sts]", "+task.sample_sts.weight=0"]
    assert train(fine_tuning(texts, *advice, "task.sample_sts.data.max_dev=40")) > -1


def test_the_documents_that_were_searched_stand_beside_the_score(fine_tuning, tmp_path, capsys):
    rows = [(f"问题{i}", f"答案{i}", f"别的{i}") for i in range(60)]
    train(fine_tuning(write(tmp_path / "问答.csv", ["问题", "正例", "负例"], rows), "task=[triplets]"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "val/triplets/ndcg" in line)
    assert "of 120 documents" in line
