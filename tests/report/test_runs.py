"""Folders of runs and files of evaluations, read back; what is missing or damaged is named, and nothing crashes."""

import json

import pytest
import yaml

from acge_lightning.errors import InputError
from acge_lightning.report.runs import evaluations, read_runs

LOG = ["epoch,step,train/loss,val/mean", "0,0,,0.25", "0,5,2.5,", "0,10,1.5,", "0,10,,0.5"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def a_run(folder, name="mine", seed=0):
    """What a run of training leaves behind."""
    config = {"name": name, "seed": seed, "optim": {"lr": "${rate}", "dims": [64, 32]}}
    write(folder / ".hydra" / "config.yaml", yaml.safe_dump(config))
    write(folder / "result.json", {"before": {"val/mean": 0.25}, "after": {"val/mean": 0.5 + seed}, "output": "x"})
    write(folder / "csv" / "version_0" / "metrics.csv", "\n".join(LOG) + "\n")
    data = {"faq": {"train": 1000, "dev": 150}, "sts": {"dev": 30, "test": 40}}
    write(folder / "export" / "training.json", {"config": config, "versions": {"torch": "2.9"}, "data": data, "steps": 1610})
    return folder


def a_row(encoder="mini", dataset="stsb", dim=64, value=0.75, **more):
    names = {"encoder": encoder, "family": "sts", "dataset": dataset, "split": "test", "dim": dim, "metric": "spearman"}
    return names | {"value": value, "n": 9, "seconds": 0.1, "seeds": [42], "values": {}, "note": None, "error": None} | more


def an_evaluation(*rows, **more):
    dims = {row["encoder"]: row["dim"] and 64 for row in rows}
    cards = [{"name": name, "path": name, "hash": f"{name}-1", "dim": dim} for name, dim in dims.items()]
    return {"format": 1, "seed": 42, "encoders": cards, "rows": list(rows)} | more


def test_a_whole_run(tmp_path):
    [run] = read_runs([a_run(tmp_path / "time")])
    assert (run.name, run.remarks, run.training["steps"]) == ("mine", [], 1610)
    assert (run.before, run.after) == ({"val/mean": 0.25}, {"val/mean": 0.5})
    assert run.curves == {"train/loss": [(5, 2.5), (10, 1.5)], "val/mean": [(0, 0.25), (10, 0.5)]}
    assert run.config["optim"] == {"lr": "${rate}", "dims": [64, 32]}
    assert run.training["data"] == {"faq": {"train": 1000, "dev": 150}, "sts": {"dev": 30, "test": 40}}


def test_a_run_that_went_on_is_one_curve(tmp_path):
    a_run(tmp_path)
    for version in (10, 2):  # by number: 0, 2, 10
        lines = ["step,train/loss", f"10,{version}.5", f"{10 + version},0.{version}"]
        write(tmp_path / "csv" / f"version_{version}" / "metrics.csv", "\n".join(lines))
    [run] = read_runs(str(tmp_path))
    assert run.curves["train/loss"] == [(5, 2.5), (10, 10.5), (12, 0.2), (20, 0.1)]
    assert run.curves["val/mean"] == [(0, 0.25), (10, 0.5)]


def test_an_older_log_lies_in_the_folder_itself(tmp_path):
    write(tmp_path / "csv" / "metrics.csv", "step,train/loss\n1,2\n")
    [run] = read_runs([tmp_path])
    assert run.curves == {"train/loss": [(1, 2.0)]}
    assert len(run.remarks) == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", "{", "result.json is damaged: Expecting"),
        ("result.json", "[" * 100_000, "result.json is damaged: "),
        ("result.json", {"before": {}}, "it has no 'after'"),
        ("result.json", {"before": {}, "after": {"val/mean": "0.5"}}, "'0.5' is not a number"),
        ("result.json", {"before": [], "after": {}}, "stands where keys and values are expected"),
        ("result.json", '{"before": {}, "after": {"x": 1' + "0" * 400 + "}}", "result.json is damaged"),
        (".hydra/config.yaml", "a: [", "config.yaml is damaged"),
        (".hydra/config.yaml", "- a", "config.yaml is damaged"),
        (".hydra/config.yaml", "!!python/object/apply:os.getcwd []", "config.yaml is damaged"),
        ("export/training.json", {"data": {"faq": 7}}, "'7' stands where keys and values are expected"),
        ("export/training.json", {"config": 3}, "'3' stands where"),
        ("csv/version_0/metrics.csv", "step,train/loss\n1,2\n2,x\n", "line 3 is not of numbers with a step"),
        ("csv/version_0/metrics.csv", "epoch,train/loss\n1,2\n", "line 2 is not of numbers with a step"),
        ("forgetting.json", {"tasks": ["a"], "matrix": [[1, 2]]}, "its matrix is not one of 1 x 1 tasks"),
        ("funnel.json", {"points": [{"label": "a", "recall": None, "speedup": 1}]}, "funnel.json is damaged"),
        ("results.json", {"format": 2}, "its format is 2, and 1 is what can be read"),
        ("results.json", {"format": 1, "encoders": []}, "it has no 'rows'"),
        ("results.json", {"format": 1, "encoders": "x", "rows": []}, "results.json is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path, file, content, message):
    write(a_run(tmp_path) / file, content)
    [run] = read_runs([tmp_path])
    [remark] = run.remarks
    assert message in remark
    assert str(tmp_path) in remark
    others = {"result.json": run.after, ".hydra/config.yaml": run.config, "export/training.json": run.training}
    assert all(bool(part) == (name != file) for name, part in others.items() if name != ".hydra/config.yaml")
    assert run.config, "the export holds it too"


def test_what_stands_before_the_damage_in_a_log_is_kept(tmp_path):
    write(a_run(tmp_path) / "csv" / "version_0" / "metrics.csv", "step,train/loss\n1,2\n2,3\n3")
    write(tmp_path / "csv" / "version_1" / "metrics.csv", "step,train/loss\n3,nan\n7,4\nx")
    [run] = read_runs([tmp_path])
    assert [step for step, _ in run.curves["train/loss"]] == [1, 2, 3, 7]
    assert "line 4" in run.remarks[0]


@pytest.mark.parametrize("file", ["result.json", "csv/version_0/metrics.csv", "export/training.json"])
def test_a_missing_file_is_named(tmp_path, file):
    (a_run(tmp_path) / file).unlink()
    [run] = read_runs([tmp_path])
    assert len(run.remarks) == 1
    assert str(tmp_path / file.partition("/version_0")[0]) in run.remarks[0]


def test_the_config_may_be_in_the_export_alone(tmp_path):
    """With `paths.output_dir`, Hydra's files lie elsewhere."""
    (a_run(tmp_path) / ".hydra" / "config.yaml").unlink()
    [run] = read_runs([tmp_path])
    assert (run.remarks, run.name, run.config["seed"]) == ([], "mine", 0)
    (tmp_path / "export" / "training.json").unlink()
    assert [remark.rpartition("/")[2] for remark in read_runs([tmp_path])[0].remarks] == [
        "config.yaml is missing",
        "training.json is missing",
    ]


def test_which_rows_were_scored_is_read(tmp_path):
    data = {"val": {"faq": {"family": "sts", "rows": 9, "hash": "abc", "seen": 2}}}
    write(a_run(tmp_path) / "result.json", {"before": {}, "after": {"val/mean": 0.5}, "data": data})
    assert read_runs([tmp_path])[0].rows == data
    write(tmp_path / "result.json", {"before": {}, "after": {"val/mean": 0.5}, "data": {"val": {"faq": {"rows": 9}}}})
    [run] = read_runs([tmp_path])
    assert "result.json is damaged: it has no 'family'" in run.remarks[0]


def test_characters_that_no_page_may_hold(tmp_path):
    (tmp_path / "result.json").write_text('{"before": {}, "after": {"val/\\u0000\\ud800x": 1}}', encoding="utf-8")
    assert read_runs([tmp_path])[0].after == {"val/\ufffd\ufffdx": 1.0}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "runs is empty"),
        (["nowhere"], "nowhere is not there"),
        (["empty"], "holds neither a run nor an evaluation"),
        (["damaged.json"], "damaged.json is damaged"),
        (["other.json"], "its format is None"),
        ({"a": "empty"}, "holds neither"),
    ],
)
def test_errors(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "damaged.json", "no json")
    write(tmp_path / "other.json", {"rows": []})
    with pytest.raises(InputError, match=message):
        read_runs(paths)


def test_names(tmp_path):
    one, two, three = (a_run(tmp_path / place, name) for place, name in (("a/1", "x"), ("b/1", "x"), ("b/2", "y")))
    file = write(tmp_path / "scores" / "results.json", an_evaluation(a_row()))
    assert [run.name for run in read_runs([one, two, three, file])] == ["x (a/1)", "x (b/1)", "y", "scores"]
    assert [run.name for run in read_runs([three, three])] == ["y"]
    assert [run.name for run in read_runs({"first": one, "second": one})] == ["first", "second"]
    assert [run.remarks for run in read_runs([file.parent, file])] == [[], []]


def test_evaluations_become_one(tmp_path):
    """tfidf is the same in both; mini is not."""
    first = an_evaluation(
        a_row(), a_row("tfidf", dim=None), leaks=[{"encoder": "mini", "dataset": "stsb", "texts": 9, "found": 1}]
    )
    second = an_evaluation(a_row(value=0.5), a_row("tfidf", dim=None))
    second["encoders"][0]["hash"] = "mini-2"
    second["differences"] = [a_row() | {"against": "tfidf", "difference": 0.1, "low": 0, "high": 0.2}]
    second["examples"] = {"mini": {"stsb": {"errors": [{"text": "t", "expected": "e", "found": "f"}]}}}
    files = {"a": write(tmp_path / "1.json", first), "b": write(tmp_path / "2.json", second)}
    found = evaluations(read_runs(files))
    assert [card["name"] for card in found["encoders"]] == ["a: mini", "tfidf", "b: mini"]
    assert [(r["encoder"], r["value"]) for r in found["rows"]] == [("a: mini", 0.75), ("tfidf", 0.75), ("b: mini", 0.5)]
    assert [(r["encoder"], r["against"]) for r in found["differences"]] == [("b: mini", "tfidf")]
    assert found["leaks"] == [{"encoder": "a: mini", "family": "", "dataset": "stsb", "rows": 9, "found": 1, "unseen": None}]
    assert found["examples"]["b: mini"]["stsb"]["errors"] == [{"text": "t", "expected": "e", "found": "f"}]


def test_an_encoder_of_two_names_is_one(tmp_path):
    """`mini` of the first file is called `other` in the second."""
    first, second = an_evaluation(a_row()), an_evaluation(a_row("other", "x"), a_row("mini", "x", value=0.5))
    for card, digest in zip(second["encoders"], ("mini-1", "mini-2"), strict=True):
        card["hash"] = digest
    spread = {"difference": 0.1, "low": 0, "high": 0.2}
    second["differences"] = [{"encoder": "mini", "against": "other", "family": "sts", "dataset": "x"} | spread]
    files = {"a": write(tmp_path / "1.json", first), "b": write(tmp_path / "2.json", second)}
    found = evaluations(read_runs(files))
    assert [card["name"] for card in found["encoders"]] == ["a: mini", "b: mini"]
    scores = [(row["encoder"], row["dataset"], row["value"]) for row in found["rows"]]
    assert scores == [("a: mini", "stsb", 0.75), ("a: mini", "x", 0.75), ("b: mini", "x", 0.5)]
    assert [(row["encoder"], row["against"]) for row in found["differences"]] == [("b: mini", "a: mini")]
