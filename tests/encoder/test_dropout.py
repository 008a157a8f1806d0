"""The layers that are faster on a CPU: dropout against its statistics, linear maps against numpy and torch's own."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import GELUActivation

from acge_lightning.encoder import dropout as layers
from acge_lightning.encoder import encoder
from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.dropout import (
    GELU,
    Dropout,
    Linear,
    Repeated,
    dropout,
    onednn_is_faster,
    packed_weights,
    use_fast_layers,
    use_packed_weights,
)
from acge_lightning.encoder.vocabulary import train_vocabulary


class Calls(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def by_onednn(layer, x):
    with Calls() as calls:
        layer(x)
    return any("mkldnn" in name for name in calls.names)


# ---- linear maps

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@onednn
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (5,), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_a_product_of_numpy(shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(5, 4, bias=bias).eval(), torch.randn(shape)
    with torch.no_grad():
        found = layer(x)
        assert by_onednn(layer, x)
    expected = x.double().numpy() @ layer.weight.detach().double().numpy().T
    if bias:
        expected = expected + layer.bias.detach().double().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


@onednn
def test_linear_takes_rows_and_weights_that_are_not_contiguous():
    torch.manual_seed(0)
    layer = Linear(5, 4).eval()
    layer.weight = nn.Parameter(torch.randn(5, 4).T)
    with torch.no_grad():
        for x in (torch.randn(5, 3).T, torch.randn(3, 10)[:, ::2]):
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


@onednn
@torch.no_grad()
def test_linear_is_of_torch_in_training_with_gradients_and_in_other_precisions():
    layer, x = Linear(5, 4).eval(), torch.randn(3, 5)
    assert by_onednn(layer, x)
    with torch.enable_grad():
        assert not by_onednn(layer, x)
        plain = nn.Linear(5, 4)
        plain.load_state_dict(layer.state_dict())
        for module in (layer, plain):
            module(x).square().sum().backward()
        assert torch.equal(layer.weight.grad, plain.weight.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(layer, x)
        assert layer(x).dtype == torch.bfloat16
    assert not by_onednn(copy.deepcopy(layer).train(), x)
    assert not by_onednn(copy.deepcopy(layer).double(), x.double())
    exported = torch.export.export(layer, (x,))
    assert [str(n.target) for n in exported.graph.nodes if n.op == "call_function"] == ["aten.linear.default"]


@pytest.mark.parametrize(
    ("name", "faster"), [("AMD EPYC", True), ("Intel(R) Xeon(R) Platinum 8480+", False), ("Neoverse-N1", False), (None, False)]
)
def test_onednn_is_for_processors_that_mkl_neglects(name, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn_is_faster() is faster
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not onednn_is_faster()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not onednn_is_faster()


@onednn
def test_packed_weights_are_those_of_one_thread():
    torch.manual_seed(0)
    model, x = nn.Sequential(Linear(5, 4), nn.Linear(4, 4), Linear(4, 3).double()).eval(), torch.randn(7, 5)
    first = model[0]
    first.weight = nn.Parameter(torch.randn(5, 4).T)  # in another order
    weights = packed_weights(model, 2048)
    assert list(weights) == [first]

    def found(given):
        with ThreadPoolExecutor(1, initializer=use_packed_weights, initargs=(given,)) as pool:
            return pool.submit(torch.no_grad()(first), x).result()

    expected = x @ first.weight.detach().T + first.bias.detach()
    torch.testing.assert_close(found(weights), expected)
    with torch.no_grad():
        zero = copy.deepcopy(first)
        zero.weight.zero_()
        (zeros,) = packed_weights(zero, 7).values()
        torch.testing.assert_close(found({first: zeros}), first.bias.expand(7, 4))  # they are what it takes
        torch.testing.assert_close(first(x), expected)  # but not here


@onednn
def test_an_encoder_packs_its_weights_once_for_many_texts(monkeypatch):
    monkeypatch.setattr(layers, "onednn_is_faster", lambda: True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = transformer(train_vocabulary(["a b c d e f g h"] * 9, "wordpiece", 40), {"model_type": "bert"} | sizes).eval()
    texts, packs = ["a b c", "d e f g h a", "b", "c d"] * 8, []

    def counted(*args):
        packs.append(packed_weights(*args))
        return packs[-1]

    monkeypatch.setattr(encoder, "packed_weights", counted)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = model.encode(texts, batch_tokens=16)
        assert not packs  # one core takes chunk after chunk
        torch.set_num_threads(2)
        found = model.encode(texts, batch_tokens=16)
    finally:
        torch.set_num_threads(threads)
    assert [len(weights) for weights in packs] == [12]  # six linear maps a layer
    torch.testing.assert_close(found, expected)
    for module in model.modules():  # as another kind of layer gives them
        if type(module) is Linear:
            module.__class__ = nn.Linear
    torch.testing.assert_close(model.encode(texts, batch_tokens=16), expected)


@pytest.mark.parametrize("kind", [nn.Linear, pytest.param(Linear, marks=onednn)])
@torch.no_grad()
def test_vectors_that_repeat_are_mapped_once(kind):
    torch.manual_seed(0)
    layer, distinct, which = kind(5, 4).eval(), torch.randn(3, 5), torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2]])
    x = Repeated.of(distinct, which)
    torch.testing.assert_close(layer(x), layer(distinct[which]))
    for other in (x + 1, x.transpose(0, 1), x.clone(), layer(x), nn.functional.layer_norm(x, (5,))):
        assert type(other) is torch.Tensor
    assert torch.equal(x + 1, distinct[which] + 1)
    assert torch.equal(nn.functional.linear(input=x, weight=layer.weight), nn.functional.linear(distinct[which], layer.weight))
    assert torch.equal(nn.functional.linear(layer.weight, x[0]), nn.functional.linear(layer.weight, distinct[which[0]]))
    x.distinct.zero_()
    torch.testing.assert_close(layer(x), layer.bias.expand(2, 4, 4))  # these, not the vectors, are what is mapped


# ---- activation


@torch.no_grad()
def test_gelu_is_written_over_what_it_is_given_unless_that_may_be_needed():
    layer, x = GELU(), torch.linspace(-4, 4, 99)
    expected = x.double().numpy() * special.ndtr(x.double().numpy())
    with torch.enable_grad():
        kept = x.clone().requires_grad_()
        found = layer(kept)
        found.sum().backward()
        assert torch.equal(kept, x)
        assert kept.grad is not None
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
    given = x.clone()
    np.testing.assert_allclose(layer(given).numpy(), expected, atol=1e-6)
    assert layer(given).data_ptr() == given.data_ptr()
    exported = torch.export.export(layer, (x,))
    assert [str(n.target) for n in exported.graph.nodes if n.op == "call_function"] == ["aten.gelu.default"]


# ---- within a model


class Tied(nn.Linear):
    """A subclass, which stays what it is."""


@pytest.mark.parametrize("faster", [pytest.param(True, marks=onednn), False])
def test_a_models_layers_are_made_fast_and_keep_their_weights_and_mode(faster, monkeypatch):
    monkeypatch.setattr(layers, "onednn_is_faster", lambda: faster)
    model = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Dropout(0.3), Tied(4, 3)), GELUActivation()).eval()
    weights, x = list(model.parameters()), torch.randn(2, 5)
    before = model(x)
    use_fast_layers(model)
    assert [type(m) for m in (model[0], model[1][0], model[1][1])] == [Linear if faster else nn.Linear, Dropout, Tied]
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    assert not any(type(m) is GELU for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
        assert by_onednn(model, x) is faster


# ---- dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_dropout_keeps_its_share_and_its_mean(p):
    torch.manual_seed(0)
    x = torch.full((2000, 503), 2.0, dtype=torch.double, requires_grad=True)
    y = dropout(x, p)
    kept = (y != 0).double()
    n, sigma = x.numel(), (p * (1 - p)) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) <= 5 * sigma / n**0.5 + 2**-16
    assert p == 1 or torch.allclose(y[y != 0], torch.tensor(2 / (1 - p), dtype=torch.double), rtol=2**-16 / (1 - p))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach() / 2)
    for axis in (0, 1):  # no row and no column is favoured: chi-square of the counts within 5 sigma of its mean
        if 0 < p < 1:
            counts, size = kept.sum(axis), kept.shape[axis]
            chi = ((counts - size * (1 - p)) ** 2 / (size * p * (1 - p))).sum().item()
            assert abs(chi - len(counts)) < 5 * (2 * len(counts)) ** 0.5


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 20), 0.3) != 0).double() - 0.7
    for lag in (1, 2, 3, 4, 8, 64):
        correlation = (kept[:-lag] * kept[lag:]).mean() / 0.21
        assert abs(correlation.item()) < 5 / 1024


def test_dropout_follows_the_seed_and_the_mode():
    layer, x = Dropout(0.5), torch.ones(100, 3)
    torch.manual_seed(4)
    first = layer(x)
    again = layer(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, again)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
