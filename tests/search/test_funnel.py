"""The funnel against plain loops over cosines; what is wrong with inputs is told, and nothing is lost."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from indexes import cosines, vectors

from acge_lightning.errors import InputError
from acge_lightning.search import FunnelIndex, Stage

STORES = ("fp32", "fp16", "int8", "binary")
KINDS = ("exact", "flat", "hnsw", "ivf")


def oracle(queries, rows, dims, shortlists, k):
    """A loop over queries and stages: Int64[q, k] rows and their cosines."""
    found = []
    for query in queries:
        left = np.arange(len(rows))
        for dim, count in zip(dims, [*(max(s, k) for s in shortlists), k], strict=True):
            scores = cosines(query[None], rows[left], dim)[0]
            left = left[np.argsort(-scores, kind="stable")[:count]]
        found.append((left, np.sort(scores)[::-1][:k]))
    return np.array([rows for rows, _ in found]), np.array([scores for _, scores in found])


shapes = st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_one_stage_at_full_dim_is_exact_search(shape):
    n, q, k, seed = shape
    rows, queries = vectors(n, 16, seed, repeats=n // 3), vectors(q, 16, seed + 1)
    flat = faiss.IndexFlatIP(16)
    flat.add(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    expected = flat.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), min(k, n))[0]
    hits = FunnelIndex.build(rows, [Stage(16, store="fp32")]).search(queries, k)
    assert hits.scores.shape == (q, min(k, n))
    np.testing.assert_allclose(hits.scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines(queries, rows, 16), hits.rows, 1), expected, atol=1e-5)
    assert all(len(set(line)) == len(line) for line in hits.ids)


@given(shapes, st.lists(st.integers(1, 70), min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_a_funnel_is_the_loop_over_its_stages(shape, shortlists):
    n, q, k, seed = shape
    shortlists = sorted(shortlists, reverse=True)
    rows, queries = vectors(n, 24, seed), vectors(q, 24, seed + 1)
    k = min(k, n)
    expected, scores = oracle(queries, rows, (4, 8, 24), shortlists, k)
    assume(np.abs(np.diff(np.sort(cosines(queries, rows, 4), 1))).min(initial=1) > 1e-5)
    assume(np.abs(np.diff(np.sort(cosines(queries, rows, 8), 1))).min(initial=1) > 1e-5)
    assume(np.abs(np.diff(np.sort(cosines(queries, rows, 24), 1))).min(initial=1) > 1e-5)
    stages = [Stage(4, shortlists[0], "fp32"), Stage(8, shortlists[1], "fp32"), Stage(24, store="fp32")]
    hits = FunnelIndex.build(rows, stages, matryoshka_dims=[4, 8]).search(queries, k)
    np.testing.assert_array_equal(hits.rows, expected)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)


@given(shapes, st.sampled_from(STORES), st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_the_last_stage_is_the_full_ranking_of_the_shortlist(shape, store, kind):
    """Whatever the first stage hands on; a second index tells what that is."""
    n, q, k, seed = shape
    rows, queries = vectors(n, 16, seed), vectors(q, 16, seed + 1)
    first = Stage(8, 20, store, kind, effort=20)
    index = FunnelIndex.build(rows, [first, Stage(16, store="fp32")], force=True)
    prefixes = torch.nn.functional.normalize(torch.from_numpy(queries[:, :8]), dim=1)
    _, handed = index.vectors.stores[0].nearest(prefixes, min(max(20, k), n))
    hits = index.search(queries, k)
    exact = cosines(queries, rows, 16)
    for query in range(q):
        there = [row for row in handed[query].tolist() if row >= 0]
        best = sorted(there, key=lambda row: -exact[query, row])[: min(k, n)]
        assert np.allclose(hits.scores[query][: len(best)], exact[query, best], atol=1e-5)
        assert set(hits.ids[query]) <= set(there)
        assert len(hits.ids[query]) == len(best)
        assert (hits.rows[query][len(best) :] == -1).all()
        assert np.isneginf(hits.scores[query][len(best) :]).all()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_faiss_hands_on_what_comparing_all_would(kind, store):
    rows, queries = vectors(2000, 32), vectors(40, 32, 1)
    stages = [Stage(24, 100, store, kind, effort=400), Stage(32, store="fp32")]
    found = FunnelIndex.build(rows, stages, force=True).search(queries, 10).rows
    scores = cosines(queries, rows, 24)
    if store == "binary":
        scores = -((queries[:, None, :24] > 0) != (rows[None, :, :24] > 0)).sum(2)
    full = cosines(queries, rows, 32)
    same = 0
    for query in range(40):
        handed = np.argsort(-scores[query], kind="stable")[:100]
        same += len(set(handed[np.argsort(-full[query, handed])[:10]]) & set(found[query].tolist()))
    assert same > (0.85 if store == "binary" else 0.97) * 400  # equal distances of signs are cut at will


def test_adding_is_the_same_as_building(tmp_path):
    rows = vectors(90, 16)
    stages = [Stage(8, 30, "int8"), Stage(16)]
    whole = FunnelIndex.build(rows, stages, force=True, ids=list(range(100, 190)))
    index = FunnelIndex.build(rows[:0], stages, force=True)
    for start in (0, 1, 50):
        end = {0: 1, 1: 50, 50: 90}[start]
        index.add(rows[start:end], ids=list(range(100 + start, 100 + end)))
        index = FunnelIndex.load(index.save(tmp_path / "index"))
    hits, expected = index.search(rows[:5], 7), whole.search(rows[:5], 7)
    assert hits.ids == expected.ids
    assert hits.ids[3][0] == 103
    np.testing.assert_allclose(hits.scores, expected.scores, atol=1e-6)


def test_indexes_of_the_same_rows_grow_apart():
    rows = vectors(60, 16)
    stages = [Stage(8, 30), Stage(16)]
    first = FunnelIndex.build(rows[:20], stages, force=True, ids=[f"a{i}" for i in range(20)])
    first.add(rows[20:30], ids=[f"a{i}" for i in range(20, 30)])
    second = first.restaged([Stage(8, 20, "int8"), Stage(16)])
    first.add(rows[30:40], ids=[f"b{i}" for i in range(10)])
    second.add(rows[40:50], ids=[f"c{i}" for i in range(10)])
    for index, new in ((first, "b"), (second, "c")):
        with pytest.raises(InputError, match="row 0 is zero"):
            index.add(np.zeros((1, 16), np.float32), ids=["d"])
        index.add(rows[50:], ids=["d", *(f"d{i}" for i in range(9))])
        with pytest.raises(InputError, match="2 ids are given more than once"):
            index.add(rows[:3], ids=["d", "e", f"{new}1"])
        found = index.search(rows, 1).ids
        start = {"b": 30, "c": 40}[new]
        assert found[:30] == [[f"a{i}"] for i in range(30)]
        assert found[start : start + 10] == [[f"{new}{i}"] for i in range(10)]
        assert found[50:] == [["d"], *([f"d{i}"] for i in range(9))]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({1: np.nan}, "row 1 is NaN"),
        ({2: np.inf}, "row 2 is NaN or infinite"),
        ({0: 0.0}, "row 0 is zero in its first 8 dims"),
    ],
)
def test_vectors_without_direction_are_refused_and_nothing_is_added(change, told):
    index = FunnelIndex.build(vectors(5, 16), [Stage(8), Stage(16)], force=True, ids=list("abcde"))
    rows = vectors(3, 16)
    for row, value in change.items():
        rows[row, :8] = value
    with pytest.raises(InputError, match=told):
        index.add(rows, ids=list("xyz"))
    with pytest.raises(InputError, match=told.replace("row", "query")):
        index.search(rows)
    assert len(index) == 5
    assert index.rows.table.num_rows == 5
    assert index.search(vectors(5, 16)[:1], 1).ids == [["a"]]


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e20, 1e38])
def test_the_length_of_a_vector_does_not_matter(size):
    rows = vectors(20, 16)
    index = FunnelIndex.build(rows / np.abs(rows).max() * size, [Stage(8, 5), Stage(16)], force=True)
    assert index.search(rows, 1).rows[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda i: i.add(np.ones((2, 9), np.float32)), r"take.* Float\[n, 16\]"),
        (lambda i: i.search(np.ones(16, np.float32)), r"Float\[n, 16\]"),
        (lambda i: i.search(np.ones((1, 16), np.float32), 0), "k=0"),
        (lambda i: i.search("words"), "texts need an encoder"),
        (lambda i: i.add(np.ones((1, 16), object)), "no numbers"),
        (lambda i: i.add(np.ones((1, 16), np.float32)), "has ids: give them"),
        (lambda i: i.add(np.ones((1, 16), np.float32), ids=["a"]), "'a' first: ids are distinct"),
        (lambda i: i.add(np.ones((2, 16), np.float32), ids=["x", "x"]), "'x' first"),
        (lambda i: i.add(np.ones((1, 16), np.float32), ids=[1]), "all words or all whole numbers"),
        (lambda i: i.add(np.ones((2, 16), np.float32), ids=["x", 1]), r"ids\[1\] is 1"),
        (lambda i: i.add(np.ones((2, 16), np.float32), ids=["x"]), "1 ids for 2 rows"),
        (lambda i: i.add(np.ones((1, 16), np.float32), ids=["x"], texts=["t"]), "has no texts"),
        (lambda i: i.add(np.ones((2, 16), np.float32), ids=["x", "\ud800"]), r"ids\[1\] has half a surrogate pair"),
        (lambda i: i.rows.texts_of(np.array([0])), "has no texts"),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(call, told):
    index = FunnelIndex.build(vectors(5, 16), [Stage(8), Stage(16)], force=True, ids=list("abcde"))
    with pytest.raises(InputError, match=told):
        call(index)
    assert (len(index), index.rows.table.num_rows) == (5, 5)


def test_an_empty_index_says_so_and_can_be_kept(tmp_path):
    index = FunnelIndex.build(np.empty((0, 16), np.float32), [Stage(8, index="hnsw"), Stage(16)], force=True)
    index = FunnelIndex.load(index.save(tmp_path))
    with pytest.raises(InputError, match="empty"):
        index.search(vectors(1, 16))
    index.add(vectors(3, 16))
    assert index.search(vectors(3, 16), 50).rows[:, 0].tolist() == [0, 1, 2]
    assert index.search(vectors(3, 16)[:0]).rows.shape[0] == 0


def test_untrained_prefixes_are_refused_unless_forced_and_stay_refused_on_disk(tmp_path):
    rows, stages = vectors(9, 16), [Stage(4), Stage(16)]
    with pytest.raises(InputError, match="no matryoshka_dims are known"):
        FunnelIndex.build(rows, stages)
    forced = FunnelIndex.build(rows, stages, force=True)
    assert FunnelIndex.load(forced.save(tmp_path)).search(rows, 1).rows[:, 0].tolist() == list(range(9))
    trained = FunnelIndex.load(FunnelIndex.build(rows, [Stage(8), Stage(16)], matryoshka_dims=[8]).save(tmp_path))
    assert trained.matryoshka_dims == (8,)
    with pytest.raises(InputError, match="not trained"):
        trained.restaged([Stage(4), Stage(16)])
