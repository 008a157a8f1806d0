"""One metric a task family, as torchmetrics metrics over embeddings.

Evaluation texts are unique and numbered. A metric is fed batches of `update(embeddings, ids, labels)`, with

- `ids` Int64[n]: the texts' numbers,
- `labels`: Float64[r, 3] judgements (text number, text number, value) for `Spearman`, `AveragePrecision`, `Retrieval`,
  `Reranking`; Int64[n, 2] (class, not 0 if the text may be learnt from) for `KNNAccuracy`, `LinearProbe`, `VMeasure`.

Batches may come in any order and from any number of processes: `compute` puts everything together, then scores it with a
pure function. Each returns a dict of values; `main` names the one that counts. Similarity is cosine.
"""

from __future__ import annotations

import os
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision

from acge_lightning.errors import InputError

Vectors = Any  # Float[n, d] tensor, or a SciPy sparse matrix of n rows


class EmbeddingMetric(Metric):
    """Collects embeddings, numbers and labels; subclasses score them."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    main: ClassVar[str]
    embeddings: list[Tensor]
    ids: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **kwargs: object):
        super().__init__(compute_on_cpu=True, **kwargs)
        for name in ("embeddings", "ids", "labels"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, ids: Tensor, labels: Tensor) -> None:
        """Take in Float[n, d] embeddings, Int64[n] numbers and labels (see the module)."""
        self.embeddings.append(normalize(embeddings.float(), dim=-1))
        self.ids.append(ids)
        self.labels.append(labels)

    def compute(self) -> dict[str, float]:
        """The scores over all that was taken in."""
        if len(self.ids) == 0:  # a list, or after synchronising processes a tensor
            raise InputError(f"{type(self).__name__} has seen no texts: the evaluation split is empty")
        embeddings, ids, labels = (torch.cat(list(x)) if isinstance(x, list) else x for x in self._states())
        if not torch.isfinite(embeddings).all():
            raise InputError("the encoder gave vectors that are not finite (NaN or infinity)")
        order = ids.argsort()
        if labels.shape[1] == 2:  # one row a text, in step with the embeddings
            return self.score(embeddings[order], labels[order])
        number = torch.full((int(ids.max()) + 1,), -1, device=ids.device)
        number[ids[order]] = torch.arange(len(ids), device=ids.device)
        named = labels[:, :2].long()
        unseen = ~torch.isin(named, ids)
        if unseen.any():
            raise InputError(f"a judgement names text {int(named[unseen][0])}, which was not encoded")
        return self.score(embeddings[order], torch.cat([number[named], labels[:, 2:]], dim=1))

    def _states(self) -> tuple:
        return self.embeddings, self.ids, self.labels

    def score(self, embeddings: Vectors, labels: Tensor) -> dict[str, float]:
        """The scores of normalised embeddings Float[n, d] (or a SciPy sparse matrix); judgements number their rows."""
        return self.values(self.units(embeddings, labels))

    @abstractmethod
    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Float64[units, c]: what was measured on each pair, query, text or draw: what a bootstrap draws from."""

    @abstractmethod
    def values(self, units: Tensor) -> dict[str, float]:
        """The scores of these units."""


def _cosines(embeddings: Vectors, pairs: Tensor) -> Tensor:
    a, b = pairs[:, :2].long().unbind(1)
    if not isinstance(embeddings, Tensor):
        return torch.from_numpy(np.asarray(embeddings[a.numpy()].multiply(embeddings[b.numpy()]).sum(1)).ravel())
    halves = zip(a.split(65536), b.split(65536), strict=True)  # 1 - |a-b|^2 / 2 is exactly 1 for equal texts: no false ranks
    return torch.cat([1 - (embeddings[i] - embeddings[j]).square().sum(-1) / 2 for i, j in halves])


def _products(embeddings: Vectors, rows: Tensor, columns: Tensor) -> Tensor:
    if isinstance(embeddings, Tensor):
        return embeddings[rows] @ embeddings[columns].T
    return torch.from_numpy((embeddings[rows.numpy()] @ embeddings[columns.numpy()].T).toarray())


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[inverse]


class Spearman(EmbeddingMetric):
    """STS: rank correlation of cosine and score (ties share their mean rank). 0 if all scores are equal."""

    main = "spearman"

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Cosine and score of each pair."""
        return torch.stack([_cosines(embeddings, labels).double(), labels[:, 2]], dim=1)

    def values(self, units: Tensor) -> dict[str, float]:
        """`spearman` in [-1, 1]."""
        # not torchmetrics' spearman_corrcoef: it adds up tied ranks in 32 bits and puts 1e-6 into the denominator
        value = torch.corrcoef(torch.stack([_ranks(units[:, 0]), _ranks(units[:, 1])]))[0, 1]
        return {"spearman": float(torch.nan_to_num(value, nan=0.0))}


class AveragePrecision(EmbeddingMetric):
    """Pair classification: area under precision and recall of cosine against the label 0/1."""

    main = "ap"

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Cosine and label of each pair."""
        return torch.stack([_cosines(embeddings, labels).double(), labels[:, 2]], dim=1)

    def values(self, units: Tensor) -> dict[str, float]:
        """`ap` in [0, 1]."""
        cosine = (units[:, 0] + 1) / 2  # torchmetrics takes values outside [0, 1] for logits
        return {"ap": float(binary_average_precision(cosine.clamp(0, 1), units[:, 1].long()))}


class Retrieval(EmbeddingMetric):
    """Retrieval: every query against the whole corpus.

    Texts named second in a judgement, and all that no judgement names first, are the corpus.

    Args:
        k: length of the ranking that is judged.
    """

    main = "ndcg"

    def __init__(self, k: int = 10, **kwargs: object):
        super().__init__(**kwargs)
        self.k = k

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """The nDCG (gain = grade, as in trec_eval), reciprocal rank and recall of each query that has a relevant document."""
        queries, query_of = torch.unique(labels[:, 0].long(), return_inverse=True)
        is_doc = torch.ones(embeddings.shape[0], dtype=torch.bool, device=labels.device)
        is_doc[queries] = False
        is_doc[labels[:, 1].long()] = True
        docs = is_doc.nonzero().squeeze(1)
        doc_of = torch.searchsorted(docs, labels[:, 1].long().contiguous())
        k = min(self.k, len(docs))
        found = torch.cat([_products(embeddings, q, docs).topk(k).indices for q in queries.split(256)])
        grades = torch.zeros(len(queries), k, dtype=torch.double, device=labels.device)
        ideal = torch.zeros(len(queries), self.k, dtype=torch.double, device=labels.device)
        relevant = torch.zeros(len(queries), dtype=torch.double, device=labels.device)
        by_query = query_of.argsort(stable=True)
        sizes = torch.bincount(query_of, minlength=len(queries)).tolist()
        for row, judged in enumerate(by_query.split(sizes)):
            grade, doc = labels[judged, 2].double().clamp(min=0), doc_of[judged]
            hits = found[row][:, None] == doc[None]
            grades[row] = (hits * grade).amax(1)
            best = grade.sort(descending=True).values[: self.k]
            ideal[row, : len(best)] = best
            relevant[row] = (grade > 0).sum()
        keep = relevant > 0
        if not keep.any():
            raise InputError("no query of the evaluation split has a relevant document")
        grades, ideal, relevant = grades[keep], ideal[keep], relevant[keep]
        discount = 1 / torch.log2(torch.arange(2, self.k + 2, dtype=torch.double, device=labels.device))
        ndcg = (grades * discount[:k]).sum(1) / (ideal * discount).sum(1)
        rank = 1 / torch.arange(1, k + 1, dtype=torch.double, device=labels.device)
        return torch.stack([ndcg, ((grades > 0) * rank).amax(1), (grades > 0).sum(1) / relevant], dim=1)

    def values(self, units: Tensor) -> dict[str, float]:
        """`ndcg`, `mrr` and `recall`, all at k, means over queries."""
        return dict(zip(("ndcg", "mrr", "recall"), units.mean(0).tolist(), strict=True))


class Reranking(EmbeddingMetric):
    """Reranking: the listed candidates of each query in order of cosine; mean average precision and reciprocal rank."""

    main = "map"

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Average precision, and reciprocal rank at 10, of each query that has both kinds of candidates."""
        cosine = _cosines(embeddings, labels)
        query_of = torch.unique(labels[:, 0].long(), return_inverse=True)[1]
        found = []
        for judged in query_of.argsort(stable=True).split(torch.bincount(query_of).tolist()):
            judged = judged.flip(0)  # of equal cosines the later one first, as in trec_eval: ties count against the positives
            order = judged[cosine[judged].argsort(descending=True, stable=True)]
            relevant = (labels[order, 2] > 0).double()
            if not 0 < relevant.sum() < len(relevant):
                continue
            rank = torch.arange(1, len(relevant) + 1, device=relevant.device)
            precision = ((relevant.cumsum(0) / rank) * relevant).sum() / relevant.sum()
            found.append(torch.stack([precision, (relevant / rank)[:10].max()]))
        if not found:
            raise InputError("no query of the evaluation split has both relevant and other candidates")
        return torch.stack(found)

    def values(self, units: Tensor) -> dict[str, float]:
        """`map` and `mrr` at 10, means over queries."""
        return dict(zip(("map", "mrr"), units.mean(0).tolist(), strict=True))


def _split(embeddings: Vectors, labels: Tensor, draw: int = 0) -> tuple[Vectors, Tensor, Vectors, Tensor]:
    """Texts to learn from in a draw and their labels, texts to test and theirs."""
    learn, test = (labels[:, 1] >> draw & 1).bool(), labels[:, 1] == 0
    if not learn.any() or not test.any():
        raise InputError("classification is scored with labelled texts to learn from and others to test: one kind is missing")
    if isinstance(embeddings, Tensor):
        return embeddings[learn], labels[learn, 0].long(), embeddings[test], labels[test, 0].long()
    return embeddings[learn.numpy()], labels[learn, 0].long(), embeddings[test.numpy()], labels[test, 0].long()


def _numpy(vectors: Vectors) -> Any:
    return vectors.float().cpu().numpy() if isinstance(vectors, Tensor) else vectors


class KNNAccuracy(EmbeddingMetric):
    """Classification without training: majority of the k nearest labelled texts, ties by summed cosine.

    Args:
        k: neighbours.
    """

    main = "accuracy"

    def __init__(self, k: int = 10, **kwargs: object):
        super().__init__(**kwargs)
        self.k = k

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """1 for each text that is told right."""
        known, known_labels, tested, answers = _split(embeddings, labels)
        right = []
        for part, answer in zip(tested.split(1024), answers.split(1024), strict=True):
            near = (part @ known.T).topk(min(self.k, len(known)))
            votes = torch.zeros(len(part), int(labels[:, 0].max()) + 1, dtype=torch.double, device=part.device)
            votes.scatter_add_(1, known_labels[near.indices], 1 + near.values.double() / (2 * self.k))
            right.append(votes.argmax(1) == answer)
        return torch.cat(right).double()[:, None]

    def values(self, units: Tensor) -> dict[str, float]:
        """`accuracy` in [0, 1]."""
        return {"accuracy": float(units.mean())}


class LinearProbe(EmbeddingMetric):
    """Classification: scikit-learn's logistic regression on the labelled texts, accuracy on the others.

    The second column of the labels says, bit by bit, in which draws a text may be learnt from; 0 is a text to test.

    Args:
        max_iter: iterations of the solver at most (100 in MTEB).
        seed: of the solver.
    """

    main = "accuracy"

    def __init__(self, max_iter: int = 100, seed: int = 42, **kwargs: object):
        super().__init__(**kwargs)
        self.max_iter, self.seed = max_iter, seed

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Float64[tested texts, draws]: 1 where a text is told right."""
        draws = max(1, int(labels[:, 1].max()).bit_length())
        jobs = [_split(embeddings, labels, draw) for draw in range(draws)]
        return torch.stack(_together(self._told_right, jobs), dim=1)

    def _told_right(self, known: Vectors, known_labels: Tensor, tested: Vectors, answers: Tensor) -> Tensor:
        from sklearn.linear_model import LogisticRegression

        if len(known_labels.unique()) < 2:
            raise InputError("classification needs labelled texts of at least two classes")
        probe = LogisticRegression(max_iter=self.max_iter, random_state=self.seed)
        probe.fit(_numpy(known), known_labels.cpu().numpy())
        return torch.from_numpy(probe.predict(_numpy(tested)) == answers.cpu().numpy()).double()

    def values(self, units: Tensor) -> dict[str, float]:
        """`accuracy` in [0, 1], the mean over draws."""
        return {"accuracy": float(units.mean())}


class VMeasure(EmbeddingMetric):
    """Clustering: mini-batch k-means with as many clusters as labels, v-measure against the labels.

    Args:
        seed: of the k-means start, and of the draws.
        draws: how often it is done, each time on `size` texts drawn with replacement (10 in MTEB); 0: once, on all texts.
        size: texts of a draw.
    """

    main = "v_measure"

    def __init__(self, seed: int = 42, draws: int = 0, size: int = 2048, **kwargs: object):
        super().__init__(**kwargs)
        self.seed, self.draws, self.size = seed, draws, size

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """The v-measure of each draw."""
        truth = labels[:, 0].long().cpu().numpy()
        clusters = len(set(truth.tolist()))
        if clusters < 2:
            raise InputError("clustering needs texts of at least two labels")
        rng = random.Random(self.seed)
        rows = [np.array(rng.choices(range(len(truth)), k=self.size)) for _ in range(self.draws)] or [np.arange(len(truth))]
        vectors = _numpy(embeddings)
        starts = 1 if self.draws else 3
        values = _together(self._v_measure, [(vectors[drawn], truth[drawn], clusters, starts) for drawn in rows])
        return torch.tensor(values, dtype=torch.double)[:, None]

    def _v_measure(self, vectors: Any, truth: np.ndarray, clusters: int, starts: int) -> float:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        means = MiniBatchKMeans(n_clusters=clusters, batch_size=512, n_init=starts, random_state=self.seed)
        return float(v_measure_score(truth, means.fit_predict(vectors)))

    def values(self, units: Tensor) -> dict[str, float]:
        """`v_measure` in [0, 1], the mean over draws."""
        return {"v_measure": float(units.mean())}


def _together(job: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """A job for each of the arguments, as many at a time as there are cores and with one thread each."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()
    begin = partial(libraries.limit, limits=1, user_api="openmp")  # whose limit is each thread's own
    with libraries.limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with ThreadPoolExecutor(os.cpu_count(), initializer=begin) as pool:
            return list(pool.map(lambda given: job(*given), arguments))
