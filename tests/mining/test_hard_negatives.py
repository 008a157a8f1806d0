"""Hard negatives against a plain loop over all candidates, and what can never be one."""

import dataclasses

import numpy as np
import pytest
from judged import Matrix, judged_of, mined_by_a_loop

from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.miner import mine
from acge_lightning.mining.negatives.rules import Reason, Rules

WORDS = ["退货", "refund", "发票", "invoice", "天气", "weather", "公园", "shipping", "积分", "address"]


def some_rows(rng):
    """Rows with variants of texts, equal queries in variants, listed negatives, and answers that several questions share."""

    def text(words):
        made = " ".join(rng.choice(WORDS, size=words))
        return {0: made.upper(), 1: made + "!", 2: made.replace(" ", "　")}.get(int(rng.integers(6)), made)

    pool = [text(int(rng.integers(1, 5))) for _ in range(60)]
    queries = [text(2) for _ in range(14)] + pool[:4]

    def row():
        listed = {"negative": list(rng.choice(pool, size=2))} if rng.random() < 0.3 else {}
        return {"query": str(rng.choice(queries)), "positive": list(rng.choice(pool, size=int(rng.integers(1, 3)))), **listed}

    return [row() for _ in range(24)], [row() for _ in range(8)], pool[30:]


def settings(rng, near):
    low = int(rng.integers(0, 4))
    return Rules(
        negatives=int(rng.integers(1, 5)),
        range_min=low,
        range_max=low + int(rng.integers(4, 20)),
        absolute_margin=rng.choice([None, 0.1, 0.0]),
        relative_margin=rng.choice([None, 0.05]),
        max_score=rng.choice([None, 0.6]),
        min_score=rng.choice([None, -0.4]),
        reference=str(rng.choice(["lowest", "mean", "highest"])),
        denoise=bool(rng.integers(2)),
        near=near,
        rank_by=str(rng.choice(["model", "scorer"])),
        sampling="top",
    )


@pytest.mark.parametrize("use_second", [False, True])
@pytest.mark.parametrize("near", [None, 0.8])
def test_the_same_as_a_loop_over_all_candidates(use_second, near, tmp_path):
    assert sum(checked(np.random.default_rng(seed), use_second, near, tmp_path / str(seed)) for seed in range(5)) > 50


def checked(rng, use_second, near, folder):
    """Compare what is mined of random rows by random rules with the loop; how many negatives there were."""
    rows, others, more = some_rows(rng)
    rules = settings(rng, near)
    judged = judged_of(folder, rows, more, others)
    values = np.round(rng.uniform(-1, 1, (2, len(judged.queries), judged.candidate_count)), 1).astype(np.float32)  # with ties
    query_row = {query: i for i, query in enumerate(judged.queries)}
    text_row = {text: i for i, text in enumerate(judged.texts)}

    def score(query, text):
        return values[0, query_row[query], text_row[text]]

    def second(query, text):
        return values[1, query_row[query], text_row[text]]

    scorer = (lambda pairs: np.array([second(*pair) for pair in pairs])) if use_second else None
    mined = mine(judged, Matrix(values[0]), rules, scorer)
    expected = mined_by_a_loop(rows, more, others, score, rules, second if use_second else None)
    assert list(expected) == judged.queries
    judge = second if use_second else score
    for i, (query, left) in enumerate(expected.items()):
        taken = left if rules.rank_by == "scorer" else left[: rules.negatives]
        best = sorted(taken, key=lambda text: -judge(query, text))[: rules.negatives]  # stable: ties in the order of ranks
        assert [judged.texts[t] for t in mined.texts[i] if t >= 0] == best
        assert mined.scores[i, : len(best)].tolist() == [judge(query, text) for text in best]
        assert np.isneginf(mined.scores[i, len(best) :]).all()
        own = slice(*judged.positives.offsets[i : i + 2])
        expected_scores = [judge(query, judged.texts[p]) for p in judged.positives.texts[own]]
        assert mined.positive_scores[own].tolist() == expected_scores
    assert np.array_equal(mined.counts, [min(len(left), rules.negatives) for left in expected.values()])
    return mined.counts.sum()


def test_what_is_never_a_negative_is_counted_by_its_reason(tmp_path):
    rows = [
        {"query": "怎么退货", "positive": ["七天内可以退货"], "negative": ["发票在订单页"]},
        {"query": "怎么退货？", "positive": ["联系客服退货"]},
    ]
    others = [{"query": "怎么 退货", "positive": ["三天退款"]}]
    more = ["怎么退货", "怎么退货！", "七天内可以退货。", "７天", "7天!", "三天退款", "联系客服退货 ", "天气"]
    judged = judged_of(tmp_path, rows, more, others)
    mined = mine(judged, Matrix(np.ones((2, judged.candidate_count))), Rules(negatives=9, range_max=20))
    assert [[judged.texts[t] for t in row if t >= 0] for row in mined.texts] == [
        ["７天", "天气"],
        ["发票在订单页", "７天", "天气"],
    ]
    by_reason = {reason.name: count for reason, count in zip(Reason, mined.removed[0].tolist(), strict=True) if count}
    assert by_reason == {"OWN_TEXT": 1, "KNOWN_POSITIVE": 3, "KEY_VARIANT": 3, "LISTED": 1, "REPEATED": 1}


def test_an_answer_that_a_hundred_questions_share_is_no_negative_of_any_of_them(tmp_path):
    rows = [{"query": f"question {i}", "positive": ["the one answer"]} for i in range(100)]
    judged = judged_of(tmp_path, rows, [f"other {i}" for i in range(5)])
    mined = mine(judged, Matrix(np.ones((100, 6))), Rules(negatives=3, range_max=5))
    assert set(mined.texts.reshape(-1).tolist()) == {1, 2, 3}
    assert mined.removed[:, Reason.KNOWN_POSITIVE].tolist() == [1] * 100


def test_ten_thousand_variants_of_a_positive_do_not_starve_a_query(tmp_path):
    rows = [{"query": "q", "positive": ["answer"]}, {"query": "other", "positive": ["far away"]}]
    variants = ["answer" + f"{i:015b}".replace("0", "!").replace("1", "?") for i in range(10_000)]
    judged = judged_of(tmp_path, rows, [*variants, "further away"])
    values = np.ones((2, judged.candidate_count))
    values[:, [1, -1]] = 0.1, 0.2
    mined = mine(judged, Matrix(values), Rules(negatives=2, range_max=2))
    assert [judged.texts[t] for t in mined.texts[0]] == ["further away", "far away"]
    assert mined.removed[0, Reason.KEY_VARIANT] == 10_000
    assert [judged.texts[t] for t in mined.texts[1]] == ["answer", "further away"], "of variants one is enough"


def test_the_second_scorer_sees_no_more_than_it_takes(tmp_path):
    rows = [{"query": f"question {i}", "positive": [f"answer {i}"]} for i in range(20)]
    judged = judged_of(tmp_path, rows, [f"text {i}" for i in range(100)])
    seen = []

    def scorer(pairs):
        seen.extend(pairs)
        return np.array([0.5 if text.startswith("answer") else 0.1 for _, text in pairs])

    values = np.tile(np.linspace(1, 0, judged.candidate_count), (20, 1))
    mined = mine(judged, Matrix(values), Rules(negatives=3, range_max=60, denoise=False, absolute_margin=0.1), scorer)
    assert (mined.counts == 3).all()
    assert len(seen) == len(set(seen)), "no pair is scored twice"
    assert len(seen) < 20 * 50
    seen.clear()
    mine(judged, Matrix(values), Rules(negatives=3, range_max=60, rank_by="scorer"), scorer)
    assert len(seen) == 20 * 61, "to rank them all, it has to"


# ---- draws


def drawn(tmp_path, rows, more, seed=0, n=3):
    judged = judged_of(tmp_path, rows, more)
    values = np.zeros((len(judged.queries), judged.candidate_count))
    mined = mine(judged, Matrix(values), Rules(negatives=n, range_max=20, sampling="random", seed=seed))
    return {query: {judged.texts[t] for t in row if t >= 0} for query, row in zip(judged.queries, mined.texts, strict=True)}


def test_draws_depend_on_seed_query_and_candidates_alone(tmp_path, monkeypatch):
    rows = [{"query": f"question {i}", "positive": [f"answer {i}"]} for i in range(10)]
    more = [f"text {i}" for i in range(10)]
    expected = drawn(tmp_path / "a", rows, more)
    assert drawn(tmp_path / "b", rows[::-1], more[::-1]) == expected
    monkeypatch.setattr("acge_lightning.mining.negatives.miner._QUERIES", 3)
    assert drawn(tmp_path / "c", rows, more) == expected
    alone = drawn(tmp_path / "d", rows[:1], [*more, *(row["positive"][0] for row in rows[1:])])
    assert alone["question 0"] == expected["question 0"]
    other = drawn(tmp_path / "e", rows, more, seed=1)
    assert sum(other[query] != expected[query] for query in expected) > 7


def test_draws_are_even(tmp_path):
    rows = [{"query": f"question {i}", "positive": ["answer"]} for i in range(800)]
    counts = dict.fromkeys([f"text {i}" for i in range(12)], 0)
    for texts in drawn(tmp_path, rows, list(counts)).values():
        assert len(texts) == 3
        for text in texts:
            counts[text] += 1
    expected = 800 * 3 / 12
    deviation = (800 * 0.25 * 0.75) ** 0.5
    assert max(abs(count - expected) for count in counts.values()) < 4 * deviation


# ---- settings that cannot work


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"negatives": 0}, "negatives=0 must be a whole number of at least 1"),
        ({"negatives": 11, "range_min": 90}, "negatives=11 is more than ranks 90 to 100 hold"),
        ({"range_min": 5, "range_max": 5}, "is more than ranks 5 to 5 hold"),
        ({"relative_margin": 5}, "relative_margin=5 is no share"),
        ({"absolute_margin": float("nan")}, "absolute_margin=nan must be a number"),
        ({"max_score": "x"}, "max_score='x' must be a number"),
        ({"min_score": 0.9, "max_score": 0.1}, "min_score=0.9 is above max_score=0.1"),
        ({"near": 3}, "near=3 is no similarity"),
        ({"sampling": "best"}, "sampling='best' is unknown: choose from top, random"),
        ({"rank_by": "rank"}, "rank_by='rank' is unknown: choose from model, scorer"),
        ({"reference": "median"}, "reference='median' is unknown"),
        ({"seed": -1}, "seed=-1 must be"),
    ],
)
def test_rules_that_cannot_work(given, message):
    with pytest.raises(InputError) as error:
        dataclasses.replace(Rules(), **given)
    assert message in str(error.value)


def test_a_corpus_smaller_than_range_min_is_an_error(tmp_path):
    judged = judged_of(tmp_path, [{"query": "a", "positive": ["b"]}])
    with pytest.raises(InputError, match="range_min=1 passes over all 1 texts"):
        mine(judged, Matrix(np.ones((1, 1))), Rules(range_min=1))
