"""Matryoshka against the sum written out and against sentence-transformers' MatryoshkaLoss."""

import copy

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn

from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, InfoNCE, LabelContrast, SimCSE
from acge_lightning.losses.matryoshka import Matryoshka, check_dims

DIMS, WEIGHTS = (8, 4, 2), (1.0, 0.5, 3.0)
ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SCORES = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.9, 0.3])
IDS = (torch.tensor([0, 1, 2, 3, 0, 5]), torch.tensor([10, 11, 10, 13, 14, 15]))
JUDGEMENTS = torch.tensor([[0, 10, 1], [3, 11, 2], [5, 13, 0]])
LOSSES = {
    "InfoNCE": (InfoNCE(0.2), 2, None, None),
    "InfoNCE, masked, all directions": (InfoNCE(0.2, ALL_DIRECTIONS), 2, JUDGEMENTS, IDS),
    "InfoNCE, symmetric": (InfoNCE(0.2, ("query_to_doc", "doc_to_query"), "per_direction"), 2, JUDGEMENTS, IDS),
    "SimCSE": (SimCSE(0.2), 2, None, (IDS[0], IDS[0])),
    "CoSENT": (CoSENT(0.2), 2, SCORES, None),
    "LabelContrast": (LabelContrast(0.2), 1, torch.tensor([0, 1, 0, 1, 1, 2]), None),
}


def columns_of(count, dim=8, dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, dim, dtype=dtype, generator=generator).requires_grad_() for _ in range(count))


def assert_same(value, expected, columns, tolerance):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(torch.autograd.grad(value, columns), torch.autograd.grad(expected, columns), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_matryoshka_is_the_weighted_sum_over_truncated_losses(name, weights):
    loss, count, labels, ids = LOSSES[name]
    columns = columns_of(count)
    pairs = zip(DIMS, weights or [1, 1, 1], strict=True)
    expected = sum(w * loss(tuple(c[:, :d] for c in columns), labels, ids) for d, w in pairs)
    assert_same(Matryoshka(loss, DIMS, weights)(columns, labels, ids), expected, columns, 1e-12)


EDGES = {
    "CoSENT, equal scores": (CoSENT(0.2), torch.ones(6)),
    "CoSENT, two scores": (CoSENT(0.2), torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])),
    "LabelContrast, one label": (LabelContrast(0.2), torch.zeros(6, dtype=torch.long)),
    "LabelContrast, all different": (LabelContrast(0.2), torch.arange(6)),
    "LabelContrast, one without others": (LabelContrast(0.2), torch.tensor([0, 0, 0, 0, 0, 1])),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_closed_gradients_at_the_edges_are_those_of_autograd(name, scale):
    """Labels that leave little or nothing to compare, and logits at which exp underflows."""
    loss, labels = EDGES[name]
    logits = scale * torch.randn(
        (6,) if loss.rowwise else (6, 6), dtype=torch.double, generator=torch.Generator().manual_seed(1)
    )
    targets = loss.targets((logits,), labels, None)
    value, (gradient,) = loss.value_and_gradient([logits], targets)
    with_graph = logits.clone().requires_grad_()
    expected = loss.value([with_graph], targets)
    (by_logits,) = torch.autograd.grad(expected, with_graph, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, by_logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_prefix_is_normalised_after_it_was_cut(name):
    """What was cut off has no influence; normalising before the cut would let it shrink the prefix."""
    loss, count, labels, ids = LOSSES[name]
    columns = columns_of(count)
    tail = torch.cat([torch.ones(6, 2), torch.linspace(0.1, 9, 36).view(6, 6)], dim=1)
    only_prefix = Matryoshka(loss, [8, 2], [0, 1])
    changed = tuple(c * tail for c in columns)
    assert_same(only_prefix(changed, labels, ids), only_prefix(columns, labels, ids), columns, 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_full_size_is_the_loss_itself(name):
    loss, count, labels, ids = LOSSES[name]
    columns = columns_of(count)
    assert_same(Matryoshka(loss, [8])(columns, labels, ids), loss(columns, labels, ids), columns, 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_embeddings_give_an_fp32_sum(name):
    loss, count, labels, ids = LOSSES[name]
    half = tuple(c.detach().bfloat16() for c in columns_of(count))
    value = Matryoshka(loss, DIMS)(half, labels, ids)
    assert value.dtype == torch.float32
    assert torch.equal(value, Matryoshka(loss, DIMS)(tuple(c.float() for c in half), labels, ids))


class Embeddings(nn.Module):
    """Stands for a model whose features are the embeddings."""

    def forward(self, features):
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self):
        return 8


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize(
    ("mine", "theirs", "labels"),
    [
        (InfoNCE(0.05), lambda model: MultipleNegativesRankingLoss(model, 20.0), None),
        (InfoNCE(0.05, ALL_DIRECTIONS), lambda model: MultipleNegativesRankingLoss(model, directions=ALL_DIRECTIONS), None),
        (
            InfoNCE(0.05, ("query_to_doc", "doc_to_query"), "per_direction"),
            lambda model: MultipleNegativesRankingLoss(
                model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
            ),
            None,
        ),
        (SimCSE(0.05), lambda model: MultipleNegativesRankingLoss(model, 20.0), None),
        (CoSENT(0.05), lambda model: CoSENTLoss(model, 20.0), SCORES),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float, 1e-5), (torch.double, 1e-10)])
def test_matryoshka_equals_sentence_transformers(mine, theirs, labels, weights, order, dtype, tolerance):
    columns = columns_of(2, dtype=dtype)
    dims = [DIMS[i] for i in order]
    weights = weights and [weights[i] for i in order]
    model = Embeddings()
    expected = MatryoshkaLoss(model, theirs(model), dims, weights)([{"embedding": c} for c in columns], labels)
    assert_same(Matryoshka(mine, dims, weights)(columns, labels), expected, columns, tolerance)


def test_weights_scale_the_gradient_of_their_dim_only():
    columns = columns_of(2)
    light, heavy = (Matryoshka(InfoNCE(), [8, 4], [1, w])(columns) for w in (0, 2))
    tails = [torch.autograd.grad(v, columns[0], retain_graph=True)[0][:, 4:] for v in (light, heavy)]
    assert torch.equal(*tails)
    torch.testing.assert_close(heavy - light, 2 * InfoNCE()(tuple(c[:, :4] for c in columns)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_dim_has_its_temperature(name, reduction):
    loss, count, labels, ids = LOSSES[name]
    columns, temperatures = columns_of(count), (0.2, 0.05, 0.7)
    expected = 0
    for dim, weight, temperature in zip(DIMS, WEIGHTS, temperatures, strict=True):
        other = copy.deepcopy(loss)
        other.temperature = temperature
        expected = expected + weight * other(tuple(c[:, :dim] for c in columns), labels, ids)
    expected = expected / 3 if reduction == "mean" else expected
    assert_same(Matryoshka(loss, DIMS, WEIGHTS, temperatures, reduction)(columns, labels, ids), expected, columns, 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_by_dim_are_the_losses_of_the_dims_before_their_weights(name):
    loss, count, labels, ids = LOSSES[name]
    columns = columns_of(count)
    matryoshka = Matryoshka(loss, DIMS, WEIGHTS)
    matryoshka(columns, labels, ids)
    assert set(matryoshka.loss_by_dim) == set(DIMS)
    for dim, value in matryoshka.loss_by_dim.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, loss(tuple(c[:, :dim] for c in columns), labels, ids).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradient_the_value_is_the_same(name):
    loss, count, labels, ids = LOSSES[name]
    columns = columns_of(count)
    with torch.no_grad():
        value = Matryoshka(loss, DIMS, WEIGHTS)(columns, labels, ids)
    torch.testing.assert_close(value, Matryoshka(loss, DIMS, WEIGHTS)(columns, labels, ids).detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_and_tiny_vectors_have_the_gradient_of_the_plain_sum(name):
    """A zero row, a row whose first prefix is zero, and one shorter than the least norm."""
    loss, count, labels, ids = LOSSES[name]
    columns = [c.detach().clone() for c in columns_of(count)]
    for column in columns:
        column[0], column[1, :2], column[2] = 0, 0, 1e-14
    columns = tuple(c.requires_grad_() for c in columns)
    expected = sum(loss(tuple(c[:, :d] for c in columns), labels, ids) for d in DIMS)
    assert_same(Matryoshka(loss, DIMS)(columns, labels, ids), expected, columns, 1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_a_column_that_needs_no_gradient_changes_nothing_for_the_others(name):
    loss, count, labels, ids = LOSSES[name]
    if count == 1:
        return
    columns = columns_of(count)
    frozen = (columns[0], columns[1].detach())
    mine, theirs = (torch.autograd.grad(Matryoshka(loss, DIMS)(c, labels, ids), columns[0])[0] for c in (frozen, columns))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_there_is_no_second_derivative():
    columns = columns_of(2)
    (first,) = torch.autograd.grad(Matryoshka(InfoNCE(), DIMS)(columns), columns[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_set_dims_chooses_among_the_dims():
    columns, loss = columns_of(2), Matryoshka(InfoNCE(), [8, 4, 2], [5.0, 2.0, 0.5], [0.1, 0.2, 0.3])
    loss.set_dims([8, 2])
    assert loss.dims == (8, 2)
    expected = Matryoshka(InfoNCE(), [8, 2], [5.0, 0.5], [0.1, 0.3])(columns)
    torch.testing.assert_close(loss(columns), expected, rtol=0, atol=0)
    loss.set_dims([8, 4, 2])
    expected = Matryoshka(InfoNCE(), [8, 4, 2], [5.0, 2.0, 0.5], [0.1, 0.2, 0.3])(columns)
    torch.testing.assert_close(loss(columns), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dims", [[4, 2], [8, 16], [8, 3], [8, 8], []])
def test_refused_set_dims_leave_the_loss_as_it_was(dims):
    loss = Matryoshka(InfoNCE(), [8, 4], [1.0, 2.0])
    with pytest.raises(InputError, match="must be some of"):
        loss.set_dims(dims)
    assert loss.dims == (8, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": [0.1]}, "1 values for 2 dims"),
        ({"temperatures": [0.1, 0.0]}, "above 0"),
        ({"reduction": "max"}, "choose sum or mean"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Matryoshka(InfoNCE(), [8, 4], **settings)


@pytest.mark.parametrize("dims", [[], [8, 8], [8, 4, 4], [8, 0], [8, -1]])
def test_empty_repeated_and_non_positive_dims_are_refused(dims):
    with pytest.raises(InputError, match="distinct sizes of at least 1"):
        Matryoshka(InfoNCE(), dims)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1.0, 1.0]])
def test_weights_of_another_number_are_refused(weights):
    with pytest.raises(InputError, match=f"{len(weights)} values for 2 dims"):
        Matryoshka(InfoNCE(), [8, 4], weights)


@pytest.mark.parametrize(("dims", "message"), [([16, 8], "16 is more than the encoder's 8"), ([4, 2], "full size 8 untrained")])
def test_dims_must_fit_the_embedding_and_contain_its_full_size(dims, message):
    with pytest.raises(InputError, match=message):
        Matryoshka(InfoNCE(), dims)(columns_of(2))
    with pytest.raises(InputError, match=message):
        check_dims(dims, 8)
