"""mteb's scores on local folders against scipy, scikit-learn, trec_eval and loops; its result files, prompts and errors."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mteb
import numpy as np
import pytest
import pytrec_eval
import torch
from conftest import SAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, v_measure_score

from acge_lightning.encoder.build import static, transformer
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset, find
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.mteb.benchmark import run_local, run_suite
from acge_lightning.evaluation.mteb.encoder import MTEBEncoder, as_mteb
from acge_lightning.evaluation.mteb.tasks import local_tasks
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import load

FAMILIES = ("classification", "clustering", "pair", "reranking", "retrieval", "sts")
MAIN = {
    "classification": "accuracy",
    "clustering": "v_measure",
    "pair": "cosine_ap",
    "reranking": "map_at_1000",
    "retrieval": "ndcg_at_10",
    "sts": "cosine_spearman",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of an encoder that knows the characters of the sample, so that few of its cosines are equal."""
    texts = [row[name] for row in rows("sts", "train") for name in ("text1", "text2")]
    torch.manual_seed(0)
    encoder = static(train_vocabulary(texts, "bpe", 1500), dim=16)
    encoder.prompts = {"ask": "问：", "answer": "答："}
    return export(encoder, tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture
def encoder(folder):
    return load(folder)


@pytest.fixture
def vectors(encoder):
    """Vectors of the texts under a name in rows."""
    return lambda found, name="text": encoder.encode([row[name] for row in found]).numpy()


@pytest.fixture(scope="module")
def scores(folder, tmp_path_factory):
    """mteb's values on the sample, by family."""
    out = tmp_path_factory.mktemp("results")
    found = run_local(load(folder), "small", find(SAMPLE), out, cache_dir=out / "cache")
    return {key.partition("/")[0]: values for key, values in found.items()}


def rows(family, split="test"):
    with gzip.open(SAMPLE / family / "sample_zh" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def written(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def dataset(family, path, split="test"):
    return Dataset(family, path, split)


# ---- scores


@pytest.mark.parametrize("family", FAMILIES)
def test_the_main_score_is_that_of_the_family(scores, family):
    assert scores[family]["main_score"] == scores[family][MAIN[family]]
    assert 0 < scores[family]["main_score"] < 1


def test_sts_equals_scipy(scores, vectors):
    found = rows("sts")
    cosine = (vectors(found, "text1").astype(float) * vectors(found, "text2")).sum(1)
    expected = spearmanr([row["score"] for row in found], cosine).statistic
    assert scores["sts"]["cosine_spearman"] == pytest.approx(expected, abs=1e-6)


def test_pair_equals_scikit_learn(scores, vectors):
    found = rows("pair")
    cosine = (vectors(found, "text1") * vectors(found, "text2")).sum(1)
    expected = average_precision_score([row["label"] for row in found], cosine)
    assert scores["pair"]["cosine_ap"] == pytest.approx(expected, abs=1e-6)


def test_classification_equals_ten_logistic_regressions(scores, vectors):
    train, test = rows("classification", "train"), rows("classification")
    words = sorted({row["label"] for row in train + test})
    known, answers = (np.array([words.index(row["label"]) for row in part]) for part in (train, test))
    order, accuracies = list(range(len(train))), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        chosen = [i for place, i in enumerate(order) if sum(known[j] == known[i] for j in order[:place]) < 8]
        probe = LogisticRegression(max_iter=100, random_state=42).fit(vectors(train)[chosen], known[chosen])
        accuracies.append((probe.predict(vectors(test)) == answers).mean())
    assert len(set(accuracies)) > 1
    assert scores["classification"]["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)


def test_clustering_equals_ten_k_means(scores, vectors):
    found = rows("clustering")
    truth, points = np.array([row["label"] for row in found]), vectors(found)
    draw, values = random.Random(42), []
    for _ in range(10):
        chosen = draw.choices(range(len(truth)), k=2048)
        means = MiniBatchKMeans(len(set(truth)), batch_size=512, init="k-means++", n_init=1, random_state=42)
        values.append(v_measure_score(truth[chosen], means.fit_predict(points[chosen])))
    assert len(set(values)) == 10
    assert scores["clustering"]["v_measure"] == pytest.approx(np.mean(values), abs=1e-6)
    assert scores["clustering"]["v_measure_std"] == pytest.approx(np.std(values), abs=1e-6)


def trec(relevant, run, measure):
    found = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(run)
    return np.mean([values[measure] for values in found.values()])


def test_retrieval_equals_trec_eval(scores, vectors):
    home = SAMPLE / "retrieval/sample_zh"
    corpus, queries = rows("retrieval", "corpus"), rows("retrieval", "queries")
    corpus = [{"_id": row["_id"], "text": f"{row['title']} {row['text']}"} for row in corpus]
    relevant = {}
    for line in (home / "qrels/test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        relevant.setdefault(query, {})[document] = int(grade)
    queries = [row for row in queries if row["_id"] in relevant]
    cosines = vectors(queries) @ vectors(corpus).T
    run = {
        q["_id"]: dict(zip((d["_id"] for d in corpus), c.tolist(), strict=True)) for q, c in zip(queries, cosines, strict=True)
    }
    assert scores["retrieval"]["ndcg_at_10"] == pytest.approx(trec(relevant, run, "ndcg_cut_10"), abs=1e-6)


def test_reranking_equals_trec_eval(scores, encoder):
    relevant, run = {}, {}
    for number, row in enumerate(rows("reranking")):
        listed = row["positive"] + row["negative"]
        cosine = (encoder.encode(listed) @ encoder.encode(row["query"])[0]).tolist()
        run[str(number)] = {f"{i:03d}": value for i, value in enumerate(cosine)}
        relevant[str(number)] = {f"{i:03d}": int(i < len(row["positive"])) for i in range(len(listed))}
    assert scores["reranking"]["map_at_1000"] == pytest.approx(trec(relevant, run, "map_cut_1000"), abs=1e-6)


def test_acge_evaluate_gives_the_same(scores, encoder, tmp_path):
    for row in evaluate([Model("small", "small", encoder)], find(SAMPLE), [], cache_dir=tmp_path)["rows"]:
        assert row["value"] == pytest.approx(scores[row["family"]]["main_score"], abs=1e-6)


WORDS = ["。", "？", "公园", "天气", "怎么", "退货"]


def drawn_texts(rng, count):
    """Many of them equal. Words stand in one order: in another they have the same mean but for the last bits."""
    return [" ".join(WORDS[i] for i in sorted(rng.choice(6, rng.integers(1, 4), replace=False))) for _ in range(count)]


def scattered(encoder, seed):
    """The encoder, with vectors of its own for each text: some texts share one."""

    def encode(texts, dim=None, *, prompt=None, **others):
        rows = [np.random.default_rng([seed, *text.encode()]) for text in texts]
        vectors = [np.random.default_rng([seed, row.integers(5)]) if row.random() < 0.4 else row for row in rows]
        vectors = torch.tensor(np.array([row.normal(size=encoder.dim) for row in vectors]), dtype=torch.float32)
        return torch.nn.functional.normalize(vectors, dim=-1)

    encoder.encode = encode
    return encoder


def by_trec_eval(encoder, queries, pools, grades, measure):
    """Queries' texts; each query's pool of document -> text; its grades of documents."""
    texts = list({text for pool in pools.values() for text in pool.values()})
    document = dict(zip(texts, encoder.encode(texts).double().numpy(), strict=True))
    run = {}
    for query, vector in zip(queries, encoder.encode(list(queries.values())).double().numpy(), strict=True):
        run[query] = {name: float(document[text] @ vector) for name, text in pools[query].items()}
    return trec({query: grades[query] for query in queries}, run, measure)


def both_scores(encoder, family, home, exclude=False):
    with tempfile.TemporaryDirectory() as cache:
        found = Dataset(family, home, "test", max_bad_fraction=1.0, exclude_own_id=exclude)
        (row,) = evaluate([Model("small", "small", encoder)], [found], [], cache_dir=cache)["rows"]
        theirs = run_local(encoder, "small", [found], Path(cache, "out"), cache_dir=cache)[home.name]
    assert row["error"] is None
    return row, theirs


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_retrieval_of_any_folder_equals_mteb_and_trec_eval(folder, seed, words, exclude):
    """Documents and queries of equal text, empty ones, several grades, queries that are documents, fewer documents than ten."""
    rng = np.random.default_rng(seed)
    encoder = load(folder) if words else scattered(load(folder), seed)
    count = int(rng.integers(1, 9 if rng.random() < 0.3 else 40))
    texts = [text if rng.random() < 0.9 else "" for text in drawn_texts(rng, count)]
    documents = dict(zip((f"{i:03d}" for i in range(count)), texts, strict=True))
    names = [f"{i:03d}" if rng.random() < 0.5 else f"q{i}" for i in range(1, 1 + rng.integers(1, 8))]
    if exclude:
        names[0] = "000"
    queries = dict(zip(names, drawn_texts(rng, len(names)), strict=True))
    grades = {q: {f"{d:03d}": int(rng.integers(-1, 4)) for d in rng.integers(0, count, 4)} for q in queries}
    for known in grades.values():
        known[f"{rng.integers(count):03d}"] = int(rng.integers(1, 4))
    with tempfile.TemporaryDirectory() as root:
        home = Path(root, "set")
        written(home / "corpus.jsonl", [{"_id": name, "text": text} for name, text in documents.items()])
        written(home / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
        lines = [f"{q}\t{d}\t{grade}" for q, known in grades.items() for d, grade in known.items()]
        (home / "qrels").mkdir()
        (home / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
        row, theirs = both_scores(encoder, "retrieval", home, exclude)
    pools = {q: {d: text for d, text in documents.items() if not exclude or d != q} for q in queries}
    assert row["value"] == pytest.approx(by_trec_eval(encoder, queries, pools, grades, "ndcg_cut_10"), abs=1e-6)
    for ours, name in (("ndcg", "main_score"), ("mrr", "mrr_at_10"), ("recall", "recall_at_10")):
        assert row["values"][ours] == pytest.approx(theirs[name], abs=1e-6)
    assert row["n"] == len(queries)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_reranking_of_any_rows_equals_mteb_and_trec_eval(folder, seed, words):
    """Candidates listed twice, as positive and negative, by several queries; queries of equal text, or with one kind only."""
    rng = np.random.default_rng(seed)
    encoder = load(folder) if words else scattered(load(folder), seed)
    lists = [(drawn_texts(rng, rng.integers(1, 5)), drawn_texts(rng, rng.integers(0, 9))) for _ in range(6)]
    lists[0] = lists[0][0], lists[0][0] + lists[0][1]
    queries = dict(zip((f"{i}" for i in range(len(lists))), drawn_texts(rng, len(lists)), strict=True))
    with tempfile.TemporaryDirectory() as root:
        asked = zip(queries.values(), lists, strict=True)
        written(Path(root, "set/test.jsonl"), [{"query": q, "positive": good, "negative": bad} for q, (good, bad) in asked])
        row, theirs = both_scores(encoder, "reranking", Path(root, "set"))
    kept = {name: text for (name, text), (_, bad) in zip(queries.items(), lists, strict=True) if bad}
    pools = {q: {f"{i:03d}": text for i, text in enumerate([*lists[int(q)][0], *lists[int(q)][1]])} for q in kept}
    grades = {q: {d: int(int(d) < len(lists[int(q)][0])) for d in pools[q]} for q in kept}
    assert row["value"] == pytest.approx(by_trec_eval(encoder, kept, pools, grades, "map_cut_1000"), abs=1e-6)
    assert row["value"] == pytest.approx(theirs["main_score"], abs=1e-6)
    assert row["values"]["mrr"] == pytest.approx(theirs["mrr_at_10"], abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["classification", "clustering", "pair", "sts"])
def test_rows_that_repeat_have_the_scores_of_mteb(encoder, tmp_path, family, seed):
    """Texts and pairs that come several times, a text with itself, one text of several classes, labels never learnt from."""
    rng = np.random.default_rng(seed)
    texts, home = drawn_texts(rng, 120), tmp_path / "set"
    classed = [{"text": text, "label": "abcd"[i % (2 if i < 40 else 4)]} for i, text in enumerate(texts)]
    pairs = [{"text1": a, "text2": b} for a, b in zip(texts[:60], [*texts[60:100], *texts[40:60]], strict=True)]
    label = {"pair": "label", "sts": "score"}.get(family, "")
    rows = {"pair": pairs, "sts": pairs, "classification": classed[40:], "clustering": classed}[family]
    written(home / "test.jsonl", [{**row, label: int(rng.integers(2))} if label else row for row in rows])
    if family == "classification":
        written(home / "train.jsonl", classed[:40])
    row, theirs = both_scores(encoder, family, home)
    assert row["value"] == pytest.approx(theirs["main_score"], abs=1e-6)


SHOP = {"d1": "refund policy", "d2": "the shop opens at nine", "d3": "the shop opens at nine", "d4": "parking"}
JACKET = {"d1": "you can return any jacket within 30 days", "d2": "shipping takes two days", "d3": "a man plays guitar"}


@pytest.mark.parametrize(
    ("documents", "queries", "ranking", "expected"),
    [
        (SHOP, [("when does the shop open", "d2")], ["d3", "d2", "d1", "d4"], 1 / np.log2(3)),
        (JACKET, [("return jacket", "d1"), ("return jacket", "d2")], ["d1", "d2", "d3"], (1 + 1 / np.log2(3)) / 2),
    ],
)
def test_equal_documents_and_equal_queries(encoder, tmp_path, documents, queries, ranking, expected):
    """The first of equal documents ranks second; of equal queries each has its own answer."""
    place = {documents[name]: i for i, name in enumerate(reversed(ranking))}
    angles = {text: 1.2 - 0.3 * i for text, i in place.items()}

    def encode(texts, dim=None, *, prompt=None, **others):
        return torch.tensor([[np.cos(angles.get(text, 0)), np.sin(angles.get(text, 0))] + [0] * 14 for text in texts]).float()

    encoder.encode = encode
    home = tmp_path / "set"
    written(home / "corpus.jsonl", [{"_id": name, "text": text} for name, text in documents.items()])
    written(home / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, (text, _) in enumerate(queries)])
    lines = [f"q{i}\t{answer}\t1" for i, (_, answer) in enumerate(queries)]
    (home / "qrels").mkdir()
    (home / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    row, theirs = both_scores(encoder, "retrieval", home)
    assert row["value"] == pytest.approx(expected, abs=1e-9)
    assert theirs["main_score"] == pytest.approx(expected, abs=1e-6)


def test_the_dev_split_has_scores_of_its_own(scores, encoder, tmp_path):
    for split in ("test", "dev"):
        found = run_local(encoder, "small", find(SAMPLE, ["sts", "retrieval"], split), tmp_path, cache_dir=tmp_path)
        for key, values in found.items():
            assert (values["main_score"] == scores[key.partition("/")[0]]["main_score"]) == (split == "test")


def test_of_equal_documents_the_later_one_ranks_first(encoder, tmp_path):
    home = tmp_path / "twins"
    texts = ["公园", "怎么退货", "怎么退货", "天气"]
    written(home / "corpus.jsonl", [{"_id": name, "text": text} for name, text in zip("zyxw", texts, strict=True)])
    written(home / "queries.jsonl", [{"_id": "q", "text": "怎么退货"}, {"_id": "r", "text": "天气"}])
    for document, expected in (("x", 1), ("y", 1 / np.log2(3))):
        (home / "qrels").mkdir(exist_ok=True)
        (home / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{document}\t1\nq\tz\t-1\n")
        found = run_local(encoder, "small", [dataset("retrieval", home)], tmp_path / document, cache_dir=tmp_path)
        assert found["twins"]["main_score"] == pytest.approx(expected, abs=1e-5)


def test_reranking_leaves_out_queries_with_candidates_of_one_kind(encoder, tmp_path):
    both = [{"query": "退货", "positive": ["怎么退货"], "negative": ["天气", "怎么退货"]}]
    written(tmp_path / "a/test.jsonl", both)
    written(tmp_path / "b/test.jsonl", [*both, {"query": "天气", "positive": ["公园"], "negative": []}])
    sets = [dataset("reranking", tmp_path / name) for name in "ab"]
    found = run_local(encoder, "small", sets, tmp_path / "out", cache_dir=tmp_path)
    assert found["a"] == found["b"]
    assert found["a"]["map_at_1000"] == 0.5  # an equal negative ranks before it


# ---- the encoder as mteb sees it


def batches(texts):
    return [{"text": texts[i : i + 2]} for i in range(0, len(texts), 2)]


TASK = SimpleNamespace(name="T2Retrieval", type="Retrieval")


@pytest.mark.parametrize("dim", [None, 16, 5])
def test_vectors_are_cut_then_normalised(encoder, dim):
    model = as_mteb(encoder, "small", dim)
    texts = ["怎么退货？", "今天天气很好", "怎么退货？"]
    found = model.encode(batches(texts), task_metadata=TASK, hf_split="dev", hf_subset="default", batch_size=2)
    assert isinstance(model, mteb.models.EncoderProtocol)
    assert not isinstance(model, mteb.models.SearchProtocol)
    cut = encoder.encode(texts).numpy()[:, :dim]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
    assert (found[0] == found[2]).all()
    np.testing.assert_allclose(model.similarity(found, found[:2]), found @ found[:2].T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(found, found), np.ones(3), atol=1e-6)


def test_the_description_is_true(encoder):
    meta = as_mteb(encoder, "small", 5, {"query": "ask"}).mteb_model_meta
    table = encoder.backbone.embedding.weight
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("local/small", 5, encoder.tokenize.max_length)
    assert meta.n_parameters == meta.n_embedding_parameters == table.numel()
    assert meta.memory_usage_mb == pytest.approx(table.numel() * 4 / 2**20)
    assert meta.languages is meta.open_weights is meta.training_datasets is meta.license is None
    assert meta.similarity_fn_name.value == "cosine"
    assert meta.use_instructions
    assert meta.experiment_kwargs == {"embed_dim": 5, "prompts": {"query": "问："}}
    plain = as_mteb(encoder, "me/small").mteb_model_meta
    assert (plain.name, plain.revision, plain.experiment_kwargs) == ("me/small", meta.revision, None)


def test_a_transformer_is_described_too(encoder):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformer(encoder.tokenize.tokenizer, {"model_type": "bert"} | sizes)
    meta = as_mteb(model, "small").mteb_model_meta
    assert meta.n_embedding_parameters == 8 * model.backbone.config.vocab_size
    assert meta.n_parameters == sum(weight.numel() for weight in model.parameters())


KEYS = ("T2Retrieval-query", "T2Retrieval", "Retrieval-query", "Retrieval", "query", "document", "Retrieval-document", "STS")


@pytest.mark.parametrize("seed", range(20))
def test_prompts_are_chosen_as_mteb_does(seed):
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    chosen = random.Random(seed).sample(KEYS, seed % len(KEYS))
    prompts = {key: f"prompt of {key}" for key in chosen}
    for role in (None, *PromptType):
        assert MTEBEncoder(None, None, None, prompts).prompt(TASK, role) == prompts.get(get_prompt_name(prompts, TASK, role))


def test_prompts_and_dim_arrive_at_the_encoder(encoder, tmp_path, monkeypatch):
    seen = set()
    original = Encoder.encode

    def spy(self, texts, dim=None, *, prompt=None, **others):
        seen.update((text, dim, prompt) for text in texts)
        return original(self, texts, dim, prompt=prompt, **others)

    monkeypatch.setattr(Encoder, "encode", spy)
    prompts = {"query": "ask", "document": "answer", "LocalSTS_sample_zh": "ask"}
    sets = find(SAMPLE, ["sts", "pair", "reranking"])
    found = run_local(encoder, "small", sets, tmp_path, 7, prompts, tmp_path)
    for family, name, prompt in (("sts", "text1", "ask"), ("pair", "text2", None), ("reranking", "query", "ask")):
        assert {(row[name], 7, prompt) for row in rows(family)} <= seen
    assert {(text, 7, "answer") for row in rows("reranking") for text in row["negative"]} <= seen
    assert found != run_local(encoder, "small", sets, tmp_path, 7, cache_dir=tmp_path)


# ---- files


@pytest.mark.parametrize("dim", [None, 7])
def test_mteb_reads_the_results(encoder, tmp_path, dim):
    sets = find(SAMPLE, ["sts", "pair", "retrieval"])
    found = run_local(encoder, "small", sets, tmp_path, dim, cache_dir=tmp_path / "rows")
    tasks, model = local_tasks(sets, tmp_path / "rows"), as_mteb(encoder, "small", dim)
    results = mteb.ResultCache(tmp_path).load_results([model.mteb_model_meta], tasks)
    (read,) = results.model_results
    assert (read.model_name, read.model_revision) == ("local/small", model.mteb_model_meta.revision)
    by_name = {result.task_name: result for result in read.task_results}
    for task, values in zip(tasks, found.values(), strict=True):
        result = by_name[task.metadata.name]
        assert result.get_score() == values["main_score"]
        assert result.dataset_revision == task.metadata.revision
        assert result.scores["test"][0]["languages"] == ["und-Zyyy"]


def copied(family, target):
    shutil.copytree(SAMPLE / family / "sample_zh", target)
    return dataset(family, target)


def test_only_what_changed_is_scored_again(encoder, tmp_path, monkeypatch):
    calls = []
    original = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    found = copied("clustering", tmp_path / "mine")

    def run(**others):
        calls.clear()
        values = run_local(encoder, "small", [found], tmp_path / "out", cache_dir=tmp_path / "rows", **others)["mine"]
        return values, bool(calls)

    first, scored = run()
    assert scored
    assert run() == (first, False)
    assert run(dim=16) == (first, False)  # all dims
    assert run(dim=3)[1]
    written(found.path / "test.jsonl", rows("clustering")[:200])
    (found.path / "test.jsonl.gz").unlink()
    changed, scored = run()
    assert scored
    assert changed != first
    with torch.no_grad():
        encoder.backbone.embedding.weight.mul_(torch.rand(16))
    assert run()[1]


def test_a_suite_is_scored_from_the_same_start_every_time(encoder, tmp_path, scores, monkeypatch):
    tasks = local_tasks(find(SAMPLE, ["clustering", "sts"]), tmp_path)
    monkeypatch.setattr(mteb, "get_benchmark", {"MTEB(cmn, v1)": SimpleNamespace(tasks=tasks)}.__getitem__)
    for out in ("a", "b"):
        found = run_suite(encoder, "small", out=tmp_path / out)
        assert found == {f"Local{name}_sample_zh": scores[name.lower()] for name in ("Clustering", "STS")}
        assert len(list((tmp_path / out).rglob("Local*.json"))) == 2


def test_random_numbers_of_others_stay_as_they_are(encoder, tmp_path):
    states = []
    for work in (lambda: None, lambda: run_local(encoder, "small", find(SAMPLE, ["sts"]), tmp_path, cache_dir=tmp_path)):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        work()
        states.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert states[0] == states[1]


# ---- errors


def test_a_hub_that_cannot_be_reached(folder, tmp_path):
    code = (
        "import sys\nfrom acge_lightning.evaluation.mteb.benchmark import run_suite\nfrom acge_lightning import load\n"
        "from acge_lightning.errors import InputError\n"
        "try:\n    run_suite(load(sys.argv[1]), 'small', out=sys.argv[2])\nexcept InputError as error:\n    print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert "T2Retrieval: the hub cannot be reached" in done.stdout
    assert "suite=local" in done.stdout


def test_mteb_is_not_installed(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    for call in (
        lambda: as_mteb(encoder, "small"),
        lambda: local_tasks([]),
        lambda: run_suite(encoder, "small", out=tmp_path),
        lambda: run_local(encoder, "small", [], tmp_path),
    ):
        with pytest.raises(InputError, match=r"pip install 'acge-lightning\[eval\]'"):
            call()


@pytest.mark.parametrize(
    ("family", "split", "match"),
    [
        ("unlabelled", "test", "family 'unlabelled' is unknown: choose from sts, pair"),
        ("sts", "train", "split 'train' cannot be scored: choose test or dev"),
        ("retrieval", "dev", r"has no file of a split \(dev\)"),
        ("clustering", "dev", r"has no file of a split \(dev\)"),
        ("classification", "test", "has no train split, which classification needs"),
    ],
)
def test_a_set_that_cannot_be_scored(encoder, tmp_path, family, split, match):
    row = {"text": "a", "label": "b", "query": "c", "positive": "d"}
    written(tmp_path / "set/test.jsonl", [row])
    with pytest.raises(InputError, match=match):
        run_local(encoder, "small", [dataset(family, tmp_path / "set", split)], tmp_path / "out", cache_dir=tmp_path)


def test_grades_must_be_whole_numbers(encoder, tmp_path):
    written(tmp_path / "set/corpus.jsonl", [{"_id": "d", "text": "天气"}])
    written(tmp_path / "set/queries.jsonl", [{"_id": "q", "text": "天气"}])
    (tmp_path / "set/qrels").mkdir()
    (tmp_path / "set/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t0.5\n")
    with pytest.raises(InputError, match=r"has the grade 0\.5: trec_eval needs whole numbers"):
        run_local(encoder, "small", [dataset("retrieval", tmp_path / "set")], tmp_path / "out", cache_dir=tmp_path)


def test_wrong_names_prompts_and_vectors(encoder, tmp_path):
    sets = find(SAMPLE, ["sts"])

    def run(name="small", prompts=None, found=sets, dim=None):
        run_local(encoder, name, found, tmp_path / "out", dim, prompts, tmp_path)

    with pytest.raises(InputError, match="cannot name a model"):
        run("../small")
    with pytest.raises(InputError, match=r"prompts\.query='quer' is unknown: this encoder has \['answer', 'ask'\]"):
        run(prompts={"query": "quer"})
    with pytest.raises(InputError, match=r"prompts\.Retrieval-query fits no text of these tasks"):
        run(prompts={"Retrieval-query": "ask"})
    with pytest.raises(InputError, match="two data sets are LocalSTS_sample_zh"):
        run(found=[*sets, dataset("sts", SAMPLE / "sts/sample_zh", "dev")])
    with pytest.raises(InputError, match="nowhere is not there"):
        run(found=[dataset("sts", tmp_path / "nowhere")])
    with pytest.raises(InputError, match="dim=17"):
        run(dim=17)
    with pytest.raises(InputError, match="suite='nothing' is unknown"):
        run_suite(encoder, "small", "nothing", tmp_path)
    encoder.backbone.embedding.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="LocalSTS_sample_zh: the encoder gave vectors that are not finite"):
        run()


def test_mteb_leaves_the_generators_of_others_alone(encoder, tmp_path):
    """It seeds Python's, NumPy's and torch's."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    run_local(encoder, "small", find(SAMPLE, ["sts", "clustering"]), tmp_path / "mteb", cache_dir=tmp_path / "cache")
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected
