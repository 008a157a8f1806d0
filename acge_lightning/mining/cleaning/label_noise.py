"""Labels that are likely to be wrong: a probe that has not seen a text finds its label improbable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from acge_lightning.errors import InputError
from acge_lightning.metrics.logistic_regression import BoundedLogisticRegression
from acge_lightning.mining.cleaning.equal_keys import Keys, numbered
from acge_lightning.mining.cleaning.findings import Findings

_FEWEST = 4  # distinct texts of a class that is learnt and judged
_FEATURES = 50_000
_LONGEST = 5_000  # characters of a text that are read


@dataclass(frozen=True)
class LabelConfidence:
    """What a probe that has not seen the rows thinks of their labels.

    Args:
        given: Float64[n] probability of each row's own label; NaN where it was not judged, as its class has too few texts.
        largest: Float64[n] that of the most likely label.
        suggested: Any[n] the most likely label; None where the row was not judged.
    """

    given: np.ndarray
    largest: np.ndarray
    suggested: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Bool[n]: whether a row's label was judged."""
        return np.isfinite(self.given)

    @property
    def unjudged(self) -> int:
        """How many rows were not."""
        return int((~self.judged).sum())


def label_confidence(
    texts: Sequence[str] | np.ndarray, labels: Sequence, keys: Keys, folds: int = 10, repeats: int = 2, seed: int = 0
) -> LabelConfidence:
    """Estimate the probability of each row's label by a linear probe that is trained on the other folds.

    Of texts, the probe sees TF-IDF of characters and pairs of them: p = (softmax(4 s) + softmax(20 c)) / 2, where s are the
    margins of linear support vector machines, one class against the rest, and c the cosines with the mean of each class. Of
    vectors it is a multinomial logistic regression. Folds have an even share of every class, and equal keys are in one of them.
    The probabilities of `repeats` divisions are averaged. Classes of fewer than four distinct texts are not learnt, and their
    rows not judged. Time grows with rows x classes x folds x repeats.

    Args:
        texts: n texts, or Float[n, d] vectors of them, of an encoder that has not been trained on these labels.
        labels: n words or numbers, as they are to be compared.
        keys: str or Int64[n]; equal keys are the same text.
        folds: of each division.
        repeats: divisions.
        seed: of the divisions: the same rows and seed give the same probabilities.

    Raises:
        InputError: numbers of rows differ, a label is missing, fewer than two folds, or no repeat.

    Reference: self-confidence of Northcutt et al. 2021 (arXiv 1911.00068). Differs: rows are ranked by it alone, without the
    joint distribution of given and true labels, which found fewer flipped labels in each of four data sets.
    """
    label, words = _numbers_of(labels)
    if len({len(texts), len(label), len(keys)}) > 1:
        raise InputError(f"there are {len(texts)} texts, {len(label)} labels and {len(keys)} keys: as many")
    if folds < 2 or repeats < 1:
        raise InputError(f"folds={folds}, repeats={repeats}: give at least 2 folds and 1 repeat")
    key = numbered(keys)
    distinct = np.unique(np.stack([label, key]), axis=1)[0]
    rows = np.flatnonzero((np.bincount(distinct, minlength=len(words)) >= _FEWEST)[label])
    given, largest = np.full(len(label), np.nan), np.full(len(label), np.nan)
    suggested = np.full(len(label), None, dtype=object)
    if len(np.unique(label[rows])) > 1:
        sums = _summed_probabilities(_features(texts, rows), label[rows], key[rows], _divisions(folds, repeats, seed))
        total, best = sums.sum(1), sums.argmax(1)
        at = np.arange(len(rows))
        judged = (total > 0) & np.isin(label[rows], np.flatnonzero(sums.any(0)))
        rows, at, total, best = rows[judged], at[judged], total[judged], best[judged]
        given[rows], largest[rows] = sums[at, label[rows]] / total, sums[at, best] / total
        suggested[rows] = words[best]
    return LabelConfidence(given, largest, suggested)


def doubtful_labels(confidence: LabelConfidence, share: float = 0.05) -> Findings:
    """Find the rows whose labels are the least probable, at most a `share` of those judged; none whose label is the likeliest.

    Returns:
        The rows to drop, and the probabilities of their labels; `others` is -1: no single row speaks against them.

    Raises:
        InputError: a share below 0 or above 1.

    >>> confidence = LabelConfidence(np.array([0.1, 0.9, 0.2]), np.array([0.8, 0.9, 0.7]), np.array(["x", "y", "y"], object))
    >>> doubtful_labels(confidence, share=0.34).rows.tolist()
    [0]
    """
    if not 0 <= share <= 1:
        raise InputError(f"share={share} is no share of the rows: give 0 to 1")
    rows = np.flatnonzero(confidence.judged)
    budget = round(share * len(rows))
    rows = rows[np.argsort(confidence.given[rows], kind="stable")[:budget]]
    rows = np.sort(rows[confidence.given[rows] < confidence.largest[rows]])
    return Findings("doubtful label", rows, np.full(len(rows), -1), confidence.given[rows])


def _numbers_of(labels: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Int64[n] numbers of labels, and the labels in the order of their numbers."""
    numbers: dict[Any, int] = {}
    for row, label in enumerate(labels):
        if label is None or label != label:  # NaN, which pandas has for nothing
            raise InputError(f"row {row} has no label: leave out rows without one")
        numbers.setdefault(label, len(numbers))
    words = np.empty(len(numbers), dtype=object)
    words[:] = list(numbers)
    return np.fromiter((numbers[label] for label in labels), np.int64, len(labels)), words


def _features(texts: Sequence[str] | np.ndarray, rows: np.ndarray) -> Any:
    if isinstance(texts, np.ndarray) and texts.ndim == 2:
        vectors = np.asarray(texts[rows], dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise InputError("vectors are not finite: encode them again")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES, dtype=np.float32
    )
    return vectorizer.fit_transform([texts[row][:_LONGEST] or " " for row in rows.tolist()]).tocsr()


def _divisions(folds: int, repeats: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    return ((folds, np.random.default_rng([seed, repeat])) for repeat in range(repeats))


def _summed_probabilities(
    features: Any, label: np.ndarray, key: np.ndarray, divisions: Iterator[tuple[int, np.random.Generator]]
) -> np.ndarray:
    """Float64[n, classes]: probabilities of labels by probes that have not seen a row, summed over divisions."""
    sums = np.zeros((len(label), label.max() + 1))
    _, row_of_key, key = np.unique(key, return_index=True, return_inverse=True)
    for folds, rng in divisions:
        fold_of_key = np.empty(len(row_of_key), dtype=np.int64)
        order = np.lexsort([rng.permutation(len(row_of_key)), label[row_of_key]])
        fold_of_key[order] = np.arange(len(row_of_key)) % folds
        fold = fold_of_key[key]
        for i in range(folds):
            train, held_out = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
            if len(held_out) and len(np.unique(label[train])) > 1:
                classes = np.unique(label[train])
                probe = _by_vectors if isinstance(features, np.ndarray) else _by_terms
                sums[np.ix_(held_out, classes)] += probe(features[train], label[train], features[held_out])
    return sums


def _by_vectors(vectors: np.ndarray, label: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Float64[m, classes]: probabilities of the classes, in ascending order, of vectors that are held out."""
    return BoundedLogisticRegression(C=10.0, max_iter=200).fit(vectors, label).predict_proba(held_out)


def _by_terms(terms: csr_matrix, label: np.ndarray, held_out: csr_matrix) -> np.ndarray:
    """The same of TF-IDF."""
    margins = LinearSVC(C=1.0, tol=1e-2, random_state=0).fit(terms, label).decision_function(held_out)
    if margins.ndim == 1:  # of two classes
        margins = np.stack([-margins, margins], axis=1)
    number = np.unique(label, return_inverse=True)[1]
    members = csr_matrix((np.ones(len(label)), (number, np.arange(len(label)))))
    sums = csr_matrix(members @ terms)
    lengths = np.maximum(np.sqrt(np.asarray(sums.multiply(sums).sum(1)).ravel()), 1e-12)
    cosines = (held_out @ sums.T).toarray() / lengths
    return (softmax(4 * margins, axis=1) + softmax(20 * cosines, axis=1)) / 2
