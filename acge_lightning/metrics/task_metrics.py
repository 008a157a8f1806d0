"""One metric a task family, as torchmetrics metrics over embeddings.

Evaluation texts are numbered. A metric is fed batches of `update(embeddings, ids, labels)`, with

- `ids` Int64[n]: the texts' numbers; a text that comes twice counts once,
- `labels`: Float64[r, 3] judgements (text number, text number, value) for `Spearman` and `AveragePrecision`; Int64[n, 2]
  (class, not 0 if the text may be learnt from) for `LinearProbe` and `VMeasure`; Float64[r, 5] for `Retrieval` and
  `Reranking`: text number of the query, text number of the document, grade, number of the query, number of the document.
  So queries, and documents, that have one text each count, and their scores are equal. A grade of NaN: the query's ranking
  leaves the document out; with the query -1: the document is only there to be found. Float64[r, 3] will do where each text is
  one query or one document: texts named second, and all that are not named, are the documents.

Batches may come in any order and from any number of processes: `compute` puts everything together, then scores it with a
pure function. Each returns a dict of values; `main` names the one that counts. Similarity is cosine.

Rankings are those of trec_eval: scores are rounded to 32 bits, and of documents with equal scores the later one comes first.
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
from torchmetrics.utilities.distributed import gather_all_tensors

from acge_lightning.errors import InputError
from acge_lightning.metrics.ranking import (
    Vectors,
    as_lines,
    best_grades,
    lexsort,
    ndcg,
    pair_products,
    ranked_documents,
    renumbered,
)

_DTYPES = (torch.float32, torch.float64, torch.int64)  # of states
_GATHERED = 65536  # rows of a state that travel together
_SPREAD = 2048  # clusters whose starts are spread out; that takes time by the square of their number, of more they are drawn
_DEPTH = 1000  # of the ranking that a reranking is judged by, in MTEB


class EmbeddingMetric(Metric):
    """Collects embeddings, numbers and labels; subclasses score them.

    Attributes:
        dims: prefix sizes that `compute` scores too, under the names `<main>@<dim>`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    main: ClassVar[str]
    embeddings: list[Tensor]
    ids: list[Tensor]
    labels: list[Tensor]
    dims: Sequence[int] = ()

    def __init__(self, **kwargs: object):
        super().__init__(compute_on_cpu=True, dist_sync_fn=self._gather, **kwargs)
        for name in ("embeddings", "ids", "labels"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _gather(self, state: Tensor, group: Any = None) -> list[Tensor]:
        """The state of every process; that of one that has seen no text is empty.

        States wait on the CPU and travel by the metric's own device, since NCCL takes nothing from a CPU: some rows at a time.
        """

        def gathered(rows: Tensor) -> list[Tensor]:
            return [of_rank.cpu() for of_rank in gather_all_tensors(rows.to(self.device), group)]

        head = torch.tensor([len(state), state.ndim, state.shape[-1], _DTYPES.index(state.dtype)])
        rows, ndim, width, dtype = max(of_rank.tolist() for of_rank in gathered(head))
        if not len(state):
            state = torch.empty((0, width)[:ndim], dtype=_DTYPES[dtype])
        blocks = [gathered(state[start : start + _GATHERED]) for start in range(0, max(rows, 1), _GATHERED)]
        return [torch.cat(of_rank) for of_rank in zip(*blocks, strict=True)]

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
        order = ids.argsort(stable=True)
        order = order[ids[order].diff(prepend=ids.new_tensor([-1])) != 0]
        if labels.shape[1] == 2:  # one row a text, in step with the embeddings
            return self._scores(embeddings[order], labels[order])
        number = torch.full((int(ids.max()) + 1,), -1, device=ids.device)
        number[ids[order]] = torch.arange(len(order), device=ids.device)
        texts = labels[:, :2].long()
        unseen = ~torch.isin(texts, ids)
        if unseen.any():
            raise InputError(f"a judgement names text {int(texts[unseen][0])}, which was not encoded")
        return self._scores(embeddings[order], torch.cat([number[texts], labels[:, 2:]], dim=1))

    def _scores(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """The scores at full size, and the main one of each prefix."""
        prefixes = {
            f"{self.main}@{dim}": self.score(normalize(embeddings[:, :dim], dim=-1), labels)[self.main] for dim in self.dims
        }
        return self.score(embeddings, labels) | prefixes

    def _states(self) -> tuple:
        return self.embeddings, self.ids, self.labels

    def score(self, embeddings: Vectors, labels: Tensor) -> dict[str, float]:
        """The scores of normalised embeddings Float[n, d] (or a SciPy sparse matrix); labels number their rows."""
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


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[inverse]


def _need_two(values: Tensor, message: str) -> None:
    if len(values) and (values == values[0]).all():
        raise InputError(f"{message} {values[0]:g}: give a split with others too, or none")


class Spearman(EmbeddingMetric):
    """STS: rank correlation of cosine and score (ties share their mean rank). 0 if all cosines are equal."""

    main = "spearman"

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Cosine and score of each pair; an `InputError` if there are no two scores."""
        _need_two(labels[:, 2], "scores of sts are compared: all pairs of the evaluation split have the score")
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
        """Cosine and label of each pair; an `InputError` if there are no two labels."""
        _need_two(labels[:, 2], "pairs are told apart: all those of the evaluation split have the label")
        return torch.stack([_cosines(embeddings, labels).double(), labels[:, 2]], dim=1)

    def values(self, units: Tensor) -> dict[str, float]:
        """`ap` in [0, 1]."""
        cosine = (units[:, 0] + 1) / 2  # torchmetrics takes values outside [0, 1] for logits
        return {"ap": float(binary_average_precision(cosine.clamp(0, 1), units[:, 1].long()))}


class Retrieval(EmbeddingMetric):
    """Retrieval: every query against all documents, scored as in trec_eval.

    Args:
        k: length of the ranking that is judged.
    """

    main = "ndcg"

    def __init__(self, k: int = 10, **kwargs: object):
        super().__init__(**kwargs)
        self.k = k

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """The nDCG (gain = grade, as in trec_eval), reciprocal rank and recall of each query that has a relevant document."""
        lines = as_lines(labels, embeddings.shape[0])
        document, texts = renumbered(lines[:, 4], lines[:, 1])
        asked = lines[:, 3] >= 0
        query, asking = renumbered(lines[asked, 3], lines[asked, 0])
        pair, grade = query * len(texts) + document[asked], lines[asked, 2]
        hidden, judged = pair[grade.isnan()], ~grade.isnan()
        pair, grade = best_grades(pair[judged], grade[judged].double().clamp(min=0))
        ideal, relevant = self._ideal(pair // len(texts), grade, len(asking))
        gains = self._gains(embeddings, asking, texts, pair, grade, hidden)
        keep = relevant > 0
        if not keep.any():
            raise InputError("no query of the evaluation split has a relevant document")
        gains, ideal, relevant = gains[keep], ideal[keep], relevant[keep]
        rank = torch.arange(1, gains.shape[1] + 1, dtype=torch.double, device=labels.device)
        return torch.stack([ndcg(gains, ideal), ((gains > 0) / rank).amax(1), (gains > 0).sum(1) / relevant], dim=1)

    def _ideal(self, query: Tensor, grade: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Float64[queries, k]: the best grades of each query; Float64[queries]: how many are above 0."""
        order = lexsort(-grade, query)
        query, grade = query[order], grade[order]
        rank = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query)
        ideal = grade.new_zeros(queries, self.k)
        ideal[query[rank < self.k], rank[rank < self.k]] = grade[rank < self.k]
        return ideal, torch.bincount(query, (grade > 0).double(), minlength=queries)

    def _gains(self, embeddings: Vectors, asking: Tensor, texts: Tensor, pair: Tensor, grade: Tensor, hidden: Tensor) -> Tensor:
        """Float64[queries, k]: the grades of what each query finds, in order; `pair` ascends."""
        spare = int(torch.bincount(hidden // len(texts)).max()) if len(hidden) else 0
        ranked = ranked_documents(embeddings, asking, texts, self.k + spare)
        ranked += len(texts) * torch.arange(len(asking), device=ranked.device)[:, None]
        left_out = torch.isin(ranked, hidden)
        row = torch.searchsorted(pair, ranked).clamp(max=len(pair) - 1)
        gains = torch.where((pair[row] == ranked) & ~left_out, grade[row], 0.0)
        return gains.gather(1, left_out.byte().argsort(dim=1, stable=True))[:, : self.k]

    def values(self, units: Tensor) -> dict[str, float]:
        """`ndcg`, `mrr` and `recall`, all at k, means over queries."""
        return dict(zip(("ndcg", "mrr", "recall"), units.mean(0).tolist(), strict=True))


class Reranking(EmbeddingMetric):
    """Reranking: the listed candidates of each query in order of cosine; mean average precision and reciprocal rank."""

    main = "map"

    def units(self, embeddings: Vectors, labels: Tensor) -> Tensor:
        """Average precision at 1000, and reciprocal rank at 10, of each query that has both kinds of candidates."""
        lines = as_lines(labels, embeddings.shape[0])
        lines = lines[~lines[:, 2].isnan()]
        query = lines[:, 3].unique(return_inverse=True)[1]
        cosine = pair_products(embeddings, *lines[:, :2].long().unbind(1))
        order = lexsort(-lines[:, 4], -cosine, query)
        query, relevant = query[order], (lines[order, 2] > 0).double()
        start = torch.searchsorted(query, query)
        rank = torch.arange(len(query), device=query.device) - start + 1
        above = relevant.cumsum(0) - relevant
        precision = relevant * (above - above[start] + 1) / rank * (rank <= _DEPTH)
        reciprocal = relevant / rank * (rank <= 10)
        sizes, relevant = torch.bincount(query), torch.bincount(query, relevant)
        keep = (relevant > 0) & (relevant < sizes)
        if not keep.any():
            raise InputError("no query of the evaluation split has both relevant and other candidates")
        reciprocal_rank = torch.zeros_like(relevant).scatter_reduce_(0, query, reciprocal, "amax")
        return torch.stack([torch.bincount(query, precision) / relevant, reciprocal_rank], dim=1)[keep]

    def values(self, units: Tensor) -> dict[str, float]:
        """`map` at 1000 and `mrr` at 10, means over queries."""
        return dict(zip(("map", "mrr"), units.mean(0).tolist(), strict=True))


def _split(embeddings: Vectors, labels: Tensor, draw: int) -> tuple[Vectors, Tensor, Vectors, Tensor]:
    """Texts to learn from in a draw and their labels, texts to test and theirs."""
    learn, test = (labels[:, 1] >> draw & 1).bool(), labels[:, 1] == 0
    if not learn.any() or not test.any():
        raise InputError("classification is scored with labelled texts to learn from and others to test: one kind is missing")
    if isinstance(embeddings, Tensor):
        return embeddings[learn], labels[learn, 0].long(), embeddings[test], labels[test, 0].long()
    return embeddings[learn.numpy()], labels[learn, 0].long(), embeddings[test.numpy()], labels[test, 0].long()


def _numpy(vectors: Vectors) -> Any:
    return vectors.float().cpu().numpy() if isinstance(vectors, Tensor) else vectors


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
        from acge_lightning.metrics.logistic_regression import is_large

        draws = max(1, int(labels[:, 1].max()).bit_length())
        learnt = torch.stack([labels[:, 1] >> draw & 1 for draw in range(draws)])
        learnt, same = learnt.unique(dim=0, return_inverse=True)  # small classes are the same in every draw
        distinct_draws = [int((same == number).nonzero()[0]) for number in range(len(learnt))]
        large = is_large(len(labels), len(labels[:, 0].unique()))
        jobs = (_split(embeddings, labels, draw) for draw in distinct_draws)
        right = [self._told_right(*job) for job in jobs] if large else _together(self._told_right, list(jobs))
        return torch.stack([right[number] for number in same.tolist()], dim=1)

    def _told_right(self, train_vectors: Vectors, train_labels: Tensor, test_vectors: Vectors, test_labels: Tensor) -> Tensor:
        from acge_lightning.metrics.logistic_regression import BoundedLogisticRegression

        if len(train_labels.unique()) < 2:
            raise InputError("classification needs labelled texts of at least two classes")
        probe = BoundedLogisticRegression(max_iter=self.max_iter, random_state=self.seed)
        probe.fit(_numpy(train_vectors), train_labels.cpu().numpy())
        return torch.from_numpy(probe.predict(_numpy(test_vectors)) == test_labels.cpu().numpy()).double()

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
        if self.draws and clusters > self.size:
            raise InputError(
                f"clustering draws {self.size} texts, too few for {clusters} labels: give a split with fewer labels"
            )
        rng = random.Random(self.seed)
        rows = [np.array(rng.choices(range(len(truth)), k=self.size)) for _ in range(self.draws)] or [np.arange(len(truth))]
        vectors = _numpy(embeddings)
        starts = 1 if self.draws else 3
        values = _together(self._v_measure, [(vectors[drawn], truth[drawn], clusters, starts) for drawn in rows])
        return torch.tensor(values, dtype=torch.double)[:, None]

    def _v_measure(self, vectors: Any, truth: np.ndarray, clusters: int, starts: int) -> float:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        init = "k-means++" if clusters <= _SPREAD else "random"
        means = MiniBatchKMeans(n_clusters=clusters, batch_size=512, init=init, n_init=starts, random_state=self.seed)
        return float(v_measure_score(truth, means.fit_predict(vectors)))

    def values(self, units: Tensor) -> dict[str, float]:
        """`v_measure` in [0, 1], the mean over draws."""
        return {"v_measure": float(units.mean())}


def _together(job: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """A job for each of the arguments, as many at a time as there are cores and with one thread each."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()
    limit_thread = partial(libraries.limit, limits=1, user_api="openmp")  # whose limit is each thread's own
    with libraries.limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with ThreadPoolExecutor(os.cpu_count(), initializer=limit_thread) as pool:
            return list(pool.map(lambda job_arguments: job(*job_arguments), arguments))
