"""Which scores are compared, and which way is better, against a loop over all pairs."""

import random
from itertools import product
from pathlib import Path

import pytest

from acge_lightning.continual.forgetting import measures
from acge_lightning.evaluation.scored_rows import rows_hash
from acge_lightning.report.comparison import best, lower_is_better, row_letters, runs_by_rows
from acge_lightning.report.runs import Run


@pytest.mark.parametrize("lower", [False, True])
def test_best_is_what_no_other_of_the_same_rows_beats(lower):
    rng = random.Random(0)
    for _ in range(200):
        values = [rng.choice([None, float("nan"), 0.0, 0.25, 0.5]) for _ in range(5)]
        rows = [rng.choice(["a", "b", None]) for _ in range(5)]
        pairs = [(i, j) for i, j in product(range(5), repeat=2) if rows[i] is not None and rows[i] == rows[j]]
        scored = [(i, j) for i, j in pairs if values[i] is not None and values[j] is not None]
        beats = {(i, j) for i, j in scored if (values[i] < values[j] if lower else values[i] > values[j])}
        expected = {i for i, _ in beats} - {j for _, j in beats}
        assert best(values, rows, lower) == expected


def test_what_stages_measure_has_a_direction():
    """Only forgetting is better when it is lower."""
    names = measures([[0.8, 0.2], [0.7, 0.75]], [0.1, 0.1])
    assert {name for name in names if lower_is_better(f"test/{name}")} == {"forgetting"}


def a_run(name, **rows):
    entries = {task: {"family": "sts", "rows": 10, "hash": digest, "seen": 0} for task, digest in rows.items()}
    return Run(name, Path(name), after={"val/mean": 0.5}, rows={"val": entries} if rows else {})


def test_runs_of_the_same_rows_have_the_same_letter():
    same = [a_run("a", x="1", y="2"), a_run("b", y="2", x="1")]
    assert row_letters(same, "val") == ["", ""]
    assert row_letters([a_run("a"), a_run("b")], "val") == ["", ""], "nothing tells them apart"
    runs = [*same, a_run("c", x="1"), a_run("d", x="1", y="3"), a_run("e"), Run("f", Path("f"))]
    assert row_letters(runs, "val") == ["A", "A", "B", "C", "?", ""]
    assert row_letters(runs, "test") == [""] * 6
    groups = {title: [run.name for run in group] for title, group in runs_by_rows(runs, "val").items()}
    assert groups == {", rows A": ["a", "b"], ", rows B": ["c"], ", rows C": ["d"], ", rows ?": ["e"], "": ["f"]}


def test_the_letters_do_not_end_after_z():
    letters = row_letters([a_run(str(i), x=str(i)) for i in range(60)], "val")
    assert len(set(letters)) == 60


def test_scores_of_prefixes_are_of_the_rows_of_the_whole():
    run = a_run("a", x="1", y="2").rows
    run["val"]["y"]["family"] = "pair"
    assert rows_hash("val/mean@64", run) == rows_hash("val/mean", run)
    assert rows_hash("val/pair@64", run) == rows_hash("val/y/ap@64", run) == rows_hash("val/pair", run)
    assert len({rows_hash(f"val/{name}@64", run) for name in ("mean", "pair", "sts")}) == 3
