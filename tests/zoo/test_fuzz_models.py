"""Damaged model folders: each is loaded and gives finite vectors, or is refused in one line."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from fuzz import Case, damaged_files, damaged_json, outcomes
from model_folders import make
from safetensors.torch import load_file, save_file
from transformers.models.bert import modeling_bert  # noqa: F401 (loaded once, before the forks)

from acge_lightning.errors import InputError
from acge_lightning.zoo.pretrained import load


def use(folder):
    vectors = load(folder).encode(["a text", ""])
    assert vectors.isfinite().all(), "vectors that are not finite"
    assert len(vectors) == 2


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


# ---- named damages


def edit(file, **changes):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | changes))


def rewrite(file, change):
    described = json.loads(file.read_text(encoding="utf-8"))
    change(described)
    file.write_text(json.dumps(described), encoding="utf-8")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def sharded(folder, *names, metadata=True):
    """The weights under an index that names other files, which hold them or run code."""
    whole = folder / "model.safetensors"
    for name in names:
        place = Path(name) if Path(name).is_absolute() else folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".bin"):
            place.write_bytes(pickle.dumps(Evil()))
        elif not place.exists():
            shutil.copy(whole, place)
    keys = list(load_file(whole))
    whole.unlink()
    places = {key: names[i % len(names)] for i, key in enumerate(keys)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def run_by(folder, name, **settings):
    """A Python file that would say that it ran, and settings that name it."""
    (folder / "evil.py").write_text("import os\nos.system('true')\nclass Evil: pass\n")
    edit(folder / name, **settings)


def with_steps(folder, *steps, key="normalizer"):
    kind = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[key]
    rewrite(folder / "tokenizer.json", lambda t: t.update({key: {"type": "Sequence", kind: [t[key], *steps]}}))


def nested(step, depth):
    return step if depth == 0 else {"type": "Sequence", "normalizers": [nested(step, depth - 1)]}


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
OUTSIDE = "../outside/file"
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
HOSTILE = {  # name -> damage, and what the error says
    "index of a pickle": (lambda f: sharded(f, "pytorch_model-1.bin"), "may only name"),
    "torch file that runs code": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))],
        "holds more than tensors",
    ),
    "torch file that runs code, in torch's own format": (
        lambda f: [(f / "model.safetensors").unlink(), torch.save({"x": Evil()}, f / "pytorch_model.bin")],
        "holds more than tensors",
    ),
    "index of tensors outside": (lambda f: sharded(f, "../outside/x.safetensors"), "may only name"),
    "index of tensors outside, by a detour": (lambda f: sharded(f, "a/../../outside/x.safetensors"), "may only name"),
    "index of an absolute path": (lambda f: sharded(f, str(f.parent / "outside" / "x.safetensors")), "may only name"),
    "index of backslashes": (lambda f: sharded(f, "..\\outside\\x.safetensors"), "may only name"),
    "weights of another name": (lambda f: edit(f / CONFIG, transformers_weights="x.safetensors"), "transformers_weights"),
    "weights outside": (lambda f: edit(f / CONFIG, transformers_weights="../outside/x.safetensors"), "transformers_weights"),
    "weights that are a pickle": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Evil())), "is damaged"),
    "an adapter": (lambda f: edit(f / "adapter_config.json", base_model_name_or_path="../outside"), "adapter"),
    "quantised": (lambda f: edit(f / CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config"),
    "model code": (
        lambda f: run_by(f, CONFIG, model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        "'evil' is no architecture",
    ),
    "tokenizer code": (
        lambda f: run_by(f, TOKENIZER_CONFIG, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        None,
    ),
    "attention of the hub": (lambda f: edit(f / CONFIG, attn_implementation="kernels-community/flash-attn"), None),
    "tokenizer in Python": (lambda f: edit(f / TOKENIZER_CONFIG, tokenizer_class="BertJapaneseTokenizer"), "in Python"),
    "tokenizer with arguments": (lambda f: edit(f / TOKENIZER_CONFIG, init_inputs=[OUTSIDE]), "init_inputs"),
    "tokenizer of gguf": (lambda f: edit(f / TOKENIZER_CONFIG, gguf_file="x.gguf"), "gguf_file"),
    **{
        f"{key} outside": (lambda f, k=key: edit(f / TOKENIZER_CONFIG, **{k: OUTSIDE}), "leads out of the folder")
        for key in ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "vocab", "merges")
    },
    "tokenizer files outside": (
        lambda f: edit(f / TOKENIZER_CONFIG, fast_tokenizer_files=[OUTSIDE]),
        "leads out of the folder",
    ),
    "a maker's cache": (lambda f: edit(f / TOKENIZER_CONFIG, special_tokens_map_file="/root/.cache/nowhere/x.json"), None),
    "300,000 layers": (lambda f: edit(f / CONFIG, num_hidden_layers=300_000), "num_hidden_layers=300000 is more"),
    "900 layers": (lambda f: edit(f / CONFIG, num_hidden_layers=900), "many times as large"),
    "10^12 hidden": (lambda f: edit(f / CONFIG, hidden_size=10**12, intermediate_size=10**12), "as large as its weights"),
    "10^12 positions": (lambda f: edit(f / CONFIG, max_position_embeddings=10**12), "as large as its weights"),
    "10^9 labels": (lambda f: edit(f / CONFIG, num_labels=10**9), "num_labels=1000000000 is more"),
    "34 doublings": (lambda f: with_steps(f, *[DOUBLE] * 34), "times as long"),
    "34 byte levels": (lambda f: with_steps(f, *[BYTES] * 34, key="pre_tokenizer"), "times as long"),
    "100,000 steps": (lambda f: with_steps(f, *[{"type": "Lowercase"}] * 100_000), "more than 64"),
    "an empty pattern": (
        lambda f: with_steps(f, {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}),
        "times as long",
    ),
    "a token without a row": (
        lambda f: rewrite(f / "tokenizer.json", lambda t: t["model"]["vocab"].update({"text": 10**6})),
        "1000001 tokens, but",
    ),
    "an added token of number 10^9": (
        lambda f: edit(f / TOKENIZER_CONFIG, added_tokens_decoder={str(10**9): {"content": "x"}}),
        "added_tokens_decoder",
    ),
    "a special token without a row": (
        lambda f: rewrite(f / "tokenizer.json", lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[999])),
        "cannot be loaded",
    ),
    "a length that is a word": (lambda f: edit(f / "sentence_bert_config.json", max_seq_length="abc"), "max_seq_length='abc'"),
    "a list of settings": (lambda f: (f / CONFIG).write_text("[]"), "a list, not a JSON object"),
    "prompts that are numbers": (
        lambda f: edit(f / "config_sentence_transformers.json", prompts={"q": 1}),
        "q=1 is not a text",
    ),
    "dims that are none": (lambda f: edit(f / "acge.json", matryoshka_dims=[0, "a"]), "matryoshka_dims"),
    "a module outside": (
        lambda f: rewrite(f / "modules.json", lambda m: m[1].update(path="..\\outside")),
        "not one of sentence-transformers' own",
    ),
    "a key twice": (lambda f: (f / CONFIG).write_text('{"a": 1, "a": 2}'), "'a' comes twice"),
    "deep": (lambda f: (f / CONFIG).write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "not valid JSON"),
    "as deep as can be": (
        lambda f: (f / "special_tokens_map.json").write_text('{"a":' * 900 + "1" + "}" * 900),
        None,
    ),
    "steps within steps": (
        lambda f: rewrite(f / "tokenizer.json", lambda t: t.update(normalizer=nested(t["normalizer"], 300))),
        "cannot be loaded",
    ),
    "a pipe": (lambda f: ((f / CONFIG).unlink(), os.mkfifo(f / CONFIG)), "no regular file"),
    "a wide LayerNorm": (lambda f: edit(f / CONFIG, layer_norm_eps=-1e9), "vectors that are not finite"),
}


def hostile():
    return [Case(name, damage) for name, (damage, _) in HOSTILE.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a small BERT with a Dense head, and one beside it that nobody should look into."""
    parent = tmp_path_factory.mktemp("models")
    (parent / "outside").mkdir()
    (parent / "outside" / "file").write_text("secret")
    return make("older", parent / "whole")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder(name, whole, monkeypatch):
    damage, told = HOSTILE[name]
    folder = shutil.copytree(whole, whole.with_name("folder"))
    try:
        damage(folder)
        monkeypatch.setattr(os, "system", lambda command: pytest.fail("code has run"))
        if told is None:
            use(folder)
        else:
            with pytest.raises(InputError, match=told) as error:
                load(folder)
            assert "\n" not in str(error.value)
    finally:
        shutil.rmtree(folder)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["static", "older", "newer", "plain", "vocab"])
def test_a_damaged_folder_is_loaded_or_refused_in_one_line(kind, tmp_path):
    folder = make(kind, tmp_path / "model")
    cases = [
        *damaged_files(folder),
        *damaged_json(folder, 0, 150),
        *damaged_tensors(folder, 0, 60),
        *(hostile() if kind == "older" else []),
    ]
    found = outcomes(folder, cases, "test_fuzz_models:use", tmp_path)
    assert [one for one in found if not one.is_fine] == []
    kinds = [one.kind for one in found]
    assert kinds.count("ok") > 10
    assert kinds.count("InputError") > 100
