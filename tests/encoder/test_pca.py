"""Components against scikit-learn's PCA."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from acge_lightning.encoder.encoder import Dense
from acge_lightning.encoder.pca import rotate_to_components, sample_texts
from acge_lightning.encoder.vocabulary import Texts
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import load

TEXTS = [f"第{i}天天气很好 {i * i % 97} how do {'I' * (i % 5)} return {chr(97 + i % 26)}{i % 13}" for i in range(300)]
NEW = ["今天天气很好", "怎么退货？", "return 7"]


@pytest.fixture(params=[None, 24])
def encoder(request, small_encoder):
    torch.manual_seed(0)
    made = load(small_encoder)
    made.dense = request.param and Dense(16, request.param)
    return made.eval()


@pytest.mark.parametrize("training", [True, False])
def test_every_module_of_the_old_encoder_and_of_the_new_is_in_its_mode(encoder, training):
    encoder.train(training)
    encoder.backbone.train(not training)
    before = [module.training for module in encoder.modules()]
    turned = rotate_to_components(encoder, TEXTS)
    assert [module.training for module in encoder.modules()] == before
    assert {module.training for module in turned.backbone.modules()} == {not training}


def raw(encoder, texts):
    with torch.no_grad():
        return encoder(encoder.tokenize(texts)).double().numpy()


def test_dims_are_the_components_of_scikit_learn(encoder):
    rank = 8  # the smaller ones are too much alike to have a direction of their own
    turned = rotate_to_components(encoder, TEXTS)
    expected = PCA(rank).fit(raw(encoder, TEXTS)).transform(raw(encoder, NEW))
    found = raw(turned, NEW)[:, :rank]
    signs = np.sign((expected * found).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-5)


@pytest.mark.parametrize("count", [1, 3, 10, 57, 1000])
def test_texts_are_drawn_evenly_from_the_distinct_ones(count):
    texts = [f"{i * i % 61}" for i in range(200)]
    distinct = list(dict.fromkeys(texts))
    expected = distinct[:: max(1, math.ceil(len(distinct) / count))]
    for given in (texts, Texts(lambda: iter(texts)), iter(texts)):
        assert sample_texts(given, count) == expected


def test_distances_at_full_size_stay(encoder):
    before, after = raw(encoder, NEW), raw(rotate_to_components(encoder, TEXTS), NEW)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(after[i] - after[j]) == pytest.approx(np.linalg.norm(before[i] - before[j]), rel=1e-5)


def test_the_encoder_is_left_as_it_was_and_the_result_is_exported(encoder, tmp_path):
    encoder.matryoshka_dims = (8, encoder.dim)
    before = raw(encoder, NEW)
    turned = rotate_to_components(encoder, TEXTS)
    np.testing.assert_array_equal(raw(encoder, NEW), before)
    assert turned.matryoshka_dims == ()
    again = load(export(turned, tmp_path / "turned"))
    torch.testing.assert_close(again.encode(NEW, 4), turned.encode(NEW, 4), rtol=0, atol=1e-6)


def test_too_few_texts_and_a_head_that_is_not_linear_are_refused(encoder):
    with pytest.raises(InputError, match=f"3 texts do not determine {encoder.dim}"):
        rotate_to_components(encoder, NEW)
    encoder.dense = Dense(16, 16, activation="Tanh")
    with pytest.raises(InputError, match="ends in Tanh"):
        rotate_to_components(encoder, TEXTS)
    assert isinstance(encoder.dense.activation, nn.Tanh)
