"""A longer table of positions: by hand, and in models that sentence-transformers reads."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from acge_lightning import InputError
from acge_lightning.encoder import extend_positions, extend_table, static, train_vocabulary, transformer
from acge_lightning.export import export
from acge_lightning.zoo import from_pretrained

TEXTS = ["今天天气不错", "我们去公园散步", "机器学习的模型需要数据"] * 5
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(TEXTS, "wordpiece", 60)


@pytest.mark.parametrize("alpha", [0.4, 0.2])
def test_decomposition_equals_its_definition(alpha):
    table = torch.randn(7, 5, dtype=torch.float64)
    extended = extend_table(table, 40, alpha=alpha).numpy()
    p = table.numpy()
    base = [(p[j] - alpha * p[0]) / (1 - alpha) for j in range(7)]
    expected = [alpha * base[i] + (1 - alpha) * base[j] for i in range(7) for j in range(7)]
    np.testing.assert_allclose(extended, expected[:40], atol=1e-12)


def test_known_positions_stay_and_new_ones_differ():
    table = torch.randn(8, 6)
    extended = extend_table(table, 64)
    assert torch.equal(extended[:8], table)
    distances = torch.cdist(extended, extended) + torch.eye(64)
    assert distances.min() > 1e-3


def test_tiled_and_interpolated():
    table = torch.randn(5, 3)
    assert torch.equal(extend_table(table, 12, "tile"), torch.cat([table, table, table[:2]]))
    stretched = extend_table(table, 9, "interpolate").numpy()
    expected = [np.interp(np.linspace(0, 4, 9), range(5), column) for column in table.T.numpy()]
    np.testing.assert_allclose(stretched, np.transpose(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("length", "method", "alpha", "message"),
    [
        (4, "hierarchical", 0.4, "4 positions are fewer than the 5"),
        (26, "hierarchical", 0.4, "26 positions are more than 5 times 5"),
        (9, "hierarchical", 0.5, r"alpha=0.5 does not tell"),
        (9, "hierarchical", 1.0, r"alpha=1.0 does not tell"),
        (9, "double", 0.4, "method='double' makes no positions"),
    ],
)
def test_bad_settings_are_refused(length, method, alpha, message):
    with pytest.raises(InputError, match=message):
        extend_table(torch.randn(5, 3), length, method, alpha)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_texts_of_known_length_keep_their_vectors_and_longer_ones_work(model_type, tokenizer, tmp_path):
    more = 2 if model_type == "roberta" else 0  # its first positions are those of padding
    config = {"model_type": model_type, "max_position_embeddings": 32 + more, **SIZES}
    before = transformer(tokenizer, config, max_length=32).eval()
    export(before, tmp_path / "short")
    after = from_pretrained(tmp_path / "short", positions=64).eval()
    assert after.tokenize.max_length == 64
    short, long = "今天天气不错", "今天天气不错，" * 12
    np.testing.assert_allclose(after.encode([short]), before.encode([short]), atol=1e-6)
    assert not np.allclose(after.encode([long]), before.encode([long]), atol=1e-3)

    export(after, tmp_path / "long")
    theirs = SentenceTransformer(str(tmp_path / "long"), device="cpu")
    assert theirs.max_seq_length == 64
    np.testing.assert_allclose(after.encode([short, long]), theirs.encode([short, long], normalize_embeddings=True), atol=1e-5)


@pytest.mark.parametrize("positions", [{"method": "tile"}, {"length": 64, "size": 3}, {"length": "64"}, 64.0])
def test_positions_that_say_too_little_or_too_much(tokenizer, positions):
    encoder = transformer(tokenizer, {"model_type": "bert", "max_position_embeddings": 32, **SIZES}, max_length=32)
    with pytest.raises(InputError, match="give a number, or length"):
        extend_positions(encoder.backbone, positions)


def test_the_way_is_chosen_with_the_length(tokenizer, tmp_path):
    export(
        transformer(tokenizer, {"model_type": "bert", "max_position_embeddings": 32, **SIZES}, max_length=32), tmp_path / "m"
    )
    table = from_pretrained(tmp_path / "m").backbone.embeddings.position_embeddings.weight
    for options in ({"method": "tile"}, {"alpha": 0.2}):
        longer = from_pretrained(tmp_path / "m", positions={"length": 50, **options}).backbone
        assert torch.equal(longer.embeddings.position_embeddings.weight, extend_table(table, 50, **options))


def test_every_position_is_trained(tokenizer):
    encoder = transformer(tokenizer, {"model_type": "bert", "max_position_embeddings": 8, **SIZES}, max_length=8)
    extend_positions(encoder.backbone, 20)
    encoder.tokenize.max_length = 20
    encoder(encoder.tokenize(["今天天气不错，" * 5])).sum().backward()
    table = encoder.backbone.embeddings.position_embeddings
    assert isinstance(table, nn.Embedding)
    assert table.weight.grad is not None
    assert (table.weight.grad.abs().sum(1) > 0).all()


def test_models_without_a_table_are_refused(tokenizer, tmp_path):
    export(static(tokenizer, dim=8), tmp_path / "static")
    with pytest.raises(InputError, match="positions=64 does not fit a static encoder"):
        from_pretrained(tmp_path / "static", positions=64)
    config = {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2, **SIZES}
    export(transformer(tokenizer, config, pooling="last"), tmp_path / "qwen3")
    with pytest.raises(InputError, match="qwen3 models have no table of positions"):
        from_pretrained(tmp_path / "qwen3", positions=64)
