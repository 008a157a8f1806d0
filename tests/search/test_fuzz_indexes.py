"""Indexes and anchors of a stranger: whatever their bytes say, and though all digests fit, they load right or are refused.

`python tests/test_fuzz_indexes.py KIND SEED COUNT` tries COUNT mutations of one kind, each in a process of its own with little
memory and time, and prints what came of those that neither worked nor ended in an `InputError` of one line.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DIM, ROWS = 16, 60
SECONDS, MEMORY = 60, 3 << 30  # of one mutation
KINDS = {
    "exact": ("fp32", "fp16", "int8", "binary"),
    "flat": ("fp32", "fp16", "int8", "binary"),
    "hnsw": ("fp32", "fp16", "int8", "binary"),
    "ivf": ("fp32", "fp16", "int8", "binary"),
    "anchor": ("fp32", "bf16"),
}
NUMBERS = (0, 1, 2, 3, 7, 59, 60, 61, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e38, 1e300)
STRANGE = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    2**31,
    1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    "../x",
    "a\0b",
    [],
    [[]],
    {},
    {"a": 1},
    [1, "a"],
)


# ---- what is mutated


def make(kind, store, folder):
    """An index with ids and texts, or an anchor with a bias, a matrix and rows."""
    import torch

    made = torch.Generator().manual_seed(0)
    if kind == "anchor":
        from acge_lightning.continual.anchor import Anchor

        theta = {"table": torch.randn(20, 4, generator=made), "dense": torch.randn(4, 4, generator=made), "bias": torch.ones(4)}
        fisher = {name: values.abs() for name, values in theta.items()}
        fisher["table"][3:] = 0
        folder.mkdir(parents=True)
        return Anchor(theta, fisher, {"encoder": "x"}).save(folder / "a.safetensors", bf16=store == "bf16")
    from acge_lightning.search import FunnelIndex, Stage

    stages = [Stage(8, 20, store, kind), Stage(DIM, store="int8" if store == "int8" else "fp16")]
    vectors = torch.randn(ROWS, DIM, generator=made)
    ids, texts = [f"r{i}" for i in range(ROWS)], [f"text {i}" for i in range(ROWS)]
    return FunnelIndex.build(vectors, stages, force=True, ids=ids, texts=texts).save(folder)


def mutate(folder, rng):
    """Changes one or two files, then puts the digests right; returns what it did, in words."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    told = []
    for _ in range(rng.integers(1, 3)):
        file = files[rng.integers(len(files))]
        change = change_json if file.suffix == ".json" else change_bytes
        told.append(f"{file.name}: {change(file, rng)}")
    sign(folder)
    return "; ".join(told)


def change_bytes(file, rng):
    """A number in its place, a flipped bit, a piece that is cut, doubled, zeroed or moved; near the file's ends more often."""
    data = bytearray(file.read_bytes())
    if len(data) < 16:
        return "nothing"
    at = int(rng.integers(len(data)) if rng.random() < 0.5 else min(len(data) - 1, rng.geometric(0.01)))
    at = len(data) - 1 - at if rng.random() < 0.25 else at
    how = ("number", "number", "float", "flip", "cut", "double", "zero", "append", "words")[rng.integers(9)]
    size = int(rng.integers(1, 65))
    if how == "number":
        at, value = at - at % 4 + int(rng.integers(4)) * (rng.random() < 0.3), NUMBERS[rng.integers(len(NUMBERS))]
        piece = struct.pack("<Q", value)[: 8 if rng.random() < 0.6 else 4]
        data[at : at + len(piece)] = piece
        told = f"{value} at {at}"
    elif how == "float":
        value, form = FLOATS[rng.integers(len(FLOATS))], "efd"[rng.integers(3)]
        with np.errstate(over="ignore"):
            piece = np.array(value).astype(f"<{form}").tobytes()
        data[at : at + len(piece)] = piece
        told = f"{value} at {at}"
    elif how == "flip":
        data[at] ^= 1 << int(rng.integers(8))
        told = f"flip at {at}"
    elif how == "cut":
        del data[at : at + size]
        told = f"{size} bytes less at {at}"
    elif how == "double":
        data[at:at] = data[at : at + size]
        told = f"{size} bytes twice at {at}"
    elif how == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
        told = f"{size} zeros at {at}"
    elif how == "append":
        data += bytes(size)
        told = f"{size} bytes more"
    else:
        words = (b"<f4", b">f4", b"|O8", b"<i8", b"True", b"(0,)", b"9" * 20, b"fisher/bias", b"-1")
        word = words[rng.integers(len(words))]
        data[at : at + len(word)] = word
        told = f"{word!r} at {at}"
    file.write_bytes(data)
    return told


def change_json(file, rng):
    """Another value somewhere in the manifest."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return "nothing"
    place, path = found, []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return "nothing"
        key = keys[rng.integers(len(keys))]
        path.append(str(key))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    value = STRANGE[rng.integers(len(STRANGE))]
    if rng.random() < 0.1:
        del place[key]
    else:
        place[key] = value
    file.write_text(json.dumps(found))
    return f"{'.'.join(path)} = {value!r}"


def sign(folder):
    """The bytes and SHA-256 of all files, as they are now, in the manifest."""
    manifest = folder / "index.json"
    try:
        found = json.loads(manifest.read_text())
        for file in folder.glob("v*/*"):
            if file.name in found["files"]:
                data = file.read_bytes()
                found["files"][file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(found))
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the manifest itself is what was changed


# ---- what is done with it


def use(kind, folder, elsewhere):
    """All that one can do: load, search, show, add, save and load again; an anchor is loaded, checked and saved."""
    import torch

    if kind == "anchor":
        from acge_lightning.continual.anchor import Anchor

        anchor = Anchor.load(folder / "a.safetensors")
        anchor.check({name: torch.zeros(shape) for name, shape in (("table", (20, 4)), ("dense", (4, 4)), ("bias", 4))})
        assert all(bool((values >= 0).all()) and bool(values.isfinite().all()) for values in anchor.fisher.values())
        assert all(bool(values.isfinite().all()) for values in anchor.theta.values())
        Anchor.load(anchor.save(elsewhere / "a.safetensors", bf16=True), mmap=False)
        return
    from acge_lightning.search import FunnelIndex

    index = FunnelIndex.load(folder)
    made = torch.Generator().manual_seed(1)
    vectors = torch.randn(40, index.dim, generator=made)
    hits = index.search(vectors, 7)
    assert hits.rows.max() < len(index)
    assert not np.isnan(hits.scores).any()
    texts = index.rows.table is not None and "text" in index.rows.table.column_names
    if texts:
        index.rows.texts_of(hits.rows[hits.rows >= 0])
    ids = [f"new {i}" for i in range(40)] if index.rows.table is not None and "id" in index.rows.table.column_names else None
    index.add(vectors, ids=ids, texts=[f"n {i}" for i in range(40)] if texts else None)
    index.search(vectors, 7)
    assert len(FunnelIndex.load(index.save(elsewhere / "new"))) == len(index)


def outcome(kind, folder, elsewhere):
    """`ok`, `refused`, or what went wrong, of a try in a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        os.write(writing, attempt(kind, folder, elsewhere).encode(errors="backslashreplace")[-3000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hangs" if number == signal.SIGALRM else f"dies of {signal.Signals(number).name}"
    return text or f"ends with {os.WEXITSTATUS(status)}"


def attempt(kind, folder, elsewhere):
    from acge_lightning.errors import InputError

    try:
        use(kind, folder, elsewhere)
        return "ok"
    except InputError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException:
        return traceback.format_exc()


def main(kind, seed, count):
    import faiss
    import torch

    import acge_lightning.search.storage  # noqa: F401 (before the forks)

    torch.set_num_threads(1)  # a child of a process with threads may wait for them for ever
    faiss.omp_set_num_threads(1)
    rng, seen = np.random.default_rng([seed, *kind.encode()]), Counter()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        for store in KINDS[kind]:
            make(kind, store, place / store)
            (place / "new").mkdir()
            assert outcome(kind, place / store, place / "new") == "ok"
            shutil.rmtree(place / "new")
        for number in range(count):
            store, folder, elsewhere = KINDS[kind][number % len(KINDS[kind])], place / "hostile", place / "elsewhere"
            shutil.copytree(place / store, folder, symlinks=True)
            elsewhere.mkdir()
            told = mutate(folder, rng)
            found = outcome(kind, folder, elsewhere)
            seen[found.strip().splitlines()[-1][:160]] += 1
            if found not in ("ok", "refused"):
                print(f"{number} {kind} {store}: {told}\n{found}\n", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
            shutil.rmtree(elsewhere)
    print(json.dumps(seen))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_it_is_read_right_or_refused(kind, tmp_path):
    if kind in ("flat", "hnsw", "ivf"):
        pytest.importorskip("faiss")
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, __file__, kind, "0", "400"], capture_output=True, text=True, check=True, env=env, timeout=1800
    )
    seen = json.loads(done.stdout)
    assert set(seen) <= {"ok", "refused"}, done.stderr
    assert min(seen["ok"], seen["refused"]) > 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
