"""Where positives rank in a pool: against loops over scikit-learn's TF-IDF and cosines, and shuffled pairs of real sets."""

import numpy as np
import pytest
from mining_data import DATA, judged_pairs, rows, scores_of
from sklearn.feature_extraction.text import TfidfVectorizer

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning import consistency as module
from acge_lightning.mining.cleaning.consistency import Ranks, inconsistent_pairs, positive_ranks

WORDS = ["天气", "公园", "退货", "发票", "快递", "密码", "登录", "账户", "return", "invoice", "parcel", "login"]


def sentences(n, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(WORDS, 4)) + f" {i}" for i in range(n)]


def looped(queries, positives, positive_keys, query_keys, score, pool):
    """Ranks and best rows by comparing every row with every row of the pool; `score(i, j)`: query i, positive j."""
    ranks, best = [], []
    for i in range(len(queries)):
        own = {positive_keys[j] for j in range(len(queries)) if query_keys[j] == query_keys[i]}
        others = [j for j in pool if positive_keys[j] not in own]
        mine, theirs = score(i, i), {j: score(i, j) for j in others}
        higher = sum(value > mine + 1e-6 for value in theirs.values())
        ranks.append(1 + higher + sum(abs(value - mine) <= 1e-6 for value in theirs.values()) / 2)
        best.append(max(theirs.values(), default=None))
    return ranks, best


def check(ranking, queries, positives, positive_keys, query_keys, score):
    """The pool has all distinct positives here."""
    distinct = [j for j, key in enumerate(positive_keys) if key not in positive_keys[:j]]
    ranks, best = looped(queries, positives, positive_keys, query_keys, score, distinct)
    assert ranking.pool == len(distinct)
    assert ranking.ranks.tolist() == ranks
    for i, (row, value) in enumerate(zip(ranking.best.tolist(), best, strict=True)):
        assert (row == -1) == (value is None)
        if value is not None:
            assert score(i, row) == pytest.approx(value, abs=1e-6)
            assert positive_keys[row] != positive_keys[i]


@pytest.mark.parametrize("block", [1, 300, 2**21])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_by_vectors(monkeypatch, block, seed):
    monkeypatch.setattr(module, "_SCORES", block)
    rng = np.random.default_rng(seed)
    queries, positives = rng.integers(-2, 3, (40, 4)).astype(np.float32), rng.integers(-2, 3, (40, 4)).astype(np.float32)
    queries[3] = 0
    positives[5] = positives[4]
    keys = [f"p{min(i, 30)}" if i != 5 else "p4" for i in range(40)]
    asked = [f"q{i // 2}" for i in range(40)]
    for given in (None, asked):
        ranking = positive_ranks(queries, positives, keys, given)

        def cosine(i, j):
            norm = np.linalg.norm(queries[i].astype(float)) * np.linalg.norm(positives[j].astype(float))
            return float(queries[i].astype(float) @ positives[j].astype(float)) / norm if norm else 0.0

        check(ranking, queries, positives, keys, given or list(range(40)), cosine)


def test_ranks_by_text_are_those_of_tfidf():
    queries, positives = sentences(60, 0), sentences(60, 1)
    positives[7] = positives[8] = positives[9]
    queries[11] = ""  # no gram in common with any
    fitted = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True).fit(queries + positives)
    scores = (fitted.transform(queries) @ fitted.transform(positives).T).toarray()
    ranking = positive_ranks(queries, positives, positives)
    check(ranking, queries, positives, positives, list(range(60)), lambda i, j: float(scores[i, j]))
    assert ranking.ranks[11] == 1 + 57 / 2  # equal scores: the mean rank


def test_a_pool_of_some_is_drawn_by_seed():
    texts = sentences(500, 2)
    few, same, other = (positive_ranks(texts, texts[::-1], texts[::-1], pool_size=50, seed=seed) for seed in (0, 0, 1))
    assert few.pool == 50
    assert few.ranks.tolist() == same.ranks.tolist() != other.ranks.tolist()
    assert len(np.unique(few.best)) <= 50
    everything = positive_ranks(texts, texts[::-1], texts[::-1])
    assert np.corrcoef(few.ranks / 50, everything.ranks / 500)[0, 1] > 0.7


def test_an_answer_that_a_hundred_questions_share_does_not_count():
    questions = [f"{text} {i}" for i in range(100) for text in ("怎么退货", "如何查发票")]
    answers = ["退货请联系客服" if "退货" in text else "发票在账户里" for text in questions]
    assert positive_ranks(questions, answers, answers).ranks.tolist() == [1.0] * 200
    assert len(inconsistent_pairs(positive_ranks(questions, answers, answers))) == 0
    swapped = [answers[1], *answers[1:]]
    findings = inconsistent_pairs(positive_ranks(questions, swapped, swapped))
    assert findings.rows.tolist() == [0]
    assert answers[findings.others[0]] == "退货请联系客服"
    assert findings.values.tolist() == [2.0]


def test_a_row_must_fail_every_ranking():
    one = Ranks(np.array([1.0, 30.0, 30.0, 20.0]), np.array([1, 2, 3, 0]), 1000)
    two = Ranks(np.array([90.0, 8.0, 9.0, 11.0]), np.array([2, 3, 0, 1]), 300)
    assert inconsistent_pairs(one).rows.tolist() == [1, 2]
    findings = inconsistent_pairs(one, two, share=0.02)
    assert findings.rows.tolist() == [1, 2]
    assert (findings.others.tolist(), findings.values.tolist()) == ([3, 0], [8.0, 9.0])
    assert inconsistent_pairs(one, two, share=0.028).rows.tolist() == [2]
    assert inconsistent_pairs(one, Ranks(np.full(4, 2.0), two.best, 10)).rows.tolist() == [1, 2]  # k is at least 1


@pytest.mark.parametrize("texts", [[], ["天气"], ["天气"] * 10_000, ["a\ud800", "b", ""], ["x" * 1_000_000, "y"]])
def test_odd_texts(texts):
    ranking = positive_ranks(texts, texts, texts)
    assert len(ranking.ranks) == len(texts)
    if len(set(texts)) < 2:
        assert (ranking.ranks == 1).all()
        assert (ranking.best == -1).all()
    assert len(inconsistent_pairs(positive_ranks(texts, texts, texts))) == ("" in texts)  # nothing tells where it belongs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: positive_ranks(["a"], ["b", "c"], ["b", "c"]), "there are 1 queries, 2 positives and 2 keys"),
        (lambda: positive_ranks(["a"], ["b"], ["b"], ["a", "c"]), "there are 1 queries, 1 positives and 1 keys"),
        (lambda: positive_ranks(["a"], ["b"], ["b"], pool_size=0), "pool_size=0 must be at least 1"),
        (lambda: positive_ranks(np.array([[np.nan]]), np.ones((1, 1)), ["b"]), "the vector of row 0 is not finite"),
        (inconsistent_pairs, r"0 rankings of \[\] rows"),
        (lambda: inconsistent_pairs(Ranks(np.ones(1), np.ones(1), 1), Ranks(np.ones(2), np.ones(2), 1)), r"\[1, 2\] rows"),
        (lambda: inconsistent_pairs(Ranks(np.ones(1), np.ones(1), 1), share=20), "share=20 is no share of the pool"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def shuffled(name):
    """Pairs of a real set of which 3 % have another's positive, and which ones those are."""
    if name == "sts/stsb_en":
        scored = [row for split in ("train", "dev", "test") for row in rows(f"{name}/{split}.jsonl.gz") if row["score"] >= 4]
        pairs = [(row["text1"], row["text2"]) for row in scored]
    else:
        splits = {"retrieval/cmrc2018": ("train", "dev", "test"), "retrieval/nfcorpus_en": ("dev",)}
        pairs = list(judged_pairs(name, splits.get(name, ("dev", "test"))))
    chosen = np.random.default_rng(0).permutation(len(pairs))[: round(0.03 * len(pairs))]
    positives = [positive for _, positive in pairs]
    for i, j in zip(chosen.tolist(), np.roll(chosen, 1).tolist(), strict=True):
        positives[i] = pairs[j][1]
    planted = [i for i in chosen.tolist() if positives[i] != pairs[i][1]]
    return [query for query, _ in pairs], positives, np.array(planted)


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize(
    ("name", "precision", "recall"),
    [
        ("retrieval/cmrc2018", 0.85, 0.85),
        ("retrieval/csl_title_abstract", 0.85, 0.85),
        ("sts/stsb_en", 0.85, 0.85),
        ("retrieval/dureader_robust", 0, 0.85),  # other paragraphs answer too: the rest is reported
        ("retrieval/medical_qa", 0, 0.85),
        ("retrieval/nfcorpus_en", 0, 0.85),
    ],
)
def test_shuffled_pairs_of_real_sets(name, precision, recall, capsys):
    queries, positives, planted = shuffled(name)
    ranking = positive_ranks(queries, positives, positives, queries)
    with capsys.disabled():
        for share in (0.02, 0.05, 0.15, 0.3):
            listed = inconsistent_pairs(ranking, share=share).rows
            reached = " / ".join(f"{value:.2f}" for value in scores_of(listed, planted))
            counts = f"{len(planted)} planted, {len(listed)} listed of {len(queries)}, pool {ranking.pool}"
            print(f"\n{name:30} share {share:.2f}: P / R / F1 {reached}; {counts}", end="")
    reached = scores_of(inconsistent_pairs(ranking).rows, planted)
    assert reached[0] >= precision
    assert reached[1] >= recall
