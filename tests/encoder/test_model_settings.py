"""What the files of a model folder may say: weights in several files, weights that are of no use, settings of other kinds."""

import json
import os
import shutil

import pytest
import torch
from model_folders import make
from safetensors.torch import load_file, save_file

from acge_lightning.encoder.model_settings import check_steps, read_settings
from acge_lightning.encoder.weight_files import read_weights
from acge_lightning.errors import InputError
from acge_lightning.zoo.pretrained import load

TEXTS = ["今天天气很好", "Machine learning", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    parent = tmp_path_factory.mktemp("models")
    return {kind: make(kind, parent / kind) for kind in ("older", "static")}


@pytest.fixture(params=["older", "static"])
def folder(request, models, tmp_path):
    return shutil.copytree(models[request.param], tmp_path / request.param)


def shard(folder, names):
    """The weights in files of these names, under an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [{key: value for i, (key, value) in enumerate(weights.items()) if i % len(names) == n} for n in range(len(names))]
    for name, part in zip(names, parts, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(part, folder / name, metadata={"format": "pt"})
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def as_in_the_hubs_cache(folder):
    """Moves each file to a folder of blobs and leaves a relative link."""
    snapshot = folder.parent / "models--a--b" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    return snapshot


def test_weights_in_several_files_also_by_the_links_of_the_hubs_cache(models, tmp_path):
    folder = shutil.copytree(models["older"], tmp_path / "model")
    expected = load(folder).encode(TEXTS)
    shard(folder, ["model-00001-of-00002.safetensors", "part/two.safetensors"])
    assert torch.equal(load(folder).encode(TEXTS), expected)
    assert torch.equal(load(as_in_the_hubs_cache(folder)).encode(TEXTS), expected)


def test_an_index_of_a_file_that_is_not_there(models, tmp_path):
    folder = shutil.copytree(models["older"], tmp_path / "model")
    shard(folder, ["a.safetensors", "b.safetensors"])
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"names 'b\.safetensors', which is not there"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder, value):
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = max(name for name in weights if "pooler" not in name)  # which nothing reads
    weights[name].view(-1)[-1] = value
    file.unlink()  # it is in memory
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"NaN or infinity in backbone\.{name.replace('.', '[.]')} \(float32\)"):
        load(folder)


def test_weights_for_which_a_type_has_no_room(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = 1e6
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    load(folder, dtype="bfloat16")
    with pytest.raises(InputError, match=r"infinity in .* \(float16\)"):
        load(folder, dtype="float16")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.flatten(), "embedding.weight is [0-9]+, not a table"),
        (lambda table: table[None].clone(), "embedding.weight is 1 x [0-9]+ x 8, not a table"),
        (lambda table: table[:0].clone(), "0 x 8, not a table"),
        (lambda table: table[:3].clone(), "its table of embeddings has 3 rows"),
        (lambda table: table.to(torch.int8), "is int8: quantised"),
    ],
)
def test_tables_that_are_none(models, tmp_path, change, told):
    folder = shutil.copytree(models["static"], tmp_path / "model")
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    (folder / "model.safetensors").unlink()
    save_file({"embedding.weight": change(table)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=told):
        load(folder)


def test_weights_of_half_precision_become_float32(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.bfloat16), "ids": torch.arange(3)}, tmp_path / "model.safetensors")
    assert {name: value.dtype for name, value in read_weights(tmp_path).items()} == {"a": torch.float32, "ids": torch.int64}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("null", "is null, not a JSON object"),
        ("[1]", "is a list, not a JSON object"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' comes twice"),
        ("{", "is not valid JSON"),
        ('{"a":' * 99_999, "is not valid JSON"),
    ],
)
def test_settings_that_are_none(tmp_path, content, told):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=told) as error:
        read_settings(tmp_path / "x.json", {})
    assert "\n" not in str(error.value)


def test_settings_that_are_not_there(tmp_path):
    assert read_settings(tmp_path / "x.json", {"a": 1}) == {"a": 1}
    (tmp_path / "x.json").symlink_to("nowhere")
    with pytest.raises(InputError, match="no regular file"):
        read_settings(tmp_path / "x.json", {})


STEPS = [
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "NFKC"},
    {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "BertNormalizer"}]},
]


def test_the_steps_of_tokenizers_that_there_are_are_taken(tmp_path):
    file = tmp_path / "tokenizer.json"
    levels = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}
    file.write_text(json.dumps({"normalizer": {"type": "Sequence", "normalizers": STEPS * 3}, "pre_tokenizer": levels}))
    check_steps(file)
    file.write_text(json.dumps({"normalizer": {"type": "Sequence", "normalizers": STEPS * 30}}))
    with pytest.raises(InputError, match="more than 64"):
        check_steps(file)


def test_a_vocabulary_that_is_no_file_is_not_made_up(tmp_path):
    folder = make("vocab", tmp_path / "model")
    load(folder)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").mkdir()
    with pytest.raises(InputError, match="no tokenizer there"):
        load(folder)
    (folder / "other.model").write_text("")
    with pytest.raises(InputError, match=r"\d tokens, but its table of embeddings has 64 rows"):
        load(folder)
