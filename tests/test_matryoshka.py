"""Matryoshka against the sum written out and against sentence-transformers' MatryoshkaLoss."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn

from acge_lightning.errors import InputError
from acge_lightning.losses import CoSENT, InfoNCE, LabelContrast, SimCSE
from acge_lightning.matryoshka import Matryoshka, check_dims

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


def test_set_dims_replaces_dims_and_weights():
    columns, loss = columns_of(2), Matryoshka(InfoNCE(), [8], [5.0])
    loss.set_dims([8, 2])
    assert loss.dims == (8, 2)
    torch.testing.assert_close(loss(columns), Matryoshka(InfoNCE(), [8, 2])(columns), rtol=0, atol=0)
    loss.set_dims([8, 4], [2.0, 0.5])
    torch.testing.assert_close(loss(columns), Matryoshka(InfoNCE(), [8, 4], [2.0, 0.5])(columns), rtol=0, atol=0)


def test_refused_set_dims_leave_the_loss_as_it_was():
    loss = Matryoshka(InfoNCE(), [8, 4], [1.0, 2.0])
    with pytest.raises(InputError):
        loss.set_dims([8, 2], [1.0])
    assert (loss.dims, loss.weights) == ((8, 4), (1.0, 2.0))


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
