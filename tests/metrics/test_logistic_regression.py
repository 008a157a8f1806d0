"""Logistic regression in parts against scikit-learn's, which has the whole matrix in memory."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from acge_lightning.errors import InputError
from acge_lightning.metrics import logistic_regression as probe
from acge_lightning.metrics.task_metrics import LinearProbe


def texts(classes, count, dim, seed):
    """Float32[n, dim] around a centre a class, uneven classes of words, and vectors to test."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, dim))
    known, tested = (np.repeat(centres, n, axis=0) + rng.normal(size=(classes * n, dim)) for n in (count, 9))
    labels = np.repeat([f"class {i}" for i in range(classes)], count)
    kept = rng.random(len(labels)) < 0.8
    return known[kept].astype(np.float32), labels[kept], tested.astype(np.float32)


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(probe, "_CELLS", 64)
    monkeypatch.setattr(probe, "_LARGE", 64)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_parts_give_the_probe_of_scikit_learn(weight, kind, in_parts):
    known, labels, tested = texts(12, 7, 16, 0)
    known, tested = kind(known / 9), kind(tested / 9)
    expected = LogisticRegression(max_iter=100, random_state=42, class_weight=weight).fit(known, labels)
    found = probe.BoundedLogisticRegression(max_iter=100, random_state=42, class_weight=weight).fit(known, labels)
    assert found.n_iter_ == expected.n_iter_ > 3
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-4)
    np.testing.assert_array_equal(found.predict(tested), expected.predict(tested))


def test_small_problems_are_scikit_learns_own(in_parts):
    known, labels, _ = texts(2, 7, 16, 1)
    expected = LogisticRegression().fit(known, labels)
    np.testing.assert_array_equal(probe.BoundedLogisticRegression().fit(known, labels).coef_, expected.coef_)


def test_the_accuracy_of_the_metric_is_the_same_in_parts(monkeypatch):
    known, words, _ = texts(20, 12, 16, 2)
    labels = np.unique(words, return_inverse=True)[1]
    learnt = np.random.default_rng(0).integers(0, 8, len(labels))  # three draws
    given = torch.from_numpy(known), torch.from_numpy(np.stack([labels, learnt], axis=1))
    expected = LinearProbe().units(*given)
    monkeypatch.setattr(probe, "_CELLS", 64)
    monkeypatch.setattr(probe, "_LARGE", 64)
    found = LinearProbe().units(*given)
    assert found.shape == expected.shape
    assert (found != expected).float().mean() < 0.03  # a text that lies between two labels goes to either
    assert 0.1 < expected.mean() < 1


def test_equal_draws_are_fitted_once(monkeypatch):
    known, words, _ = texts(5, 9, 8, 3)
    labels = np.unique(words, return_inverse=True)[1]
    fits, original = [], probe.BoundedLogisticRegression.fit

    def fit(self, vectors, *others):
        fits.append(len(vectors))
        return original(self, vectors, *others)

    monkeypatch.setattr(probe.BoundedLogisticRegression, "fit", fit)
    learnt = np.where(np.arange(len(labels)) % 2, 0b1011, 0)
    learnt[[0, -1]] |= 0b100
    learnt[2] = 0b1111
    units = LinearProbe().units(torch.from_numpy(known), torch.from_numpy(np.stack([labels, learnt], axis=1)))
    assert units.shape[1] == 4
    assert len(fits) == 2
    assert torch.equal(units[:, 0], units[:, 1])


def test_more_coefficients_than_fit_into_memory_are_refused(in_parts, monkeypatch):
    monkeypatch.setattr(probe, "_LARGEST", 100)
    known, labels, _ = texts(12, 7, 16, 0)
    with pytest.raises(InputError, match="12 classes x 16 dims are too many for logistic regression"):
        probe.BoundedLogisticRegression().fit(known, labels)
