"""Files of a stranger, whose digests fit: what they say is checked before a library follows it."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from indexes import saved_index, signed, stage_files, vectors

from acge_lightning.errors import InputError
from acge_lightning.search import FunnelIndex, Stage


@pytest.fixture
def saved(tmp_path):
    return saved_index(tmp_path / "index")


def test_offsets_that_lead_out_of_a_file_are_refused(saved):
    file = stage_files(saved)[-1]
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
    file = stage_files(saved)[-1]
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
    file = stage_files(saved)[2]
    data = io.BytesIO()
    np.save(data, ARRAYS[change](np.load(file)))
    signed(saved, file, data.getvalue())
    with pytest.raises(InputError, match=r"1\.codes\.npy .*again"):
        FunnelIndex.load(saved)


@pytest.mark.parametrize("head", ["{'descr': '|O', 'fortran_order': False, 'shape': (50, 16), }", "{'shape': (", "(9**9**9)"])
def test_heads_of_arrays_are_not_believed(saved, head):
    file = stage_files(saved)[2]
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
    file = stage_files(saved)[0]
    signed(saved, file, b"")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="it is no file"):
        FunnelIndex.load(saved)


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
    file = stage_files(folder)[0]
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
    file = stage_files(folder)[0]
    good = file.read_bytes()
    for value, told in ((80, "a row that is not there"), (-1, "a row that is not there"), (2**40, "not there")):
        signed(folder, file, good[:-8] + value.to_bytes(8, "little", signed=True))
        with pytest.raises(InputError, match=told):
            FunnelIndex.load(folder)
    signed(folder, file, good[:-8] + good[-16:-8])
    with pytest.raises(InputError, match="in no list, or in several"):
        FunnelIndex.load(folder)
