"""The record of the rows that a run is scored on: the same for the same rows alone, and how many of them were trained on."""

import json
import logging

import numpy as np
import pytest

from acge_lightning.commands.scored_rows import scored_rows, stage_rows
from acge_lightning.data import MixtureDataModule, STSDataModule
from acge_lightning.evaluation.scored_rows import rows_hash

ROWS = [{"text1": f"公司 [{i}] 的 “问题”", "text2": f"答案 {i // 2}", "score": i % 5} for i in range(40)]


def mixture(folder, train, **splits):
    folder.mkdir(parents=True)
    for name, rows in {"train": train, **splits}.items():
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    data = MixtureDataModule({"mine": STSDataModule(folder, cache_dir=folder / "cache", holdout=0.0)})
    data.setup()
    return data


def config(test=False, path=None, **trainer):
    return {"encoder": {"path": path}, "test": test, "trainer": trainer}


def test_rows_that_are_trained_on_are_counted(tmp_path):
    swapped = {**ROWS[0], "text1": ROWS[0]["text2"], "text2": ROWS[0]["text1"]}
    data = mixture(tmp_path / "公司 数据", ROWS[:20], dev=[swapped, *ROWS[18:30]], test=ROWS[30:])
    record = scored_rows(config(test=True), data)
    assert {prefix: {task: (e["rows"], e["seen"]) for task, e in tasks.items()} for prefix, tasks in record.items()} == {
        "val": {"mine": (13, 3)},
        "test": {"mine": (10, 0)},
    }
    assert list(scored_rows(config(), data)) == ["val"]
    assert json.loads(json.dumps(record)) == record


def test_rows_of_the_pretrained_encoder_count_too(tmp_path, caplog):
    data = mixture(tmp_path / "data", ROWS[:20], dev=ROWS[18:30])
    model = tmp_path / "export"
    model.mkdir()
    np.save(model / "training_rows.npy", data.tasks["mine"].keys(data.tasks["mine"].opened_splits["dev"])[5:9])
    assert scored_rows(config(path=str(model)), data)["val"]["mine"]["seen"] == 2 + 4
    assert scored_rows(config(path="owner/hub-model"), data)["val"]["mine"]["seen"] == 2
    (model / "training_rows.npy").write_bytes(b"junk")
    with caplog.at_level(logging.WARNING):
        assert scored_rows(config(path=str(model)), data)["val"]["mine"]["seen"] == 2
    assert "training_rows.npy is damaged" in caplog.text


def test_the_hash_is_of_the_scored_rows_alone(tmp_path):
    def digest(name, train, dev, **trainer):
        return rows_hash("val/mean", scored_rows(config(**trainer), mixture(tmp_path / name, train, dev=dev)))

    same = digest("a", ROWS[:10], ROWS[20:])
    assert digest("b", ROWS[:15], ROWS[20:], limit_val_batches=1.0) == same, "whatever it was trained on"
    others = [
        digest("c", ROWS[:10], ROWS[21:]),
        digest("d", ROWS[:10], [{**ROWS[20], "score": 3}, *ROWS[21:]]),
        digest("e", ROWS[:10], ROWS[20:], limit_val_batches=1),
        digest("f", ROWS[:10], ROWS[20:], limit_val_batches=0.5),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize("key", ["val/mean", "val/one"])
def test_stages_of_the_same_rows(key):
    def result(mark, found):
        rows = [{"encoder": "e", "dataset": name, "mark": m, "n": 10} for name, m in (("a", "1"), ("b", mark))]
        return {"rows": rows, "leaks": [{"encoder": "e", "dataset": "b", "found": found}]}

    first, same, other = (
        {"val": stage_rows(result(mark, found), {"one": ["a", "b", "unscored"], "two": ["a"]}, "e")}
        for mark, found in (("2", 3), ("2", None), ("4", 0))
    )
    assert (first["val"]["one"]["rows"], first["val"]["one"]["seen"], same["val"]["one"]["seen"]) == (20, 3, 0)
    assert rows_hash(key, first) == rows_hash(key, same) != rows_hash(key, other)
    assert rows_hash("val/two", first) == rows_hash("val/two", other)
