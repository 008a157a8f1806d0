"""An index on disk: what is damaged is told, and whoever is killed while it is written leaves one that can be read."""

import hashlib
import io
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_adaptive_funnel import vectors

from acge_lightning.adaptive import FunnelIndex, Stage, files
from acge_lightning.adaptive.vectors import Vectors
from acge_lightning.errors import InputError


@pytest.fixture
def saved(tmp_path):
    stages = [Stage(8, 20, "int8"), Stage(16)]
    index = FunnelIndex.build(vectors(50, 16), stages, force=True, ids=[f"r{i}" for i in range(50)], texts=["t"] * 50)
    return index.save(tmp_path / "index")


def in_version(folder):
    (version,) = folder.glob("v*")
    return sorted(version.iterdir())


def test_an_index_is_on_disk_until_it_is_compared_and_holds_no_pickle(saved):
    index = FunnelIndex.load(saved)
    assert all(isinstance(part, Vectors) for part in index.vectors.stores)
    if sys.platform == "linux":
        assert f"{saved}/v" in Path("/proc/self/maps").read_text()
    names = [file.name for file in in_version(saved)]
    assert names == ["0.codes.npy", "0.scale.npy", "1.codes.npy", "rows.arrow"]
    for file in in_version(saved):
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
    for file in in_version(folder):
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
    file = in_version(folder)[0]
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
    assert in_version(saved)
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


# ---- files of a stranger, whose digests fit


def signed(folder, file, data):
    """Other contents of a file, and its digest in the manifest."""
    file.write_bytes(data)
    found = json.loads((folder / "index.json").read_text())
    found["files"][file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(found))


def test_offsets_that_lead_out_of_a_file_are_refused(saved):
    file = in_version(saved)[-1]
    data = bytearray(file.read_bytes())
    ends = np.arange(0, 51, dtype="<i8").tobytes()  # of 50 texts of a letter
    at = data.index(ends)
    data[at : at + len(ends)] = np.full(51, 2**33, "<i8").tobytes()
    signed(saved, file, bytes(data))
    with pytest.raises(InputError, match=r"rows\.arrow cannot be read .*again"):
        FunnelIndex.load(saved)


TABLES = {
    "fewer rows": pa.table({"id": pa.array(["a"], pa.large_string())}),
    "no text": pa.table({"id": pa.array(["a"] * 50, pa.large_string()), "text": pa.array([1] * 50)}),
    "nothing": pa.table({"id": pa.array([None] * 50, pa.large_string())}),
    "other columns": pa.table({"name": pa.array(["a"] * 50, pa.large_string())}),
    "lists": pa.table({"text": pa.array([["a"]] * 50)}),
    "no columns": pa.table({}),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_that_are_not_of_these_rows_are_refused(saved, table):
    file = in_version(saved)[-1]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, TABLES[table].schema) as writer:
        writer.write_table(TABLES[table])
    signed(saved, file, sink.getvalue().to_pybytes())
    with pytest.raises(InputError, match=r"rows\.arrow cannot be read .*again"):
        FunnelIndex.load(saved)


ARRAYS = {
    "nan": lambda codes: np.where(np.arange(16) == 3, np.nan, codes).astype("<f2"),
    "infinite": lambda codes: np.where(np.arange(16) == 3, np.inf, codes).astype("<f2"),
    "fortran": np.asfortranarray,
    "other order of bytes": lambda codes: codes.astype(">f2"),
    "wider": lambda codes: codes.astype("<f4"),
    "fewer": lambda codes: codes[:-1],
    "narrower": lambda codes: codes[:, :-1],
    "flat": lambda codes: codes.ravel(),
    "records": lambda codes: np.zeros((50, 16), [("a", "<f2")]),
}


@pytest.mark.parametrize("change", ARRAYS)
def test_arrays_that_are_not_of_their_stage_are_refused(saved, change):
    file = in_version(saved)[2]
    data = io.BytesIO()
    np.save(data, ARRAYS[change](np.load(file)))
    signed(saved, file, data.getvalue())
    with pytest.raises(InputError, match=r"1\.codes\.npy .*again"):
        FunnelIndex.load(saved)


@pytest.mark.parametrize("head", ["{'descr': '|O', 'fortran_order': False, 'shape': (50, 16), }", "{'shape': (", "(9**9**9)"])
def test_heads_of_arrays_are_not_believed(saved, head):
    file = in_version(saved)[2]
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(1600)
    signed(saved, file, data)
    with pytest.raises(InputError, match=r"1\.codes\.npy cannot be read"):
        FunnelIndex.load(saved)


MANIFESTS = {
    "prompts": ["query"],
    "note": None,
    "force": "yes",
    "rows": -1,
    "dim": 10**30,
    "matryoshka_dims": ["8"],
    "stages": [[]],
    "files": {"../../x": {"bytes": 0, "sha256": ""}},
    "version": 3,
}


@pytest.mark.parametrize("key", MANIFESTS)
def test_a_manifest_of_another_form_is_refused(saved, key):
    found = json.loads((saved / "index.json").read_text())
    (saved / "index.json").write_text(json.dumps(found | {key: MANIFESTS[key]}))
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        FunnelIndex.load(saved)


def test_a_manifest_without_a_bottom_is_refused(saved):
    for content in ("[" * 100_000, '{"format": 1, "note": {"a": "\\ud800"}}'):
        (saved / "index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json is damaged"):
            FunnelIndex.load(saved)


def test_a_file_without_a_digest_is_not_read(saved):
    found = json.loads((saved / "index.json").read_text())
    del found["files"]["1.codes.npy"]
    (saved / "index.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"not of its files: 1\.codes\.npy"):
        FunnelIndex.load(saved)


def test_a_pipe_is_not_waited_for(saved):
    file = in_version(saved)[0]
    signed(saved, file, b"")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="it is no file"):
        FunnelIndex.load(saved)


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


# ---- of FAISS


def int32(place, value):
    return lambda data, at: data.__setitem__(
        slice(at + 4 * place, at + 4 * place + 4), value.to_bytes(4, "little", signed=True)
    )


def links(data):
    """Where the links of an hnsw of 50 rows begin: after their number, and after 51 offsets."""
    return (
        data.index(np.cumsum([0, *np.frombuffer(bytes(data), "<i4", 50, levels(data)) * 16 + 16]).astype("<u8").tobytes()) + 416
    )


def levels(data):
    return data.index((50).to_bytes(8, "little"), 40) + 8


def test_a_graph_of_faiss_is_followed_before_faiss_does(tmp_path):
    pytest.importorskip("faiss")
    folder = FunnelIndex.build(vectors(50, 16), [Stage(8, 20, "fp32", "hnsw"), Stage(16)], force=True).save(tmp_path / "i")
    file = in_version(folder)[0]
    good = file.read_bytes()
    end = links(bytearray(good)) + 4 * (int.from_bytes(good[links(bytearray(good)) - 8 : links(bytearray(good))], "little"))
    hostile = {
        "leads to a row that is not there": int32(0, 50),
        "a link leads": int32(1, -2),
        "search begins at row 50": lambda data, at: int32(0, 50)(data, end),
        "search begins": lambda data, at: int32(1, 7)(data, end),
        "efConstruction": lambda data, at: int32(2, 2**31 - 1)(data, end),
        "asks for 1,099,511,627,776 numbers": lambda data, at: data.__setitem__(
            slice(at - 8, at), (2**40).to_bytes(8, "little")
        ),
        "at a level that is not there": lambda data, at: int32(0, 9)(data, levels(data)),
        "links of a row begin": lambda data, at: int32(0, 8)(data, at - 8 - 8),
        "number of rows is 51": lambda data, at: int32(0, 51)(data, 8),
        "number of dims is 16": lambda data, at: int32(0, 16)(data, 4),
        "NaN or infinite": lambda data, at: data.__setitem__(slice(-4, None), np.float32("nan").tobytes()),
        "bytes are left over": lambda data, at: data.extend(b"\0" * 8),
        "of the kind b'IxXX'": lambda data, at: data.__setitem__(slice(0, 4), b"IxXX"),
    }
    for told, change in hostile.items():
        data = bytearray(good)
        change(data, links(data))
        assert data != good
        signed(folder, file, bytes(data))
        with pytest.raises(InputError, match=rf"0\.faiss cannot be read as 8 fp32 hnsw \(.*{told}.*again"):
            FunnelIndex.load(folder)
    signed(folder, file, good)
    assert len(FunnelIndex.load(folder)) == 50


def test_lists_of_faiss_hold_each_row_once(tmp_path):
    pytest.importorskip("faiss")
    folder = FunnelIndex.build(vectors(80, 16), [Stage(8, 20, "int8", "ivf"), Stage(16)], force=True).save(tmp_path / "i")
    file = in_version(folder)[0]
    good = file.read_bytes()
    for value, told in ((80, "a row that is not there"), (-1, "a row that is not there"), (2**40, "not there")):
        signed(folder, file, good[:-8] + value.to_bytes(8, "little", signed=True))
        with pytest.raises(InputError, match=told):
            FunnelIndex.load(folder)
    signed(folder, file, good[:-8] + good[-16:-8])
    with pytest.raises(InputError, match="in no list, or in several"):
        FunnelIndex.load(folder)


def test_an_index_that_needs_faiss_says_so_where_there_is_none(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    stages = [Stage(8, 20, "fp32", "flat"), Stage(16)]
    folder = FunnelIndex.build(vectors(50, 16), stages, force=True).save(tmp_path / "i")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: FunnelIndex.load(folder), lambda: FunnelIndex.build(vectors(50, 16), stages, force=True)):
        with pytest.raises(InputError, match=r"^this first stage needs faiss: pip install"):
            call()
