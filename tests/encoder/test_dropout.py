"""Dropout of a CPU against its statistics."""

import pytest
import torch
from torch import nn

from acge_lightning.encoder.dropout import Dropout, dropout, use_fast_dropout


class Own(nn.Dropout):
    """A subclass, which stays what it is."""


def test_a_models_dropout_is_made_fast_and_keeps_its_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Dropout(0.3), Own(0.2)), nn.Dropout(0.1).eval())
    use_fast_dropout(model)
    assert [type(m) for m in (model[0], *model[1], model[2])] == [nn.Linear, Dropout, Own, Dropout]
    assert [(m.p, m.training) for m in (*model[1], model[2])] == [(0.3, True), (0.2, True), (0.1, False)]


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
    drawn = layer(x)
    drawn_next = layer(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), drawn)
    assert not torch.equal(drawn, drawn_next)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
