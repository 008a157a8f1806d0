"""Judged texts for tests of mining: made of plain lists, and mined by a loop that anyone can check by reading."""

import json
from functools import cache

import numpy as np

from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.mining.negatives.judged_texts import combine_judgements
from acge_lightning.mining.normalise import text_keys


def write_rows(file, rows):
    """A file of rows `query, positive[, negative]`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def split_of(file):
    """The judged queries of a file of rows."""
    return RetrievalDataset(file, holdout=0, cache_dir=file.parent / "cache").train


def judged_of(folder, rows, more=(), others=()):
    """Judged texts of rows, further candidates, and rows whose positives are known only."""
    splits = [split_of(write_rows(folder / "rows.jsonl", rows))]
    other_splits = [split_of(write_rows(folder / "known.jsonl", others))] if others else []
    return combine_judgements(splits, other_splits, more)


class Matrix:
    """Neighbours by a matrix of scores of all queries and texts."""

    def __init__(self, values):
        self.values = np.asarray(values, dtype=np.float32)

    def __len__(self):
        return self.values.shape[1]

    def nearest(self, queries, k):
        rows = np.argsort(-self.values[queries], axis=1, kind="stable")[:, :k]
        return rows, np.take_along_axis(self.values[queries], rows, 1)

    def scores(self, queries, texts):
        return self.values[queries, texts]


@cache
def key(text):
    return text_keys([text])[0]


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@cache
def similar(a, b):
    a, b = key(a), key(b)
    return 1 - levenshtein(a, b) / max(len(a), len(b), 1)


def mined_by_a_loop(rows, more, others, score, rules, second=None):
    """Query -> what may be its negatives, the best rank first: each candidate is looked at by itself.

    Args:
        rows, more, others: as of `judged_of`.
        score: of a query and a text.
        second: the same of a second scorer.
    """
    corpus = list(dict.fromkeys([*(t for r in rows for t in [*r["positive"], *r.get("negative", [])]), *more]))
    result = {}
    for query in dict.fromkeys(r["query"] for r in rows):
        own = list(dict.fromkeys(t for r in rows if r["query"] == query for t in r["positive"]))
        positives = {t for r in [*rows, *others] if key(r["query"]) == key(query) for t in r["positive"]}
        forbidden = {key(query), *map(key, positives)}
        listed = {t for r in rows if r["query"] == query for t in r.get("negative", [])}
        window, seen = [], set()
        for text in sorted(corpus, key=lambda t: (-score(query, t), corpus.index(t))):
            if key(text) not in forbidden and text not in listed and key(text) not in seen:
                window.append(text)
            seen.add(key(text))
        window = window[rules.range_min : rules.range_max]
        judge = second or score  # the scorer that decides
        values = [np.float32(judge(query, text)) for text in own]
        reference = {"lowest": min(values), "highest": max(values), "mean": np.float32(np.mean(values, dtype=float))}[
            rules.reference
        ]
        left = [t for t in window if not (rules.near and any(similar(t, p) >= rules.near for p in positives))]
        left = [t for t in left if fits(np.float32(judge(query, t)), reference, rules, second is not None)]
        result[query] = left
    return result


def fits(score, reference, rules, is_second):
    return (
        not (is_second and rules.denoise and score > reference)
        and (rules.max_score is None or score <= np.float32(rules.max_score))
        and (rules.min_score is None or score >= np.float32(rules.min_score))
        and (rules.absolute_margin is None or score + np.float32(rules.absolute_margin) <= reference)
        and (rules.relative_margin is None or score <= reference - abs(reference) * np.float32(rules.relative_margin))
    )
