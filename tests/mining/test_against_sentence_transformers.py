"""`mine_hard_negatives` of sentence-transformers as an oracle: the same negatives where it has no fault, and its faults."""

import random

import cross_encoder
import datasets
import numpy as np
import pytest
import sentence_transformers
import torch
from judged import judged_of
from seeded import seeded
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from acge_lightning import load
from acge_lightning.mining.negatives.miner import mine
from acge_lightning.mining.negatives.neighbours import DenseNeighbours
from acge_lightning.mining.negatives.rules import Rules
from acge_lightning.mining.negatives.scorers import CrossEncoder

pytestmark = pytest.mark.filterwarnings("ignore")
CHARACTERS = "今天气很好我们去公园怎么退货howdreturnthis"


@pytest.fixture(scope="module")
def encoders(small_encoder, tmp_path_factory):
    folder = seeded(small_encoder, tmp_path_factory.mktemp("encoder") / "seeded")
    return load(folder), SentenceTransformer(str(folder), device="cpu")


def pairs(seed, queries=40, positives_each=1):
    """Distinct pairs without variants, and further texts."""
    rng = random.Random(seed)
    texts = list(dict.fromkeys("".join(rng.choices(CHARACTERS, k=rng.randint(4, 12))) for _ in range(400)))
    asked, answers, others = texts[:queries], texts[queries : queries * (1 + positives_each)], texts[250:]
    return [(asked[i % queries], answer) for i, answer in enumerate(answers)], others


def theirs(encoder, rows, others, **options):
    """Query -> its negatives with their scores, the best first."""
    dataset = datasets.Dataset.from_dict({"query": [query for query, _ in rows], "positive": [text for _, text in rows]})
    given = {"corpus": others, "output_scores": True, "verbose": False, "output_format": "triplet", "use_faiss": True} | options
    mined = mine_hard_negatives(dataset, encoder, **given)
    result = {query: {} for query, _ in rows}
    for row in mined:
        result[row["query"]][row["negative"]] = row["scores"][1]
    return result


def ours(encoder, folder, rows, others, **options):
    judged = judged_of(folder, [{"query": query, "positive": text} for query, text in rows], others)
    vectors = [encoder.encode(texts).numpy() for texts in (judged.queries, judged.texts[: judged.candidate_count])]
    mined = mine(judged, DenseNeighbours(*vectors), Rules(**options))
    return {
        query: {judged.texts[t]: s for t, s in zip(texts.tolist(), scores.tolist(), strict=True) if t >= 0}
        for query, texts, scores in zip(judged.queries, mined.texts, mined.scores, strict=True)
    }


@pytest.mark.parametrize(
    ("positives_each", "given"),
    [
        (1, {}),
        (1, {"relative_margin": 0.05}),
        (2, {"relative_margin": 0.3}),
        (1, {"absolute_margin": 0.2, "max_score": 0.7}),
        (2, {"min_score": 0.1, "max_score": 0.6}),
        (1, {"range_min": 6, "max_score": 2.0}),
    ],
)
def test_the_same_negatives_where_theirs_has_no_fault(positives_each, given, encoders, tmp_path):
    """With a window that is the whole corpus, or without margins; their `num_negatives` is our `negatives`."""
    encoder, oracle = encoders
    rows, others = pairs(len(given) + positives_each, positives_each=positives_each)
    expected = theirs(oracle, rows, others, num_negatives=4, range_max=190, **given)
    mined = ours(encoder, tmp_path, rows, others, negatives=4, range_max=190, **given)
    assert expected.keys() == mined.keys()
    assert sum(map(len, expected.values())) > 20
    for query, negatives in expected.items():
        np.testing.assert_allclose(sorted(mined[query].values()), sorted(negatives.values()), atol=2e-5)
        cut = min(negatives.values(), default=0) + 2e-5
        assert {t for t, s in negatives.items() if s > cut} <= set(mined[query]), "but for ties at the end"


def test_the_same_negatives_by_a_cross_encoder(encoders, tmp_path):
    """Where it ranks all candidates; their margin is on its scores too."""
    folder = cross_encoder.save(tmp_path / "cross")
    rows, others = pairs(8, queries=12)
    options = {"range_max": 60, "relative_margin": 0.05}
    oracle = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    expected = theirs(encoders[1], rows, others[:48], num_negatives=4, cross_encoder=oracle, **options)
    judged = judged_of(tmp_path, [{"query": query, "positive": text} for query, text in rows], others[:48])
    vectors = [encoders[0].encode(texts).numpy() for texts in (judged.queries, judged.texts)]
    rules = Rules(negatives=4, rank_by="scorer", **options)
    mined = mine(judged, DenseNeighbours(*vectors), rules, CrossEncoder(folder))
    assert sum(map(len, expected.values())) > 20
    for query, texts, scores in zip(judged.queries, mined.texts, mined.scores, strict=True):
        np.testing.assert_allclose(sorted(scores[texts >= 0]), sorted(expected[query].values()), atol=1e-5)
        cut = min(expected[query].values(), default=0) + 1e-5
        assert {t for t, s in expected[query].items() if s > cut} <= {judged.texts[t] for t in texts if t >= 0}


# ---- their faults, which ours has not


def test_the_querys_own_text_and_variants_of_the_positive(encoders, tmp_path):
    rows = [("怎么退货", "我们去公园！"), ("how do I", "return this")]
    others = ["怎么退货", "我们去公园。", "今天天气很好"]
    assert set(theirs(encoders[1], rows, others, num_negatives=4, range_max=4)["怎么退货"]) >= {"怎么退货", "我们去公园。"}
    assert set(ours(encoders[0], tmp_path, rows, others, negatives=3)["怎么退货"]) == {"今天天气很好", "return this"}


def test_ranks_are_counted_before_margins(encoders, tmp_path):
    """Theirs passes over three of those that the margin left, however deep they are."""
    rows, others = pairs(3)
    options = {"range_max": 100, "relative_margin": 0.3}
    ranked = ours(encoders[0], tmp_path / "a", rows, others, negatives=100, range_max=100)
    left = ours(encoders[0], tmp_path / "b", rows, others, negatives=90, **options)
    mined = ours(encoders[0], tmp_path / "c", rows, others, negatives=90, range_min=3, **options)
    twice = theirs(encoders[1], rows, others, num_negatives=80, range_min=3, **options)
    for query, texts in ranked.items():
        assert list(mined[query]) == [text for text in list(texts)[3:] if text in left[query]]
        assert len(twice[query]) <= max(0, len(left[query]) - 3)
    assert sum(len(mined[query]) > len(twice[query]) for query in ranked) > 3


def test_draws_can_be_repeated(encoders, tmp_path):
    rows, others = pairs(4)
    random.seed(0)
    drawn = [theirs(encoders[1], rows, others, num_negatives=3, range_max=40, sampling_strategy="random") for _ in range(2)]
    assert [set(v) for v in drawn[0].values()] != [set(v) for v in drawn[1].values()]
    again = [
        ours(encoders[0], tmp_path / name, rows, others, negatives=3, range_max=40, sampling="random") for name in ("a", "b")
    ]
    assert again[0] == again[1]


def test_a_cross_encoder_counts_without_a_margin(encoders, tmp_path):
    """Theirs takes no notice of it then; ours ranks by it, and leaves out what it puts above the positive."""
    rows, others = pairs(5, queries=8)

    def by_length(pairs):
        return np.array([-len(text) for _, text in pairs], dtype=np.float32)

    class Theirs:
        def predict(self, pairs, **options):
            raise AssertionError("it is not asked")

    assert theirs(encoders[1], rows, others, num_negatives=3, range_max=40, cross_encoder=Theirs())
    judged = judged_of(tmp_path, [{"query": query, "positive": text} for query, text in rows], others)
    vectors = [encoders[0].encode(texts).numpy() for texts in (judged.queries, judged.texts)]
    mined = mine(judged, DenseNeighbours(*vectors), Rules(negatives=3, range_max=40), by_length)
    for texts, (_, positive) in zip(mined.texts, rows, strict=True):
        lengths = [len(judged.texts[t]) for t in texts if t >= 0]
        assert lengths == sorted(lengths)
        assert min(lengths, default=99) >= len(positive)
    assert mined.counts.sum() > 10


def test_a_corpus_smaller_than_range_min_gives_nothing_without_a_word(encoders):
    rows, _ = pairs(6, queries=5)
    mined = theirs(encoders[1], rows, [], num_negatives=2, range_min=10, range_max=20)
    assert not any(mined.values()), "ours raises: test_hard_negatives.py"


def test_the_cache_does_not_know_the_weights(encoders, tmp_path):
    """Ours does: tests/commands/test_mine.py."""
    rows, others = pairs(7, queries=10)
    tuned = encoders[1]
    before = theirs(tuned, rows, others, num_negatives=3, range_max=9, cache_folder=str(tmp_path))
    weight = next(tuned.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(weight.flip(1).roll(5, 0))
    try:
        after = theirs(tuned, rows, others, num_negatives=3, range_max=9, cache_folder=str(tmp_path))
        fresh = theirs(tuned, rows, others, num_negatives=3, range_max=9)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert before == after
    assert fresh != after
