"""Second scorers against sentence-transformers and one pair at a time; folders that are no cross-encoders."""

import json
import shutil
from functools import partial

import cross_encoder
import numpy as np
import pytest
import sentence_transformers
import torch

from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.miner import embedded
from acge_lightning.mining.negatives.scorers import CrossEncoder, EncoderScorer, is_cross_encoder
from acge_lightning.zoo.pretrained import load

PAIRS = [
    ("怎么退货", "how do I return this"),
    ("weather", ""),
    ("how do I return this 2024 " * 20, "今天天气很好，我们去公园。" * 30),
    ("天气", "今天天气很好"),
    ("", "?"),
    *[("park", "weather in the park " * n) for n in range(1, 12)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cross_encoder.save(tmp_path_factory.mktemp("cross") / "encoder")


def test_scores_are_those_of_sentence_transformers(folder, monkeypatch):
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    assert len(np.unique(expected.round(3))) > 10, "the pairs differ"
    np.testing.assert_allclose(CrossEncoder(folder)(PAIRS), expected, atol=1e-5)
    monkeypatch.setattr("acge_lightning.mining.negatives.scorers._TOKENS", 100)
    monkeypatch.setattr("acge_lightning.mining.negatives.scorers._PAIRS", 6)
    np.testing.assert_allclose(CrossEncoder(folder)(PAIRS), expected, atol=1e-5)
    assert CrossEncoder(folder)([]).shape == (0,)


def test_the_cosine_of_another_encoder(small_encoder, tmp_path):
    encoder = load(small_encoder, prompts={"query": "问："})
    scores = EncoderScorer(partial(embedded, Embeddings(encoder, tmp_path)), "query")(PAIRS)
    for (query, text), score in zip(PAIRS, scores.tolist(), strict=True):
        assert score == pytest.approx(float(encoder.encode(query, prompt="query") @ encoder.encode(text).T), abs=2e-6)
    assert EncoderScorer(partial(embedded, Embeddings(encoder)))([]).shape == (0,)


def test_a_folder_tells_what_it_is(folder, small_encoder):
    assert is_cross_encoder(folder)
    assert not is_cross_encoder(small_encoder)


def test_folders_that_do_not_fit_are_errors(folder, tmp_path):
    with pytest.raises(InputError, match="has 3 outputs"):
        CrossEncoder(cross_encoder.save(tmp_path / "three", outputs=3))
    with pytest.raises(InputError, match=r"no weights there, none of model\.safetensors"):
        CrossEncoder(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="the weights lack 16 tensors"):
        CrossEncoder(broken)
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "clip_vision_model"}))
    with pytest.raises(InputError, match="has no sequence classification"):
        CrossEncoder(broken)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"x": print}, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors"):
        CrossEncoder(pickled)
