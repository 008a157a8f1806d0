"""Losses against sentence-transformers and against plain loops, values and gradients."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from torch.autograd import gradcheck

from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, InfoNCE, LabelContrast, SimCSE, pair_mask, positive_mask

COMBINATIONS = [
    (("query_to_doc",), "joint"),
    (("query_to_doc",), "per_direction"),
    (("query_to_doc", "doc_to_query"), "joint"),
    (("query_to_doc", "doc_to_query"), "per_direction"),
    (("query_to_doc", "query_to_query"), "joint"),
    (("query_to_doc", "doc_to_doc"), "joint"),
    (("query_to_doc", "query_to_query", "doc_to_doc"), "joint"),
    (("doc_to_doc", "doc_to_query", "query_to_query", "query_to_doc"), "joint"),
]
TAU = 0.3


def random_columns(*sizes, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, dim, dtype=torch.double, generator=generator).requires_grad_() for n in sizes)


def assert_same(loss, reference, columns, tolerance=1e-10):
    """Equal values and equal gradients of all columns."""
    value, expected = loss(columns), reference(columns)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    for mine, theirs in zip(torch.autograd.grad(value, columns), torch.autograd.grad(expected, columns), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def assert_gradient_exists(loss, columns):
    """The gradient is the derivative of the value, by finite differences, so that an oracle in numpy is enough."""
    assert gradcheck(lambda *c: loss(c), columns, eps=1e-6, atol=1e-6)


def cosines(a, b):
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    return a @ b.T


def once(ids, own):
    """Where each text comes first, and `own`: a text is a candidate once."""
    ids = list(ids)
    return [j for j in range(len(ids)) if j == own or ids[j] not in ids[:j]]


def info_nce_loop(columns, query_ids, doc_ids, judged, directions, partition="joint", tau=TAU, in_batch=True):
    """The definition, one candidate at a time; `judged` maps (query id, text id) to a grade."""
    q, docs = columns[0].detach().numpy(), torch.cat(columns[1:]).detach().numpy()
    n = len(q)
    right = {(query_ids[i], doc_ids[i]) for i in range(n)} | {pair for pair, grade in judged.items() if grade > 0}

    def no_negative(i, text):
        return (query_ids[i], text) in right or text == query_ids[i]

    qd, qq, dd = cosines(q, docs) / tau, cosines(q, q) / tau, cosines(docs[:n], docs) / tau
    total = 0.0
    for i in range(n):
        sums = {d: [] for d in directions}
        for j in once(doc_ids, i):
            own_negative = judged.get((query_ids[i], doc_ids[j]), 1) <= 0
            if j == i or (not no_negative(i, doc_ids[j]) and (in_batch or own_negative)):
                sums["query_to_doc"].append(qd[i, j])
            if "doc_to_doc" in sums and not no_negative(i, doc_ids[j]) and (query_ids[i], doc_ids[j]) not in judged:
                sums["doc_to_doc"].append(dd[i, j])
        for j in once(query_ids, i):
            if "doc_to_query" in sums and (j == i or not no_negative(j, doc_ids[i])):
                sums["doc_to_query"].append(qd[j, i])
            if "query_to_query" in sums and not no_negative(i, query_ids[j]) and doc_ids[j] != doc_ids[i]:
                sums["query_to_query"].append(qq[i, j])
        if partition == "joint":
            log_z = math.log(sum(math.exp(x) for terms in sums.values() for x in terms))
        else:
            log_z = sum(math.log(sum(math.exp(x) for x in terms)) for terms in sums.values()) / len(sums)
        total += log_z - qd[i, i]
    return total / n


def judgements(judged):
    return torch.tensor([[q, d, g] for (q, d), g in judged.items()]).reshape(-1, 3)


def as_ids(*columns):
    return tuple(torch.tensor(c) for c in columns)


# ---- InfoNCE against sentence-transformers


@pytest.mark.parametrize(("directions", "partition"), COMBINATIONS)
@pytest.mark.parametrize("ids", [None, as_ids(range(6), range(10, 16))])
def test_info_nce_of_pairs_equals_sentence_transformers(directions, partition, ids):
    mine = InfoNCE(TAU, directions, partition)
    theirs = MultipleNegativesRankingLoss(None, 1 / TAU, directions=directions, partition_mode=partition)
    columns = random_columns(6, 6)
    assert_same(lambda c: mine(c, None, ids), lambda c: theirs.compute_loss_from_embeddings(list(c), None), columns)


@pytest.mark.parametrize(("directions", "partition"), COMBINATIONS)
@pytest.mark.parametrize("negatives", [1, 3])
def test_info_nce_with_negatives_equals_sentence_transformers(directions, partition, negatives):
    n = 5
    columns = random_columns(n, n, n * negatives)
    query_ids, positive_ids, negative_ids = range(n), range(100, 100 + n), range(200, 200 + n * negatives)
    judged = {(i, 100 + i): 1 for i in range(n)} | {(j % n, 200 + j): 0 for j in range(n * negatives)}
    labels, ids = judgements(judged), as_ids(query_ids, positive_ids, negative_ids)
    mine = InfoNCE(TAU, directions, partition)
    theirs = MultipleNegativesRankingLoss(None, 1 / TAU, directions=directions, partition_mode=partition)

    def reference(c):
        return theirs.compute_loss_from_embeddings([c[0], c[1], *c[2].split(n)], None)

    assert_same(lambda c: mine(c, labels, ids), reference, columns)


# ---- InfoNCE against the loop

MASKING = {
    "all unique": ([0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22], {}),
    "equal positives": ([0, 1, 2, 3], [10, 10, 12, 13], [20, 21, 22], {}),
    "equal queries": ([0, 0, 2, 3], [10, 11, 12, 13], [20, 21, 22], {}),
    "equal rows": ([0, 0, 2, 0], [10, 10, 12, 10], [20, 21, 22], {}),
    "negative equals a positive": ([0, 1, 2, 3], [10, 11, 12, 13], [10, 11, 22], {}),
    "second known positive": ([0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22], {(0, 12): 1, (3, 20): 2}),
    "query is a document too": ([0, 1, 2, 3], [10, 0, 12, 13], [3, 21, 2], {}),
    "query is another query's positive": ([0, 1, 2, 3], [1, 11, 3, 13], [20, 21, 22], {}),
    "query is another query's known positive": ([0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22], {(0, 2): 1}),
    "judged negatives": ([0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22], {(0, 20): 0, (0, 21): 0, (2, 22): 0, (3, 11): 0}),
    "judgements of texts elsewhere": ([0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22], {(7, 10): 1, (0, 99): 1, (9, 98): 0}),
    "a positive three times": ([0, 1, 2, 3], [10, 10, 10, 13], [20, 20, 13], {(3, 20): 0}),
    "a query three times": ([0, 5, 5, 5], [10, 11, 12, 13], [20, 21, 22], {}),
    "64-bit hashes": ([-(2**62), 2**62, 2**62 + 1, 5], [2**61, 2**61, 7, 8], [-(2**62), 9, 8], {(5, 7): 1}),
}


@pytest.mark.parametrize(("directions", "partition"), COMBINATIONS)
@pytest.mark.parametrize("case", MASKING)
def test_info_nce_masks_as_the_loop_does(case, directions, partition):
    query_ids, positive_ids, negative_ids, judged = MASKING[case]
    columns = random_columns(4, 4, 3)
    loss, labels, ids = InfoNCE(TAU, directions, partition), judgements(judged), as_ids(query_ids, positive_ids, negative_ids)
    expected = info_nce_loop(columns, query_ids, positive_ids + negative_ids, judged, directions, partition)
    assert loss(columns, labels, ids).item() == pytest.approx(expected, rel=1e-10)
    if not judged:
        assert loss(columns, None, ids).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("case", ["equal rows", "query is a document too", "judged negatives"])
def test_info_nce_gradient_with_masking_is_the_derivative(case):
    query_ids, positive_ids, negative_ids, judged = MASKING[case]
    loss = InfoNCE(TAU, COMBINATIONS[-1][0])
    ids = as_ids(query_ids, positive_ids, negative_ids)
    assert_gradient_exists(lambda c: loss(c, judgements(judged), ids), random_columns(4, 4, 3, dim=3))


def test_masking_changes_the_loss_only_where_texts_are_known():
    columns, loss = random_columns(4, 4), InfoNCE(TAU)
    unique, duplicate = as_ids(range(4), range(10, 14)), as_ids(range(4), [10, 10, 12, 13])
    assert loss(columns, None, unique).item() == pytest.approx(loss(columns).item(), rel=1e-12)
    assert loss(columns, None, duplicate) < loss(columns)


def test_in_batch_false_leaves_each_query_its_own_ragged_negatives():
    query_ids, positive_ids, negative_ids = [0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]
    judged = {(0, 20): 0, (0, 21): 0, (0, 22): 0, (1, 23): 0, (3, 10): 0, (2, 12): 1}  # query 2 has no negative
    columns = random_columns(4, 4, 4)
    loss = InfoNCE(TAU, in_batch=False)
    value = loss(columns, judgements(judged), as_ids(query_ids, positive_ids, negative_ids))
    expected = info_nce_loop(columns, query_ids, positive_ids + negative_ids, judged, ["query_to_doc"], in_batch=False)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    gradient = torch.autograd.grad(value, columns)[0]
    assert gradient[2].abs().max() < 1e-12
    assert gradient[[0, 1, 3]].abs().amax(1).min() > 1e-6


def test_in_batch_false_shares_a_negative_between_the_queries_that_name_it():
    query_ids, positive_ids, negative_ids, judged = [0, 1, 2], [10, 11, 12], [20], {(0, 20): 0, (2, 20): 0}
    columns = random_columns(3, 3, 1)
    value = InfoNCE(TAU, in_batch=False)(columns, judgements(judged), as_ids(query_ids, positive_ids, negative_ids))
    expected = info_nce_loop(columns, query_ids, positive_ids + negative_ids, judged, ["query_to_doc"], in_batch=False)
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("labels", "ids"), [(None, None), (None, as_ids([0, 1], [2, 3])), (judgements({(0, 2): 0}), None)])
def test_in_batch_false_needs_ids_and_judgements(labels, ids):
    with pytest.raises(InputError, match="needs ids and judgements"):
        InfoNCE(in_batch=False)(random_columns(2, 2), labels, ids)


def test_info_nce_of_a_larger_random_batch_equals_the_loop():
    rng = np.random.default_rng(0)
    n, m = 24, 30
    texts = rng.integers(0, 25, size=2 * n + m).tolist()  # many duplicates, also between queries and documents
    query_ids, positive_ids, negative_ids = texts[:n], texts[n : 2 * n], texts[2 * n :]
    judged = {(int(a), int(b)): int(g) for a, b, g in rng.integers(0, [25, 25, 3], size=(60, 3))}
    columns = random_columns(n, n, m)
    ids = as_ids(query_ids, positive_ids, negative_ids)
    for directions, partition in COMBINATIONS:
        value = InfoNCE(TAU, directions, partition)(columns, judgements(judged), ids)
        expected = info_nce_loop(columns, query_ids, positive_ids + negative_ids, judged, directions, partition)
        assert value.item() == pytest.approx(expected, rel=1e-10), directions


@pytest.mark.parametrize("seed", range(3))
def test_pair_mask_and_positive_mask_equal_loops(seed):
    rng = np.random.default_rng(seed)
    rows, columns, pairs = rng.integers(0, 6, 5), rng.integers(0, 6, 7), rng.integers(0, 8, (6, 2))
    listed = {tuple(p) for p in pairs.tolist()}
    mask = pair_mask(*map(torch.from_numpy, (rows, columns, pairs)))
    assert mask.tolist() == [[(a, b) in listed for b in columns.tolist()] for a in rows.tolist()]
    labels = np.concatenate([pairs, rng.integers(-1, 2, (6, 1))], axis=1)
    listed = {(a, b) for a, b, g in labels.tolist() if g > 0} | set(zip(rows.tolist(), columns.tolist(), strict=False))
    mask = positive_mask(*map(torch.from_numpy, (rows, columns, labels)))
    assert mask.tolist() == [[(a, b) in listed or a == b for b in columns.tolist()] for a in rows.tolist()]


def test_pair_mask_of_no_pairs_is_empty():
    mask = pair_mask(torch.arange(3), torch.arange(4), torch.zeros(0, 2, dtype=torch.long))
    assert mask.shape == (3, 4)
    assert not mask.any()


# ---- SimCSE


def test_sim_cse_equals_sentence_transformers():
    theirs = MultipleNegativesRankingLoss(None, scale=20.0)
    assert_same(SimCSE(0.05), lambda c: theirs.compute_loss_from_embeddings(list(c), None), random_columns(6, 6))


def test_sim_cse_does_not_push_equal_texts_apart():
    columns, texts = random_columns(4, 4), [0, 1, 0, 3]
    value = SimCSE(TAU)(columns, None, as_ids(texts, texts))
    logits = cosines(columns[0].detach().numpy(), columns[1].detach().numpy()) / TAU
    kept = [[j for j in range(4) if j == i or (texts[j] != texts[i] and texts[j] not in texts[:j])] for i in range(4)]
    expected = np.mean([np.log(np.exp(logits[i, kept[i]]).sum()) - logits[i, i] for i in range(4)])
    assert value.item() == pytest.approx(expected, rel=1e-10)


# ---- CoSENT


def co_sent_loop(columns, labels, tau):
    a, b = (c.detach().numpy() for c in columns)
    cosine = np.diag(cosines(a, b))
    n = len(labels)
    return math.log(
        1 + sum(math.exp((cosine[j] - cosine[i]) / tau) for i in range(n) for j in range(n) if labels[i] > labels[j])
    )


@pytest.mark.parametrize("labels", [[0.1, 0.5, 0.3, 0.9, 0.2, 0.7], [0, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 1], [3.2, 3.21] * 3])
def test_co_sent_equals_sentence_transformers_and_the_loop(labels):
    columns, labels = random_columns(6, 6), torch.tensor(labels, dtype=torch.double)
    theirs = CoSENTLoss(SimpleNamespace(), scale=1 / TAU)
    reference = lambda c: theirs.compute_loss_from_embeddings(list(c), labels)  # noqa: E731
    assert_same(lambda c: CoSENT(TAU)(c, labels), reference, columns)
    assert CoSENT(TAU)(columns, labels).item() == pytest.approx(co_sent_loop(columns, labels.tolist(), TAU), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.double, torch.long, torch.bool])
def test_co_sent_uses_only_the_order_of_the_labels(dtype):
    columns = random_columns(4, 4)
    expected = co_sent_loop(columns, [0, 1, 1, 0], 0.05)
    assert CoSENT()(columns, torch.tensor([0, 1, 1, 0]).to(dtype)).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [1, 5])
def test_co_sent_of_equal_labels_is_zero_without_gradient(n):
    columns = random_columns(n, n)
    value = CoSENT()(columns, torch.full((n,), 0.7))
    assert value.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(value, columns))


def test_co_sent_grows_with_the_logarithm_of_the_number_of_pairs():
    one = torch.ones(64, 2, dtype=torch.double)  # all cosines equal: every ordered pair adds 1 to the sum
    assert CoSENT()((one, one), torch.arange(64)).item() == pytest.approx(math.log(1 + 64 * 63 / 2), rel=1e-12)


def test_co_sent_keeps_labels_apart_that_half_precision_would_merge():
    columns = tuple(c.detach().to(torch.bfloat16) for c in random_columns(2, 2))
    assert CoSENT()(columns, torch.tensor([0.600, 0.601])) > 0


# ---- LabelContrast


def label_contrast_loop(columns, labels, tau):
    vectors = columns[0].detach().numpy()
    s, n = cosines(vectors, vectors) / tau, len(labels)
    each = []
    for i in range(n):
        positives = [j for j in range(n) if j != i and labels[j] == labels[i]]
        negatives = sum(math.exp(s[i, j]) for j in range(n) if labels[j] != labels[i])
        if positives:
            each.append(-np.mean([math.log(math.exp(s[i, p]) / (math.exp(s[i, p]) + negatives)) for p in positives]))
    return float(np.mean(each)) if each else 0.0


LABELS = {
    "balanced": [0, 1, 2, 0, 1, 2, 0, 1, 2],
    "with singletons": [0, 1, 2, 0, 3, 4, 0, 1, 5],
    "skewed": [0, 0, 0, 0, 0, 0, 0, 1, 1],
    "one against the rest": [7, 7, 7, 7, -3, 7, 7, 7, 7],
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_label_contrast_equals_the_loop(case, tau):
    columns, labels = random_columns(9, dim=4), LABELS[case]
    value = LabelContrast(tau)(columns, torch.tensor(labels))
    assert value.item() == pytest.approx(label_contrast_loop(columns, labels, tau), rel=1e-8)
    assert_gradient_exists(lambda c: LabelContrast(tau)(c, torch.tensor(labels)), columns)


@pytest.mark.parametrize("labels", [[4] * 5, [0, 1, 2, 3, 4]])
def test_label_contrast_of_one_label_or_only_singletons_is_zero_without_gradient(labels):
    columns = random_columns(5)
    value = LabelContrast()(columns, torch.tensor(labels))
    assert value.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(value, columns))


# ---- precision, degenerate input, bad arguments

PAIR_LABELS = torch.tensor([0.0, 1.0, 0.5, 0.2, 0.9, 0.3])
CLASSES = torch.tensor([0, 1, 0, 1, 2, 2])
LOSSES = {
    "InfoNCE": (InfoNCE(0.01), 2, None),
    "InfoNCE, all directions": (InfoNCE(0.01, COMBINATIONS[-1][0]), 2, None),
    "InfoNCE, symmetric": (InfoNCE(0.01, ("query_to_doc", "doc_to_query"), "per_direction"), 2, None),
    "SimCSE": (SimCSE(0.01), 2, None),
    "CoSENT": (CoSENT(0.01), 2, PAIR_LABELS),
    "LabelContrast": (LabelContrast(0.01), 1, CLASSES),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_embeddings_give_the_loss_of_their_fp32_values(name, dtype, autocast):
    loss, count, labels = LOSSES[name]
    half = [c.detach().to(dtype).requires_grad_() for c in random_columns(*[6] * count, dim=32)]
    wide = [c.detach().float().requires_grad_() for c in half]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(tuple(half), labels)
    expected = loss(tuple(wide), labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for mine, theirs in zip(torch.autograd.grad(value, half), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(mine, theirs.to(dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_lower_the_precision_of_fp32_embeddings(name):
    loss, count, labels = LOSSES[name]
    columns = tuple(c.detach().float() for c in random_columns(*[6] * count, dim=32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(columns, labels)
    assert torch.equal(value, loss(columns, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_fp32_is_close_to_fp64_and_fp64_stays_fp64(name):
    loss, count, labels = LOSSES[name]
    columns = tuple(c.detach() for c in random_columns(*[6] * count, dim=32))
    value = loss(columns, labels)
    assert value.dtype == torch.double
    assert loss(tuple(c.float() for c in columns), labels).item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16])
@pytest.mark.parametrize("kind", ["equal rows", "zero rows", "all zero", "opposite rows", "huge", "tiny"])
def test_degenerate_rows_give_finite_values_and_gradients(name, dtype, kind):
    loss, count, labels = LOSSES[name]
    columns = [c.detach().to(dtype) for c in random_columns(*[6] * count)]
    change = {
        "equal rows": lambda c: columns[0][:1].expand(6, -1),
        "zero rows": lambda c: c * (torch.arange(6)[:, None] > 2),
        "all zero": torch.zeros_like,
        "opposite rows": lambda c: columns[0][:1] * torch.tensor([1, -1] * 3)[:, None],
        "huge": lambda c: c * 1e15,
        "tiny": lambda c: c * 1e-15,
    }[kind]
    columns = [change(c).to(dtype).clone().requires_grad_() for c in columns]
    value = loss(tuple(columns), labels)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, columns))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_length_of_the_vectors(name):
    loss, count, labels = LOSSES[name]
    columns = random_columns(*[6] * count)
    scaled = tuple(c * torch.linspace(0.1, 30, 6)[:, None] for c in columns)
    assert loss(scaled, labels).item() == pytest.approx(loss(columns, labels).item(), rel=1e-9)


@pytest.mark.parametrize("kind", [InfoNCE, SimCSE, CoSENT, LabelContrast])
@pytest.mark.parametrize("temperature", [0, -0.05, float("nan")])
def test_temperature_must_be_positive(kind, temperature):
    with pytest.raises(InputError, match="temperature"):
        kind(temperature=temperature)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directions": ["doc_to_query"]}, "must contain query_to_doc"),
        ({"directions": ["query_to_doc", "doc_to_dog"]}, "doc_to_dog"),
        ({"directions": []}, "must contain query_to_doc"),
        ({"directions": "query_to_doc"}, "must contain query_to_doc"),
        ({"partition": "both"}, "choose joint or per_direction"),
        ({"partition": "per_direction", "directions": ["query_to_doc", "doc_to_doc"]}, "use joint"),
        ({"partition": "per_direction", "directions": ["query_to_doc", "query_to_query"]}, "use joint"),
        ({"in_batch": False, "directions": ["query_to_doc", "doc_to_query"]}, "in_batch"),
    ],
)
def test_bad_info_nce_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        InfoNCE(**arguments)


@pytest.mark.parametrize("positives", [3, 5])
def test_info_nce_needs_one_positive_for_each_query(positives):
    with pytest.raises(InputError, match=f"4 queries and {positives} positives"):
        InfoNCE()(random_columns(4, positives))
