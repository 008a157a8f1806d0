"""Real data sets as rows, for tests that plant errors in them."""

import gzip
import json
import os
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def rows(path):
    with gzip.open(DATA / path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def judged_pairs(name, splits):
    """(query, relevant document) of a BEIR folder."""
    documents = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows(f"{name}/corpus.jsonl.gz")}
    queries = {row["_id"]: row["text"] for row in rows(f"{name}/queries.jsonl.gz")}
    for split in splits:
        for line in (DATA / name / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            query, document, grade = line.split("\t")
            if float(grade) > 0 and query in queries and document in documents:
                yield queries[query], documents[document]


def scores_of(listed, planted):
    """(precision, recall, F1) of listed rows against the planted ones."""
    right = len(np.intersect1d(listed, planted))
    return right / max(1, len(listed)), right / len(planted), 2 * right / (len(listed) + len(planted))
