"""One metric a task family, as torchmetrics metrics over embeddings.

Evaluation texts are unique and numbered. A metric is fed batches of `update(embeddings, ids, labels)`, with

- `ids` Int64[n]: the texts' numbers,
- `labels`: Float64[r, 3] judgements (text number, text number, value) for `Spearman`, `AveragePrecision`, `Retrieval`,
  `Reranking`; Int64[n, 2] (class, 1 if the text may be learnt from) for `KNNAccuracy`, `LinearProbe`, `VMeasure`.

Batches may come in any order and from any number of processes: `compute` puts everything together, then scores it with a
pure function. Each returns a dict of values; `main` names the one that counts. Similarity is cosine.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision

from acge_lightning.errors import InputError


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

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """The scores of normalised embeddings Float[n, d]; judgements number their rows."""
        raise NotImplementedError


def _cosines(embeddings: Tensor, pairs: Tensor) -> Tensor:
    a, b = pairs[:, :2].long().unbind(1)
    return torch.cat([(embeddings[i] * embeddings[j]).sum(-1) for i, j in zip(a.split(65536), b.split(65536), strict=True)])


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[inverse]


class Spearman(EmbeddingMetric):
    """STS: rank correlation of cosine and score (ties share their mean rank). 0 if all scores are equal."""

    main = "spearman"

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`spearman` in [-1, 1]."""
        # not torchmetrics' spearman_corrcoef: it adds up tied ranks in 32 bits and puts 1e-6 into the denominator
        value = torch.corrcoef(torch.stack([_ranks(_cosines(embeddings, labels)), _ranks(labels[:, 2])]))[0, 1]
        return {"spearman": float(torch.nan_to_num(value, nan=0.0))}


class AveragePrecision(EmbeddingMetric):
    """Pair classification: area under precision and recall of cosine against the label 0/1."""

    main = "ap"

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`ap` in [0, 1]."""
        cosine = (_cosines(embeddings, labels).double() + 1) / 2  # torchmetrics takes values outside [0, 1] for logits
        return {"ap": float(binary_average_precision(cosine.clamp(0, 1), labels[:, 2].long()))}


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

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`ndcg` (gain = grade, as in trec_eval), `mrr` and `recall`, all at k, means over queries."""
        queries, query_of = torch.unique(labels[:, 0].long(), return_inverse=True)
        is_doc = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
        is_doc[queries] = False
        is_doc[labels[:, 1].long()] = True
        docs = is_doc.nonzero().squeeze(1)
        doc_of = torch.searchsorted(docs, labels[:, 1].long().contiguous())
        k = min(self.k, len(docs))
        found = torch.cat([(embeddings[q] @ embeddings[docs].T).topk(k).indices for q in queries.split(256)])
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
        mrr = ((grades > 0) * rank).amax(1)
        recall = (grades > 0).sum(1) / relevant
        return {"ndcg": float(ndcg.mean()), "mrr": float(mrr.mean()), "recall": float(recall.mean())}


class Reranking(EmbeddingMetric):
    """Reranking: the listed candidates of each query in order of cosine; mean average precision and reciprocal rank."""

    main = "map"

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`map` and `mrr` at 10, means over queries that have both kinds of candidates."""
        cosine = _cosines(embeddings, labels)
        query_of = torch.unique(labels[:, 0].long(), return_inverse=True)[1]
        precisions, reciprocal = [], []
        for judged in query_of.argsort(stable=True).split(torch.bincount(query_of).tolist()):
            order = judged[cosine[judged].argsort(descending=True, stable=True)]
            relevant = (labels[order, 2] > 0).double()
            if not 0 < relevant.sum() < len(relevant):
                continue
            rank = torch.arange(1, len(relevant) + 1, device=relevant.device)
            precisions.append(((relevant.cumsum(0) / rank) * relevant).sum() / relevant.sum())
            reciprocal.append((relevant / rank)[:10].max())
        if not precisions:
            raise InputError("no query of the evaluation split has both relevant and other candidates")
        return {"map": float(torch.stack(precisions).mean()), "mrr": float(torch.stack(reciprocal).mean())}


def _split(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    learn = labels[:, 1] == 1
    if not learn.any() or learn.all():
        raise InputError("classification is scored with labelled texts to learn from and others to test: one kind is missing")
    return embeddings[learn], labels[learn, 0].long(), embeddings[~learn], labels[~learn, 0].long()


class KNNAccuracy(EmbeddingMetric):
    """Classification without training: majority of the k nearest labelled texts, ties by summed cosine.

    Args:
        k: neighbours.
    """

    main = "accuracy"

    def __init__(self, k: int = 10, **kwargs: object):
        super().__init__(**kwargs)
        self.k = k

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`accuracy` in [0, 1]."""
        known, known_labels, tested, answers = _split(embeddings, labels)
        right = 0
        for part, answer in zip(tested.split(1024), answers.split(1024), strict=True):
            near = (part @ known.T).topk(min(self.k, len(known)))
            votes = torch.zeros(len(part), int(labels[:, 0].max()) + 1, dtype=torch.double, device=part.device)
            votes.scatter_add_(1, known_labels[near.indices], 1 + near.values.double() / (2 * self.k))
            right += int((votes.argmax(1) == answer).sum())
        return {"accuracy": right / len(answers)}


class LinearProbe(EmbeddingMetric):
    """Classification: scikit-learn's logistic regression on the labelled texts, accuracy on the others.

    Args:
        max_iter: iterations of the solver at most (100 in MTEB).
    """

    main = "accuracy"

    def __init__(self, max_iter: int = 100, **kwargs: object):
        super().__init__(**kwargs)
        self.max_iter = max_iter

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`accuracy` in [0, 1]."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        known, known_labels, tested, answers = (x.cpu().numpy() for x in _split(embeddings, labels))
        if len(set(known_labels.tolist())) < 2:
            raise InputError("classification needs labelled texts of at least two classes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(max_iter=self.max_iter, random_state=0).fit(known, known_labels)
        return {"accuracy": float((probe.predict(tested) == answers).mean())}


class VMeasure(EmbeddingMetric):
    """Clustering: k-means with as many clusters as labels, v-measure against the labels.

    Args:
        seed: of the k-means start.
    """

    main = "v_measure"

    def __init__(self, seed: int = 0, **kwargs: object):
        super().__init__(**kwargs)
        self.seed = seed

    def score(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        """`v_measure` in [0, 1]."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        truth = labels[:, 0].long().cpu().numpy()
        clusters = len(set(truth.tolist()))
        if clusters < 2:
            raise InputError("clustering needs texts of at least two labels")
        means = MiniBatchKMeans(n_clusters=clusters, batch_size=512, n_init=3, random_state=self.seed)
        return {"v_measure": float(v_measure_score(truth, means.fit_predict(embeddings.cpu().numpy())))}
