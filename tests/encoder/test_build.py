"""Encoders with random weights: sizes, initialisation, limits, and the config files that name them."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from acge_lightning.config.building import instantiate
from acge_lightning.encoder.build import position_limit, read_tokenizer, static, transformer
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError

TEXTS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好"] * 5
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {"model_type": "bert", "max_position_embeddings": 40, **TINY}
CONF = Path(__file__).parents[2] / "conf" / "encoder"


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(TEXTS, vocab_size=120)


@pytest.fixture(scope="module")
def words():
    return train_vocabulary(TEXTS, "unigram", vocab_size=120)


def test_static_averages_token_vectors_of_about_length_one(words):
    torch.manual_seed(0)
    encoder = static(words, dim=64)
    table = encoder.backbone.embedding.weight
    assert table.shape == (len(words), 64)
    assert table.norm(dim=1).mean().item() == pytest.approx(1, abs=0.1)
    ids = words(TEXTS[0], add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(encoder(encoder.tokenize(TEXTS[:1])), table[ids].mean(0, keepdim=True))


def test_static_adds_no_special_tokens(tokenizer):
    tokens = static(tokenizer, dim=8).tokenize(["今天"])
    assert tokenizer.convert_ids_to_tokens(tokens.ids.tolist()) == ["今", "天"]


def test_heads_prompts_and_dropout(words):
    encoder = static(words, dim=8, dropout=0.5, dense=12, prompts={"query": "问："})
    assert (encoder.dim, encoder.hidden_size, encoder.backbone.dropout) == (12, 8, 0.5)
    assert encoder.encode("x", prompt="query").shape == (1, 12)


@pytest.mark.parametrize("dim", [0, -1])
def test_vectors_without_dims_are_refused(words, dim):
    with pytest.raises(InputError, match=f"dim={dim} does not fit"):
        static(words, dim=dim)


@pytest.mark.parametrize("dense", [0, -3])
def test_a_head_without_dims_is_refused(words, tokenizer, dense):
    for build in (lambda: static(words, dim=8, dense=dense), lambda: transformer(tokenizer, BERT, max_length=40, dense=dense)):
        with pytest.raises(InputError, match="sizes begin at 1"):
            build()


def test_transformer_takes_its_vocabulary_from_the_tokenizer(tokenizer):
    encoder = transformer(tokenizer, {**BERT, "vocab_size": 7}, pooling="cls", max_length=40, dense=20)
    assert encoder.backbone.config.vocab_size == len(tokenizer)
    assert encoder.backbone.config.pad_token_id == tokenizer.pad_token_id
    assert (encoder.pooling, encoder.dim, encoder.tokenize.max_length) == ("cls", 20, 40)
    assert encoder.encode(["今天" * 100]).shape == (1, 20)


def test_every_weight_gets_a_gradient(tokenizer):
    encoder = transformer(tokenizer, BERT, max_length=40, dense=20, gradient_checkpointing=True)
    assert encoder.training
    assert encoder.backbone.training
    assert all(layer.gradient_checkpointing for layer in encoder.backbone.encoder.layer)
    encoder(encoder.tokenize(TEXTS)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_one_asked_for(tokenizer, attention):
    assert transformer(tokenizer, BERT, max_length=8, attention=attention).backbone.config._attn_implementation == attention


def test_robertas_positions_begin_after_the_padding_index(tokenizer):
    config = {"model_type": "roberta", "max_position_embeddings": 34, **TINY}
    encoder = transformer(tokenizer, config, max_length=33)
    assert encoder.backbone.embeddings.position_embeddings.padding_idx == 0
    assert position_limit(encoder.backbone) == 33
    assert encoder.encode(["今天" * 100]).shape == (1, 16)
    with pytest.raises(InputError, match="1 to 33"):
        transformer(tokenizer, config, max_length=34)


def test_tokenizers_come_from_folders_files_and_objects(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    for source in (tmp_path, str(tmp_path), file, Tokenizer.from_file(str(file)), tokenizer):
        found = read_tokenizer(source)
        assert found("今天")["input_ids"] == tokenizer("今天")["input_ids"]
        assert (found.pad_token, found.mask_token) == ("[PAD]", "[MASK]")
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_tokenizer(tmp_path).pad_token_id == 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"max_length": 41}, "max_length=41 does not fit"),
        ({}, {"max_length": 0}, "max_length=0 does not fit"),
        ({"model_type": "bart9"}, {}, "model_type='bart9'"),
        ({"model_type": None}, {}, "model_type=None"),
        ({"hiden_size": 16}, {}, "config.hiden_size is no field"),
        ({"num_attention_heads": 3}, {}, "does not describe a model"),
        ({}, {"attention": "quick"}, "attention='quick'"),
    ],
)
def test_errors_of_a_config(tokenizer, change, options, message):
    with pytest.raises(InputError, match=message):
        transformer(tokenizer, {**BERT, **change}, **{"max_length": 40, **options})


def test_errors_of_a_tokenizer(tmp_path):
    for source, message in ((tmp_path, "no tokenizer there"), (tmp_path / "no.json", "no tokenizer there"), (7, "is int")):
        with pytest.raises(InputError, match=message):
            static(source)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not valid JSON"):
        static(tmp_path)


@pytest.mark.parametrize("name", ["static", "bert_mini", "bert_base", "acge_large"])
def test_config_files_build_what_they_say(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert (CONF / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")
    tokenizer = instantiate(config.tokenizer, texts=TEXTS)
    with torch.device("meta" if name in ("bert_base", "acge_large") else "cpu"):
        encoder = instantiate(config, tokenizer=tokenizer)
    assert encoder.dim == {"static": 512, "bert_mini": 256, "bert_base": 768, "acge_large": 1792}[name]
    layers = {"bert_mini": 4, "bert_base": 12, "acge_large": 24}
    if name in layers:
        assert encoder.backbone.config.num_hidden_layers == layers[name]
        assert position_limit(encoder.backbone) == encoder.tokenize.max_length


def test_a_static_encoder_starts_as_a_projection_of_tfidf():
    """Token vectors are as long as their surprisal in a unigram vocabulary, and about 1 in another."""
    texts = ["天气真好", "天气不好", "天气预报", "怎么退货", "退货流程"] * 20
    tokenizer = train_vocabulary(texts, "unigram", 60)
    scores = {piece: -score for piece, score in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"][2:]}
    mean = sum(scores.values()) / len(scores)
    torch.manual_seed(0)
    weight = static(tokenizer, dim=4096).backbone.embedding.weight.detach()
    for piece, score in scores.items():
        length = weight[tokenizer.convert_tokens_to_ids(piece)].norm().item()
        assert length == pytest.approx(score / mean, rel=0.05)
    assert scores["天气"] < max(scores.values())
    plain = static(train_vocabulary(texts, "bpe", 60), dim=4096).backbone.embedding.weight
    assert (plain.norm(dim=1) - 1).abs().max() < 0.05
