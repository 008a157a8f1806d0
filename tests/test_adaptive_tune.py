"""Tuning: what it measures against trec_eval and plain loops, what it takes, and what it refuses."""

import json

import numpy as np
import pytest
import pytrec_eval
import torch

from acge_lightning.adaptive import FunnelIndex, Stage, tune
from acge_lightning.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
SPREAD = torch.logspace(0, -1.2, 32)
ROWS = torch.randn(600, 32, generator=GENERATOR) * SPREAD
QUERIES = ROWS[::20] + 0.4 * torch.randn(30, 32, generator=GENERATOR) * SPREAD
LAST = Stage(32, store="fp32")


def index(**others):
    return FunnelIndex.build(ROWS, [LAST], matryoshka_dims=[4, 8, 16, 32], **others)


def exact(dim):
    q, x = (torch.nn.functional.normalize(t[:, :dim].double(), dim=1) for t in (QUERIES, ROWS))
    return (q @ x.T).argsort(dim=1, descending=True).numpy()


def funnel(shortlist, dim=4):
    return [Stage(dim, shortlist, "fp32"), LAST]


def test_ndcg_is_that_of_trec_eval():
    rng = np.random.default_rng(0)
    grades = [{f"d{row}": int(rng.integers(0, 4)) for row in rng.choice(60, 12, replace=False)} for _ in range(20)]
    found = [[f"d{row}" for row in rng.permutation(60)[:10]] for _ in range(20)]
    runs = {str(i): {hit: float(-place) for place, hit in enumerate(hits)} for i, hits in enumerate(found)}
    judged = pytrec_eval.RelevanceEvaluator({str(i): g for i, g in enumerate(grades)}, {"ndcg_cut.10"})
    expected = np.mean([value["ndcg_cut_10"] for value in judged.evaluate(runs).values()])
    assert tune.mean_ndcg(found, grades, 10) == pytest.approx(expected)


def test_recall_and_share_are_those_of_a_plain_loop():
    tuned = index().tune(QUERIES, k=5, candidates=[funnel(20)], measure="recall", batch=8)
    short, full = exact(4), exact(32)
    same = [
        len(set(a[:20]) & set(b[:5])) / 5 for a, b in zip(short, full, strict=True)
    ]  # the last stage ranks as full dim does
    assert tuned.points[0].recall == tuned.points[0].share == 1
    assert tuned.points[1].recall == tuned.points[1].share == pytest.approx(np.mean(same))
    assert tuned.points[1].speedup == pytest.approx(tuned.points[0].seconds / tuned.points[1].seconds)


def test_judgements_are_by_id_and_set_the_share():
    ids = [f"row{i}" for i in range(600)]
    grades = [{f"row{20 * i}": 1.0} for i in range(30)]
    tuned = index(ids=ids).tune(QUERIES, grades, k=10, candidates=[funnel(12)])
    values = []
    for depth, dim in ((600, 32), (12, 4)):
        found = []
        for query, row in enumerate(exact(dim)[:, :depth]):
            ranked = sorted(row, key=exact(32)[query].tolist().index)[:10]
            place = ranked.index(20 * query) if 20 * query in ranked else None
            found.append(0 if place is None else 1 / np.log2(place + 2))
        values.append(np.mean(found))
    assert [point.ndcg for point in tuned.points] == pytest.approx(values)
    assert tuned.points[1].share == pytest.approx(values[1] / values[0])
    assert 0.3 < tuned.points[1].share < 1


def test_the_fastest_that_reaches_the_target_is_taken(monkeypatch):
    prices = iter([100.0, 3.0, 4.0, 5.0, 1.0, 7.0])
    monkeypatch.setattr(tune, "_seconds", lambda job: next(prices))
    made = index()
    tuned = made.tune(QUERIES, k=5, candidates=[funnel(600), funnel(5), funnel(40), funnel(5, 8), funnel(600, 8)], batch=1)
    tried = [(p.stages[0].dim, p.stages[0].shortlist) for p in tuned.points[1:]]
    shares = [p.share for p in tuned.points[1:]]
    assert tried[:2] == [(4, 5), (4, 40)]
    assert shares[0] < 0.99
    stop = next(i for i, share in enumerate(shares) if share >= 0.99)
    assert tried[stop][0] == 4
    assert tuned.chosen is min((p for p in tuned.points if p.share >= 0.99), key=lambda p: p.seconds)
    assert made.stages == tuned.chosen.stages
    np.testing.assert_array_equal(made.search(QUERIES, 5).rows, index().restaged(tuned.chosen.stages).search(QUERIES, 5).rows)


def test_what_was_found_is_kept_for_the_same_queries_only(monkeypatch):
    asked, search = [], FunnelIndex.search
    monkeypatch.setattr(tune, "_seconds", lambda job: 1.0)
    monkeypatch.setattr(FunnelIndex, "search", lambda self, q, k: asked.append(len(q)) or search(self, q, k))
    made, alone, candidates = {}, index(), [funnel(40), funnel(600)]
    how = {"k": 5, "candidates": candidates, "target": 1.0}
    first = alone.tune(QUERIES, batch=7, made=made, **how)
    assert asked.count(len(QUERIES)) == len(first.points) == 3
    second = alone.tune(QUERIES, batch=1, made=made, **how)
    assert asked.count(len(QUERIES)) == 3
    assert [p.share for p in second.points] == [p.share for p in first.points]
    others = alone.tune(QUERIES.flip(0) + 1, batch=1, made=made, **how)
    fresh = index().tune(QUERIES.flip(0) + 1, batch=1, **how)
    assert [p.share for p in others.points] == [p.share for p in fresh.points]


def test_without_a_funnel_that_is_good_enough_all_rows_are_compared():
    made = FunnelIndex.build(ROWS, funnel(5), matryoshka_dims=[4])
    tuned = made.tune(QUERIES, k=5, candidates=[funnel(5)], target=1.0)
    assert tuned.chosen is tuned.points[0]
    assert made.stages == (LAST,)
    np.testing.assert_array_equal(made.search(QUERIES, 5).rows, exact(32)[:, :5])


def test_what_was_tuned_is_what_is_saved_and_drawn(tmp_path):
    from acge_lightning.runs import read_runs

    made = index(ids=list(range(1000, 1600)))
    tuned = made.tune(QUERIES, measure="recall")
    assert len(tuned.points) > 3
    assert {stage.dim for point in tuned.points for stage in point.stages} <= {4, 8, 16, 32}
    again = FunnelIndex.load(made.save(tmp_path / "index"))
    assert again.stages == tuned.chosen.stages
    assert again.search(QUERIES).ids == made.search(QUERIES).ids
    file = tuned.write(tmp_path / "run" / "funnel.json")
    assert sum(point["chosen"] for point in json.loads(file.read_text())["points"]) == 1
    (run,) = read_runs([str(tmp_path / "run")])
    assert [point["recall"] for point in run.funnel] == [point.recall for point in tuned.points]
    assert tuned.draw(tmp_path / "run" / "funnel.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"target": 0}, "target=0"),
        ({"batch": 0}, "batch=0"),
        ({"measure": "map"}, "measure='map'"),
        ({"judgements": [{0: 1.0}]}, "1 judgements for 30 queries"),
        ({"judgements": [{9999: 1.0}] * 30}, "no judged row is among the hits"),
        ({"queries": QUERIES[:0]}, "no queries"),
        ({"queries": QUERIES * torch.nan}, "query 0 is NaN"),
        ({"candidates": [[Stage(5), LAST]]}, "not trained"),
        ({"candidates": [[Stage(4), Stage(16)]]}, "stays so"),
    ],
)
def test_what_cannot_be_tuned_is_told_and_changes_nothing(how, told):
    made = index()
    with pytest.raises(InputError, match=told):
        made.tune(**{"queries": QUERIES, **how})
    assert made.stages == (LAST,)


def test_an_index_without_full_vectors_cannot_be_tuned():
    with pytest.raises(InputError, match="end its stages with 32"):
        FunnelIndex.build(ROWS, [Stage(8)], matryoshka_dims=[8]).tune(QUERIES)
    with pytest.raises(InputError, match="empty"):
        FunnelIndex.build(ROWS[:0], [LAST]).tune(QUERIES)
