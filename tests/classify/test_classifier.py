"""The cascade against scikit-learn's own checks, a plain loop, and an exhaustive search for thresholds."""

import itertools
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from acge_lightning.classify import AdaptiveClassifier
from acge_lightning.classify.thresholds import cheapest_thresholds, stopping_stages, tune_thresholds
from acge_lightning.errors import InputError


@parametrize_with_checks([AdaptiveClassifier(), AdaptiveClassifier(tolerance=0.05, margin=0.0)])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def problem():
    """Vectors of which most are told by their first 4 dims and some only by the later ones; learn, tune, test."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1800)
    vectors = rng.normal(size=(1800, 32))
    easy = rng.random(1800) < 0.8
    vectors[easy, labels[easy]] += 6
    vectors[~easy, 10 + labels[~easy]] += 6
    return [(vectors[i : i + 600], labels[i : i + 600]) for i in (0, 600, 1200)]


def cut(vectors, dim):
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)


def test_it_equals_a_loop_over_probes(problem):
    (learn, labels), (tuned, answers), (tested, _) = problem
    found = AdaptiveClassifier([4, 12, 32]).fit(learn, labels, tuned, answers)
    probes = {dim: LogisticRegression(max_iter=1000).fit(cut(learn, dim), labels) for dim in (4, 12, 32)}
    expected, dims, probabilities = [], [], []
    for row in tested:
        for dim, threshold in zip((4, 12, 32), (*found.thresholds_, 0), strict=True):
            proba = probes[dim].predict_proba(cut(row[None], dim))[0]
            if proba.max() >= threshold:
                break
        expected.append(proba.argmax())
        dims.append(dim)
        probabilities.append(proba)
    told, read = found.predict_with_dims(tested)
    assert len(set(dims)) > 1
    np.testing.assert_array_equal(told, expected)
    np.testing.assert_array_equal(found.predict(tested), expected)
    np.testing.assert_array_equal(read, dims)
    np.testing.assert_allclose(found.predict_proba(tested), probabilities, atol=1e-12)


def test_few_dims_are_read_and_the_accuracy_is_kept(problem):
    (learn, labels), (tuned, answers), (tested, truth) = problem
    full = (LogisticRegression(max_iter=1000).fit(cut(learn, 32), labels).predict(cut(tested, 32)) == truth).mean()
    for given in ((), (tuned, answers)):
        found = AdaptiveClassifier(random_state=0).fit(learn, labels, *given)
        told, read = found.predict_with_dims(tested)
        assert (told == truth).mean() >= full - 0.02
        assert read.mean() < 16
        assert found.mean_dim_ == pytest.approx(read.mean(), abs=3)


@pytest.mark.parametrize("tolerance", [0.0, 0.03])
def test_what_it_reports_is_what_the_tuning_texts_saw(problem, tolerance):
    (learn, labels), (tuned, answers), _ = problem
    found = AdaptiveClassifier(tolerance=tolerance, margin=0).fit(learn, labels, tuned, answers)
    told, read = found.predict_with_dims(tuned)
    assert found.mean_dim_ == pytest.approx(read.mean())
    full = (found.probes_[32].predict(cut(tuned, 32)) == answers).mean()
    assert (told == answers).mean() >= full - tolerance - 1e-9


def test_nothing_stops_where_the_first_dims_say_nothing():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    vectors = rng.normal(size=(600, 16))
    vectors[:, 15] += 4 * (2 * labels - 1)
    found = AdaptiveClassifier([4, 8, 16], random_state=0).fit(vectors, labels)
    assert found.mean_dim_ > 15


def test_a_text_a_class_leaves_nothing_to_tune_on():
    found = AdaptiveClassifier().fit(np.eye(4), ["a", "b", "c", "d"])
    assert np.isinf(found.thresholds_).all()
    assert found.mean_dim_ == 4
    assert found.predict(np.eye(4)).tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("features", [1, 2, 3, 5, 64, 100])
def test_default_dims_are_powers_of_two_and_all(features):
    vectors, labels = np.random.default_rng(0).normal(size=(20, features)), [0, 1] * 10
    dims = AdaptiveClassifier().fit(vectors, labels).dims_
    assert dims == (*[2**i for i in range(20) if 2**i < features], features)


def test_any_probe_and_a_clone(problem):
    (learn, labels), _, (tested, truth) = problem
    found = clone(AdaptiveClassifier([4, 32], probe=GaussianNB(), random_state=1)).fit(learn, labels)
    assert isinstance(found.probes_[32], GaussianNB)
    assert found.score(tested, truth) > 0.8


class Recorded(LogisticRegression):
    """Logistic regression that keeps the vectors that it was fitted to."""

    fitted: ClassVar[list] = []

    def fit(self, vectors, labels):
        self.fitted.append(vectors)
        return super().fit(vectors, labels)


def held_out(classifier, vectors, labels):
    """Fit a classifier of `Recorded` probes; Bool[folds, n]: the texts that the probes of a fold did not learn from."""
    Recorded.fitted.clear()
    classifier.fit(vectors, labels)
    row_of = {tuple(vector): row for row, vector in enumerate(cut(vectors, vectors.shape[1]).round(9).tolist())}
    folds = []
    for learnt in Recorded.fitted:
        if learnt.shape[1] == vectors.shape[1] and len(learnt) < len(vectors):
            folds.append(np.ones(len(vectors), dtype=bool))
            folds[-1][[row_of[tuple(vector)] for vector in learnt.round(9).tolist()]] = False
    return np.array(folds).reshape(-1, len(vectors))


def folds(labels, validation):
    angles = np.linspace(0, 1, len(labels))
    classifier = AdaptiveClassifier([1, 2], probe=Recorded(), validation=validation, random_state=3)
    return held_out(classifier, np.stack([np.cos(angles), np.sin(angles)], axis=1), labels)


def test_held_out_texts_are_a_share_of_each_class_and_seeded():
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    (held,) = folds(labels, 0.2)
    assert np.bincount(labels[held], minlength=3).tolist() == [20, 2, 0]
    np.testing.assert_array_equal(held, folds(labels, 0.2)[0])
    (most,) = folds(labels, 0.99)
    assert np.bincount(labels[~most]).tolist() == [1, 1, 1]
    assert len(folds(labels, 0.0)) == len(folds(np.arange(3), 5)) == 0


def test_folds_hold_out_every_text_once_but_those_alone_in_their_class():
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = folds(labels, 5)
    assert len(held) == 5
    assert held.sum(axis=0).tolist() == [1] * 112 + [0]
    assert all(set(labels[~fold]) == {0, 1, 2, 3} for fold in held)


def test_tuning_on_folds_sees_answers_of_probes_that_learnt_from_the_others(problem):
    (learn, labels), _, _ = problem
    learn, labels = learn[:90], labels[:90]
    classifier = AdaptiveClassifier([4, 32], probe=Recorded(max_iter=1000), validation=3, margin=0, random_state=0)
    confidence, right = np.zeros((90, 2)), np.zeros((90, 2), dtype=bool)
    held = held_out(classifier, learn, labels)
    assert held.sum(axis=0).tolist() == [1] * 90
    for fold in held:
        for i, dim in enumerate((4, 32)):
            probe = LogisticRegression(max_iter=1000).fit(cut(learn[~fold], dim), labels[~fold])
            confidence[fold, i] = probe.predict_proba(cut(learn[fold], dim)).max(axis=1)
            right[fold, i] = probe.predict(cut(learn[fold], dim)) == labels[fold]
    expected = tune_thresholds(confidence[:, :1], right, [4, 32], 0.005, 0)
    np.testing.assert_allclose(classifier.thresholds_, expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dims": [4, 9]}, "1 to 8 dims"),
        ({"dims": []}, "1 to 8 dims"),
        ({"dims": [2.5]}, "1 to 8 dims"),
        ({"tolerance": -0.1}, "negative"),
        ({"budget": 0.0}, "share of the last dim"),
        ({"budget": 16}, "share of the last dim"),
        ({"validation": 1.0}, "share of the texts"),
        ({"validation": 1}, "2 or more folds"),
        ({"probe": RidgeClassifier()}, "predict_proba"),
    ],
)
def test_wrong_settings_are_told(arguments, said):
    vectors, labels = make_classification(40, 8, random_state=0)
    with pytest.raises(InputError, match=said):
        AdaptiveClassifier(**arguments).fit(vectors, labels)
    with pytest.raises(InputError, match="go together"):
        AdaptiveClassifier().fit(vectors, labels, vectors)


# ---- thresholds


def drawn(n, count, seed):
    rng = np.random.default_rng(seed)
    right = rng.random((n, count)) < np.linspace(0.6, 0.9, count)
    confidence = np.round(np.clip(0.3 * right[:, :-1] + 0.7 * rng.random((n, count - 1)), 0, 1), 1)  # with ties
    return confidence, right


def every_threshold(confidence):
    return itertools.product(*([np.inf, *np.unique(column)] for column in confidence.T))


@pytest.mark.parametrize("seed", range(5))
def test_one_stage_has_the_least_cost_of_all_thresholds(seed):
    confidence, right = drawn(30, 2, seed)
    for price in (0.001, 0.01, 0.1):
        cost = (~right).astype(float) + price * np.array([4, 16])
        least = min(cost[np.arange(30), stopping_stages(confidence, np.array(t))].sum() for t in every_threshold(confidence))
        thresholds = cheapest_thresholds(confidence, cost)
        assert cost[np.arange(30), stopping_stages(confidence, thresholds)].sum() == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_tuning_is_close_to_an_exhaustive_search(seed):
    confidence, right = drawn(40, 3, seed)
    dims = np.array([2, 8, 32])

    def judged(thresholds):
        stopped = stopping_stages(confidence, np.array(thresholds))
        return right[np.arange(40), stopped].mean(), dims[stopped].mean()

    tolerance = 0.05
    enough = right[:, -1].mean() - tolerance
    best = min(size for accuracy, size in map(judged, every_threshold(confidence)) if accuracy >= enough - 1e-9)
    accuracy, size = judged(tune_thresholds(confidence, right, dims, tolerance, margin=0))
    assert accuracy >= enough - 1e-9
    assert best <= size <= best + 0.15 * 32


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [2.0, 6.0, 32.0])
def test_a_budget_is_kept_and_spent_nearly_as_well_as_by_an_exhaustive_search(seed, budget):
    confidence, right = drawn(40, 3, seed)
    dims = np.array([2, 8, 32])

    def judged(thresholds):
        stopped = stopping_stages(confidence, np.array(thresholds))
        return right[np.arange(40), stopped].mean(), dims[stopped].mean()

    best = max(accuracy for accuracy, size in map(judged, every_threshold(confidence)) if size <= budget)
    accuracy, size = judged(tune_thresholds(confidence, right, dims, tolerance=0.0, margin=9.0, budget=budget))
    assert size <= budget
    assert accuracy >= best - 0.05


def test_a_budget_below_the_first_dim_stops_nothing():
    confidence, right = drawn(40, 3, 0)
    assert np.isinf(tune_thresholds(confidence, right, [4, 8, 32], 0.0, 0.0, budget=3.9)).all()


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_classifier_reads_within_its_budget(problem, share):
    (vectors, labels), *_ = problem
    found = AdaptiveClassifier(budget=share, random_state=0).fit(vectors, labels)
    assert found.mean_dim_ <= share * vectors.shape[1]
    assert np.isfinite(found.thresholds_).any()


def test_few_texts_make_it_careful():
    confidence, right = drawn(40, 3, 0)
    repeated = np.tile(confidence, (50, 1)), np.tile(right, (50, 1))
    few, many = (tune_thresholds(*given, [2, 8, 32], 0.01, margin=2) for given in ((confidence, right), repeated))
    sizes = [np.array([2, 8, 32])[stopping_stages(confidence, t)].mean() for t in (few, many)]
    assert sizes[0] > sizes[1]


def test_importing_the_folder_loads_nothing_large():
    code = "import sys, acge_lightning.classify; print(*({'sklearn', 'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
