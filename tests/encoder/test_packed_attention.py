"""Packed texts against the same texts padded."""

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModel

from acge_lightning.encoder import packed_attention, packing
from acge_lightning.encoder.build import prepare_backbone, transformer
from acge_lightning.encoder.dropout import Dropout
from acge_lightning.encoder.encoder import Encoder, pool
from acge_lightning.encoder.packing import (
    MODEL_TYPES,
    PACKED,
    Segments,
    compile_backbone,
    is_packed,
    packed_states,
    pool_packed,
)
from acge_lightning.encoder.tokens import Tokenize, Tokens
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError

LENGTHS = [[1], [7, 7, 7], [40, 33, 32, 31, 9, 5, 5, 1, 1], [3, 50, 2, 47, 1]]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}


def backbone(model_type, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | {"max_position_embeddings": 64, "pad_token_id": 1} | more)
    model = AutoModel.from_config(config).double()
    for parameter in model.parameters():  # biases and norms too, or a mistake in them would not show
        torch.nn.init.normal_(parameter, std=0.3)
    prepare_backbone(model, False, PACKED)
    return model


def tokens_of(lengths):
    generator = torch.Generator().manual_seed(1)
    return Tokens(torch.randint(5, 60, (sum(lengths),), generator=generator), torch.tensor(lengths))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
def test_vectors_and_gradients_are_those_of_padded_texts(model_type, lengths, mode):
    model = backbone(model_type).eval()
    padded = copy.deepcopy(model)
    padded.set_attn_implementation("eager")
    tokens = tokens_of(lengths)
    input_ids, mask = tokens.padded(torch.arange(len(tokens)), pad_id=1)
    expected = pool(padded(input_ids=input_ids, attention_mask=mask).last_hidden_state, mask, mode)
    found = pool_packed(packed_states(model, tokens.ids, tokens.lengths), tokens.lengths, mode)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    direction = torch.randn(expected.shape, dtype=torch.double)
    expected.backward(direction)
    found.backward(direction)
    assert any(p.grad is not None and p.grad.abs().max() > 1e-3 for p in padded.parameters())
    for (name, mine), other in zip(model.named_parameters(), padded.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-9, msg=name)


def test_dropout_without_gradients_is_each_tokens_own():
    model = backbone("bert").train()
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        packed_states(model, torch.full((20,), 7), torch.ones(20, dtype=torch.long))
    assert len(seen[0][0].unique(dim=0)) > 5


def test_the_same_backbone_still_takes_padded_rows():
    model = backbone("bert").eval()
    tokens = tokens_of(LENGTHS[2])
    input_ids, mask = tokens.padded(torch.arange(len(tokens)), pad_id=1)
    states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(states, packed_states(model, tokens.ids, tokens.lengths), rtol=0, atol=1e-10)


def test_attention_drops_as_often_as_torch_does(monkeypatch):
    """Without randomness left in it, attention with dropout is attention over weights with the same ones gone."""
    dropped = []

    def fake(x, p):
        keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype) >= p
        dropped.append((x, keep))
        return x * keep / (1 - p)

    monkeypatch.setattr(packed_attention, "dropout", fake)
    lengths = torch.tensor([4, 3])
    q, k, v = torch.randn(3, 1, 2, 7, 5, dtype=torch.double)
    found, _ = packed_attention.packed_attention(None, q, k, v, None, segments=Segments(lengths, q.device), dropout=0.5)
    ((weights, keep),) = dropped
    assert weights.shape == (2, 2, 4, 4)
    begin = 0
    for i, n in enumerate(lengths.tolist()):
        rows = slice(begin, begin + n)
        scores = (q[0, :, rows] @ k[0, :, rows].mT / 5**0.5).softmax(-1)
        expected = (scores * keep[i, :, :n, :n] * 2) @ v[0, :, rows]
        torch.testing.assert_close(found[0, rows].transpose(0, 1), expected)
        begin += n


def test_groups_cover_every_text_once_and_pad_little():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 200, (300,), generator=generator).sort(descending=True).values
    segments = Segments(lengths, torch.device("cpu"))
    assert [g.tokens.start for g in segments.groups[1:]] == [g.tokens.stop for g in segments.groups[:-1]]
    assert sum(g.texts for g in segments.groups) == 300
    assert segments.groups[-1].tokens.stop == lengths.sum()
    assert sum(g.texts * g.width for g in segments.groups) < 1.1 * lengths.sum()
    assert segments.positions().tolist() == [i for n in lengths.tolist() for i in range(n)]


@pytest.mark.parametrize("many", [1, 2, 7, 8, 20])
def test_only_lengths_of_few_texts_are_padded_to_one(many):
    lengths = torch.tensor([40] * 2 + [39] * many + [38] * 2 + [37] * 2 + [9] * many)
    found = [(g.texts, g.width, g.slots is None) for g in Segments(lengths, torch.device("cpu")).groups]
    if many < packing._ENOUGH_TEXTS:
        assert found == [(6 + many, 40, False), (many, 9, True)]
    else:
        assert found == [(2, 40, True), (many, 39, True), (4, 38, False), (many, 9, True)]


def test_the_kernel_for_variable_lengths_takes_what_it_is_given():
    """Shapes and arguments only: without a GPU there are no numbers to compare."""
    rows = torch.empty(3, 12, 2, 64, dtype=torch.bfloat16, device="meta")
    segments = Segments(torch.tensor([6, 4, 2]), torch.device("meta"))
    result = packed_attention._attend_all(segments, *rows, scaling=0.125)
    assert result.shape == (12, 2, 64)
    assert result.dtype == torch.bfloat16
    assert segments.longest == 6
    assert Segments(torch.tensor([6, 4, 2]), torch.device("cpu")).bounds.tolist() == [0, 6, 10, 12]


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "size", "there"),
    [
        ("cuda:0", (8, 0), torch.bfloat16, 64, True),
        ("cuda:0", (9, 0), torch.float16, 256, True),
        ("cuda:0", (7, 5), torch.float16, 64, False),  # Turing: FlashAttention begins with Ampere
        ("cuda:0", (7, 0), torch.bfloat16, 64, False),
        ("cuda:0", (8, 0), torch.float32, 64, False),
        ("cuda:0", (8, 0), torch.bfloat16, 264, False),
        ("cuda:0", (8, 0), torch.bfloat16, 12, False),
        ("cpu", None, torch.bfloat16, 64, False),
    ],
)
def test_the_kernel_for_variable_lengths_is_used_where_there_is_one(device, capability, dtype, size, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert packed_attention._has_kernel(torch.device(device), dtype, size) is there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_on_a_gpu_packed_attention_is_the_padded_one(p):
    lengths = torch.tensor([130, 129, 60, 7, 1])
    q, k, v = torch.randn(3, 1, 4, int(lengths.sum()), 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    segments = Segments(lengths, q.device)
    found, _ = packed_attention.packed_attention(None, q, k, v, None, segments=segments, dropout=p)
    if p:
        assert found.isfinite().all()
        return
    parts = [scaled_dot_product_attention(*(x.float()[:, :, rows] for x in (q, k, v))) for rows in rows_of(lengths)]
    torch.testing.assert_close(found.float(), torch.cat(parts, 2).transpose(1, 2), rtol=0, atol=2e-2)


def rows_of(lengths):
    ends = lengths.cumsum(0).tolist()
    return [slice(end - n, end) for n, end in zip(lengths.tolist(), ends, strict=True)]


# ---- which models


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_chunks_on_several_cores_give_the_vectors_of_one(threads):
    texts = [f"{'好' * (i % 23)}第{i}个句子" for i in range(300)]
    encoder = transformer(train_vocabulary(texts, "wordpiece", 300), SIZES | {"model_type": "bert"})
    used = []
    encoder.backbone.encoder.register_forward_pre_hook(
        lambda *args: used.append((threading.get_ident(), torch.get_num_threads()))
    )
    several = encoder.encode(texts, batch_tokens=128)
    assert len({thread for thread, _ in used}) > 1
    assert {count for _, count in used} == {1}
    assert torch.get_num_threads() == threads
    used.clear()
    torch.set_num_threads(1)
    torch.testing.assert_close(several, encoder.encode(texts, batch_tokens=128), atol=1e-6, rtol=0)
    assert {thread for thread, _ in used} == {threading.get_ident()}


def test_a_thread_that_first_meets_torch_meanwhile_has_all_cores(threads):
    texts = [f"第{i}个句子" for i in range(100)]
    encoder = transformer(train_vocabulary(texts, "wordpiece", 300), SIZES | {"model_type": "bert"})
    counts = {"new": [], "pool": []}

    def meet(*args):
        new = threading.Thread(target=lambda: counts["new"].append(torch.get_num_threads()))
        new.start()
        new.join()
        torch.randn(300, 300) @ torch.randn(300, 300)  # where torch gives a thread its number that has none yet
        counts["pool"].append(torch.get_num_threads())

    encoder.backbone.encoder.register_forward_pre_hook(meet)
    encoder.encode(texts, batch_tokens=64)
    assert len(counts["new"]) >= threads
    assert set(counts["new"]) == {threads}
    assert set(counts["pool"]) == {1}


def test_threads_that_cannot_be_started_are_an_error(threads, monkeypatch):
    texts = [f"第{i}个句子" for i in range(100)]
    encoder = transformer(train_vocabulary(texts, "wordpiece", 300), SIZES | {"model_type": "bert"})
    start, left = threading.Thread.start, iter([True, False, False, False])
    monkeypatch.setattr(threading.Thread, "start", lambda self: start(self) if next(left) else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode(texts, batch_tokens=64)
    monkeypatch.undo()
    assert torch.get_num_threads() == threads
    assert encoder.encode(texts, batch_tokens=64).isfinite().all()


def test_an_error_on_another_core_is_raised_and_leaves_the_threads_as_they_were(threads):
    texts = [f"第{i}个句子" for i in range(100)]
    encoder = transformer(train_vocabulary(texts, "wordpiece", 300), SIZES | {"model_type": "bert"})
    encoder.backbone.encoder.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode(texts, batch_tokens=64)
    assert torch.get_num_threads() == threads


def test_a_model_that_is_not_known_is_padded():
    sizes = {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    model = AutoModel.from_config(AutoConfig.for_model("distilbert", **sizes))
    prepare_backbone(model, False, None)
    assert not is_packed(model)
    with pytest.raises(InputError, match=r"attention=packed is for bert.*not distilbert as it is configured: leave it null"):
        prepare_backbone(model, False, PACKED)


def test_attention_of_choice_is_kept():
    tokenizer = train_vocabulary(["a b c d e f g h"] * 9, "wordpiece", 40)
    config = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    kinds = {name: transformer(tokenizer, config, attention=name) for name in (None, PACKED, "sdpa", "eager")}
    assert [is_packed(encoder.backbone) for encoder in kinds.values()] == [True, True, False, False]
    assert kinds["eager"].backbone.config._attn_implementation == "eager"
    weights = kinds[None].state_dict()
    found = [kind.load_state_dict(weights) and kind.encode(["a b c", "", "d e f g h"]) for kind in kinds.values()]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-6)


def test_a_backbones_dropout_is_the_fast_one():
    kinds = {type(module) for module in backbone("bert").modules() if isinstance(module, torch.nn.Dropout)}
    assert kinds == {Dropout}


# ---- compiled


@pytest.mark.heavy
def test_a_compiled_backbone_gives_the_same_vectors_and_gradients():
    model = backbone("bert").float().eval()
    tokenize = Tokenize(train_vocabulary(["a b c d e f g h"] * 9, "wordpiece", 40), 64)
    plain, compiled = Encoder(copy.deepcopy(model), tokenize), Encoder(model, tokenize)
    compile_backbone(compiled.backbone)
    assert not is_packed(compiled.backbone)
    for lengths in (LENGTHS[2], LENGTHS[3]):  # of other shapes
        found = []
        for encoder in (plain, compiled):
            encoder.zero_grad()
            vectors = encoder(tokens_of(lengths), batch_tokens=64)
            vectors.square().sum().backward()
            found.append((vectors.detach(), [p.grad for p in encoder.parameters() if p.grad is not None]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_an_encoder_that_comes_from_another_process_takes_texts_packed_and_padded(tmp_path):
    texts = ["你好", "", "你好你好"]
    encoder = transformer(train_vocabulary(texts, "wordpiece", 100), SIZES | {"model_type": "bert"}).eval()
    assert is_packed(encoder.backbone)
    torch.save((encoder, [encoder.encode(texts[::2]), encoder.encode(texts)]), tmp_path / "encoder.pt")
    code = f"""import sys, torch
encoder, expected = torch.load(sys.argv[1], weights_only=False)
for texts, vectors in zip(({texts[::2]!r}, {texts!r}), expected):
    torch.testing.assert_close(encoder.encode(texts), vectors)"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "encoder.pt")], check=True)
