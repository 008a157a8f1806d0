"""Retrieval from a corpus: training examples, batches and evaluation sets, against loops over the raw rows."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from family_rows import DATA, beir, check_batch, qrels, row_for, small_beir, texts_of, uniform, write

from acge_lightning.data.records import text_id
from acge_lightning.errors import InputError


@pytest.mark.parametrize("negatives", [0, 1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_beir_examples(tmp_path, make, seed, negatives):
    asked, docs, grades = beir(tmp_path, seed)
    judged = {asked[q]: {docs[d]: g for d, g in found.items()} for q, found in grades.items() if max(found.values()) > 0}
    data = make("retrieval", negatives=negatives)
    assert len(data) == len(judged)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        positions = rng.permutation(len(data))[:9]
        check_batch(data.examples(positions, rng.random(9)), judged, negatives)
    everything = data.examples(np.arange(len(data)), rng.random(len(data)))
    assert sorted(everything.columns[0]) == sorted(judged)
    assert (len(everything.columns) > 2) == (negatives > 0)


def test_draws_choose_every_positive_and_every_negative_alike(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    data = make("retrieval", negatives=1)
    query = max(grades, key=lambda q: min(sum(g > 0 for g in grades[q].values()), sum(g == 0 for g in grades[q].values())))
    position = data.examples(np.arange(len(data)), uniform(len(data))).columns[0].index(asked[query])
    both = Counter()
    for draw in uniform(1500):
        found = data.examples(np.array([position]), np.array([draw]))
        both[found.columns[1][0], found.columns[2][0]] += 1
    right = [docs[d] for d, g in grades[query].items() if g > 0]
    wrong = [docs[d] for d, g in grades[query].items() if g == 0]
    assert len(right) >= 2
    assert len(wrong) >= 2
    expected = 1500 / len(right) / len(wrong)  # every combination: the negative does not follow the positive
    assert set(both) == {(p, n) for p in right for n in wrong}
    assert all(abs(count - expected) < 5 * expected**0.5 for count in both.values())


def test_several_negatives_of_a_query_are_different_ones(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"query": "q", "positive": "p", "negative": list("abcde")}, row_for("retrieval", 1)])
    data = make("retrieval", negatives=3, holdout=0.0)
    seen = Counter()
    for draw in uniform(200):
        found = data.examples(np.array([0]), np.array([draw])).columns[2]
        assert len(set(found)) == len(found) == 3
        seen.update(found)
    assert set(seen) == set("abcde")


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1, 0)])
def test_draws_at_the_ends_stay_within_the_lists(tmp_path, make, draw):
    write(tmp_path / "train.jsonl", [{"query": "q", "positive": list("xyz"), "negative": list("abc")}, row_for("retrieval", 1)])
    found = make("retrieval", holdout=0.0).examples(np.array([0, 1]), np.array([draw, draw]))
    assert found.columns[1] == [{0.0: "x", 0.5: "y"}.get(draw, "z"), "p1"]
    assert found.columns[2][0] in "abc"


def test_texts_of_a_query_are_itself_and_its_drawn_positive(tmp_path, make):
    beir(tmp_path)
    data = make("retrieval")
    draws = uniform(len(data))
    values, row = data.texts_of(draws)
    found = data.examples(np.arange(len(data)), draws)
    assert values.reshape(-1, 2).T.tolist() == [ids.tolist() for ids in found.ids[:2]]
    assert row.tolist() == [i for i in range(len(data)) for _ in "12"]


def test_beir_evaluation(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    found = make("retrieval").evaluation("dev")
    answered = {q for q, judged in grades.items() if max(judged.values()) > 0}
    texts = texts_of(found)
    assert found.roles == ((len(answered), "query"), (len(answered) + len(docs), "document"))
    assert sorted(texts[: len(answered)]) == sorted(asked[q] for q in answered)
    assert texts[len(answered) :] == list(docs.values())  # the whole corpus
    told = {(texts[int(q)], texts[int(d)]): g for q, d, g, query, _ in found.labels.tolist() if query >= 0}
    assert told == {(asked[q], docs[d]): g for q in answered for d, g in grades[q].items()}
    lines = found.labels.tolist()
    assert sorted({d for *_, d in lines}) == list(range(len(docs)))  # those that nobody judges too
    assert len(lines) == len(told) + len(docs) - len({d for _, d in told})
    assert all(len(answered) + document == text for _, text, _, _, document in lines)
    assert all(np.isnan(grade) == (query < 0) for _, _, grade, query, _ in lines)
    assert sorted(found.keys.tolist()) == sorted(text_id(asked[q]) for q in answered)


def test_beir_holdout_and_limits(tmp_path, make):
    asked, docs, _ = beir(tmp_path, queries=300)
    (tmp_path / "qrels" / "dev.tsv").unlink()
    data = make("retrieval", holdout=0.3, max_train=50, max_dev=20)
    dev = data.evaluation("dev")
    assert len(data) == 50
    assert dev.roles == ((20, "query"), (20 + len(docs), "document"))
    trained = set(data.examples(np.arange(50), uniform(50)).columns[0])
    assert not trained & set(texts_of(dev)[:20])
    assert trained <= set(asked.values())
    named = {int(d) for d in dev.labels[:, 1].tolist()}
    assert named <= set(range(20, 20 + len(docs)))


def test_beir_training_texts_are_queries_and_corpus(tmp_path, make):
    asked, docs, grades = beir(tmp_path)
    answered = [asked[q] for q, judged in grades.items() if max(judged.values()) > 0]
    assert sorted(make("retrieval").train_texts()) == sorted([*answered, *docs.values()])


def test_a_corpus_without_queries_or_judgements(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"has a corpus and no queries: add queries\.jsonl"):
        make("retrieval").open()
    small_beir(tmp_path / "b")
    for split in ("train", "dev"):
        (tmp_path / "b" / "qrels" / f"{split}.tsv").unlink()
    with pytest.raises(InputError, match=r"has no file of a split \(train, dev, test\)"):
        make("retrieval", tmp_path / "b").open()


def test_beir_splits_may_have_other_names(tmp_path, make):
    small_beir(tmp_path, dev="validation")
    data = make("retrieval", splits={"dev": "validation", "test": "validation.tsv"})
    assert len(data.evaluation("dev")) == len(data.evaluation("test")) == 5
    with pytest.raises(InputError, match=r"splits\.test=none\.tsv: there is no file .*qrels/none\.tsv"):
        make("retrieval", splits={"test": "none.tsv"}).open()
    assert make("retrieval", splits={"dev": None}, holdout=0.0).evaluation("dev") is None


def test_beir_judgements_may_be_sharded(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "qrels" / "train.tsv").unlink()
    for i, pair in enumerate([("1", "a", 1), ("2", "b", 1)]):
        qrels(tmp_path, f"train-0000{i}-of-00002", [pair])
    assert len(make("retrieval")) == 2


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize(("name", "split"), [("retrieval/nfcorpus_en", "dev"), ("retrieval/equals_law", "test")])
def test_a_real_corpus_against_its_files(tmp_path, make, name, split):
    def read(file):
        with gzip.open(DATA / name / file, "rt", encoding="utf-8") as lines:
            return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in map(json.loads, lines)}

    corpus, queries = read("corpus.jsonl.gz"), read("queries.jsonl.gz")
    lines = (DATA / name / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    expected = {(queries[q].strip(), corpus[d]): float(g) for q, d, g in (line.split("\t") for line in lines)}
    found = make("retrieval", DATA / name).evaluation(split)
    texts = texts_of(found)
    judged = [line for line in found.labels.tolist() if line[3] >= 0]
    assert {(texts[int(q)], texts[int(d)]): g for q, d, g, _, _ in judged} == expected
    assert len({int(d) for *_, d in found.labels.tolist()}) == len(corpus)
    assert len(texts) == len(corpus) + len({q for q, _ in expected})
