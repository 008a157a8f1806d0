"""What a run shows at its end, read back from the printed tables and compared with files and numpy."""

import csv
import gzip
import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

import acge_lightning
from acge_lightning.data import MixtureDataModule, RerankingDataModule, RetrievalDataModule, UnlabelledDataModule
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.report.tables import score_table, searches, summarise, write_result
from acge_lightning.terminal import Console, show

SAMPLE = Path(acge_lightning.__file__).parent / "sample"
ELEVEN = [0, 15, 30, 45, 60, 74, 89, 104, 119, 134, 149]  # evenly spaced among the 150 dev queries
PROMPTS = {"ask": "用户想要查询如何办理：", "answer": "文档"}


def printed(table):
    """The lines of a printed table, header first, each a list of its cells."""
    file = io.StringIO()
    Console(file=file, width=300).print(table)
    lines = [line for line in file.getvalue().splitlines() if line[:1] in ("┃", "│")]
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines]


# ---- scores


def test_scores_before_and_after():
    before = {"val/mean": 0.5, "val/sts": 0.4, "val/b/spearman": 0.41, "val/gone": 0.9, "val/b/pearson": 0.3}
    after = {
        "val/mean": 0.625,
        "test/mean": 0.7,
        "val/sts": 0.30004,
        "test/sts": 0.2,
        "val/b/spearman": 0.41,
        "val/b/pearson": -0.25,
        "test/b/spearman": 1,
        "val/a/ndcg@10": 0.123456,
    }
    assert printed(score_table(before, after)) == [
        ["score", "before", "after", "change"],
        ["test/b/spearman", "", "1.0000", ""],
        ["val/a/ndcg@10", "", "0.1235", ""],
        ["val/b/pearson", "0.3000", "-0.2500", "-0.5500"],
        ["val/b/spearman", "0.4100", "0.4100", "+0.0000"],
        ["test/sts", "", "0.2000", ""],
        ["val/sts", "0.4000", "0.3000", "-0.1000"],
        ["test/mean", "", "0.7000", ""],
        ["val/mean", "0.5000", "0.6250", "+0.1250"],
    ]


def test_scores_without_a_before():
    assert printed(score_table({}, {"val/mean": 0.5, "val/loss": 2.0})) == [
        ["score", "score"],
        ["val/loss", "2.0000"],
        ["val/mean", "0.5000"],
    ]


# ---- searches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def read(name):
    with gzip.open(SAMPLE / "retrieval/sample_zh" / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def sample():
    """Dev queries in the order of their file, documents with their titles, and the right (query, document) places."""
    with (SAMPLE / "retrieval/sample_zh/qrels/dev.tsv").open(encoding="utf-8") as lines:
        judged = list(csv.DictReader(lines, delimiter="\t"))
    asked = {row["query-id"] for row in judged}
    queries = [row for row in read("queries.jsonl.gz") if row["_id"] in asked]
    documents = read("corpus.jsonl.gz")
    place = {row["_id"]: i for rows in (queries, documents) for i, row in enumerate(rows)}
    right = {(place[row["query-id"]], place[row["corpus-id"]]) for row in judged if float(row["score"]) > 0}
    return [row["text"] for row in queries], [f"{row['title']} {row['text']}" for row in documents], right


@pytest.fixture(scope="module")
def encoder(sample):
    tokenizer = train_vocabulary([*sample[0], *sample[1]], "bpe", 1500)
    torch.manual_seed(0)  # printed cosines have three digits: some weights would put one between two of them
    return static(tokenizer, dim=256, prompts=PROMPTS)


def vectors(encoder, texts, prompt):
    table, tokenizer = encoder.backbone.embedding.weight.detach().double().numpy(), encoder.tokenize.tokenizer
    found = np.stack([table[tokenizer(prompt + text, add_special_tokens=False)["input_ids"]].mean(0) for text in texts])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cut(text):
    return text if len(text) <= 46 else text[:45] + "…"


def expected(encoder, sample, prompts, numbers, hits):
    """The lines of the table, from numpy."""
    queries, documents, right = sample
    scores = vectors(encoder, queries, prompts[0]) @ vectors(encoder, documents, prompts[1]).T
    lines = []
    for number in numbers:
        for place, i in enumerate(np.argsort(-scores[number])[:hits]):
            mark = "✓" if (number, i) in right else ""
            lines.append([cut(queries[number]) if place == 0 else "", f"{scores[number, i]:.3f}", cut(documents[i]), mark])
    return lines


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize(("count", "hits", "numbers"), [(3, 3, [0, 74, 149]), (1, 2, [0]), (11, 6, ELEVEN)])
def test_hits_are_those_of_numpy(encoder, sample, folder, prompted, count, hits, numbers):
    prompts = {"query": "ask", "document": "answer"} if prompted else None
    data = RetrievalDataModule("sample:retrieval/sample_zh", prompts=prompts, cache_dir=folder)
    plain = UnlabelledDataModule("sample:unlabelled/sample_zh", holdout=0.05, cache_dir=folder)
    table = searches(encoder, MixtureDataModule({"plain": plain, "faq": data}), count, hits)
    texts = (PROMPTS["ask"], PROMPTS["answer"]) if prompted else ("", "")
    lines = expected(encoder, sample, texts, numbers, hits)
    assert table.title == f"Searches in {len(sample[1])} documents of faq"
    assert printed(table) == [["query", "cosine", "hit", "right"], *lines]
    if count == 11:
        assert {line[3] for line in lines} == {"✓", ""}, "the test needs right and wrong hits"
        assert any(len(line[2]) == 46 for line in lines)


def test_prompts_make_a_difference(encoder, sample):
    lines = [expected(encoder, sample, prompts, [0, 74], 3) for prompts in (("", ""), tuple(PROMPTS.values()))]
    assert lines[0] != lines[1], "or the test above would not notice a prompt left out"


def test_judged_wrong_is_not_right_and_brackets_are_no_markup(encoder, tmp_path):
    rows = [{"query": "[bold]怎么退货[/quote] :smile:", "positive": "退货[red]流程[/red]", "negative": "[/b] 怎么退货"}]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = RetrievalDataModule(tmp_path, cache_dir=tmp_path / "cache")
    lines = printed(searches(encoder, MixtureDataModule({"tiny": data}), count=5, hits=9))[1:]
    assert lines[0][0] == rows[0]["query"]
    assert {(line[2], line[3]) for line in lines} == {(rows[0]["positive"], "✓"), (rows[0]["negative"], "")}
    assert len(lines) == 2


def test_a_query_does_not_find_itself_where_own_ids_are_left_out(encoder, tmp_path):
    texts = ["怎么退货", "今天天气", "公园在哪"]
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n0\t1\t1\n1\t2\t1\n2\t0\t1\n")
    for own in (False, True):
        data = RetrievalDataModule(tmp_path, exclude_own_id=own, cache_dir=tmp_path / "cache")
        lines = printed(searches(encoder, MixtureDataModule({"tiny": data}), count=3, hits=9))[1:]
        assert len(lines) == 9 - 3 * own
        assert (texts[0] in {line[2] for line in lines[: 3 - own]}) == (not own)


def test_nothing_to_search_in(encoder, folder):
    tasks = {
        "plain": UnlabelledDataModule("sample:unlabelled/sample_zh", holdout=0.05, cache_dir=folder),
        "order": RerankingDataModule("sample:reranking/sample_zh", cache_dir=folder),
        "train": RetrievalDataModule("sample:retrieval/sample_zh", splits={"dev": None}, holdout=0, cache_dir=folder),
    }
    assert searches(encoder, MixtureDataModule(tasks)) is None


# ---- the terminal


def test_show_keeps_paths_whole_and_leaves_out_what_is_not_there(capsys):
    path = "/".join(["outputs", "a" * 60, "2026-01-01_00-00-00-000000", "b" * 60])
    show(None, f"The model is in {path}", score_table({}, {"val/mean": 0.5}), None)
    out = capsys.readouterr().out
    assert out.startswith(f"The model is in {path}\nScores")
    assert "None" not in out


# ---- multiruns


def job(folder, name, overrides, score=None):
    hydra = folder / name / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "overrides.yaml").write_text("".join(f"- {line}\n" for line in overrides) or "[]\n", encoding="utf-8")
    if score is not None:
        write_result(folder / name, {"val/mean": 0.9}, {"val/mean": score, "val/sts": 0.95}, folder / name / "export")


def test_result_is_kept_as_json(tmp_path):
    write_result(tmp_path, {}, {"val/mean": 0.5}, tmp_path / "导出")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result == {"before": {}, "after": {"val/mean": 0.5}, "output": str(tmp_path / "导出"), "remarks": []}


def test_summary_of_a_multirun(tmp_path):
    job(tmp_path, "0", ["task=[sample_sts,sample_pair]", "optim.optimizer.lr=0.001"], 0.25)
    job(tmp_path, "1", ["seed=1"])
    job(tmp_path, "2", [], 0.75)
    job(tmp_path, "3", ["encoder=static"], -0.5)
    (tmp_path / "no_job").mkdir()
    (table, _), failed = summarise(tmp_path)
    assert failed == 1
    overrides = "task=[sample_sts,sample_pair] optim.optimizer.lr=0.001"
    assert table.title == "4 jobs, best first"
    assert printed(table) == [
        ["job", "task", "optim.optimizer.lr", "encoder", "seed", "val/mean"],
        ["2", "", "", "", "", "0.7500"],
        ["0", "[sample_sts,sample_pair]", "0.001", "", "", "0.2500"],
        ["3", "", "", "static", "", "-0.5000"],
        ["1", "", "", "", "1", "failed"],
    ]
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as lines:
        assert list(csv.reader(lines)) == [
            ["job", "overrides", "val/mean"],
            ["2", "", "0.75"],
            ["0", overrides, "0.25"],
            ["3", "encoder=static", "-0.5"],
            ["1", "seed=1", "nan"],
        ]


def test_all_jobs_failed(tmp_path):
    job(tmp_path, "0", ["seed=0"])
    job(tmp_path, "1", ["seed=1"])
    ((table,), failed) = summarise(tmp_path)
    assert printed(table) == [["job", "seed", "val/mean"], ["0", "0", "failed"], ["1", "1", "failed"]]
    assert failed == 2


def test_only_what_was_swept_is_shown_and_seeds_make_a_mean(tmp_path):
    fixed = ["+experiment=quickstart", "paths.data_dir=数据 (1)"]
    scores = {
        ("0.1", "0"): 0.5,
        ("0.1", "1"): 0.7,
        ("0.01", "0"): 0.9,
        ("0.01", "1"): 0.8,
        ("0.01", "2"): 0.4,
        ("1", "0"): None,
    }
    for number, ((rate, seed), score) in enumerate(scores.items()):
        job(tmp_path, str(number), [*fixed, f"optim.optimizer.lr={rate}", f"++seed={seed}"], score)
    (jobs, means), failed = summarise(tmp_path)
    assert failed == 1
    assert printed(jobs)[:3] == [
        ["job", "optim.optimizer.lr", "seed", "val/mean"],
        ["2", "0.01", "0", "0.9000"],
        ["3", "0.01", "1", "0.8000"],
    ]
    three, two = statistics.stdev([0.9, 0.8, 0.4]), statistics.stdev([0.5, 0.7])
    assert printed(means) == [
        ["optim.optimizer.lr", "val/mean", "seeds"],
        ["0.01", f"0.7000 ± {three:.4f}", "3"],
        ["0.1", f"0.6000 ± {two:.4f}", "2"],
    ]


def test_summary_without_jobs(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(InputError, match="holds no job"):
        summarise(tmp_path)
    assert not (tmp_path / "summary.csv").exists()
