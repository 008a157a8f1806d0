"""The steps of cleaning, in their order: each looks at the rows that those before it have kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from acge_lightning.data.records import as_label
from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.consistency import inconsistent_pairs, positive_ranks
from acge_lightning.mining.cleaning.decontaminate import leak_index, leaks
from acge_lightning.mining.cleaning.deduplicate import NEAR, NEAR_SHORT, near_duplicates
from acge_lightning.mining.cleaning.filters import text_issues
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.cleaning.label_noise import doubtful_labels, label_confidence
from acge_lightning.mining.cleaning.markup import clean_texts
from acge_lightning.mining.cleaning.opposite_labels import contradictions
from acge_lightning.mining.cleaning.pile import Group, Pile
from acge_lightning.mining.cleaning.similarity import NEAR as LEAST
from acge_lightning.mining.cleaning.training_rows import Rows
from acge_lightning.mining.cleaning.weights import quality
from acge_lightning.mining.engine.shards import Run, in_process
from acge_lightning.mining.normalise import duplicate_keys, row_keys, text_keys

PAIRS, QUERIES, LABELLED = ("sts", "pair"), ("retrieval", "triplet", "reranking"), ("classification", "clustering")
TOGETHER = (PAIRS, QUERIES, ("unlabelled",))  # families whose data sets must not repeat each other's rows
NEAR_QUERY = "near duplicate, other query"
_TEXTS = ("text", "text1", "text2", "query")  # fields of one text
_LONG = 2_000  # characters of positives that are compared
_LISTS = ("positive", "negative")  # of several
Embed = Callable[[Sequence[str], str], np.ndarray]


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Args:
        name: a key of `STEPS`.
        seconds: it took.
        rows: it looked at.
        dropped: of them.
        reported: of them, beside those.
    """

    name: str
    seconds: float
    rows: int
    dropped: int
    reported: int


def clean(pile: Pile, steps: Mapping[str, Mapping[str, Any] | None], run: Run = in_process) -> Iterator[StepResult]:
    """Take the steps, and yield what each did.

    Args:
        pile: is changed.
        steps: name -> settings; a step of None is left out. The order is that of `STEPS`.
        run: what works on shards, in the steps that take long.

    Raises:
        InputError: an unknown step or setting, or what a step refuses.
    """
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise InputError(f"steps.{min(unknown)} is no step: choose from {', '.join(STEPS)}")
    for name, step in STEPS.items():
        settings = steps.get(name)
        if settings is None:
            continue
        rows, reported, start = _kept(pile), _reported(pile), time.perf_counter()
        step(pile, **settings, **({"run": run} if name in _BY_SHARDS else {}))
        yield StepResult(name, time.perf_counter() - start, rows, rows - _kept(pile), _reported(pile) - reported)


def _kept(pile: Pile) -> int:
    return sum(int(kept.sum()) for kept in pile.kept)


def _reported(pile: Pile) -> int:
    return sum(map(len, pile.reported))


# ---- texts


def repair_step(pile: Pile) -> None:
    """Remove control and invisible characters, HTML and links of Markdown from texts; changed rows are reported.

    Sets with a corpus stay as they are: their queries and documents are not written anew.
    """
    for number, rows in enumerate(pile.rows):
        if rows.data.corpus is not None:
            continue
        changed = np.zeros(len(rows), dtype=bool)
        for name in set(_TEXTS) & set(rows.columns):
            before = rows.columns[name]
            rows.columns[name] = clean_texts(before).to_pylist()
            changed |= np.array([a != b for a, b in zip(before, rows.columns[name], strict=True)], dtype=bool)
        for name in set(_LISTS) & set(rows.columns):
            before = rows.columns[name]
            rows.columns[name] = [tuple(text for text in clean_texts(list(texts)).to_pylist() if text) for texts in before]
            changed |= np.array([a != b for a, b in zip(before, rows.columns[name], strict=True)], dtype=bool)
        found = np.flatnonzero(changed)
        if len(found):
            findings = Findings("repaired", found, np.full(len(found), -1), np.full(len(found), np.nan))
            pile.apply(findings, pile.group([number]), drop=False)


def text_step(pile: Pile, **settings: Any) -> None:
    """Leave out rows with an empty text, or without positives; with one of the wrong length or language, or full of markup."""
    for group in pile.groups(()):
        if group.family in QUERIES:
            rows = np.array([row for row, texts in enumerate(group.columns["positive"]) if not any(texts)], np.int64)
            pile.apply(Findings("empty", rows, np.full(len(rows), -1), np.zeros(len(rows))), group)
        for name in set(_TEXTS) & set(group.columns):
            for findings in text_issues(group.columns[name], **settings):
                pile.apply(findings, group)


def duplicate_step(pile: Pile, near: bool = True, run: Run = in_process) -> None:
    """Leave out rows that repeat others of the same label or score, within a data set and across the sets of one kind.

    Args:
        pile: is changed.
        near: whether near duplicates of 16 characters or more are left out; else they are reported, as shorter ones are, and
            queries with a positive where the queries differ: in manuals and statutes one word makes them other ones.
        run: what works on shards.
    """
    reported = (NEAR_SHORT, NEAR_QUERY) if near else (NEAR, NEAR_SHORT, NEAR_QUERY)
    for group in pile.groups(TOGETHER):
        columns = group.columns
        if group.family in QUERIES:
            columns = {"query": columns["query"], "positive": [_positive(texts) for texts in columns["positive"]]}
        keys = row_keys(columns, group.family, run=run)
        found = near_duplicates(keys, _labels(pile, group), unordered=group.family in PAIRS, run=run)
        for findings in _by_query(found, group):
            pile.apply(findings, group, drop=findings.reason not in reported)
            if findings.reason in reported:
                pile.weigh(quality(len(group), reported=[findings]), group)


def _by_query(findings: list[Findings], group: Group) -> Iterator[Findings]:
    """Tell near duplicates of one query from those whose queries differ."""
    for found in findings:
        if found.reason == NEAR and group.family in QUERIES:
            query = np.array(text_keys(group.columns["query"]), dtype=object)
            differs = query[found.rows] != query[found.others]
            yield from (part for part in (found.part(~differs), found.part(differs, NEAR_QUERY)) if len(part))
        else:
            yield found


def _positive(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The positives of a query; where they are long, their digest, so that only rows with the same ones are near."""
    if sum(map(len, texts)) <= _LONG:
        return texts
    return (hashlib.blake2b("\n".join(sorted(texts)).encode(), digest_size=16).hexdigest(),)


def _labels(pile: Pile, group: Group) -> list[str] | None:
    """The label or the score of each row, as a text; None for families without."""
    if group.family not in (*PAIRS, *LABELLED):
        return None
    labels = []
    for dataset, row in zip(group.dataset.tolist(), group.row.tolist(), strict=True):
        columns = pile.rows[dataset].columns
        labels.append(as_label(columns["score" if "score" in columns else "label"][row]))
    return labels


# ---- evaluation rows


def leak_step(pile: Pile, near: float = 0.8, pairs_near: float = 0.9, run: Run = in_process) -> None:
    """Leave out rows that stand in an evaluation split: pairs of pair tasks, texts or queries of all others.

    A query with one of its positives or negatives is a pair too, which the pairs of an evaluation split may be.

    Args:
        pile: is changed.
        near: similarity from which an edited text is a leak.
        pairs_near: the same of both sides of a pair; higher, as sentences of pair sets often come from few templates.
        run: what works on shards.
    """
    pairs, texts = _evaluation_pairs(pile.evaluation), _evaluation_texts(pile.evaluation)
    if len(pairs):
        index = leak_index(row_keys(pairs.columns, "pair", run=run), run)
        longest = max(map(len, pairs.columns["text1"] + pairs.columns["text2"]))
        for group in pile.groups((PAIRS, QUERIES)):
            if group.family in (*PAIRS, *QUERIES):
                row, sides = _pairs(group, longest)
                for findings in leaks(row_keys(sides, "pair", run=run), index, unordered=True, near=pairs_near, run=run):
                    rows, first = np.unique(row[findings.rows], return_index=True)
                    of_rows = Findings(findings.reason, rows, findings.others[first], findings.values[first])
                    pile.apply(of_rows, group, pairs)
    if len(texts):
        index = leak_index(duplicate_keys(texts.columns["text"], run=run), run)
        for group in pile.groups((QUERIES, (*LABELLED, "unlabelled"))):
            if group.family not in PAIRS:
                keys = duplicate_keys(group.columns["query" if group.family in QUERIES else "text"], run=run)
                for findings in leaks(keys, index, near=near, run=run):
                    pile.apply(findings, group, texts)


def _pairs(group: Group, longest: int) -> tuple[np.ndarray, dict[str, list[str]]]:
    """The row of each pair, and its sides: a row's own, or its query with each other text that is about as short as a limit."""
    if group.family in PAIRS:
        return np.arange(len(group)), group.columns
    columns = group.columns
    others = zip(columns["query"], columns["positive"], columns["negative"], strict=True)
    most = longest / LEAST
    sides = [(row, query, text) for row, (query, *lists) in enumerate(others) for text in chain(*lists) if len(text) <= most]
    row = np.array([side[0] for side in sides], np.int64)
    return row, {"text1": [side[1] for side in sides], "text2": [side[2] for side in sides]}


def _evaluation_pairs(evaluation: list[Rows]) -> Group:
    """The pairs of sts and pair sets, and query and candidate of triplets."""
    columns: dict[str, list[Any]] = {"text1": [], "text2": []}
    dataset: list[int] = []
    row: list[int] = []
    for number, rows in enumerate(evaluation):
        for position in range(len(rows)) if rows.data.family in (*PAIRS, "triplet") else ():
            if rows.data.family == "triplet":
                candidates = rows.columns["positive"][position] + rows.columns["negative"][position]
                sides = [(rows.columns["query"][position], text) for text in candidates]
            else:
                sides = [(rows.columns["text1"][position], rows.columns["text2"][position])]
            for one, other in sides:
                columns["text1"].append(one)
                columns["text2"].append(other)
                dataset.append(number)
                row.append(position)
    return Group("pair", columns, np.array(dataset, np.int32), np.array(row, np.int64))


def _evaluation_texts(evaluation: list[Rows]) -> Group:
    """The texts of classification and clustering, and the queries of retrieval, reranking and triplets; no corpora."""
    columns: dict[str, list[Any]] = {"text": []}
    dataset: list[int] = []
    row: list[int] = []
    for number, rows in enumerate(evaluation):
        name = "query" if rows.data.family in QUERIES else "text"
        texts = [] if rows.data.family in PAIRS else rows.columns[name]
        columns["text"] += texts
        dataset += [number] * len(texts)
        row += range(len(texts))
    return Group("unlabelled", columns, np.array(dataset, np.int32), np.array(row, np.int64))


# ---- labels


def contradiction_step(pile: Pile, margin: float = 2.5) -> None:
    """Leave out rows of the same text or pair, within a data set, whose labels differ, or whose scores differ by a margin.

    Args:
        pile: is changed.
        margin: in the units of the scores; of scores of two values half their difference is taken.
    """
    for group in pile.groups(()):
        if group.family in PAIRS:
            one, other = text_keys(group.columns["text1"]), text_keys(group.columns["text2"])
            scores = group.columns.get("score")
            if scores is None:
                pile.apply(contradictions(one, other, group.columns["label"]), group)
            else:
                is_binary = len(set(scores)) <= 2
                pile.apply(contradictions(one, other, scores, float(np.ptp(scores)) / 2 if is_binary else margin), group)
        elif group.family in LABELLED:
            pile.apply(contradictions(text_keys(group.columns["text"]), None, group.columns["label"]), group)


def label_step(pile: Pile, share: float = 0.02) -> None:
    """Leave out rows whose label probes that were trained on the other rows believe least, a share of each data set."""
    for group in pile.groups(()):
        if group.family in LABELLED:
            texts, labels = group.columns["text"], group.columns["label"]
            confidence = label_confidence(texts, labels, text_keys(texts))
            pile.apply(doubtful_labels(confidence, share), group)
            pile.weigh(quality(len(group), confidence), group)


def consistency_step(pile: Pile, share: float = 0.02, tfidf: bool = True, embed: Embed | None = None) -> None:
    """Leave out pairs and queries none of whose positives ranks near the top of a pool of others.

    Args:
        pile: is changed.
        share: of the pool that is near its top; 1 leaves no row out, and measures the rows all the same.
        tfidf: whether TF-IDF ranks them.
        embed: texts, `query` or `document` -> Float[n, d] of an encoder that has not been trained on these rows, which ranks
            them too: a row stays if one of the two has a positive of it near the top.

    Raises:
        InputError: neither of the two is asked for.
    """
    if not tfidf and embed is None:
        raise InputError("steps.consistency has tfidf=false and no model: give one, or tfidf=true")
    for group in pile.groups(()):
        row, query, positive = _positive_pairs(group)
        if not len(row):
            continue
        sides: list[tuple[Any, Any]] = [(query, positive)] if tfidf else []
        if embed is not None:
            sides.append((embed(query, "query"), embed(positive, "document")))
        query_keys, positive_keys = text_keys(query), text_keys(positive)
        rankings = [positive_ranks(*pair, positive_keys, query_keys) for pair in sides]
        best = np.zeros(len(group))
        np.maximum.at(best, row, quality(len(row), ranks=rankings))
        pile.weigh(np.where(np.isin(np.arange(len(group)), row), best, 1.0), group)
        found = inconsistent_pairs(*rankings, share=share)
        pairs = np.bincount(row, minlength=len(group))
        failed = np.bincount(row[found.rows], minlength=len(group))
        first = np.unique(row[found.rows], return_index=True)[1]  # of the pairs of each row
        chosen = first[(failed == pairs)[row[found.rows[first]]]]
        others = found.others[chosen]
        rows = row[found.rows[chosen]]
        pile.apply(Findings(found.reason, rows, np.where(others < 0, -1, row[others]), found.values[chosen]), group)


def _positive_pairs(group: Group) -> tuple[np.ndarray, list[str], list[str]]:
    """The row, query and positive of each pair that belongs together: of scored pairs those in the top fifth of the scale."""
    columns = group.columns
    if group.family in QUERIES:
        pairs = [(row, q, p) for row, (q, ps) in enumerate(zip(columns["query"], columns["positive"], strict=True)) for p in ps]
    elif group.family in PAIRS:
        scores = np.array(columns["score"] if "score" in columns else columns["label"], dtype=np.float64)
        least = scores.max() - 0.2 * np.ptp(scores)
        chosen = np.flatnonzero(scores >= least) if np.ptp(scores) else np.empty(0, np.int64)
        pairs = [(row, columns["text1"][row], columns["text2"][row]) for row in chosen.tolist()]
    else:
        pairs = []
    return np.array([pair[0] for pair in pairs], np.int64), [pair[1] for pair in pairs], [pair[2] for pair in pairs]


STEPS: dict[str, Callable[..., None]] = {
    "repair": repair_step,
    "texts": text_step,
    "leaks": leak_step,
    "contradictions": contradiction_step,
    "duplicates": duplicate_step,
    "labels": label_step,
    "consistency": consistency_step,
}
_BY_SHARDS = ("leaks", "duplicates")
