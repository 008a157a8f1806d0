"""Folders in the layouts of published Chinese encoders, with random weights: the vectors of sentence-transformers."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from acge_lightning.encoder import train_vocabulary
from acge_lightning.zoo import load

CORPUS = ["今天天气很好，我们去公园散步。", "机器学习的模型需要很多数据", "Machine Learning is fun!", "手机屏幕质量很好"] * 5
TEXTS = ["今天天气很好", "机器学习 MODELS，很好！", "公园散步 " * 60, "数"]
HIDDEN, HEAD = 32, 56
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPREAD = {"initializer_range": 0.2}  # so that random weights tell texts apart
MODULES = {
    "Transformer": ("", "sentence_transformers.models.Transformer"),
    "Pooling": ("1_Pooling", "sentence_transformers.models.Pooling"),
    "Dense": ("2_Dense", "sentence_transformers.models.Dense"),
    "Normalize": ("2_Normalize", "sentence_transformers.models.Normalize"),
}
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def bert(folder, positions=128):
    tokenizer = train_vocabulary(CORPUS, "wordpiece", 200)
    tokenizer.save_pretrained(folder)
    return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **SIZES, **SPREAD))


def qwen3(folder):
    backend = train_vocabulary(CORPUS, "bpe", 200).backend_tokenizer
    backend.add_special_tokens(["<|endoftext|>"])
    end = backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="[UNK]", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    shape = {"head_dim": 16, "num_key_value_heads": 2, **SIZES, **SPREAD}
    return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **shape))


def save(model, folder, dtype, form):
    """The weights as one safetensors file, as shards, or as torch's own file; and the config."""
    model = model.to(dtype)
    model.config.torch_dtype = str(dtype).removeprefix("torch.")
    if form == "bin":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")


def arrange(folder, names, pooling=None, length=None, lower=False, prompts=None):
    """The files of sentence-transformers beside the weights."""
    entries = [{"idx": i, "name": str(i), "path": MODULES[n][0], "type": MODULES[n][1]} for i, n in enumerate(names)]
    write(folder / "modules.json", entries)
    if pooling:
        modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        flags = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **flags, "include_prompt": True})
    if length:
        write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": lower})
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.30.2", "pytorch": "2.0.1"}
    told = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"} if prompts else {}
    write(folder / "config_sentence_transformers.json", {"__version__": versions, **told})


def head(folder, dtype, form="safetensors"):
    """A Dense module with a bias and no activation."""
    settings = {"in_features": HIDDEN, "out_features": HEAD, "bias": True}
    settings["activation_function"] = "torch.nn.modules.linear.Identity"
    write(folder / "2_Dense" / "config.json", settings)
    linear = torch.nn.Linear(HIDDEN, HEAD).to(dtype)
    weights = {"linear.weight": linear.weight.data, "linear.bias": linear.bias.data}
    if form == "bin":
        torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def acge(folder):
    save(bert(folder), folder, torch.bfloat16, "safetensors")
    head(folder, torch.bfloat16)
    arrange(folder, ["Transformer", "Pooling", "Dense"], "mean_tokens", 128)


def stella_mrl(folder):
    save(bert(folder), folder, torch.float32, "shards")
    head(folder, torch.float32)
    arrange(folder, ["Transformer", "Pooling", "Dense"], "mean_tokens", 64)


def stella_base(folder):
    save(bert(folder), folder, torch.float32, "bin")
    head(folder, torch.float32, "bin")
    arrange(folder, ["Transformer", "Pooling", "Dense"], "mean_tokens", 64)


def piccolo(folder):
    save(bert(folder), folder, torch.float16, "bin")  # no modules.json


def bge(folder):
    save(bert(folder), folder, torch.float32, "bin")
    arrange(folder, ["Transformer", "Pooling", "Normalize"], "cls_token", 64, lower=True)


def gte(folder):
    save(bert(folder), folder, torch.float16, "safetensors")
    arrange(folder, ["Transformer", "Pooling", "Normalize"], "cls_token", 64)


def m3e(folder):
    save(bert(folder), folder, torch.float32, "safetensors")
    arrange(folder, ["Transformer", "Pooling"], "mean_tokens", 64)


def qwen3_embedding(folder):
    save(qwen3(folder), folder, torch.bfloat16, "shards")
    arrange(folder, ["Transformer", "Pooling", "Normalize"], "lasttoken", prompts={"query": QUERY_PROMPT, "document": ""})


LAYOUTS = (acge, stella_mrl, stella_base, piccolo, bge, gte, m3e, qwen3_embedding)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_vectors_are_those_of_sentence_transformers(layout, tmp_path):
    torch.manual_seed(0)
    layout(tmp_path)
    ours = load(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": torch.float32})
    for module in theirs:
        module.float()
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2, "random weights tell texts apart"
    short = theirs.encode(TEXTS, normalize_embeddings=True, truncate_dim=16)
    np.testing.assert_allclose(ours.encode(TEXTS, dim=16), short, atol=1e-5)
    assert ours.dim == (HEAD if (tmp_path / "2_Dense").is_dir() else HIDDEN)
    if "query" in ours.prompts:
        asked = theirs.encode(TEXTS, prompt_name="query", normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(TEXTS, prompt="query"), asked, atol=1e-5)
