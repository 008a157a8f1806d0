"""Stores of vectors against the definition of their cosines."""

import numpy as np
import pytest
import torch
from indexes import cosines, vectors

from acge_lightning.search import FunnelIndex, Stage
from acge_lightning.search.vectors import Vectors, prefix


@pytest.mark.parametrize(("store", "atol"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 1e-2)])
def test_stores_keep_the_cosines(store, atol):
    rows, queries = vectors(300, 64), vectors(5, 64, 1)
    kept = Vectors(64, store).extended(torch.from_numpy(rows))
    decoded = torch.cat([block for _, block in kept.blocks(100)])
    assert torch.allclose(decoded.norm(dim=1), torch.ones(300), atol=1e-3)
    unit = torch.from_numpy(queries / np.linalg.norm(queries, axis=1, keepdims=True))
    found = kept.compare(unit, torch.arange(300).expand(5, -1))
    np.testing.assert_allclose(found, cosines(queries, rows, 64), atol=atol)
    np.testing.assert_allclose(found, unit @ decoded.T, atol=1e-5)


def test_signs_are_compared_as_signs():
    rows, queries = vectors(50, 16), vectors(3, 16, 1)
    found = (
        Vectors(16, "binary")
        .extended(torch.from_numpy(rows))
        .compare(torch.from_numpy(queries), torch.arange(50).expand(3, -1))
    )
    np.testing.assert_allclose(found, queries @ np.where(rows > 0, 1, -1).T / 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("store", ["int8", "binary", "fp16"])
def test_rows_added_in_small_batches_are_copied_a_few_times_only(store):
    rows = vectors(400, 16)
    stages = [Stage(8, 30, store), Stage(16)]
    index = FunnelIndex.build(rows[:4], stages, force=True)
    in_memory, copied = [kept.codes.data_ptr() for kept in index.vectors.stores], 0
    for start in range(4, 400, 4):
        index.add(rows[start : start + 4])
        for stage, kept in enumerate(index.vectors.stores):
            copied += start if kept.codes.data_ptr() != in_memory[stage] else 0
            in_memory[stage] = kept.codes.data_ptr()
    assert 0 < copied < 2 * 2 * 400  # of two stages, each at most twice
    whole = FunnelIndex.build(rows, stages, force=True)
    for kept, expected in zip(index.vectors.stores, whole.vectors.stores, strict=True):
        assert kept.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(kept.arrays[name], array)
        assert kept.nbytes == expected.nbytes


@pytest.mark.parametrize(
    ("rows", "queries", "dim", "count"), [(1, 1, 8, 1), (17, 3, 8, 17), (5000, 1, 64, 40), (9000, 70, 32, 25)]
)
def test_int8_rows_found_by_integer_products_are_those_of_a_float_scan(rows, queries, dim, count):
    rng = np.random.default_rng(rows)
    found = Vectors(dim, "int8").extended(torch.from_numpy(rng.standard_normal((rows, dim))).float())
    asked = prefix(torch.from_numpy(rng.standard_normal((queries, dim))), dim)
    decoded = found.codes.numpy().astype(np.float64) * found.scale.numpy()[:, None].astype(np.float64)
    expected = asked.numpy().astype(np.float64) @ decoded.T
    scores, places = found.nearest(asked, count)
    best = np.sort(expected, axis=1)[:, ::-1][:, :count]
    np.testing.assert_allclose(scores.numpy(), best, atol=3e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, places.numpy(), 1), best, atol=6e-5)
    assert all(len(set(row)) == count for row in places.tolist())


def test_the_largest_integer_products_do_not_overflow():
    found = Vectors(1792, "int8").extended(torch.ones(3, 1792))
    scores, _ = found.nearest(prefix(torch.tensor([1.0, -1.0])[:, None].expand(2, 1792), 1792), 3)
    torch.testing.assert_close(scores, torch.tensor([[1.0] * 3, [-1.0] * 3]), atol=1e-5, rtol=0)
