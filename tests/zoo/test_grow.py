"""A transformer that begins with a static encoder's vectors."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import layer_norm

from acge_lightning import InputError
from acge_lightning.encoder import static, train_vocabulary
from acge_lightning.export import export
from acge_lightning.zoo import grow
from acge_lightning.zoo.growth import normalised_table

TEXTS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好", "散步", "很好 ☃", "", "公园" * 90]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(1)
    encoder = static(train_vocabulary(TEXTS * 5, "unigram", vocab_size=90), dim=30, prompts={"query": "问："})
    encoder.matryoshka_dims = (30, 15)
    folder = tmp_path_factory.mktemp("static") / "export"
    export(encoder, folder)
    return encoder.eval(), folder


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_it_begins_with_the_vectors_of_the_static_encoder(source, attention):
    encoder, folder = source
    grown = grow(folder, num_hidden_layers=3, num_attention_heads=2, positions=256, attention=attention)
    assert grown.tokenize.max_length == 256
    assert (grown.hidden_size, grown.dim, grown.matryoshka_dims, grown.prompts) == (64, 30, (30, 15), {"query": "问："})
    np.testing.assert_allclose(grown.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_a_larger_embedding_has_the_same_cosines_and_the_same_prefix(source):
    encoder, folder = source
    grown = grow(folder, num_hidden_layers=1, num_attention_heads=2, dense=64).eval()
    assert (grown.dim, grown.matryoshka_dims) == (64, (64, 30, 15))
    vectors, expected = grown.encode(TEXTS), encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose(grown.encode(TEXTS, 15), encoder.encode(TEXTS, 15), atol=1e-5)


def test_it_begins_with_the_first_dims_on_request(source):
    encoder, folder = source
    grown = grow(folder, dim=15, num_hidden_layers=1, num_attention_heads=2, dense=40).eval()
    assert (grown.hidden_size, grown.dim, grown.matryoshka_dims) == (64, 40, (40, 15))
    np.testing.assert_allclose(grown.encode(TEXTS, 15), encoder.encode(TEXTS, 15), atol=1e-5)
    for dim in (0, 31):
        with pytest.raises(InputError, match=f"dim={dim} cannot be taken of the 30 dims"):
            grow(folder, dim=dim)


def test_every_weight_that_counts_learns(source):
    _, folder = source
    torch.manual_seed(0)
    grown = grow(folder, num_hidden_layers=2, num_attention_heads=2)
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.01)
    for _ in range(2):  # the outputs first, then what is before them
        optimizer.zero_grad()
        grown(grown.tokenize(TEXTS)).pow(3).sum().backward()
        optimizer.step()
    still = [name for name, value in grown.named_parameters() if value.grad is None or not value.grad.any()]
    assert all(name.endswith("key.bias") for name in still)  # attention does not depend on it
    there, back = grown.eval().encode(["公园 散步 天", "天 散步 公园"])
    assert (there - back).abs().max() > 1e-6  # it tells orders apart


def test_its_gradients_are_finite_in_training(source):
    _, folder = source
    for seed in range(30):  # with dropout, one [CLS] in a hundred is dropped whole
        torch.manual_seed(seed)
        grown = grow(folder, num_hidden_layers=4, num_attention_heads=2).train()
        grown(grown.tokenize(TEXTS)).pow(3).sum().backward()
        assert all(value.grad.isfinite().all() for value in grown.parameters() if value.grad is not None)


def test_its_export_is_read_by_sentence_transformers(source, tmp_path):
    _, folder = source
    grown = grow(folder, num_attention_heads=2).eval()
    export(grown, tmp_path / "grown")
    theirs = SentenceTransformer(str(tmp_path / "grown"), device="cpu")
    np.testing.assert_allclose(grown.encode(TEXTS), theirs.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_layer_normalisation_leaves_the_table_alone():
    table = torch.randn(200, 20) * torch.rand(200, 1) * 5 + 1
    table[7] = 0
    wide = normalised_table(table, 32)
    torch.testing.assert_close(layer_norm(wide, (32,)), wide, atol=1e-4, rtol=0)
    assert torch.linalg.matrix_rank(torch.cat([wide[:, :20], table], 1), rtol=1e-4) == 20  # scaled all alike


def test_what_cannot_grow(source, tmp_path):
    _, folder = source
    export(grow(folder, num_attention_heads=2), tmp_path / "grown")
    with pytest.raises(InputError, match="is a transformer already"):
        grow(tmp_path / "grown")
    export(static(train_vocabulary(TEXTS * 5, "unigram", vocab_size=90), dim=30, dense=40), tmp_path / "dense")
    with pytest.raises(InputError, match="has a Dense head"):
        grow(tmp_path / "dense")
    with pytest.raises(InputError, match="dense=29 is less than the 30 dims"):
        grow(folder, num_attention_heads=2, dense=29)
    with pytest.raises(InputError, match="attention heads"):
        grow(folder, num_attention_heads=7)
