"""Every command that reads rows takes the remedy that the errors of its readers name."""

import json
from importlib import import_module

import pytest
from test_conf import composed

from acge_lightning.commands import evaluate, fisher, longtail, search
from acge_lightning.commands.single_run import train
from acge_lightning.errors import InputError

LONE = "\\ud800"  # half of a character: valid JSON, and no text
REMEDY = ["on_bad_row=skip", "max_bad_fraction=0.05"]


def write(path, rows):
    """Rows in a file, the 31st of them bad."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[30] = lines[30].replace("bad", LONE)
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Data sets of four families, with a bad row in each file."""
    texts = ["今天天气很好", "怎么退货", "how do I return", "我们去公园"]
    words = ["bad" if i == 30 else f"{texts[i % 4]} {i}" for i in range(60)]
    for split in ("train", "test"):
        write(tmp_path / f"sts/pairs/{split}.jsonl", [{"text1": w, "text2": f"{w} x", "score": len(w)} for w in words])
        write(tmp_path / f"classification/classes/{split}.jsonl", [{"text": f"{w} {split}", "label": w[:2]} for w in words])
    for split in ("train", "dev"):
        triples = [{"query": f"{w}？", "positive": w, "negative": [words[i // 2], words[i // 3]]} for i, w in enumerate(words)]
        write(tmp_path / f"triplet/triples/{split}.jsonl", triples[:60])
    write(tmp_path / "triplet/only_train/train.jsonl", triples)
    beir = tmp_path / "retrieval" / "beir"
    for name in ("corpus", "queries"):
        empty = 12 if name == "corpus" else None
        write(beir / f"{name}.jsonl", [{"_id": f" {i}", "text": "" if i == empty else word} for i, word in enumerate(words)])
    (beir / "qrels").mkdir()
    for split in ("train", "test"):
        lines = ["query-id\tcorpus-id\tscore", *(f"{i}\t{i} \t1" for i in range(60))]
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def given(folder, small_encoder):
    """What all commands are told."""
    names = {"cache_dir": "cache", "data_dir": "", "output_dir": "run"}
    return [f"model={small_encoder}", *(f"paths.{key}={folder / name}" for key, name in names.items())]


def errors(file):
    return {row["dataset"]: row["error"] for row in json.loads(file.read_text())["rows"]}


def test_evaluate(given, tmp_path):
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="4 rows have an error"):
        evaluate.run(composed([*given, f"out={out}"], "evaluate"))
    assert all("line 31: field" in error and "on_bad_row=skip" in error for error in errors(out).values())
    evaluate.run(composed([*given, f"out={out}", *REMEDY], "evaluate"))
    found = {row["dataset"]: row for row in json.loads(out.read_text())["rows"] if row["error"] is None}
    assert {name: row["n"] for name, row in found.items()} == {"pairs": 59, "classes": 59, "beir": 59, "triples": 59}
    left = "1 queries without a relevant document are left out; 1 judgements of texts that are not there are left out"
    assert found["beir"]["note"] == left
    evaluate.run(composed([*given, f"out={tmp_path / 'whole.json'}", "on_bad_row=quarantine", REMEDY[1]], "evaluate"))
    assert len(list((tmp_path / "cache").glob("*.bad.jsonl"))) == 7


def test_evaluate_by_mteb_takes_the_same_rows(given, tmp_path, capsys):
    pytest.importorskip("mteb")
    arguments = [*given, f"out={tmp_path / 'out.json'}", "suite=local", "tasks=[beir,pairs,triples]"]
    with pytest.raises(InputError, match=r"line 31: .* on_bad_row=skip"):
        evaluate.run(composed(arguments, "evaluate"))
    evaluate.run(composed([*arguments, *REMEDY], "evaluate"))
    evaluate.run(composed([*given, f"out={tmp_path / 'own.json'}", "tasks=[beir,pairs,triples]", *REMEDY], "evaluate"))
    files = {file.stem: json.loads(file.read_text())["scores"] for file in tmp_path.glob("out/**/Local*.json")}
    theirs = {name: next(iter(scores.values()))[0] for name, scores in files.items()}
    own = {row["dataset"]: row["value"] for row in json.loads((tmp_path / "own.json").read_text())["rows"] if not row["error"]}
    assert own["beir"] == pytest.approx(theirs["LocalRetrieval_beir"]["main_score"], abs=1e-5)
    assert own["triples"] == pytest.approx(theirs["LocalTriplet_triples"]["main_score"], abs=1e-5)
    assert own["pairs"] == pytest.approx(theirs["LocalSTS_pairs"]["main_score"], abs=1e-5)


def test_longtail(given, tmp_path):
    out = tmp_path / "out.json"
    settings = ["tasks=[classes]", "protocol={shots: [1], seeds: 1, head_shots: 5}", f"out={out}"]
    with pytest.raises(SystemExit, match="was not scored"):
        longtail.run(composed([*given, *settings], "longtail"))
    assert "line 31: field 'text'" in errors(out)["classes"]
    longtail.run(composed([*given, *settings, *REMEDY], "longtail"))
    assert set(errors(out).values()) == {None}


def tasks(folder, *names):
    paths = {"triplets": "retrieval/beir", "scored_pairs": "sts/pairs", "texts": "classification/classes"}
    chosen = [f"task.{name}.data.path={folder / path}" for name, path in paths.items() if name in names]
    return [f"task=[{','.join(names)}]", *chosen]


@pytest.mark.parametrize("task", ["triplets", "scored_pairs"])
def test_fisher(given, folder, task):
    arguments = [*given, *tasks(folder, task), f"output={folder / 'a.safetensors'}", "samples=8", "pool=8"]
    with pytest.raises(InputError, match=r"line 31: .* on_bad_row=skip"):
        fisher.run(composed(arguments, "fisher"))
    fisher.run(composed([*arguments, *REMEDY], "fisher"))
    own = [f"+task.{task}.data.{setting}" for setting in REMEDY]  # of one task
    fisher.run(composed([*arguments, "on_bad_row=raise", *own], "fisher"))


@pytest.mark.parametrize("name", ["pca", "vocabulary"])
def test_commands_that_read_training_texts(given, folder, name):
    arguments = [*given[name == "vocabulary" :], *tasks(folder, "texts", "triplets"), f"output={folder / 'made'}"]
    job = import_module(f"acge_lightning.commands.{name}").run
    with pytest.raises(InputError, match=r"line 31: .* on_bad_row=skip"):
        job(composed(arguments, name))
    job(composed([*arguments, *REMEDY], name))


def test_search(given, folder, capsys):
    arguments = [given[0], f"source={folder / 'classification'}", "query=x", "k=1"]
    with pytest.raises(InputError, match=r"line 31: .* on_bad_row=skip"):
        search.run(composed(arguments, "search"))
    search.run(composed([*arguments, *REMEDY], "search"))
    assert "118 passages of 2 files are indexed" in capsys.readouterr().out


def test_train(given, folder):
    arguments = [*given[1:], *tasks(folder, "scored_pairs", "triplets")]
    arguments += ["callbacks.progress=null", "trainer.max_epochs=1", "encoder.dim=16", "encoder.tokenizer.vocab_size=200"]
    with pytest.raises(InputError, match=r"line 31: .* on_bad_row=skip"):
        train(composed(arguments))
    train(composed([*arguments, *REMEDY]))


def test_a_task_keeps_a_rule_of_its_own(given, folder):
    from acge_lightning.commands.single_run import make_tasks

    arguments = [
        *given[1:],
        *tasks(folder, "scored_pairs", "texts"),
        "+task.texts.data.on_bad_row=quarantine",
        "on_bad_row=skip",
    ]
    made = make_tasks(composed([*arguments, "output=x"], "vocabulary"))
    assert {name: task.data.on_bad_row for name, task in made.items()} == {"scored_pairs": "skip", "texts": "quarantine"}
