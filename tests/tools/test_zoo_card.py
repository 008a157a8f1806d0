"""What the cards of the encoders of the package say, from results as `acge evaluate` writes them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import zoo_card

NANO = "acge-nano-zh"
SETS = {"sts": "atec", "pair": "bustm", "classification": "tnews", "clustering": "csl_category", "retrieval": "cmrc2018"}
DATA = {
    "clustering/csl_category": {
        "from": ["ydli-ai/CSL@1"],
        "licence": "Apache-2.0",
        "kept": 1200,
        "left_out": {"near test": 3, "x": 4},
    }
}


@pytest.fixture
def results():
    """Two encoders and TF-IDF on one set a family but reranking, where BM25 alone is scored; one error."""
    rng = np.random.default_rng(0)
    encoders = [{"name": "tfidf", "dim": None}, {"name": "bm25", "dim": None}, {"name": NANO, "dim": 64}]
    rows, differences = [], []
    for family, dataset in [*SETS.items(), ("reranking", "rgb_news_zh")]:
        for name, dim in (("tfidf", None), ("bm25", None), (NANO, 64), (NANO, 8)):
            if name != "bm25" or family in ("retrieval", "reranking"):
                row = {"encoder": name, "family": family, "dataset": dataset, "dim": dim, "metric": "m", "n": 1234}
                rows.append(row | {"value": round(float(rng.random()), 4), "error": None})
        differences.append({"encoder": NANO, "against": "tfidf", "family": family, "dataset": dataset})
        differences[-1] |= {"difference": 0.0123, "low": -0.005, "high": 0.03}
    rows.append({**rows[0], "dataset": "broken", "value": None, "error": "no rows"})
    leaks = [{"encoder": NANO, "rows": 500, "found": 2}, {"encoder": NANO, "rows": 700, "found": 0}]
    return {"encoders": encoders, "rows": rows, "differences": differences, "leaks": leaks}


def test_the_table_has_the_means_that_a_loop_finds(results):
    lines = zoo_card.scores(results).splitlines()
    for name, dim in (("tfidf", None), (NANO, 64), (NANO, 8)):
        values = [
            100 * row["value"] for row in results["rows"] if (row["encoder"], row["dim"], row["error"]) == (name, dim, None)
        ]
        by_family = " | ".join(f"{value:.1f}" for value in values)
        assert f"| {name} | {dim or ''} | {by_family} | {np.mean(values):.2f} |" in lines
    [bm25] = [line for line in lines if line.startswith("| bm25")]
    cells = [cell.strip() for cell in bm25.strip("|").split("|")]
    assert [bool(cell) for cell in cells[2:]] == [False] * 4 + [True] * 2 + [False]  # no mean of two beside means of six


def test_each_set_stands_beside_its_difference(results):
    text = zoo_card.differences(results, NANO)
    value = next(row["value"] for row in results["rows"] if row["encoder"] == NANO and row["dataset"] == "tnews")
    assert f"| classification/tnews | m | 1,234 | {100 * value:.1f} | +1.2 | -0.5 to +3.0 |" in text
    assert "broken" not in text


def test_what_was_seen_is_told_apart(results):
    text = zoo_card.never_seen(results, DATA, NANO)
    assert "no row was trained on: atec, bustm, tnews, cmrc2018, rgb_news_zh, broken." in text
    assert "Of these, the training rows were: csl_category." in text
    assert "1,200 test rows that could be checked, 2 equal a training row" in text
    assert "| clustering/csl_category | ydli-ai/CSL@1 | Apache-2.0 | 1,200 | 7 |" in zoo_card.sources(DATA)


def test_the_page_and_its_picture_are_written(results, tmp_path):
    files = [tmp_path / "results.json", tmp_path / "data.json"]
    for file, value in zip(files, (results, DATA), strict=True):
        file.write_text(json.dumps(value), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    zoo_card.main([*map(str, files), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert all(part in page for part in (zoo_card.scores(results), zoo_card.differences(results, NANO), zoo_card.sources(DATA)))
    assert (tmp_path / "docs" / "pictures" / "zoo.png").read_bytes().startswith(b"\x89PNG")
    assert zoo_card.scores(results) in zoo_card.card(results, DATA, NANO)
