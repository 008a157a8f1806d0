"""The funnel against plain loops over cosines; what is wrong with inputs and files is told, and nothing is lost."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from acge_lightning import load
from acge_lightning.adaptive import FunnelIndex, Stage
from acge_lightning.adaptive.stages import check_stages, default_stages
from acge_lightning.adaptive.vectors import Vectors, prefix
from acge_lightning.errors import InputError

STORES = ("fp32", "fp16", "int8", "binary")
KINDS = ("exact", "flat", "hnsw", "ivf")


def vectors(rows, dim, seed=0, repeats=0):
    """Of falling spread, as trained prefixes have, and of any length; the last rows repeat the first."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, dim)) * np.geomspace(1, 0.1, dim) * rng.uniform(0.1, 50, size=(rows, 1))
    made[rows - repeats :] = made[:repeats]
    return made.astype(np.float32)


def cosines(queries, rows, dim):
    """In double precision, by the definition."""
    q, x = queries[:, :dim].astype(np.float64), rows[:, :dim].astype(np.float64)
    return (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)


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


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([], "each must have more dims"),
        ([Stage(16), Stage(8)], "each must have more dims"),
        ([Stage(8), Stage(32)], "the vectors have 16"),
        ([Stage(4, 10), Stage(8, 20), Stage(16)], "none may be longer"),
        ([Stage(8), Stage(16, index="hnsw")], "only the first stage"),
        ([Stage(8), Stage(16, store="binary")], "the last stage"),
        ([Stage(4), Stage(16)], r"not trained for prefixes of \[4\] dims .*trained for \[8, 16\].*force"),
    ],
)
def test_stages_that_make_no_funnel(stages, told):
    with pytest.raises(InputError, match=told):
        check_stages(stages, 16, [8], force=False)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"dim": 2.5}, {"shortlist": 0}, {"store": "fp64"}, {"index": "lsh"}, {"effort": 0}, {"store": "binary"}],
)
def test_a_stage_checks_its_values(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Stage(**{"dim": 12, **values})


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


def test_the_default_stages():
    assert default_stages(16, [16]) == (Stage(16, store="fp32"),)
    assert [s.dim for s in default_stages(512, [512, 256, 64])] == [64, 512]


# ---- texts


def test_texts_are_indexed_searched_for_and_shown(small_encoder, tmp_path):
    from acge_lightning import load

    encoder = load(small_encoder)
    encoder.prompts = {"ask": "怎么"}
    texts = ["怎么退货？", "今天天气很好", "how do I return this"]
    index = FunnelIndex.from_texts(texts, encoder, prompts={"query": "ask"}, ids=["a", "b", "c"])
    FunnelIndex.load(index.save(tmp_path), encoder).search("退货？")
    index = FunnelIndex.load(tmp_path, encoder)
    hits = index.search("退货？", 2)
    assert hits.ids[0][0] == "a"
    assert index.rows.texts_of(hits.rows[0])[0] == texts[0]
    expected = encoder.encode(["退货？"], prompt="ask") @ encoder.encode(texts).T
    np.testing.assert_allclose(hits.scores[0], expected.sort(descending=True).values[0, :2], atol=1e-6)
    encoder.matryoshka_dims = (8, 16)
    with pytest.raises(InputError, match="this one has 16, trained for"):
        FunnelIndex.load(tmp_path, encoder)


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


# ---- texts without direction

EMPTY = "\u200b\u200d"  # of no width: no token of this encoder


def by_cosine(encoder, texts, query):
    """Those with a vector, the nearest first."""
    scores = {text: float(encoder.encode(query) @ encoder.encode(text).T) for text in texts if encoder.encode(text).any()}
    return sorted(scores, key=scores.get, reverse=True)


@pytest.mark.parametrize("ids", [None, ["a", "b", "c", "d"]])
def test_texts_without_direction_are_left_out_and_named(ids, cleaning_encoder, caplog):
    encoder = load(cleaning_encoder)
    texts = ["天气", EMPTY, "公园", ""]
    assert not encoder.encode([EMPTY, ""]).any()
    index = FunnelIndex.from_texts(texts, encoder, ids=ids)
    assert "2 of 4 texts have no direction and are left out: " + ("1, 3" if ids is None else "b, d") in caplog.text
    hits = index.search("公园", 4)
    assert [texts[(ids or range(4)).index(key)] for key in hits.ids[0]] == by_cosine(encoder, texts, "公园")
    assert index.rows.texts_of(hits.rows[0]) == ["公园", "天气"]
    with pytest.raises(InputError, match="query 1 is zero"):
        index.search(["天气", EMPTY])
    with pytest.raises(InputError, match="none of 2 texts has a direction"):
        index.add([EMPTY, ""], ids=["x", "y"])
    with pytest.raises(InputError, match=r"texts\[1\] has half a surrogate pair"):
        index.add(["天气", "\ud83d"], ids=["x", "y"])
    index.add(["退货", EMPTY], ids=["e", "f"] if ids else [4, 5])
    assert index.search("退货", 1).ids == [["e" if ids else 4]]
    assert len(index) == 3


def test_texts_without_direction_are_an_error_where_rows_have_no_ids(cleaning_encoder):
    index = FunnelIndex.from_texts(["天气", "公园"], load(cleaning_encoder))
    with pytest.raises(InputError, match="row 1 is zero"):
        index.add(["退货", EMPTY])
    assert len(index) == 2
