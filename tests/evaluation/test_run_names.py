"""Names of runs and their exports: what people called them, what a sweep has set, and the path where that is not enough."""

import json

import yaml

from acge_lightning.evaluation.names import run_names


def a_run(folder, name, overrides=(), **config):
    config = {"name": name, "paths": {"output_dir": "${hydra:runtime.output_dir}"}, **config}
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
    (folder / "export").mkdir()
    (folder / "export" / "training.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    return folder


def test_jobs_of_a_multirun_are_named_by_what_was_swept(tmp_path):
    common = ["+experiment=quickstart", "paths.cache_dir=/data/cache"]
    swept = [["seed=1", "optim.optimizer.lr=0.1"], ["seed=2", "optim.optimizer.lr=0.1"], ["seed=2", "optim.optimizer.lr=0.2"]]
    jobs = [a_run(tmp_path / "扫 [1]" / str(i), "quickstart", [*common, *more]) for i, more in enumerate(swept)]
    names = ["quickstart seed=1 lr=0.1", "quickstart seed=2 lr=0.1", "quickstart seed=2 lr=0.2"]
    assert run_names(jobs) == names
    assert run_names([job / "export" for job in jobs]) == names
    assert run_names(jobs[:1]) == ["quickstart"], "alone it needs no more"


def test_keys_that_end_alike_are_written_out(tmp_path):
    swept = [["optim.lr=1", "head.lr=2"], ["optim.lr=2", "head.lr=1"]]
    jobs = [a_run(tmp_path / str(i), "a", more) for i, more in enumerate(swept)]
    assert run_names(jobs) == ["a optim.lr=1 head.lr=2", "a optim.lr=2 head.lr=1"]


def test_one_that_lacks_an_override_has_the_name_alone(tmp_path):
    jobs = [a_run(tmp_path / "0", "客服 (v2)", []), a_run(tmp_path / "1", "客服 (v2)", ["seed=1", "hydra.run.dir=x", "name=b"])]
    assert run_names(jobs) == ["客服 (v2)", "客服 (v2) seed=1"]


def test_a_long_value_is_cut_and_the_end_of_a_path_is_kept(tmp_path):
    paths = ["/very/long/path/to/the/data/公司 数据 一.csv", "/very/long/path/to/the/data/公司 数据 二.csv"]
    jobs = [a_run(tmp_path / str(i), "a", [f"paths.data={path}"]) for i, path in enumerate(paths)]
    names = run_names(jobs)
    assert [name[-6:] for name in names] == [" 一.csv", " 二.csv"]
    assert max(map(len, names)) < 40


def test_the_same_command_twice_is_told_apart_by_its_folder(tmp_path):
    jobs = [a_run(tmp_path / "x" / name, "quickstart", ["seed=1"]) for name in ("morning", "evening")]
    assert run_names(jobs) == ["quickstart (morning)", "quickstart (evening)"]
    assert run_names([job / "export" for job in jobs]) == ["quickstart (morning)", "quickstart (evening)"]
    assert run_names([jobs[0], jobs[0]]) == ["quickstart (morning)"] * 2


def test_a_folder_that_was_named_names_a_run_without_a_name(tmp_path):
    run = a_run(tmp_path / "我的 模型", "train", paths={"output_dir": "outputs/我的 模型"})
    for file in (run / ".hydra").iterdir():
        file.unlink()  # Hydra writes them elsewhere then
    assert run_names([run]) == run_names([run / "export"]) == ["我的 模型"]
    assert run_names([a_run(tmp_path / "w", "mine", paths={"output_dir": "w"})]) == ["mine"]
    assert run_names([a_run(tmp_path / "2026-01-01", "train")]) == ["train"]


def test_models_and_files_that_are_of_no_run(tmp_path):
    (tmp_path / "bge-small").mkdir()
    (tmp_path / "bge-small" / "training.json").write_text('{"config": {"name": "zh_multitask"}}', encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scores.json").write_text("{}", encoding="utf-8")
    names = run_names([tmp_path / "bge-small", tmp_path / "a" / "scores.json", "owner/hub-model", "bm25"])
    assert names == ["bge-small", "scores", "hub-model", "bm25"]


def test_damaged_files_are_no_reason_to_stop(tmp_path):
    run = a_run(tmp_path / "run", "a", ["seed=1"])
    for file, text in (("config.yaml", "a: ["), ("overrides.yaml", "{a: 1}")):
        (run / ".hydra" / file).write_text(text, encoding="utf-8")
    (run / "export" / "training.json").write_text("[" * 100_000, encoding="utf-8")
    assert run_names([run, run / "export"]) == ["run", "run"]
