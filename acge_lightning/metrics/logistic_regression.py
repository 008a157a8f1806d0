"""Logistic regression of any number of classes in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from acge_lightning.errors import InputError

_CELLS = 2**22  # of a block of the matrix texts x classes
_LARGE = 16 * _CELLS  # of a matrix that is never whole in memory
_LARGEST = 2**27  # coefficients, of which the solver holds about thirty copies of 8 bytes at most
_ONE_FIT = threading.Lock()  # each takes all cores


class BoundedLogisticRegression(LogisticRegression):
    """scikit-learn's for small problems; for large ones the same objective, solver and tolerances, a block of texts at a time.

    scikit-learn holds matrices of texts x classes, several at once: of 60,000 texts and 20,000 classes each takes 4.8 GB.

    Raises:
        InputError: in `fit`, so many coefficients (classes x dims) that they themselves do not fit into memory.
    """

    def fit(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None = None) -> BoundedLogisticRegression:  # noqa: N803
        """Learn from Float[n, d] (or a SciPy sparse matrix) and the labels of its rows."""
        classes, target = np.unique(y, return_inverse=True)
        if not is_large(len(target), len(classes)):
            return super().fit(X, y, sample_weight)
        if len(classes) * X.shape[1] > _LARGEST:
            raise InputError(f"{len(classes)} classes x {X.shape[1]} dims are too many for logistic regression: give fewer")
        weight = np.ones(len(target)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
        if self.class_weight is not None:
            weight = weight * compute_sample_weight(self.class_weight, y)
        options = {"maxiter": self.max_iter, "maxls": 50, "gtol": self.tol, "ftol": 64 * np.finfo(float).eps}
        objective = _Objective(X, target, len(classes), weight / weight.sum(), 1 / (self.C * weight.sum()))
        with _ONE_FIT, threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            start = np.zeros(len(classes) * (X.shape[1] + 1))
            solution = minimize(objective, start, (pool,), "L-BFGS-B", jac=True, options=options)
        coefficients = solution.x.reshape(len(classes), -1).astype(X.dtype)
        self.classes_, self.n_features_in_, self.n_iter_ = classes, X.shape[1], np.array([solution.nit])
        self.coef_, self.intercept_ = np.ascontiguousarray(coefficients[:, :-1]), coefficients[:, -1].copy()
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The labels of Float[n, d]."""
        if not is_large(X.shape[0], len(self.classes_)):
            return super().predict(X)
        return np.concatenate([super(BoundedLogisticRegression, self).predict(X[rows]) for rows in _blocks(X, self.classes_)])


def is_large(texts: int, classes: int) -> bool:
    """Whether a matrix texts x classes is worked on in blocks."""
    return texts * classes > _LARGE


def _blocks(X: Any, classes: Any) -> Iterator[slice]:  # noqa: N803
    rows = max(1, _CELLS // len(classes))
    return (slice(start, start + rows) for start in range(0, X.shape[0], rows))


class _Objective:
    """Weighted mean of the cross entropy, with the penalty strength / 2 · |coefficients|², and its gradient.

    As many threads as there are cores work on blocks of texts, whose results are added up in order: the sum is always the same.
    """

    def __init__(self, X: Any, target: np.ndarray, classes: int, weight: np.ndarray, strength: float):  # noqa: N803
        self.vectors, self.target, self.classes, self.weight, self.strength = X, target, classes, weight, strength

    def __call__(self, flat: np.ndarray, pool: ThreadPoolExecutor) -> tuple[float, np.ndarray]:
        both = flat.reshape(self.classes, -1)
        coefficients, intercept = both[:, :-1].astype(self.vectors.dtype), both[:, -1].astype(self.vectors.dtype)
        loss = self.strength / 2 * float(np.square(both[:, :-1]).sum())
        gradient = np.zeros_like(both)
        gradient[:, :-1] = self.strength * both[:, :-1]
        blocks = list(_blocks(self.vectors, range(self.classes)))
        cores = os.cpu_count() or 1
        for start in range(0, len(blocks), cores):  # few at a time: each result is as large as the coefficients
            jobs = [pool.submit(self._block, rows, coefficients, intercept) for rows in blocks[start : start + cores]]
            for value, slope, shift in (job.result() for job in jobs):
                loss += value
                gradient[:, :-1] += slope
                gradient[:, -1] += shift
        return loss, gradient.ravel()

    def _block(self, rows: slice, coefficients: np.ndarray, intercept: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        vectors, target, weight = self.vectors[rows], self.target[rows], self.weight[rows]
        scores, row = np.asarray(vectors @ coefficients.T) + intercept, np.arange(len(target))
        total = logsumexp(scores, axis=1)
        loss = float(weight @ (total - scores[row, target]))
        scores -= total[:, None]
        np.exp(scores, out=scores)
        scores[row, target] -= 1
        scores *= weight[:, None].astype(scores.dtype)
        return loss, np.asarray((vectors.T @ scores).T), scores.sum(axis=0, dtype=float)
