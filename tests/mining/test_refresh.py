"""Mining for training rows again and again: as `mine` does it by hand, alone or shared, of some queries or candidates only."""

import threading

import numpy as np
import pytest
from judged import judged_of, split_of, write_rows

from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.judged_texts import combine_judgements
from acge_lightning.mining.negatives.miner import mine
from acge_lightning.mining.negatives.neighbours import DenseNeighbours
from acge_lightning.mining.negatives.refresh import Share, mine_rows, row_queries
from acge_lightning.mining.negatives.rules import Reason, Rules
from acge_lightning.mining.normalise import text_keys

RULES = Rules(negatives=3, range_max=12, max_score=0.5, near=0.7)


def vectors(texts, dim=6):
    """Unit vectors that follow from a text alone; those of texts that begin alike are alike."""
    made = [np.random.default_rng(list(t[:3].encode())).normal(size=dim) for t in texts]
    noise = [np.random.default_rng(list(t.encode())).normal(size=dim) for t in texts]
    result = np.stack([a + b / 2 for a, b in zip(made, noise, strict=True)]) if texts else np.zeros((0, dim))
    return (result / np.linalg.norm(result, axis=1, keepdims=True)).astype(np.float32)


def encode(texts, role):
    assert role in ("query", "document")
    return vectors([f"{text}|" if role == "query" else text for text in texts])


def some_rows(n=30, seed=0):
    """Queries that come again, shared answers, listed negatives."""
    rng = np.random.default_rng(seed)
    return [
        {
            "query": f"问题{i % 25}号",
            "positive": [f"答{rng.integers(12)}案{k}" for k in range(rng.integers(1, 3))],
            "negative": [f"别{rng.integers(9)}的" for _ in range(rng.integers(0, 3))],
        }
        for i in range(n)
    ]


def by_hand(split, others, rules):
    """Query -> its negatives, as texts: all of the queries, mined in one go."""
    judged = combine_judgements([split], others)
    texts = judged.texts[: judged.candidate_count]
    mined = mine(judged, DenseNeighbours(encode(judged.queries, "query"), encode(texts, "document")), rules)
    rows = ([judged.texts[t] for t in row if t >= 0] for row in mined.texts.tolist())
    return dict(zip(judged.queries, rows, strict=True)), mined.removed.sum(0)


def as_texts(split, mined):
    """Row -> its negatives, as texts."""
    rows = zip(mined.rows.tolist(), mined.texts.tolist(), strict=True)
    return {row: split.read_candidates(np.array([t for t in texts if t >= 0], dtype=np.int64)) for row, texts in rows}


@pytest.fixture
def splits(tmp_path):
    rows = some_rows()
    elsewhere = [
        {"query": rows[i]["query"].replace("问", "問"), "positive": rows[i + 7]["positive"][:1]} for i in range(0, 12, 3)
    ]
    return split_of(write_rows(tmp_path / "a" / "rows.jsonl", rows)), split_of(
        write_rows(tmp_path / "b" / "k.jsonl", elsewhere)
    )


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_all_rows_have_what_is_mined_by_hand(splits, sampling):
    split, other = splits
    rules = Rules(negatives=3, range_max=12, max_score=0.5, near=0.7, sampling=sampling, seed=3)
    expected, removed = by_hand(split, [other], rules)
    told = []
    mined, counts = mine_rows(row_queries(split, [other]), np.arange(len(split)), encode, rules, progress=told.append)
    queries = split.read_queries(np.arange(len(split)))
    assert as_texts(split, mined) == {row: expected[query] for row, query in enumerate(queries)}
    assert counts.negatives == sum(map(len, expected.values())) > 30
    assert counts.without == sum(not texts for texts in expected.values())
    assert counts.removed.tolist() == removed.tolist()
    assert counts.removed[[Reason.KNOWN_POSITIVE, Reason.LISTED, Reason.NEAR_DUPLICATE, Reason.MAX_SCORE]].all()
    assert sum(told) == counts.queries + counts.texts == len(expected) + len(set(row_queries(split).judged.texts))


def test_some_rows_have_the_same_ones(splits):
    split, other = splits
    expected, _ = by_hand(split, [other], RULES)
    queries = split.read_queries(np.arange(len(split)))
    for rows in ([4], [0, 3, 25, 29], list(range(0, 30, 2))):
        mined, counts = mine_rows(row_queries(split, [other]), np.array(rows), encode, RULES)
        assert as_texts(split, mined) == {row: expected[queries[row]] for row in rows}
        assert counts.queries == len({queries[row] for row in rows})


def test_a_corpus_is_searched_and_its_numbers_are_rows_of_it(tmp_path):
    (tmp_path / "qrels").mkdir()
    documents = ["答1案", "", "答1案", *(f"答{i % 7}文{i}" for i in range(40))]
    lines = [f'{{"_id": "d{i}", "text": "{text}"}}\n' for i, text in enumerate(documents)]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    (tmp_path / "queries.jsonl").write_text("".join(f'{{"_id": "q{i}", "text": "答{i}问"}}\n' for i in range(6)))
    judged = [f"q{i}\td{i + 3}\t1\n" for i in range(6)] + ["q0\td2\t1\n"]
    (tmp_path / "qrels" / "train.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *judged]))
    split = RetrievalDataset(tmp_path, holdout=0, cache_dir=tmp_path / "cache", max_bad_fraction=0.5).train
    expected, _ = by_hand(split, [], RULES)
    mined, _ = mine_rows(row_queries(split), np.arange(len(split)), encode, RULES)
    queries = split.read_queries(np.arange(len(split)))
    assert as_texts(split, mined) == {row: expected[query] for row, query in enumerate(queries)}
    assert [documents[t] for row in mined.texts.tolist() for t in row if t >= 0] == [t for q in queries for t in expected[q]]
    assert not np.isin([1, 2], mined.texts).any(), "the empty one, and of equal ones another than the first"
    assert (mined.texts >= 9).any(), "documents that nobody judged"


@pytest.mark.parametrize("world", [2, 3, 40])
def test_processes_that_share_the_work_have_the_same_result(splits, world, monkeypatch):
    """Threads in place of processes, more of them than queries too; blocks are small, so that several are shared."""
    monkeypatch.setattr("acge_lightning.mining.negatives.refresh._TEXTS", 2)
    split, other = splits
    rows, source = np.arange(3, 30), row_queries(split, [other])
    alone = mine_rows(source, rows, encode, RULES)
    given, barrier, results = {}, threading.Barrier(world, timeout=60), {}

    def work(rank):
        def add(array):
            given[rank] = array
            barrier.wait()
            total = sum(given[other] for other in range(world))
            barrier.wait()
            return total

        results[rank] = mine_rows(source, rows, encode, RULES, share=Share(rank, world, add))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == world
    for mined, counts in results.values():
        assert mined.texts.tolist() == alone[0].texts.tolist()
        assert str(counts) == str(alone[1])


def test_few_candidates_are_searched_alone_but_for_positives(splits):
    """Against mining by hand among these texts and the positives of the rows."""
    split, other = splits
    source, rows = row_queries(split, [other]), np.array([0, 1, 2, 8])
    candidates = np.array([1, 4, 5, 9, 13])
    mined, counts = mine_rows(source, rows, encode, RULES, candidates)
    judged = source.judged
    queries = np.unique(source.queries[rows])
    allowed = np.union1d(candidates, judged.positives.select(queries).texts)
    assert counts.texts == len(allowed)
    assert np.isin(mined.texts[mined.texts >= 0], source.numbers[allowed]).all()
    selection, kept = judged.select(queries, candidates)
    assert [judged.texts[t] for t in kept.tolist()] == selection.texts
    assert kept[: selection.candidate_count].tolist() == allowed.tolist()
    whole = Rules(negatives=30, range_max=60, max_score=0.5, near=0.7)
    everything, _ = mine_rows(source, rows, encode, whole)
    for row, texts in zip(everything.texts.tolist(), mined.texts.tolist(), strict=True):  # ranks differ, margins do not
        left = [t for t in row if t in set(source.numbers[allowed].tolist())]
        assert [t for t in texts if t >= 0] == left[:3]


# ---- dirty data


def test_a_faq_answer_of_a_hundred_questions_is_never_their_negative(tmp_path):
    """Written in other ways in other rows, in the dev split, and nearly the same."""
    answer = "七天之内可以无理由退货，请保留好发票和包装。"
    rows = [{"query": f"怎么退{i}号货", "positive": [answer]} for i in range(100)]
    rows += [{"query": f"怎么退{i}号货", "positive": [f"另{i}答"], "negative": [answer.replace("，", " ")]} for i in range(5)]
    rows += [{"query": "别的", "positive": ["７天之内可以无理由退货，请保留好发票和包装"]}, {"query": "空", "positive": ["答"]}]
    split = split_of(write_rows(tmp_path / "rows.jsonl", rows))
    mined, counts = mine_rows(row_queries(split), np.arange(len(split)), encode, Rules(negatives=4, range_max=50, near=0.8))
    forbidden = {*text_keys([answer, rows[-2]["positive"][0]])}
    texts = as_texts(split, mined)
    assert not any(forbidden & set(text_keys(texts[row])) for row in range(105))
    assert any(forbidden & set(text_keys(texts[row])) for row in (105, 106)), "of others it may be one"
    assert counts.removed[Reason.NEAR_DUPLICATE] >= 99


def test_known_positives_of_other_sets_are_never_negatives(tmp_path):
    """A text that another data set judges positive for a query that differs in width and punctuation."""
    rows = [{"query": f"问题{i}", "positive": [f"答{i}案"]} for i in range(10)]
    split = split_of(write_rows(tmp_path / "a" / "rows.jsonl", rows))
    free = Rules(negatives=9, range_max=20)
    without = as_texts(split, mine_rows(row_queries(split), np.arange(10), encode, free)[0])
    assert "答7案" in without[3]
    elsewhere = split_of(write_rows(tmp_path / "b" / "rows.jsonl", [{"query": "问题３？", "positive": ["答7案"]}]))
    texts = as_texts(split, mine_rows(row_queries(split, [elsewhere]), np.arange(10), encode, free)[0])
    assert "答7案" not in texts[3]
    assert {row: t for row, t in texts.items() if row != 3} == {row: t for row, t in without.items() if row != 3}


def test_small_and_equal_data(tmp_path):
    one = split_of(write_rows(tmp_path / "one" / "rows.jsonl", [{"query": "问", "positive": ["答"]}]))
    mined, counts = mine_rows(row_queries(one), np.array([0]), encode, Rules(negatives=2, range_max=100))
    assert mined.texts.tolist() == [[-1, -1]]
    assert (counts.negatives, counts.without, counts.queries) == (0, 1, 1)
    ten = split_of(write_rows(tmp_path / "ten" / "rows.jsonl", [{"query": "问", "positive": [f"答{i}"]} for i in range(10)]))
    mined, counts = mine_rows(row_queries(ten), np.arange(10), encode, Rules(negatives=2, range_max=100))
    assert (mined.texts == -1).all()
    assert counts.queries == counts.without == 1
    with pytest.raises(InputError, match="range_min=1 passes over all 1 texts"):
        mine_rows(row_queries(one), np.array([0]), encode, Rules(negatives=1, range_min=1))
    with pytest.raises(InputError, match="not finite"):
        mine_rows(row_queries(ten), np.arange(10), lambda texts, role: encode(texts, role) * np.nan, RULES)


def test_a_selection_knows_what_the_whole_knows(tmp_path):
    """The reasons of each candidate, of queries in another order than the rows."""
    judged = judged_of(tmp_path, some_rows(), more=["又一个", "问题3号"], others=[{"query": "问题3号", "positive": ["答1案0"]}])
    queries = np.array([3, 0, 17])
    selection, kept = judged.select(queries)
    candidates = np.tile(np.arange(judged.candidate_count), (3, 1))
    assert kept[: selection.candidate_count].tolist() == list(range(judged.candidate_count))
    reasons = selection.exclusions.reasons(np.arange(3), candidates)
    assert reasons.tolist() == judged.exclusions.reasons(queries, candidates).tolist()
    assert {Reason.OWN_TEXT, Reason.KNOWN_POSITIVE, Reason.LISTED, Reason.KEPT} <= set(reasons.flatten().tolist())
    assert selection.queries == [judged.queries[i] for i in queries]
    pairs = {(selection.queries[q], selection.texts[t]) for q, t in selection.listed.tolist()}
    assert pairs == {(judged.queries[q], judged.texts[t]) for q, t in judged.listed.tolist() if q in queries}
