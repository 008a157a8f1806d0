"""A file is the old one or the new one, whatever happens while it is written."""

import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from acge_lightning import files, results
from acge_lightning.adaptive.tune import Tuned
from acge_lightning.anchor import Anchor
from acge_lightning.files import whole, write_text
from acge_lightning.report import summarise, write_result


def tuned(folder):
    Tuned(chosen=None, points=[]).write(folder / "funnel.json")


def summary(folder):
    (folder / "0" / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / "0" / ".hydra" / "overrides.yaml").write_text("[]\n")
    summarise(folder)


def page(folder):
    from acge_lightning.compare import report

    write_text(folder / "run" / "result.json", '{"before": {}, "after": {"val/mean": 1.0}, "output": "x"}')
    report([str(folder / "run")], folder / "report.html")


WRITERS = {
    "result.json": lambda folder: write_result(folder, {}, {"val/mean": 0.5}, folder),
    "results.json": lambda folder: results.write(folder / "results.json", {"rows": []}),
    "results.csv": lambda folder: results.write_csv(folder / "results.csv", []),
    "summary.csv": summary,
    "report.html": page,
    "funnel.json": tuned,
    "a.safetensors": lambda folder: Anchor({"w": torch.ones(2)}, {"w": torch.ones(2)}, {}).save(folder / "a.safetensors"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_cut_while_it_is_written_leaves_the_old_file(name, tmp_path, monkeypatch):
    (tmp_path / name).write_text("old")
    moved, replace = [], os.replace

    def cut(draft, target):
        if os.path.basename(target) != name:
            return replace(draft, target)
        moved.append(os.path.getsize(draft))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            WRITERS[name](tmp_path)
    assert moved[0] > 0
    assert (tmp_path / name).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    WRITERS[name](tmp_path)
    assert (tmp_path / name).read_bytes() != b"old"


def test_the_draft_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(files.os, "replace", lambda draft, target: (done.append("replaced"), os.rename(draft, target)))
    write_text(tmp_path / "new" / "a.txt", "退货\r\n\ud800")
    draft, replaced, folder = done
    assert (os.path.basename(draft)[:6], replaced, folder) == (".a.txt", "replaced", str(tmp_path / "new"))
    assert (tmp_path / "new" / "a.txt").read_bytes() == "退货\r\n?".encode()


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to("far/a.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "words")
    reader.join(10)
    assert read == ["words"]


def test_tensors_are_written_through_a_draft(tmp_path):
    with whole(tmp_path / "a.safetensors") as draft:
        save_file({"w": torch.ones(2)}, draft)
        assert not (tmp_path / "a.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
