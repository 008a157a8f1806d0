"""Leaks beside the scores they spoil: the score without the seen rows is that of files that lack them."""

import gzip
import io
import json
import shutil

import numpy as np
import pytest
from conftest import SAMPLE

from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.evaluation.datasets import FAMILIES, find
from acge_lightning.evaluation.models import open_models
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.export.sentence_transformers import export
from acge_lightning.report.tables import evaluation_tables, score_table
from acge_lightning.terminal import Console
from acge_lightning.zoo.pretrained import load

SCORED = ("sts", "pair", "classification", "reranking", "retrieval")  # whose units are rows
EVERY = 3  # each so many-th test row was trained on


def printed(tables):
    file = io.StringIO()
    for table in tables:
        Console(file=file, width=200).print(table)
    return file.getvalue()


def lines_of(folder, split):
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as handle:
        return handle.read().splitlines(keepends=True)


def without_seen_rows(dataset, seen, target, cache):
    """A copy of a data set whose test split lacks the rows of these hashes; of retrieval, the judgements of such queries."""
    _, evaluation_set = dataset.open(cache)
    is_seen = np.isin(evaluation_set.keys, seen)
    shutil.copytree(dataset.path, target)
    qrels = target / "qrels" / "test.tsv"
    if not qrels.is_file():
        with gzip.open(target / "test.jsonl.gz", "wt", encoding="utf-8") as handle:
            handle.writelines(np.array(lines_of(dataset.path, "test"), dtype=object)[~is_seen])
        return
    rows = {(int(row), int(text)) for text, _, _, row, _ in evaluation_set.judgements.tolist() if row >= 0}
    seen_texts = {evaluation_set.texts[text].as_py() for row, text in rows if is_seen[row]}
    with gzip.open(dataset.path / "queries.jsonl.gz", "rt", encoding="utf-8") as handle:
        seen_ids = {query["_id"] for query in map(json.loads, handle) if query["text"] in seen_texts}
    lines = qrels.read_text(encoding="utf-8").splitlines(keepends=True)
    qrels.write_text("".join(line for line in lines if line.split("\t")[0] not in seen_ids), encoding="utf-8")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Hashes of each third test row of each family."""
    sets = [dataset.open(tmp_path_factory.mktemp("cache"))[1] for dataset in find(SAMPLE)]
    return np.concatenate([evaluation_set.keys[::EVERY] for evaluation_set in sets])


@pytest.fixture(scope="module")
def encoders(seen, tmp_path_factory):
    """Two encoders: `clean` has a record of no rows, `leaky` one of each third test row of each family."""
    folder = tmp_path_factory.mktemp("encoders")
    texts = [json.loads(line)[name] for line in lines_of(SAMPLE / "sts/sample_zh", "train") for name in ("text1", "text2")]
    tokenizer = train_vocabulary(texts, "bpe", 1500)
    export(static(tokenizer, dim=16), folder / "clean", {}, np.zeros(0, dtype=np.int64))
    export(static(tokenizer, dim=16), folder / "leaky", {}, seen)
    assert not np.allclose(load(folder / "clean").encode(["甲"]), load(folder / "leaky").encode(["甲"]))
    return {name: str(folder / name) for name in ("clean", "leaky")}


@pytest.fixture(scope="module")
def scored(encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    return evaluate(open_models(encoders), find(SAMPLE), [], folder / "r.json", folder / "cache"), folder


def by_family(result, encoder="leaky"):
    return {leak["family"]: leak for leak in result["leaks"] if leak["encoder"] == encoder}


@pytest.mark.parametrize("family", SCORED)
def test_the_score_without_seen_rows_is_that_of_files_without_them(family, scored, seen, encoders, tmp_path):
    result, _ = scored
    (dataset,) = find(SAMPLE, [family])
    without_seen_rows(dataset, seen, tmp_path / "data" / family / "sample_zh", tmp_path / "cache")
    oracle = evaluate(open_models(encoders), find(tmp_path / "data"), [], None, tmp_path / "cache")
    value = {row["encoder"]: row["value"] for row in oracle["rows"]}
    leak, whole = by_family(result)[family], {r["encoder"]: r["value"] for r in result["rows"] if r["family"] == family}
    assert leak["rows"] / EVERY <= leak["found"] < leak["rows"] / 2
    assert leak["unseen"] == pytest.approx(value["leaky"], abs=1e-9)
    assert leak["unseen"] != pytest.approx(whole["leaky"], abs=1e-6), "or the test would not notice that none is left out"
    (difference,) = (d for d in result["differences"] if d["family"] == family)
    (expected,) = oracle["differences"]
    assert {key: difference["unseen"][key] for key in ("low", "difference", "high")} == pytest.approx(
        {key: expected[key] for key in ("low", "difference", "high")}, abs=1e-9
    )


def test_where_it_cannot_be_told_the_leak_is_flagged_all_the_same(scored):
    result, _ = scored
    assert by_family(result)["clustering"]["unseen"] is None
    (difference,) = (d for d in result["differences"] if d["family"] == "clustering")
    assert difference["unseen"] is None
    assert not [leak for leak in by_family(result, "clean").values() if leak["found"] or "unseen" in leak]


def test_a_row_seen_in_training_that_leaves_too_few_is_only_flagged(encoders, tmp_path):
    for name, count in (("few", 9), ("enough", 10)):
        (tmp_path / "data" / "sts" / name).mkdir(parents=True)
        rows = [{"text1": f"甲{i}", "text2": "乙", "score": i} for i in range(count)]
        seen = [json.loads(line) for line in lines_of(SAMPLE / "sts/sample_zh", "test")[::EVERY][:5]]
        text = "\n".join(json.dumps(row) for row in [*seen, *rows])
        (tmp_path / "data" / "sts" / name / "test.jsonl").write_text(text, encoding="utf-8")
    result = evaluate(open_models(encoders["leaky"]), find(tmp_path / "data"), [], None, tmp_path / "cache")
    leaks = {leak["dataset"]: leak for leak in result["leaks"]}
    assert [leaks[name]["found"] for name in ("few", "enough")] == [5, 5]
    assert leaks["few"]["unseen"] is None
    assert leaks["enough"]["unseen"] is not None


def test_a_run_that_goes_on_keeps_what_it_has_computed(scored, encoders, monkeypatch):
    result, folder = scored
    for metric in {type(metric) for _, metric in FAMILIES.values()}:
        monkeypatch.setattr(metric, "units", None)  # which nothing may call
    again = evaluate(open_models(encoders), find(SAMPLE), [], folder / "r.json", folder / "cache")
    assert again["leaks"] == result["leaks"]
    assert again["differences"] == result["differences"]


def test_the_tables_show_leaks_beside_the_scores(scored):
    result, folder = scored
    leak = by_family(result)["sts"]
    (row,) = (r for r in result["rows"] if (r["encoder"], r["family"]) == ("leaky", "sts"))
    text = printed(evaluation_tables(result))
    assert f"{row['value']:.4f} †33.3 % seen" in text
    assert f"{leak['unseen']:.4f} unseen rows" in text
    assert text.count("† so many of the scored rows") == 1
    (difference,) = (d for d in result["differences"] if d["family"] == "sts")
    assert f"{difference['difference']:+.4f} †" in text
    assert "sts/sample_zh, unseen rows" in text
    means = [line for line in text[text.index("Means of families") : text.index("Differences")].splitlines() if "16" in line]
    assert [line.count("†") for line in means] == [0, 7], "six families and their mean"
    (table,) = folder.glob("*.csv")
    header, *lines = (line.split(",") for line in table.read_text(encoding="utf-8-sig").splitlines())
    cells = {(cell["encoder"], cell["family"]): cell for cell in (dict(zip(header, line, strict=False)) for line in lines)}
    assert int(cells["leaky", "sts"]["seen"]) == leak["found"]
    assert float(cells["leaky", "sts"]["unseen"]) == leak["unseen"]
    assert cells["clean", "sts"]["unseen"] == ""


def test_the_table_of_a_run_shows_leaks_beside_its_scores():
    entries = {"a": {"family": "sts", "rows": 1000, "hash": "x", "seen": 273}, "b": {"family": "pair", "rows": 9, "seen": 0}}
    scores = {"val/a/spearman": 0.75, "val/b/ap": 0.5, "val/sts": 0.75, "val/pair": 0.5, "val/mean": 0.625}
    text = printed([score_table(dict.fromkeys(scores, 0.5), scores, {"val": entries})])
    marks = {line.split("│")[1].strip(): line.count("†") for line in text.splitlines() if line.startswith("│")}
    assert marks == {"val/a/spearman": 2, "val/b/ap": 0, "val/sts": 2, "val/pair": 0, "val/mean": 2}, "score and change"
    assert "0.7500 †27.3 % seen" in text
    assert "the score is too high" in text
    assert "†" not in printed([score_table({}, scores, {"val": {"b": entries["b"]}})])
