"""Judgements of a corpus that do not fit: named, skipped, counted."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from family_rows import qrels, small_beir, texts_of, uniform, write

from acge_lightning.errors import InputError


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("1", "a", 1), ("1", "x", 1)], "50.0% of all; max_bad_fraction allows 1.0%: mend them, or max_bad_fraction=0.5; the"),
        ([("1", "a", 1), ("1", "x", 1)], "train.tsv, line 3: 'x' is not among the documents"),
        ([("1", "a", 1), ("9", "a", 1)], "train.tsv, line 3: '9' is not among the queries"),
        ([("1", "a", 1), ("1", " ", 1)], "line 3: field 'corpus-id' is empty: give a text, or on_bad_row=skip"),
        (
            [("1", "a", 1), ("\ud800", "a", 1)],
            "line 3: field 'query-id' is not valid UTF-8: mend its encoding, or on_bad_row=skip",
        ),
        ([("1", "a", 0)], "no query has a document of a grade above 0: check the score column"),
        ([], "the file has no judgements: give lines of query-id, corpus-id, score"),
        ([("1", "a", "good")], "line 2: field 'score' is 'good', not a number: write one, such as 0.8, or on_bad_row=skip"),
        ([("1", "a", "nan")], "line 2: field 'score' is 'nan', not a finite number"),
        ([("1", "a", "inf")], "line 2: field 'score' is 'inf', not a finite number"),
        ([("1", "a", "1\textra")], "line 2: has 1 values more than the header"),
    ],
)
def test_bad_judgements(tmp_path, make, pairs, message):
    small_beir(tmp_path, pairs)
    with pytest.raises(InputError) as caught:
        make("retrieval").open()
    assert str(caught.value).startswith(str(tmp_path / "qrels" / "train.tsv"))
    assert message in str(caught.value)


def test_judgements_without_a_header_or_columns(tmp_path, make):
    small_beir(tmp_path)
    (tmp_path / "qrels" / "train.tsv").write_text("1\t0\ta\t1\n2\t0\tb\t1\n")
    with pytest.raises(InputError, match=r"the header calls two columns '1': give each its own name, or add a header"):
        make("retrieval").open()
    (tmp_path / "qrels" / "train.tsv").write_text("1\t0\ta\t3\n2\t0\tb\t1\n")
    with pytest.raises(InputError, match=r"line 2: has \[.*\], not query-id, corpus-id and score: mend the header line"):
        make("retrieval").open()
    (tmp_path / "qrels" / "train.tsv").unlink()
    write(tmp_path / "qrels" / "train.jsonl", [{"query-id": "1", "corpus-id": "a", "score": [1]}])
    with pytest.raises(InputError, match=r"train\.jsonl, line 1: field 'score' is \[1\], not a number"):
        make("retrieval").open()


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_bad_judgements_are_skipped_and_counted_if_asked(tmp_path, make, caplog, policy):
    bad = [("1", "x", 1), ("9", "a", 1), ("8", "b", 1), ("2", "b", "nan"), ("2", "b", "?")]
    small_beir(tmp_path, [("1", "a", 2), *bad, ("2", "c", 1)])
    options = {"splits": {"dev": None}, "holdout": 0.0, "on_bad_row": policy}
    with pytest.raises(InputError, match=r"train\.tsv: 5 rows are bad, 71\.4% of all; max_bad_fraction allows 1\.0%"):
        make("retrieval", **options).open()
    with caplog.at_level(logging.WARNING):
        data = make("retrieval", max_bad_fraction=0.8, **options)
        found = data.examples(np.arange(len(data)), uniform(len(data)))
    assert found.columns == (["query 1", "query 2"], ["doc a", "doc c"])
    message = next(r.getMessage() for r in caplog.records if "5 bad rows skipped, 2 kept" in r.getMessage())
    assert ("they are in" in message) == (policy == "quarantine")
    if policy == "quarantine":
        notes = [json.loads(line) for line in Path(message.partition("they are in ")[2]).read_text().splitlines()]
        assert sorted(note["line"] for note in notes) == [3, 4, 5, 6, 7]
        reasons = {note["line"]: note["reason"] for note in notes}
        assert reasons[3] == "'x' is not among the documents"
        assert reasons[4] == "'9' is not among the queries"
        assert reasons[6] == "field 'score' is 'nan', not a finite number"


def published(folder, missing, spaced=2):
    """A folder as some are published: two empty documents of 300, judgements of what is not there, ids between spaces."""
    texts = {f"d{i}": "" if i in (7, 8) else f"doc {i}" for i in range(300)}
    asked = {f"q{i}": f"query {i}" for i in range(150)}
    write(folder / "corpus.jsonl", [{"_id": f" {k} " if k == "d5" else k, "text": t, "title": ""} for k, t in texts.items()])
    write(folder / "queries.jsonl", [{"_id": f"{k} " if k == "q6" else k, "text": t} for k, t in asked.items()])
    pairs = [(f"q{i}", f"d{i + j}", 1) for i in range(149) for j in (0, 1)]
    pairs += [("q149", "gone", 1)] * missing + [("nobody", "d1", 1)] * missing + [("q3 ", " d9", 2)]
    for split in ("train", "test"):
        qrels(folder, split, pairs)
    return texts, asked, {(q.strip(), d.strip()): g for q, d, g in pairs if q.strip() in asked and d.strip() in texts}


def test_a_published_beir_folder_loads_and_tells_what_is_odd(tmp_path, make, caplog):
    texts, asked, judged = published(tmp_path, missing=1)
    data = make("retrieval", splits={"dev": None}, holdout=0.0)
    found = data.evaluation("test")
    told = [record.getMessage() for record in caplog.records]
    corpus, questions, pairs = (str(tmp_path / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"))
    for message in (
        f"{corpus}: 2 texts are empty, the first in {corpus}, line 8: they are kept",
        f"{corpus}: 1 ids stand between white space, which is not part of them",
        f"{questions}: 1 ids stand between white space, which is not part of them",
        f"{pairs}, line 301: 'nobody' is not among the queries (skipped, as are further bad rows)",
        f"{pairs}: 2 bad rows skipped, 299 kept",
        f"{pairs}: {data.note('test')}",
    ):
        assert message in told
    left = "2 queries without a relevant document are left out; 2 judgements of texts that are not there are left out"
    assert data.note("test") == left
    column = texts_of(found)
    assert column[149:] == list(texts.values())  # the empty ones too, as in mteb
    of = {(column[int(q)], int(d)): g for q, _, g, _, d in found.labels.tolist() if not math.isnan(g)}
    assert of == {(asked[q], list(texts).index(d)): g for (q, d), g in judged.items()}
    assert {"d7", "d8"} < {d for _, d in judged}


def test_nothing_is_learnt_from_empty_texts(tmp_path, make, caplog):
    texts, asked, judged = published(tmp_path, missing=1)
    data = make("retrieval", splits={"dev": None}, holdout=0.0)
    assert "" not in list(data.train_texts())
    columns = data.train.read_queries(np.arange(len(data))), data.train.read_texts(np.arange(len(data.train.text_ids)))
    assert f"{tmp_path}/qrels/train.tsv: nothing is learnt from 4 judgements of empty texts" in caplog.text
    expected = {(asked[q], texts[d]) for q, d in judged if texts[d]}
    _, row = data.train.judged_texts(np.arange(len(data)))
    assert {(columns[0][i], text) for i, text in zip(row.tolist(), columns[1], strict=True)} == expected
    assert data.note("train").startswith("3 queries without a relevant document")  # q7 has but the two empty ones
    write(tmp_path / "queries.jsonl", [{"_id": k, "text": "" if k == "q0" else t} for k, t in asked.items()])
    again = make("retrieval", splits={"dev": None}, holdout=0.0)
    assert len(again) == len(data) - 1
    assert again.note("train").startswith("4 queries without")


@pytest.mark.parametrize("policy", ["raise", "skip", "quarantine"])
def test_too_much_that_is_odd_is_an_error_whose_remedy_works(tmp_path, make, policy):
    published(tmp_path, missing=3)
    options = {"splits": {"dev": None, "train": None}, "on_bad_row": policy}
    with pytest.raises(InputError, match=r"test\.tsv: 6 rows are bad, 2\.0% of all; .*, or max_bad_fraction=0\.02; the first"):
        make("retrieval", **options).open()
    assert make("retrieval", max_bad_fraction=0.02, **options).evaluation("test") is not None
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": "" if i < 12 else "doc"} for i in range(300)])
    with pytest.raises(InputError, match=r"corpus\.jsonl: 12 texts are empty, 4\.0% of all; .* max_bad_fraction=0\.04; the"):
        make("retrieval", max_bad_fraction=0.03, **options).open()
    assert make("retrieval", max_bad_fraction=0.04, **options).evaluation("test") is not None


def test_a_document_that_is_left_out_takes_its_judgements_along(tmp_path, make):
    """One bad row of the corpus, and the queries that only it answers, are both counted."""
    small_beir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "doc a"}\n{"_id": "b", "text": "\\ud800"}\n')
    data = make("retrieval", on_bad_row="skip", max_bad_fraction=0.5)
    assert len(data) == 1
    left = "1 queries without a relevant document are left out; 1 judgements of texts that are not there are left out"
    assert data.note("dev") == left


def test_the_same_id_twice_in_a_corpus_is_named(tmp_path, make):
    small_beir(tmp_path)
    write(tmp_path / "corpus.jsonl", [{"_id": key, "text": f"doc {i}"} for i, key in enumerate("abcb")])
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 4: field '_id' is 'b', as in .*corpus\.jsonl, line 2"):
        make("retrieval").open()
    data = make("retrieval", on_bad_row="skip", max_bad_fraction=0.3)
    assert texts_of(data.evaluation("dev"))[2:] == ["doc 0", "doc 1", "doc 2"]
