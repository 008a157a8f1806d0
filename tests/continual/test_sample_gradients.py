"""Sums of squared gradients against a loop over samples with autograd, and losses against a frozen pool written out."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from acge_lightning.continual.pool_loss import Embedded, frozen_loss
from acge_lightning.continual.sample_gradients import SampleGradients
from acge_lightning.encoder.build import static, transformer
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, InfoNCE, LabelContrast, SimCSE
from acge_lightning.losses.matryoshka import Matryoshka

D, N, POOL = 8, 6, 7
EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BOTH = ("query_to_doc", "doc_to_query")
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]
TOKENIZER = train_vocabulary([" ".join(WORDS)] * 3, "wordpiece", 60)
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
}
# Query 0 has two positives, one in the pool; query 1 is a query of the pool; text 2 is a negative that query 2 names.
IDS = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([11, 12, 13, 14, 15, 16])
POOL_IDS = torch.arange(7) + 100, torch.arange(7) + 200
POOL_IDS[0][3], POOL_IDS[1][5], POOL_IDS[1][6] = 2, 14, 5
NEGATIVE_IDS = torch.tensor([300, 301])
JUDGED = torch.tensor([[1, 11, 1], [1, 201, 1], [3, 202, 0], [4, 900, 0], [6, 901, 0], [6, 200, 0], [103, 12, 1]])
OWN_IDS = torch.tensor([900, 901])

LOSSES = {
    "InfoNCE": InfoNCE(0.2),
    "InfoNCE, Matryoshka": Matryoshka(InfoNCE(0.2), [8, 4], [1.0, 0.5], [0.2, 0.4]),
    "InfoNCE, all directions": InfoNCE(0.2, EVERY),
    "InfoNCE, symmetric": Matryoshka(InfoNCE(0.2, BOTH, "per_direction"), [8, 2], reduction="mean"),
    "InfoNCE, own negatives": InfoNCE(0.2, in_batch=False),
    "SimCSE": SimCSE(0.2),
    "CoSENT": CoSENT(0.2),
    "CoSENT, Matryoshka": Matryoshka(CoSENT(0.2), [8, 3]),
    "LabelContrast": LabelContrast(0.2),
    "LabelContrast, Matryoshka": Matryoshka(LabelContrast(0.2), [8, 4]),
}
SCORES, POOL_SCORES = torch.tensor([0.0, 1, 2, 3, 4, 5]), torch.tensor([0.0, 0, 1, 2.5, 3, 4, 6])
CLASSES, POOL_CLASSES = torch.tensor([0, 1, 2, 0, 1, 9]), torch.tensor([0, 0, 1, 2, 2, 1, 0])


def encoder(kind, dense=D, **changes) -> Encoder:
    torch.manual_seed(0)
    if kind == "static":
        return static(TOKENIZER, dim=8, dense=dense).double()
    extra = {"electra": {"embedding_size": 6}, "causal": {"model_type": "bert", "is_decoder": True}}.get(kind, {})
    made = transformer(TOKENIZER, TINY | {"model_type": kind} | extra, max_length=20, dense=dense, **changes)
    with torch.no_grad():  # fresh ones begin at 0 or 1, which would hide mistakes
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return made.double()


def texts(made, seed, count=N):
    rng = np.random.default_rng(seed)
    return made.tokenize([" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)])


def pool_of(name, seed=1):
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(POOL, D, generator=generator, dtype=torch.double) for _ in range(3))
    if "CoSENT" in name:
        return Embedded((first, second), POOL_SCORES, POOL_IDS)
    if "Label" in name:
        return Embedded((first,), POOL_CLASSES, POOL_IDS[:1])
    return Embedded((first, second, third[:2]), torch.tensor([[101, 203, 1]]), (*POOL_IDS, NEGATIVE_IDS))


OWN_NEGATIVES = torch.randn(2, D, generator=torch.Generator().manual_seed(5), dtype=torch.double), OWN_IDS


def labels_of(name, rows):
    if "CoSENT" in name or "Label" in name:
        return (SCORES if "CoSENT" in name else CLASSES)[rows]
    return JUDGED


def frozen(name, estimator="empirical"):
    """The loss as `SampleGradients` takes it, and how many columns it has."""
    contrast = "InfoNCE" in name
    made = frozen_loss(LOSSES[name], pool_of(name), estimator, OWN_NEGATIVES if contrast else None)
    draws = torch.rand(N, made.draws_per_sample, generator=torch.Generator().manual_seed(3), dtype=torch.double)

    def losses(vectors, rows):
        ids = tuple(column[rows] for column in IDS[: made.columns])
        return made(Embedded(vectors, labels_of(name, rows), ids), draws[rows])

    return losses, made.columns, draws


# ---- the same, one sample at a time, in plain words


def prefixes_of(loss):
    if not isinstance(loss, Matryoshka):
        return loss, [(D, 1.0, loss.temperature)]
    over = len(loss.dims) if loss.reduction == "mean" else 1
    return loss.loss, [(d, loss.weights[d] / over, loss.temperatures[d]) for d in loss.dims]


def by_hand(name, vectors, i, target=None):
    """The loss of sample i from its vectors Float[1, D] a column; `target` chooses one term of each softmax."""
    loss, prefixes = prefixes_of(LOSSES[name])
    total = 0.0
    for number, (d, weight, tau) in enumerate(prefixes):
        pool = pool_of(name)
        mine = [v[0, :d] for v in vectors]
        frozen_to = [c[:, :d] for c in pool.vectors]

        def s(a, b, tau=tau):
            return cosine_similarity(a, b, dim=0) / tau

        if "CoSENT" in name:
            value = ranked(s, mine, frozen_to, i)
        elif "Label" in name:
            value = labelled(s, mine[0], frozen_to[0], i)
        else:
            choose = None if target is None else (lambda k, logits, n=number: target(i, n, k, logits))
            value = contrasted(name, loss, s, mine, frozen_to, i, d, choose)
        total = total + weight * value
    return total


def ranked(s, mine, pool, i):
    terms = []
    for j in range(POOL):
        if SCORES[i] > POOL_SCORES[j]:
            terms.append(s(pool[0][j], pool[1][j]) - s(*mine))
        if SCORES[i] < POOL_SCORES[j]:
            terms.append(s(*mine) - s(pool[0][j], pool[1][j]))
    return (1 + sum(t.exp() for t in terms)).log()


def labelled(s, mine, pool, i):
    same = [s(mine, pool[j]) for j in range(POOL) if POOL_CLASSES[j] == CLASSES[i]]
    other = [s(mine, pool[j]) for j in range(POOL) if POOL_CLASSES[j] != CLASSES[i]]
    return sum(-(p - (p.exp() + sum(o.exp() for o in other)).log()) for p in same) / len(same) if same else mine.sum() * 0


def contrasted(name, loss, s, mine, pool, i, d, choose):
    """Row 0 of the loss of a batch of the sample and the pool, masked as the loss itself masks it."""
    own = [k for k in range(2) if "InfoNCE" in name and [int(IDS[0][i]), int(OWN_IDS[k]), 0] in JUDGED.tolist()]
    negatives = [*pool[2], *(OWN_NEGATIVES[0][k, :d] for k in own)]
    queries, docs = [mine[0], *pool[0]], [mine[1], *pool[1], *negatives]
    ids = (
        torch.cat([IDS[0][i : i + 1], POOL_IDS[0]]),
        torch.cat([IDS[1][i : i + 1], POOL_IDS[1]]),
        torch.cat([NEGATIVE_IDS, OWN_IDS[own]]),
    )
    embeddings = tuple(torch.empty(len(column), 1) for column in ids)
    blocked = loss.targets(embeddings, torch.cat([JUDGED, torch.tensor([[101, 203, 1]])]), ids)
    others = {
        "query_to_doc": [(mine[0], doc) for doc in docs],
        "doc_to_query": [(query, mine[1]) for query in queries],
        "query_to_query": [(mine[0], query) for query in queries],
        "doc_to_doc": [(mine[1], doc) for doc in docs],
    }
    parts = []
    for direction in loss.directions:
        mask = blocked[direction][0]
        parts.append([s(*pair) for pair, out in zip(others[direction], mask.tolist(), strict=True) if not out])
    if loss.partition == "joint":
        parts = [[logit for part in parts for logit in part]]
    value = 0.0
    for k, part in enumerate(parts):
        logits = torch.stack(part)
        value = value + logits.exp().sum().log() - (logits[0] if choose is None else choose(k, logits))
    return value / len(parts)


def brute_force(made, columns, loss_of, absolute=False):
    made.eval()
    parameters = dict(made.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(N):
        loss = loss_of(tuple(made(column.select(torch.tensor([i]))) for column in columns), i)
        for total, g in zip(totals.values(), torch.autograd.grad(loss, parameters.values(), allow_unused=True), strict=True):
            if g is not None:
                total += g.abs() if absolute else g**2
    return totals


def apart(found, expected):
    assert found.keys() == expected.keys()
    top = max(float(x.max()) for x in expected.values())
    assert top > 0
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / top


@pytest.mark.parametrize("kind", ["bert", "static"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_loop_over_samples_for_every_loss(name, kind):
    made = encoder(kind)
    losses, count, _ = frozen(name)
    columns = [texts(made, seed) for seed in range(count)]
    with SampleGradients(made) as found:
        assert found.together
        found.add(columns, losses)
    assert apart(found.totals, brute_force(made, columns, lambda v, i: by_hand(name, v, i))) < 1e-10


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "electra"])
def test_the_other_architectures(kind):
    made = encoder(kind, dense=None)
    losses, count, _ = frozen("InfoNCE")
    columns = [texts(made, seed) for seed in range(count)]
    with SampleGradients(made) as found:
        assert found.together
        found.add(columns, losses)
    assert apart(found.totals, brute_force(made, columns, lambda v, i: by_hand("InfoNCE", v, i))) < 1e-10


def test_a_model_whose_tokens_see_only_those_before_them_goes_sample_by_sample():
    made = encoder("causal")
    losses, count, _ = frozen("InfoNCE")
    columns = [texts(made, seed) for seed in range(count)]
    with SampleGradients(made) as found:
        assert not found.together
        found.add(columns, losses)
    assert apart(found.totals, brute_force(made, columns, lambda v, i: by_hand("InfoNCE", v, i))) < 1e-10


@pytest.mark.parametrize("changes", [{"pooling": "cls"}, {"pooling": "last"}, {"attention": "sdpa"}])
def test_other_poolings_and_attentions(changes):
    made = encoder("bert", **changes).train()
    made.backbone.eval()
    losses, count, _ = frozen("CoSENT")
    columns = [texts(made, seed) for seed in range(count)]
    made.dense.linear.bias.requires_grad_(False)
    before = made.backbone.config._attn_implementation
    with SampleGradients(made) as found:
        found.add(columns, losses)
    assert [name for name, module in made.named_children() if module.training] == ["dense"]
    assert made.training
    assert made.backbone.config._attn_implementation == before
    assert [name for name, p in made.named_parameters() if not p.requires_grad] == ["dense.linear.bias"]
    assert not any(module._forward_hooks for module in made.modules())
    made.requires_grad_(True)
    assert apart(found.totals, brute_force(made, columns, lambda v, i: by_hand("CoSENT", v, i))) < 1e-10


@pytest.mark.parametrize("kind", ["bert", "static"])
@pytest.mark.parametrize("absolute", [False, True])
def test_any_chunks_give_the_same_and_so_does_one_by_one(kind, absolute):
    made = encoder(kind)
    losses, count, _ = frozen("InfoNCE, all directions")
    columns = [texts(made, seed) for seed in range(count)]
    found = []
    for chunks, together in (([range(6)], True), ([[5, 0], [3], [1, 4, 2]], True), ([range(6)], False)):
        sums = SampleGradients(made, absolute)
        sums.together = together
        with sums:
            for chunk in chunks:
                rows = torch.tensor(chunk)
                sums.add([column.select(rows) for column in columns], lambda v, which, rows=rows: losses(v, rows[which]))
        found.append(sums.totals)
    assert apart(found[1], found[0]) < 1e-12
    assert apart(found[2], found[0]) < 1e-12


def test_the_square_of_the_batch_gradient_is_something_else():
    made = encoder("static")
    losses, count, _ = frozen("InfoNCE")
    columns = [texts(made, seed) for seed in range(count)]
    with SampleGradients(made) as found:
        found.add(columns, losses)
    vectors = tuple(made(column) for column in columns)
    mean = torch.autograd.grad(losses(vectors, torch.arange(N)).mean(), list(made.parameters()))
    squared = sum(float(g.square().sum()) for g in mean)
    assert squared < 0.6 * sum(float(x.sum()) for x in found.totals.values()) / N


# ---- estimators


@pytest.mark.parametrize("name", ["InfoNCE", "InfoNCE, all directions", "InfoNCE, symmetric", "SimCSE", "InfoNCE, Matryoshka"])
def test_true_takes_targets_of_the_models_own_softmax(name):
    made = encoder("static")
    losses, count, draws = frozen(name, "true")
    columns = [texts(made, seed) for seed in range(count)]
    parts = 2 if "symmetric" in name else 1
    chosen = []

    def target(i, prefix, k, logits):
        p = np.cumsum(logits.detach().softmax(0).numpy())
        place = int(np.searchsorted(p, float(draws[i, prefix * parts + k]) * p[-1]))
        chosen.append(place)
        return logits[place]

    with SampleGradients(made) as found:
        found.add(columns, losses)
    assert apart(found.totals, brute_force(made, columns, lambda v, i: by_hand(name, v, i, target))) < 1e-10
    assert len(set(chosen)) > 2


@pytest.mark.parametrize("name", ["CoSENT", "LabelContrast, Matryoshka"])
def test_true_is_an_error_where_there_is_no_softmax_over_targets(name):
    with pytest.raises(InputError, match=r"(CoSENT|LabelContrast) has none: use empirical or mas"):
        frozen(name, "true")


@pytest.mark.parametrize("name", ["InfoNCE, Matryoshka", "CoSENT", "LabelContrast"])
def test_mas_is_the_size_of_how_cosines_react(name):
    made = encoder("bert")
    losses, count, _ = frozen(name, "mas")
    columns = [texts(made, seed) for seed in range(count)]
    pool = torch.cat(list(pool_of(name).vectors))

    def by_cosines(vectors, i):
        found = [
            weight * cosine_similarity(v[:, :d], pool[:, :d]).square().mean() / 2
            for d, weight, _ in prefixes_of(LOSSES[name])[1]
            for v in vectors
        ]
        return sum(found)

    with SampleGradients(made, absolute=True) as found:
        found.add(columns, losses)
    assert apart(found.totals, brute_force(made, columns, by_cosines, absolute=True)) < 1e-10


def test_unknown_losses_and_estimators_are_errors():
    with pytest.raises(InputError, match="MSELoss has no form"):
        frozen_loss(torch.nn.MSELoss(), pool_of("CoSENT"))
    with pytest.raises(InputError, match="'fisher' is unknown"):
        frozen_loss(CoSENT(), pool_of("CoSENT"), "fisher")


@pytest.mark.parametrize("loss", [CoSENT(), LabelContrast()], ids=["CoSENT", "LabelContrast"])
def test_a_loss_that_compares_labels_needs_them(loss):
    pool = pool_of("CoSENT")
    rows = Embedded(pool.vectors, None, pool.ids)
    with pytest.raises(InputError, match=f"{type(loss).__name__} compares labels, and the task has none"):
        frozen_loss(loss, pool)(rows)
    with pytest.raises(InputError, match="has none"):
        frozen_loss(loss, rows)(pool)


def test_drawn_targets_need_their_random_numbers():
    pool = pool_of("SimCSE")
    with pytest.raises(ValueError, match="estimator=true needs 1 random numbers a sample"):
        frozen_loss(SimCSE(), pool, "true")(Embedded(pool.vectors, None, pool.ids))


def test_a_pool_text_that_comes_twice_counts_once():
    pool = pool_of("SimCSE")
    twice = Embedded(
        (torch.cat([pool.vectors[0], pool.vectors[0][:1]]), torch.cat([pool.vectors[1], pool.vectors[1][:1]]), pool.vectors[2]),
        None,
        (torch.cat([POOL_IDS[0], torch.tensor([77])]), torch.cat([POOL_IDS[1], POOL_IDS[1][:1]]), NEGATIVE_IDS),
    )
    own = Embedded(tuple(torch.randn(N, D, dtype=torch.double) for _ in range(2)), None, IDS)
    once = Embedded(pool.vectors, None, pool.ids)
    torch.testing.assert_close(frozen_loss(SimCSE(0.2), twice)(own), frozen_loss(SimCSE(0.2), once)(own))
    assert math.isfinite(float(frozen_loss(SimCSE(0.2), once)(own).sum()))
