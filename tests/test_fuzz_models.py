"""Damaged model folders: each is loaded and gives finite vectors, or is refused in one line."""

import json
import random
import shutil

import pytest
import torch
from fuzz import Case, damaged_files, damaged_json, outcomes
from safetensors.torch import load_file, save_file

from acge_lightning.encoder import Dense
from acge_lightning.export import export, save_backbone
from acge_lightning.fresh import static, transformer
from acge_lightning.pretrained import load
from acge_lightning.vocabulary import train_vocabulary

CORPUS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好"] * 5
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def use(folder):
    vectors = load(folder).encode(["a text", ""])
    assert vectors.isfinite().all(), "vectors that are not finite"
    assert len(vectors) == 2


# ---- folders


def make(kind, folder):
    torch.manual_seed(0)
    if kind == "static":
        return export(static(train_vocabulary(CORPUS, "unigram", 100), dim=8, max_length=20, dense=6), folder)
    encoder = transformer(train_vocabulary(CORPUS, vocab_size=120), BERT, max_length=32, prompts={"query": "问："})
    if kind == "plain":
        return save_backbone(encoder, folder)
    encoder.dense = Dense(16, 12, activation="Tanh")
    encoder.matryoshka_dims = (4, 12)
    export(encoder, folder)
    if kind == "newer":
        from sentence_transformers import SentenceTransformer

        SentenceTransformer(str(folder), device="cpu").save(str(folder) + "-newer")
        shutil.rmtree(folder)
        shutil.move(str(folder) + "-newer", folder)
    return folder


# ---- damages


def damaged_tensors(folder, seed, count):
    """Tensors of other shapes, types, values and names."""
    chance = random.Random(seed)
    changes = {
        "one dimension": lambda w, n: w.update({n: w[n].flatten()}),
        "three dimensions": lambda w, n: w.update({n: w[n][None].clone()}),
        "a number": lambda w, n: w.update({n: torch.tensor(1.0)}),
        "no rows": lambda w, n: w.update({n: w[n][:0].clone()}),
        "a row less": lambda w, n: w.update({n: w[n][:-1].clone()}),
        "a row more": lambda w, n: w.update({n: torch.cat([w[n], w[n][:1]])}),
        "missing": lambda w, n: w.pop(n),
        "another name": lambda w, n: w.update({"x." + n: w.pop(n)}),
        "one more": lambda w, n: w.update({n + ".more": w[n].clone()}),
        **{f"{value}": lambda w, n, v=value: w[n].view(-1)[:1].fill_(v) for value in (float("nan"), float("inf"), 3e38)},
        "all 3e38": lambda w, n: w[n].fill_(3e38),
        **{
            str(dtype): lambda w, n, d=dtype: w.update({n: w[n].to(d)})
            for dtype in (
                torch.int8,
                torch.int64,
                torch.bool,
                torch.float64,
                torch.bfloat16,
                torch.float8_e4m3fn,
                torch.complex64,
            )
        },
    }
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*.safetensors"))]

    def apply(copy, path, name, change):
        weights = load_file(copy / path)
        change(weights, name)
        (copy / path).unlink()  # which is mapped into memory
        save_file(weights, copy / path, metadata={"format": "pt"})

    for number in range(count):
        path = chance.choice(files)
        name = chance.choice(sorted(load_file(folder / path)))
        what = chance.choice(sorted(changes))
        yield Case(f"{number} {path} {name}: {what}", lambda copy, a=(path, name, changes[what]): apply(copy, *a))


def edit(file, **changes):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | changes))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["static", "older", "newer", "plain"])
def test_a_damaged_folder_is_loaded_or_refused_in_one_line(kind, tmp_path):
    folder = make(kind, tmp_path / "model")
    cases = [
        *damaged_files(folder),
        *damaged_json(folder, 0, 150),
        *damaged_tensors(folder, 0, 60),
    ]
    found = outcomes(folder, cases, "test_fuzz_models:use", tmp_path)
    assert [one for one in found if not one.is_fine] == []
    kinds = [one.kind for one in found]
    assert kinds.count("ok") > 10
    assert kinds.count("InputError") > 100
