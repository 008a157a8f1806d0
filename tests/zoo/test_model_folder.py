"""Model folders of many architectures: the vectors of sentence-transformers, or a refusal that says why."""

import copy
import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import processors
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from acge_lightning.encoder.packing import is_packed
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import load

CORPUS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好"] * 5
TOKENIZER = train_vocabulary(CORPUS, vocab_size=120)
TEXTS = ["今天天气很好", "MACHINE learning，很好！", "", "a [PAD] b [PAD] 很好", "公园散步 " * 50]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = SIZES | {"max_position_embeddings": 80}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 8}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}
FUNNEL = {"d_model": 16, "d_head": 8, "d_inner": 32, "n_head": 2, "block_sizes": [1, 1], "block_repeats": [1, 1]}
HALVES = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in [("layers", 1), ("attention_heads", 2)]}
BART = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 80} | HALVES
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 80}
XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 80}
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}


def many(sizes, *names):
    return {name: (name, sizes) for name in names}


QUICK = {
    **many(BERT, "bert", "roberta", "xlm-roberta", "camembert", "electra"),
    **many(BERT, "albert", "deberta-v2", "ernie", "ibert", "modernbert", "mpnet"),
    **many(T5, "t5", "mt5"),
    "distilbert": ("distilbert", DISTILBERT),
    "qwen3": ("qwen3", LLAMA),
    "bert, causal": ("bert", BERT | {"is_decoder": True}),
    "roberta, causal": ("roberta", BERT | {"is_decoder": True}),
    "electra, causal": ("electra", BERT | {"is_decoder": True}),
    "bert, with cross-attention": ("bert", BERT | {"is_decoder": True, "add_cross_attention": True}),
    "bert, relu": ("bert", BERT | {"hidden_act": "relu"}),
    "electra, projected": ("electra", BERT | {"embedding_size": 8}),
}
LONG = {
    **many(BERT, "big_bird", "convbert", "data2vec-text", "deberta", "esm", "eurobert", "fnet", "jina_embeddings_v3"),
    **many(BERT, "layoutlm", "longformer", "luke", "megatron-bert", "mobilebert", "mra", "nomic_bert", "nystromformer"),
    **many(BERT, "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta-xl", "yoso"),
    **many(LLAMA, "gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen3_5_text"),
    **many(BERT | {"num_key_value_heads": 1}, "qwen2"),
    **many(BERT, "gpt_neox", "modernbert-decoder"),
    **many(BERT | {"embedding_size": 16}, "squeezebert"),
    **many(GPT, "gpt2", "openai-gpt"),
    **many(BART, "bart", "mbart"),
    **many(FUNNEL, "funnel"),
    **many(T5, "umt5"),
    **many(XLM, "flaubert", "xlm"),
    **many(XLNET, "xlnet"),
    "bert, new GELU": ("bert", BERT | {"hidden_act": "gelu_new"}),
    "bert, silu": ("bert", BERT | {"hidden_act": "silu"}),
    "bert, all hidden states": ("bert", BERT | {"output_hidden_states": True}),
    "bert, tuples": ("bert", BERT | {"return_dict": False}),
    "bert, one token type": ("bert", BERT | {"type_vocab_size": 1}),
    "ernie, with tasks": ("ernie", BERT | {"use_task_id": True}),
}


def backbone(model_type, sizes, tokenizer):
    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id}
    config = AutoConfig.for_model(model_type, **sizes, vocab_size=160, eos_token_id=tokenizer.sep_token_id, **special)
    config.architectures = ["FunnelModel"] if model_type == "funnel" else None  # which has two
    model = (AutoModelForTextEncoding if "t5" in model_type else AutoModel).from_config(config)
    for parameter in model.parameters():  # large enough for a mistake to show
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(folder, model_type="bert", sizes=BERT, tokenizer=TOKENIZER):
    backbone(model_type, sizes, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def assert_same(folder, texts=TEXTS, encoder=None):
    mine = load(folder) if encoder is None else encoder
    theirs = SentenceTransformer(str(folder), device="cpu")
    theirs.max_seq_length = mine.tokenize.max_length
    expected = theirs.encode(texts, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(mine.encode(texts), expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    return mine


def check(name, kinds, folder):
    mine = assert_same(saved(folder, *kinds[name]))
    plain = name.startswith(("bert", "roberta", "xlm-roberta", "camembert", "electra"))
    assert is_packed(mine.backbone) == (plain and not name.endswith(("causal", "attention", "prelayernorm", "-xl")))
    return mine


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture_gives_the_vectors_of_sentence_transformers(name, tmp_path):
    check(name, QUICK, tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("name", LONG)
def test_another_architecture_gives_them_too(name, tmp_path):
    check(name, LONG, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "sizes", "told"),
    [
        ("reformer", SIZES | {"attention_head_size": 8, "axial_pos_embds": False, "attn_layers": ["local"]}, "gives .* 32"),
        ("bros", BERT, "cannot be run on token ids alone"),
        ("canine", BERT, "get_input_embeddings"),
        ("bert", BERT | {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ],
)
def test_an_architecture_that_would_give_other_vectors_is_refused(model_type, sizes, told, tmp_path):
    saved(tmp_path, model_type, sizes)
    with pytest.raises(InputError, match=told):
        load(tmp_path)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "bert", "mpnet"])
def test_a_padding_token_in_a_text_is_as_in_sentence_transformers(model_type, tmp_path):
    texts = ["[PAD]", "[PAD] [PAD] 很好 [PAD]", "今天 [PAD] 天气 [PAD] 很好", "今天天气很好", "[PAD]" * 200]
    assert_same(saved(tmp_path, model_type), texts)


def test_feed_forward_layers_in_chunks_take_texts_of_any_length(tmp_path):
    expected = load(saved(tmp_path)).encode(TEXTS)
    edit(tmp_path / "config.json", chunk_size_feed_forward=3)
    assert torch.equal(load(tmp_path).encode(TEXTS), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_of_a_decoder_padded_on_either_side(side, tmp_path):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.padding_side = side
    plain = saved(tmp_path / "plain", "qwen3", LLAMA, tokenizer)
    SentenceTransformer(modules=[Transformer(str(plain)), Pooling(16, "lasttoken"), Normalize()]).save(str(tmp_path / "model"))
    assert assert_same(tmp_path / "model").pooling == "last"


def test_a_whole_t5_is_loaded_without_its_decoder(tmp_path):
    config = AutoConfig.for_model("t5", **T5, vocab_size=160, decoder_start_token_id=0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    mine = assert_same(tmp_path)
    assert not any("decoder" in name for name, _ in mine.named_parameters())
    assert_same(export(mine, tmp_path / "again"))


def test_token_types_of_a_tokenizer_are_refused(tmp_path):
    tokenizer = copy.deepcopy(TOKENIZER)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    template = processors.TemplateProcessing(single="[CLS]:1 $A:0 [SEP]:0", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = template
    saved(tmp_path, tokenizer=tokenizer)
    edit(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    with pytest.raises(InputError, match="token types other than 0"):
        load(tmp_path)


# ---- the settings of a folder of sentence-transformers


@pytest.fixture
def modules(tmp_path):
    """Transformer, Pooling, Dense and Normalize, as sentence-transformers saves them."""
    plain = saved(tmp_path / "plain")
    made = [Transformer(str(plain)), Pooling(16, "mean"), Dense(16, 12), Normalize()]
    SentenceTransformer(modules=made, device="cpu").save(str(tmp_path / "model"))
    return tmp_path / "model"


def edit(file, **changes):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | changes))


def test_all_settings_that_sentence_transformers_writes_are_known(modules, caplog):
    assert_same(modules)
    assert caplog.text == ""


HARMLESS = {
    "sentence_bert_config.json": {"unpad_inputs": True, "model_args": {"dtype": "bfloat16"}, "query_length": None},
    "1_Pooling/config.json": {"pooling_mode_max_tokens": False},
    "2_Dense/config.json": {"use_residual": False},
}


def test_settings_that_change_no_vector_are_taken(modules):
    expected = load(modules).encode(TEXTS)
    for file, settings in HARMLESS.items():
        edit(modules / file, **settings)
    assert torch.equal(load(modules).encode(TEXTS), expected)


@pytest.mark.parametrize(
    ("file", "settings", "told"),
    [
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'"),
        ("2_Dense/config.json", {"module_output_name": "other"}, "module_output_name='other'"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual=True"),
        ("2_Dense/config.json", {"scale": 2}, "scale=2 is not supported"),
        ("1_Pooling/config.json", {"include_special_tokens": "no"}, "include_special_tokens='no'"),
        ("3_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs="),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length=8"),
        ("sentence_bert_config.json", {"config_args": {"is_decoder": True}}, r"config_args\.is_decoder"),
        ("sentence_bert_config.json", {"module_output_name": "sentence_embedding"}, "module_output_name="),
        ("sentence_bert_config.json", {"modality_config": {"message": {"method": "forward"}}}, "modality_config="),
    ],
)
def test_a_setting_that_would_go_unheeded_is_refused(modules, file, settings, told):
    edit(modules / file, **settings)
    with pytest.raises(InputError, match=told):
        load(modules)


@pytest.mark.parametrize(
    ("name", "told"), [("dot", False), ("cosine", False), (None, False), ("euclidean", True), ("manhattan", True)]
)
def test_another_similarity_is_pointed_out(modules, name, told, caplog):
    edit(modules / "config_sentence_transformers.json", similarity_fn_name=name)
    load(modules)
    assert (f"compare vectors by '{name}'" in caplog.text) == told
    if name == "dot":  # of vectors of any length it would be another
        caplog.clear()
        (modules / "modules.json").write_text(json.dumps(json.loads((modules / "modules.json").read_text())[:3]))
        load(modules)
        assert "compare vectors by 'dot'" in caplog.text


def test_a_chat_template_is_pointed_out_and_not_exported(tmp_path, caplog):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% for message in messages %}you say {{ message['content'] }}{% endfor %}"
    mine = load(saved(tmp_path / "model", tokenizer=tokenizer))
    assert "has a chat template" in caplog.text
    assert_same(export(mine, tmp_path / "again"), encoder=mine)


@pytest.mark.parametrize(("length", "told"), [(0, "max_length=0"), (1, "2 special tokens"), (2, "2 special tokens"), (3, None)])
def test_the_special_tokens_must_leave_room(length, told, tmp_path):
    saved(tmp_path)
    if told is None:
        assert len(load(tmp_path, max_length=length).encode("今天 天气").unique()) > 1
    else:
        with pytest.raises(InputError, match=told):
            load(tmp_path, max_length=length)
