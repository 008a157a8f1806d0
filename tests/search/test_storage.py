"""An index on disk: what is damaged is told, and whoever is killed while it is written leaves one that can be read."""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from indexes import saved_index, stage_files, vectors

from acge_lightning.errors import InputError
from acge_lightning.search import FunnelIndex, Stage
from acge_lightning.search import storage as files
from acge_lightning.search.vectors import Vectors


@pytest.fixture
def saved(tmp_path):
    return saved_index(tmp_path / "index")


def test_an_index_is_on_disk_until_it_is_compared_and_holds_no_pickle(saved):
    index = FunnelIndex.load(saved)
    assert all(isinstance(part, Vectors) for part in index.vectors.stores)
    if sys.platform == "linux":
        assert f"{saved}/v" in Path("/proc/self/maps").read_text()
    names = [file.name for file in stage_files(saved)]
    assert names == ["0.codes.npy", "0.scale.npy", "1.codes.npy", "rows.arrow"]
    for file in stage_files(saved):
        if file.suffix == ".npy":
            np.load(file, allow_pickle=False)
    before = FunnelIndex.load(saved).vectors.stores[1].codes.clone()
    index.vectors.stores[1].codes[:] = 0  # a copy in memory
    assert torch.equal(FunnelIndex.load(saved).vectors.stores[1].codes, before)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(tmp_path, kind, damage):
    folder = FunnelIndex.build(vectors(50, 16), [Stage(8, index=kind), Stage(16)], force=True, ids=list(range(50))).save(
        tmp_path
    )
    for file in stage_files(folder):
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(whole[:-3] if damage == "cut" else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(InputError, match=rf"{file.name} .*(again)"):
            FunnelIndex.load(folder)
        file.write_bytes(whole)
    assert len(FunnelIndex.load(folder)) == 50


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_damaged_file_of_the_right_size_is_told_even_unverified(tmp_path, kind):
    """Or else it gives an index of the right form: no crash."""
    folder = FunnelIndex.build(vectors(50, 16), [Stage(8, index=kind), Stage(16)], force=True).save(tmp_path)
    file = stage_files(folder)[0]
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(InputError, match=file.name):
        FunnelIndex.load(folder, verify=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "version": "../../x"}'])
def test_a_damaged_manifest_is_named(saved, content):
    manifest = saved / "index.json"
    whole = manifest.read_text()
    manifest.write_text(content)
    with pytest.raises(InputError, match=r"index\.json .*again"):
        FunnelIndex.load(saved)
    assert stage_files(saved)
    changed = json.loads(whole) | {"version": "../" + json.loads(whole)["version"]}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="version"):
        FunnelIndex.load(saved)
    manifest.write_text(whole)
    assert len(FunnelIndex.load(saved)) == 50


def test_a_manifest_of_other_numbers_is_refused(saved):
    manifest = saved / "index.json"
    found = json.loads(manifest.read_text())
    for change, told in (
        ({"rows": 49}, r"int8 \[50, 8\], and index\.json says torch\.int8 \[49, 8\]"),
        ({"dim": 12}, "vectors have 12"),
        ({"stages": [{"dim": 8}]}, r"not of its files: 0\.scale\.npy, 1\.codes\.npy"),
    ):
        manifest.write_text(json.dumps(found | change))
        with pytest.raises(InputError, match=told):
            FunnelIndex.load(saved)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    index = FunnelIndex.build(vectors(3, 8))
    with pytest.raises(InputError, match="something else"):
        index.save(tmp_path)
    with pytest.raises(InputError, match="something else"):
        index.save(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no index"):
        FunnelIndex.load(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        FunnelIndex.load(tmp_path / "nowhere")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


EVENTS = ("mkdir", "fsync", "replace", "rmdir", "unlink", "open")


def killed_while_saving(index, folder, at):
    """Save in a child that kills itself at its `at`-th call to the system; whether it got that far."""
    child = os.fork()
    if child == 0:
        seen = Counter()

        def counted(call):
            def now(*args, **kwargs):
                seen["calls"] += 1
                if seen["calls"] > at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return now

        for name in EVENTS:
            setattr(os, name, counted(getattr(os, name)))
        np.save = counted(np.save)
        try:
            index.save(folder)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_kill_during_save_leaves_an_index_that_can_be_read(tmp_path):
    old, new = (FunnelIndex.build(vectors(n, 16, seed=n), [Stage(8), Stage(16)], force=True) for n in (20, 30))
    folder, seen = tmp_path / "index", set()
    old.save(folder)
    for at in range(200):
        killed = killed_while_saving(new, folder, at)
        found = FunnelIndex.load(folder)
        assert len(found) in (20, 30)
        assert found.search(vectors(20, 16, seed=len(found)), 1).rows[:, 0].tolist() == list(range(20))
        seen.add(len(found))
        old.save(folder)  # goes on from whatever is there, and clears up
        assert len(list(folder.glob("v*"))) == 1
        if not killed:
            break
    assert at > 10
    assert seen == {20, 30}


def test_a_save_that_fails_leaves_the_former_index(saved, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.np, "save", full)
    with pytest.raises(InputError, match="is kept"):
        FunnelIndex.load(saved).save(saved)
    assert len(FunnelIndex.load(saved)) == 50
    assert len(list(saved.glob("v*"))) == 1


def test_an_index_may_be_saved_where_it_was_loaded_from(saved):
    index = FunnelIndex.load(saved)
    for _ in range(3):
        index.save(saved)
    assert index.search(vectors(1, 16), 1).ids == [["r0"]]
    assert FunnelIndex.load(saved).search(vectors(1, 16), 1).ids == [["r0"]]


def test_a_lock_that_leads_elsewhere_is_not_followed(saved, tmp_path):
    index = FunnelIndex.load(saved)
    (saved / ".lock").unlink()
    (saved / ".lock").symlink_to(tmp_path / "outside")
    assert len(FunnelIndex.load(saved)) == 50
    with pytest.raises(InputError, match="cannot be written"):
        index.save(saved)
    assert not (tmp_path / "outside").exists()


def test_what_only_looks_like_an_index_is_left_alone(tmp_path):
    index = FunnelIndex.build(vectors(3, 8))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.json").write_text('{"title": "mine"}')
    (tmp_path / "work" / "v0123456789abcdef").mkdir(parents=True)
    (tmp_path / "work" / "v0123456789abcdef" / "thesis.txt").write_text("mine")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "v0123456789abcdef").symlink_to(tmp_path / "work")
    for name in ("page", "work", "link"):
        with pytest.raises(InputError, match="something else"):
            index.save(tmp_path / name)
    assert (tmp_path / "page" / "index.json").read_text() == '{"title": "mine"}'
    assert (tmp_path / "work" / "v0123456789abcdef" / "thesis.txt").read_text() == "mine"


def test_a_damaged_manifest_does_not_hinder_a_new_index(saved):
    index = FunnelIndex.load(saved)
    (saved / "index.json").write_text("{")
    assert len(FunnelIndex.load(index.save(saved))) == 50


def test_an_index_that_needs_faiss_says_so_where_there_is_none(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    stages = [Stage(8, 20, "fp32", "flat"), Stage(16)]
    folder = FunnelIndex.build(vectors(50, 16), stages, force=True).save(tmp_path / "i")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: FunnelIndex.load(folder), lambda: FunnelIndex.build(vectors(50, 16), stages, force=True)):
        with pytest.raises(InputError, match=r"^this first stage needs faiss: pip install"):
            call()
