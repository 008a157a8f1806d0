"""The packaged Chinese sample: reproducible, complete, and without leaks between its splits."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "acge_lightning" / "sample"
SPLITS = ("train", "dev", "test")
COLUMNS = {
    "sts": {"text1": str, "text2": str, "score": float},
    "pair": {"text1": str, "text2": str, "label": int},
    "classification": {"text": str, "label": str},
    "clustering": {"text": str, "label": str},
    "reranking": {"query": str, "positive": list, "negative": list},
    "unlabelled": {"text": str},
}
TABLES = [(family, split) for family in COLUMNS for split in (SPLITS if family != "unlabelled" else ("train",))]


def read(path):
    with gzip.open(SAMPLE / path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def content(path):
    """The bytes a file stands for: another build of zlib may pack the same lines differently."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def qrels(split):
    header, *lines = (SAMPLE / f"retrieval/sample_zh/qrels/{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return [line.split("\t") for line in lines]


def texts(split):
    """All texts of a split, of all families, without case, punctuation and spaces."""
    found = []
    for family, columns in COLUMNS.items():
        if (family, split) in TABLES:
            for row in read(f"{family}/sample_zh/{split}.jsonl.gz"):
                for name in columns.keys() - {"label", "score"}:
                    found += row[name] if isinstance(row[name], list) else [row[name]]
    asked = {query for query, _, _ in qrels(split)}
    found += [row["text"] for row in read("retrieval/sample_zh/queries.jsonl.gz") if row["_id"] in asked]
    return {re.sub(r"[\W_]", "", text.lower()) for text in found}


def test_regenerated_sample_is_the_packaged_one(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "make_sample.py", "--out", tmp_path], check=True)
    made = {path.relative_to(tmp_path): content(path) for path in tmp_path.rglob("*.*")}
    packaged = {path.relative_to(SAMPLE): content(path) for path in SAMPLE.rglob("sample_zh/**/*.*")}
    assert made == packaged


def test_no_text_is_in_two_splits_or_the_corpus():
    parts = [texts(split) for split in SPLITS]
    parts.append({re.sub(r"[\W_]", "", row["text"].lower()) for row in read("retrieval/sample_zh/corpus.jsonl.gz")})
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))


@pytest.mark.parametrize(("family", "split"), TABLES)
def test_rows_have_their_columns_and_do_not_repeat(family, split):
    rows = read(f"{family}/sample_zh/{split}.jsonl.gz")
    assert all({name: type(value) for name, value in row.items()} == COLUMNS[family] for row in rows)
    assert len({json.dumps(row) for row in rows}) == len(rows) >= 100


def test_values_are_in_their_ranges():
    for split in SPLITS:
        assert all(0 <= row["score"] <= 5 for row in read(f"sts/sample_zh/{split}.jsonl.gz"))
        assert {row["label"] for row in read(f"pair/sample_zh/{split}.jsonl.gz")} == {0, 1}
        assert 10 <= len({row["label"] for row in read(f"clustering/sample_zh/{split}.jsonl.gz")}) <= 16
        for row in read(f"reranking/sample_zh/{split}.jsonl.gz"):
            assert row["positive"]
            assert 4 <= len(row["negative"]) <= 8


def test_labels_of_dev_and_test_occur_in_train():
    for family in ("classification", "clustering"):
        train, dev, test = ({row["label"] for row in read(f"{family}/sample_zh/{split}.jsonl.gz")} for split in SPLITS)
        assert dev | test <= train


def test_judgements_name_queries_and_passages():
    corpus, queries = (read(f"retrieval/sample_zh/{name}.jsonl.gz") for name in ("corpus", "queries"))
    assert all(row.keys() == {"_id", "text", "title"} and 40 <= len(row["text"]) <= 150 for row in corpus)
    assert all(row.keys() == {"_id", "text"} for row in queries)
    passages = {row["_id"] for row in corpus}
    judged = [{query for query, _, _ in qrels(split)} for split in SPLITS]
    assert sum(map(len, judged)) == len(set().union(*judged)) == len({row["_id"] for row in queries})
    assert set().union(*judged) == {row["_id"] for row in queries}
    for split in SPLITS:
        assert {passage for _, passage, _ in qrels(split)} <= passages
        assert {score for _, _, score in qrels(split)} == {"1", "2"}


def test_sample_is_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 500_000
