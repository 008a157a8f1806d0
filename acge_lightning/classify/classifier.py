"""Adaptive classification: a short prefix of the embedding classifies easy texts, and only the others read more of it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from acge_lightning.classify.thresholds import stopping_stages, tune_thresholds
from acge_lightning.errors import InputError


class AdaptiveClassifier(ClassifierMixin, BaseEstimator):
    """A cascade of classifiers over prefixes of the features, as scikit-learn estimator.

    At dims d_1 < … < d_m a probe sees x[:d_i] / |x[:d_i]|. A text takes the answer of the first dim whose highest class
    probability is at least the threshold t_i; d_m answers the rest. The thresholds are tuned on texts that the probes did
    not learn from, for the smallest mean dimension that keeps the accuracy of d_m, or for the best accuracy within a budget.

    The *mean dimension* counts what is read of a vector: the prefix at which a text stopped, d_i, averaged over texts.
    Shorter prefixes are part of it and are not counted again.

    Args:
        dims: prefix sizes; powers of two below the number of features, and that number, by default.
        probe: a classifier with `predict_proba`, cloned for each dim; logistic regression by default.
        tolerance: how much accuracy, of 1, may be lost against the last dim.
        margin: standard errors of the difference that tuning stays clear of the tolerance, so that few texts to tune on make
            it careful. 0 takes what it sees for the truth.
        budget: mean dimension that may be read, as a share of the last dim, for example 1 / 8: the thresholds then lose the
            least accuracy within it, and tolerance and margin do not count. Less than the first dim: nothing stops early.
        validation: share of the training texts that is held out to tune on, of each class that has two or more; or, an
            integer, a number of folds that are held out one after the other: slower, and it tunes on all of them. The probes
            then learn again from all, which helps the long prefixes most: with few folds, or a large share, more is lost than
            tuning sees. Not used if `fit` is given texts to tune on.
        random_state: of the held-out texts.

    Attributes:
        classes_: labels.
        dims_: the prefix sizes, ascending.
        thresholds_: one a dim but the last; infinity: nothing stops there.
        probes_: dim -> fitted classifier, of the dims at which a text may stop.
        mean_dim_: mean dimension on the texts that were tuned on; the last dim if there were none.

    Raises:
        InputError: dims that the vectors do not have, a share or tolerance out of range, a probe without `predict_proba`.

    Reference: Kusupati et al. 2022 (arXiv 2205.13147), adaptive classification. There, each threshold is set on its own, to
    the smallest of 100 that gives the best accuracy; here all are set together, for the fewest dims at an accuracy that one
    chooses. There, the classifiers are trained with the encoder and test images are augmented; here, probes are fitted to
    finished embeddings, and prefixes are normalised.

    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(400, n_features=16, centers=3, random_state=0)
    >>> classifier = AdaptiveClassifier(random_state=0).fit(X, y)
    >>> labels, dims = classifier.predict_with_dims(X)
    >>> classifier.dims_, bool((labels == y).mean() > 0.99), bool(dims.mean() <= 4)
    ((1, 2, 4, 8, 16), True, True)
    """

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        probe: Any = None,
        tolerance: float = 0.005,
        margin: float = 2.0,
        budget: float | None = None,
        validation: float | int = 0.2,
        random_state: Any = None,
    ):
        self.dims = dims
        self.probe = probe
        self.tolerance = tolerance
        self.margin = margin
        self.budget = budget
        self.validation = validation
        self.random_state = random_state

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> AdaptiveClassifier:  # noqa: N803
        """Fit a probe for each dim and tune the thresholds.

        Args:
            X: Float[n, D] vectors, of any length.
            y: n labels.
            X_val: Float[v, D], to tune on; a part of `X` by default.
            y_val: v labels.

        Raises:
            InputError: a setting out of range, dims that the vectors do not have, `X_val` without `y_val`.
            ValueError: fewer than 2 classes, and what scikit-learn refuses.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs texts of 2 classes or more, and has 1 class: {self.classes_[0]!r}")
        self._check()
        self.dims_ = self._sizes(X.shape[1])
        self.thresholds_ = np.full(len(self.dims_) - 1, np.inf)
        self.mean_dim_ = float(self.dims_[-1])
        if (X_val is None) != (y_val is None):
            raise InputError("X_val and y_val go together: give both, or neither")
        if X_val is not None:
            vectors, labels = validate_data(self, X_val, y_val, dtype=[np.float64, np.float32], reset=False)
            self._learn(X, y, self.dims_)
            self._tune([self._confidence(vectors, labels)])
            return self
        if len(self.dims_) > 1 and (folds := self._folds(y)):
            self._tune([self._learn(X[~fold], y[~fold], self.dims_)._confidence(X[fold], y[fold]) for fold in folds])
        self._learn(X, y, [d for d, t in zip(self.dims_, (*self.thresholds_, 0.0), strict=True) if t < np.inf])
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The labels of Float[n, D]."""
        return self.predict_with_dims(X)[0]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Float64[n, classes], of the dim at which each text stopped."""
        return self._cascade(X)[0]

    def predict_with_dims(self, X: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """The labels, and Int64[n]: the dim at which each text stopped."""
        proba, dims = self._cascade(X)
        return self.classes_[proba.argmax(axis=1)], dims

    def _cascade(self, vectors: Any) -> tuple[np.ndarray, np.ndarray]:
        """Float64[n, classes] probabilities, and Int64[n] dims, of where each text stopped."""
        check_is_fitted(self)
        vectors = validate_data(self, vectors, dtype=[np.float64, np.float32], reset=False)
        proba = np.zeros((len(vectors), len(self.classes_)))
        dims = np.full(len(vectors), self.dims_[-1])
        waiting = np.arange(len(vectors))
        for dim, threshold in zip(self.dims_, (*self.thresholds_, 0.0), strict=True):
            if threshold == np.inf or not len(waiting):
                continue
            probabilities = self._probabilities(dim, vectors[waiting])
            stopped = probabilities.max(axis=1) >= threshold
            proba[waiting[stopped]], dims[waiting[stopped]] = probabilities[stopped], dim
            waiting = waiting[~stopped]
        return proba, dims

    def _probabilities(self, dim: int, vectors: np.ndarray) -> np.ndarray:
        return self.probes_[dim].predict_proba(normalize(vectors[:, :dim]))

    def _learn(self, vectors: np.ndarray, labels: np.ndarray, dims: Sequence[int]) -> AdaptiveClassifier:
        """Fit the probes of some dims."""
        probe = LogisticRegression(max_iter=1000) if self.probe is None else self.probe
        self.probes_ = {dim: clone(probe).fit(normalize(vectors[:, :dim]), labels) for dim in dims}
        return self

    def _confidence(self, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Float[n, dims]: how sure each probe is of its answer, and Bool[n, dims]: whether it is right."""
        probabilities = [self._probabilities(dim, vectors) for dim in self.dims_]
        correct = np.stack([self.classes_[p.argmax(axis=1)] == labels for p in probabilities], axis=1)
        return np.stack([p.max(axis=1) for p in probabilities], axis=1), correct

    def _tune(self, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Tune the thresholds on what `_confidence` gave for each fold."""
        confidence, correct = (np.concatenate(arrays) for arrays in zip(*folds, strict=True))
        budget = None if self.budget is None else self.budget * self.dims_[-1]
        self.thresholds_ = tune_thresholds(confidence[:, :-1], correct, self.dims_, self.tolerance, self.margin, budget)
        self.mean_dim_ = float(np.asarray(self.dims_)[stopping_stages(confidence[:, :-1], self.thresholds_)].mean())

    def _folds(self, labels: np.ndarray) -> list[np.ndarray]:
        """Bool[n] for each fold: the texts that are held out, some of each class, and never its last one."""
        rng, fold_of_text = check_random_state(self.random_state), np.full(len(labels), -1)
        folds = self.validation if isinstance(self.validation, Integral) else 0
        for label in self.classes_:
            of_class = rng.permutation(np.flatnonzero(labels == label))
            if folds and len(of_class) > 1:
                fold_of_text[of_class] = np.arange(len(of_class)) % folds
            elif not folds:
                fold_of_text[of_class[: min(round(self.validation * len(of_class)), len(of_class) - 1)]] = 0
        return [fold_of_text == i for i in range(folds or 1) if (fold_of_text == i).any()]

    def _sizes(self, features: int) -> tuple[int, ...]:
        if self.dims is None:
            return (*(2**i for i in range((features - 1).bit_length())), features)
        wrong = [dim for dim in self.dims if not isinstance(dim, Integral) or not 1 <= dim <= features]
        if wrong or not len(self.dims):
            raise InputError(f"dims={list(self.dims)} do not fit: these vectors have 1 to {features} dims")
        return tuple(sorted({int(dim) for dim in self.dims}))

    def _check(self) -> None:
        if not (0 <= self.validation < 1 or (isinstance(self.validation, Integral) and self.validation > 1)):
            raise InputError(f"validation={self.validation}: give a share of the texts, 0 to 0.9, or 2 or more folds")
        if self.tolerance < 0 or self.margin < 0:
            raise InputError(f"tolerance={self.tolerance} and margin={self.margin} must not be negative")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise InputError(f"budget={self.budget} is a share of the last dim: give 0.125 for an eighth, or None")
        if self.probe is not None and not hasattr(self.probe, "predict_proba"):
            raise InputError(f"probe={self.probe!r} has no predict_proba: take LogisticRegression, or CalibratedClassifierCV")
