"""The files of evaluations: what later runs, other processes and kills leave of earlier results, and what is not replaced."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import SAMPLE

from acge_lightning.errors import InputError
from acge_lightning.evaluation import results
from acge_lightning.evaluation.datasets import find
from acge_lightning.evaluation.longtail import Protocol, longtail
from acge_lightning.evaluation.models import Model, open_models
from acge_lightning.evaluation.scoring import evaluate
from acge_lightning.report.longtail import save_figures
from acge_lightning.report.page import report
from acge_lightning.report.runs import evaluations, read_runs
from acge_lightning.report.tables import leak_table, summarise, write_result
from acge_lightning.zoo.pretrained import load

DIGEST = {"a": "a1a1a1a1a1a1", "b": "b2b2b2b2b2b2", "c": "c3c3c3c3c3c3"}
QUICK = {"shots": (1,), "seeds": 1, "head": 0.3, "head_shots": 8, "perturbations": ("clean",), "adaptive": False}


def card(name, of):
    return {"name": name, "hash": DIGEST[of], "dim": 16}


def row(encoder, of, dataset, mark, value, dim=16, error=None):
    found = {"encoder": encoder, "hash": DIGEST[of], "family": "sts", "dataset": dataset, "mark": mark, "split": "test"}
    return found | {"dim": dim, "metric": "spearman", "value": value, "n": 9, "seconds": 1.0, "note": None, "error": error}


def result(cards, rows, differences=(), leaks=(), examples=None):
    made = {"format": results.FORMAT, "seed": 42, "encoders": list(cards), "rows": list(rows)}
    return made | {"differences": list(differences), "leaks": list(leaks), "examples": examples or {}}


def scores(file):
    return {(r["encoder"], r["dataset"], r["dim"]): r["value"] for r in json.loads(file.read_text())["rows"]}


@pytest.fixture
def out(tmp_path):
    """A file with results of one encoder on two data sets at two dims."""
    rows = [row("mine", "a", name, f"{name}000000", value, dim) for name, value in (("x", 0.1), ("y", 0.2)) for dim in (16, 8)]
    wrong = {"text": "of a", "expected": "1", "found": "0"}
    shown = {"mine": {"sts/x": {"errors": [wrong], "hash": DIGEST["a"], "mark": "x000000"}}}
    leaks = [{"encoder": "mine", "family": "sts", "dataset": "x", "rows": 9, "found": 1}]
    results.add(tmp_path / "r.json", result([card("mine", "a")], rows, leaks=leaks, examples=shown))
    return tmp_path / "r.json"


# ---- what stays


def test_rows_of_other_data_sets_dims_and_encoders_stay(out):
    results.add(out, result([card("mine", "a"), card("other", "b")], [row("mine", "a", "x", "x000000", 0.9, 16)]))
    results.add(out, result([card("other", "b")], [row("other", "b", "x", "x000000", 0.5)]), table=True)
    kept = {("mine", "x", 16): 0.9, ("mine", "x", 8): 0.1, ("mine", "y", 16): 0.2, ("mine", "y", 8): 0.2}
    assert scores(out) == kept | {("other", "x", 16): 0.5}
    assert [c["name"] for c in json.loads(out.read_text())["encoders"]] == ["mine", "other"]
    assert len(out.with_suffix(".csv").read_text().splitlines()) == 1 + 5


def test_an_encoder_that_lost_its_name_stays_under_a_longer_one(out):
    difference = {"encoder": "other", "against": "mine", "family": "sts", "dataset": "x"}
    difference |= {"difference": 0.1, "low": 0.0, "high": 0.2}
    results.add(out, result([card("mine", "a"), card("other", "b")], [], [difference]))
    results.add(out, result([card("mine", "c")], [row("mine", "c", "x", "x000000", 0.7)]))
    found = json.loads(out.read_text())
    assert {(c["name"], c["hash"]) for c in found["encoders"]} == {
        ("mine (a1a1a1)", DIGEST["a"]), ("other", DIGEST["b"]), ("mine", DIGEST["c"])
    }  # fmt: skip
    assert scores(out)["mine (a1a1a1)", "x", 16] == 0.1
    assert scores(out)["mine", "x", 16] == 0.7
    assert (found["differences"][0]["against"], found["leaks"][0]["encoder"]) == ("mine (a1a1a1)", "mine (a1a1a1)")
    assert found["examples"]["mine (a1a1a1)"]["sts/x"]["errors"][0]["text"] == "of a"
    results.add(out, result([card("mine", "a")], []))  # the first one has its name again, the third a longer one
    assert scores(out)["mine", "x", 16] == 0.1
    assert scores(out)["mine (c3c3c3)", "x", 16] == 0.7


def test_rows_of_data_before_a_change_stay_and_are_not_mixed_with_new_ones(out):
    results.add(out, result([card("other", "b")], [row("other", "b", "x", "newer0000", 0.5)]))
    assert scores(out)["mine", "x (x00000)", 16] == 0.1
    assert scores(out)["other", "x", 16] == 0.5
    found = json.loads(out.read_text())
    assert found["leaks"][0]["dataset"] == "x (x00000)"
    assert list(found["examples"]["mine"]) == ["sts/x (x00000)"]
    told = evaluations(read_runs(str(out)))
    assert {(r["encoder"], r["dataset"]) for r in told["rows"]} == {("mine", "x (x00000)"), ("mine", "y"), ("other", "x")}


def test_a_report_of_two_files_does_not_mix_rows_of_changed_data(out, tmp_path):
    again = [row("other", "b", "x", "newer0000", 0.5), row("other", "b", "y", "y000000", 0.6)]
    results.add(tmp_path / "two" / "results.json", result([card("other", "b")], again))
    told = evaluations(read_runs({"one": str(out), "two": str(tmp_path / "two")}))
    assert {(r["encoder"], r["dataset"]) for r in told["rows"]} == {
        ("mine", "x (x00000)"), ("mine", "y"), ("other", "x (newer0)"), ("other", "y")
    }  # fmt: skip
    assert list(told["examples"]["mine"]) == ["sts/x (x00000)"]


def test_a_failure_stays_until_it_is_tried_again_and_does_not_hide_scores(out):
    failed = row("mine", "a", "x", None, None, error="the file is damaged")
    results.add(out, result([card("mine", "a")], [failed]))
    found = json.loads(out.read_text())["rows"]
    assert [r["value"] for r in found if r["dataset"] == "x"] == [0.1, 0.1, None]
    results.add(out, result([card("mine", "a")], [row("mine", "a", "x", "x000000", 0.3)]))
    found = json.loads(out.read_text())["rows"]
    assert [r["value"] for r in found if r["dataset"] == "x"] == [0.1, 0.3]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    def write(name):
        for i in range(12):
            results.add(tmp_path / "r.json", result([card(name, name)], [row(name, name, f"set{i}", f"mark{i}", 0.5)]))

    threads = [Thread(target=write, args=(name,)) for name in DIGEST]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(scores(tmp_path / "r.json")) == {(name, f"set{i}", 16) for name in DIGEST for i in range(12)}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_what_is_known_is_of_the_same_encoder_prompts_and_rows(small_encoder, tmp_path):
    """Another encoder of the same name, or another prompt, does not take over scores, differences or examples."""
    sets, out = find(SAMPLE, ["sts"]), tmp_path / "r.json"
    first, words = Model("a", "a", load(small_encoder, prompts={"query": "问：" * 9})), Model("words", "tfidf")

    def scored(model):
        return evaluate([model, words], sets, [], out, tmp_path / "cache")

    one = scored(first)
    assert scored(first)["rows"] == one["rows"]
    changed = load(small_encoder)
    changed.backbone.embedding.weight.data = changed.backbone.embedding.weight.data.flip(0)
    for model in (Model("a", "a", changed), Model("a", "a", first.encoder, {"text1": "query", "text": "query"})):
        two = scored(model)
        alone = evaluate([model, words], sets, [], None, tmp_path / "cache")
        for key in ("differences", "examples"):
            assert two[key] == alone[key]
            assert two[key] != one[key]
        assert [r["value"] for r in two["rows"]] == [r["value"] for r in alone["rows"]]
    assert len(json.loads(out.read_text())["encoders"]) == 4
    with pytest.raises(InputError, match=r"prompts.text='none' is unknown: a has \['query'\]"):
        scored(Model("a", "a", first.encoder, {"text": "none"}))


def test_a_difference_is_measured_where_one_of_two_is_new(small_encoder, tmp_path):
    a, b = (Model(name, name, load(small_encoder)) for name in "ab")
    b.encoder.backbone.embedding.weight.data = b.encoder.backbone.embedding.weight.data.flip(0)
    sets = find(SAMPLE, ["pair"])
    evaluate([a], sets, [], tmp_path / "r.json", tmp_path / "cache")
    found = evaluate([a, b], sets, [], tmp_path / "r.json", tmp_path / "cache")["differences"]
    assert found == evaluate([a, b], sets, [], None, tmp_path / "cache")["differences"]
    assert len(found) == 1


def test_the_tables_are_of_this_run_and_the_file_of_all(small_encoder, tmp_path):
    models = open_models({"a": str(small_encoder), "words": "tfidf"})
    evaluate(models, find(SAMPLE, ["sts"]), [], tmp_path / "r.json", tmp_path / "cache")
    found = evaluate(models[1:], find(SAMPLE, ["pair"]), [], tmp_path / "r.json", tmp_path / "cache")
    assert {(r["encoder"], r["family"]) for r in found["rows"]} == {("words", "pair")}
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 3
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4


def test_a_data_set_that_is_gone_leaves_its_scores(tmp_path):
    shutil.copytree(SAMPLE / "sts", tmp_path / "data" / "sts")
    shutil.copytree(SAMPLE / "pair", tmp_path / "data" / "pair")
    out, cache = tmp_path / "r.json", tmp_path / "cache"
    sets = find(tmp_path / "data")
    before = evaluate(open_models("tfidf"), sets, None, out, cache)["rows"]
    shutil.rmtree(tmp_path / "data" / "pair")
    found = evaluate(open_models("tfidf"), sets, None, out, cache)["rows"]  # gone while it is scored
    assert [row["family"] for row in found if row["error"]] == ["pair"]
    evaluate(open_models("tfidf"), find(tmp_path / "data"), None, out, cache)
    kept = json.loads(out.read_text())["rows"]
    assert all(row in kept for row in before)
    assert len(kept) == len(before) + 1


# ---- what is another's


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"name": "package"}', '{"rows": [{}]}', '{"format": 2, "rows": []}', '{"format": 1, "rows": 3}']
)
def test_another_file_is_not_taken_for_results(text, small_encoder, tmp_path):
    (tmp_path / "package.json").write_text(text)
    with pytest.raises(InputError, match=r"out=.*package.json holds no results of an evaluation"):
        evaluate(open_models("tfidf"), find(SAMPLE, ["sts"]), None, tmp_path / "package.json", tmp_path / "cache")
    assert (tmp_path / "package.json").read_text() == text


def test_a_table_of_another_program_is_kept(tmp_path):
    (tmp_path / "r.csv").write_text("year,sales\n2026,3\n")
    with pytest.raises(InputError, match=r"r.csv is there and is not the table of an evaluation"):
        evaluate(open_models("tfidf"), find(SAMPLE, ["sts"]), None, tmp_path / "r.json", tmp_path / "cache")
    assert (tmp_path / "r.csv").read_text() == "year,sales\n2026,3\n"
    assert not (tmp_path / "r.json").exists()
    with pytest.raises(InputError, match=r"give a name that ends in \.json"):
        evaluate(open_models("tfidf"), find(SAMPLE, ["sts"]), None, tmp_path / "r.csv", tmp_path / "cache")


def test_a_page_a_summary_and_a_result_of_another_program_are_kept(out, tmp_path):
    pytest.importorskip("jinja2")
    for name in ("page.html", "result.json"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"page\.html is there and is not a report"):
        report(str(out), tmp_path / "page.html")
    with pytest.raises(InputError, match=r"result\.json is there and is not the result of a run"):
        write_result(tmp_path, {}, {"val/mean": 1.0}, tmp_path)
    job = tmp_path / "sweep" / "0" / ".hydra"
    job.mkdir(parents=True)
    (job / "overrides.yaml").write_text("[]")
    (tmp_path / "sweep" / "summary.csv").write_text("mine")
    with pytest.raises(InputError, match=r"summary\.csv is there and is not the summary of a multirun"):
        summarise(tmp_path / "sweep")
    assert {(tmp_path / name).read_text() for name in ("page.html", "result.json", "sweep/summary.csv")} == {"mine"}
    report(str(out), tmp_path / "new.html")
    report(str(out), tmp_path / "new.html")  # its own is replaced


# ---- the long-tail protocol


@pytest.fixture
def encoders(small_encoder):
    a, b = (load(small_encoder) for _ in range(2))
    b.backbone.embedding.weight.data = b.backbone.embedding.weight.data.flip(0)
    return a, b


def test_longtail_adds_to_its_file(encoders, tmp_path):
    (dataset,), out = find(SAMPLE, ["classification"]), tmp_path / "l.json"
    given = {"out": out, "cache_dir": tmp_path / "cache"}
    first = longtail([Model("a", "a", encoders[0])], [dataset], Protocol(**QUICK), [8], **given)
    second = longtail([Model("b", "b", encoders[1])], [dataset], Protocol(**QUICK), [], **given)
    found = json.loads(out.read_text())
    assert found["encoders"] == ["a", "b"]
    assert found["rows"] == first["rows"] + second["rows"]
    longtail([Model("a", "a", encoders[1])], [dataset], Protocol(**QUICK), [], **given)
    found = json.loads(out.read_text())
    digest = first["rows"][0]["hash"][:6]
    assert {r["encoder"] for r in found["rows"]} == {"a", f"a ({digest})"}
    with pytest.raises(InputError, match=r"of another protocol \(head=0.3, not 0.5\): give another file"):
        longtail([Model("a", "a", encoders[0])], [dataset], Protocol(**QUICK | {"head": 0.5}), [], **given)
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"other\.json holds no results of acge longtail"):
        longtail([Model("a", "a", encoders[0])], [dataset], Protocol(**QUICK), [], None, tmp_path / "other.json", tmp_path)
    assert json.loads(out.read_text()) == found
    pytest.importorskip("matplotlib")
    (picture,) = save_figures(found, out)
    save_figures(found, out)
    picture.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there and is not a picture of acge_lightning"):
        save_figures(found, out)
    assert picture.read_bytes() == b"mine"


# ---- leaks


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(np.array(["a", "b"]), "it holds <U1 of 1 dims"), (np.zeros((2, 2), np.int64), "it holds int64 of 2 dims"), (None, "")],
)
def test_a_damaged_record_of_training_rows_is_told(rows, reason, encoders, tmp_path):
    from acge_lightning.export.sentence_transformers import export

    folder = export(encoders[0], tmp_path / "model", {}, np.zeros(3, np.int64))
    file = folder / "training_rows.npy"
    file.write_bytes(b"\x93NUMPY junk") if rows is None else np.save(file, rows)
    found = evaluate(open_models(str(folder)), find(SAMPLE, ["sts"]), [], tmp_path / "r.json", tmp_path / "cache")
    assert found["rows"][0]["error"] is None
    assert found["leaks"][0]["found"] is None
    told = leak_table(found)
    assert f"model: {file} is damaged ({reason or 'NumPy finds no numbers in it'}): export" in told
    assert evaluations(read_runs(str(tmp_path / "r.json")))["leaks"] == []


# ---- kills


@pytest.mark.heavy
def test_a_kill_leaves_earlier_results_and_no_process(small_encoder, tmp_path):
    """In two processes, killed after the first data set: rows of before are all there, and the workers end."""
    for i in range(6):
        shutil.copytree(SAMPLE / "clustering" / "sample_zh", tmp_path / "data" / "clustering" / f"c{i}")
    out, cache = tmp_path / "r.json", tmp_path / "cache"
    before = evaluate(open_models(["bm25", "tfidf"]), find(SAMPLE, ["sts", "pair"]), None, out, cache)["rows"]
    written = out.stat().st_mtime_ns
    command = [sys.executable, "-m", "acge_lightning", "evaluate", f"model={small_encoder}", "processes=2", f"out={out}"]
    command += [f"paths.data_dir={tmp_path / 'data'}", f"paths.cache_dir={cache}"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and out.stat().st_mtime_ns == written:
        time.sleep(0.01)
    assert run.poll() is None
    children = children_of(run.pid)
    assert len(children) >= 2
    run.kill()
    run.wait()
    kept = json.loads(out.read_text())["rows"]
    assert [r for r in kept if r["family"] != "clustering"] == before
    assert len(kept) > len(before)
    end = time.monotonic() + 60
    try:
        while left := [pid for pid in children if alive(pid)]:
            assert time.monotonic() < end, left
            time.sleep(0.1)
    finally:
        for pid in children:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def children_of(pid):
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and parent(p) == pid]


def parent(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.heavy
def test_a_process_that_is_ended_from_outside_is_told(small_encoder, tmp_path):
    """As by the system for want of memory: one line, and what was scored before is kept."""
    for i in range(6):
        shutil.copytree(SAMPLE / "clustering" / "sample_zh", tmp_path / "data" / "clustering" / f"c{i}")
    out = tmp_path / "r.json"
    command = [sys.executable, "-m", "acge_lightning", "evaluate", f"model={small_encoder}", "processes=2", f"out={out}"]
    command += [f"paths.data_dir={tmp_path / 'data'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not out.exists():
        time.sleep(0.01)
    workers = [pid for pid in children_of(run.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    said = run.communicate()[1]
    assert run.returncode == 1
    assert "error: a process that scored was ended from outside, perhaps for want of memory: give fewer processes" in said
    assert "Traceback" not in said
    assert json.loads(out.read_text())["rows"]
