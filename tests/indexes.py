"""Vectors, and indexes of them on disk, that several tests search, damage or forge."""

import hashlib
import json

import numpy as np

from acge_lightning.search import FunnelIndex, Stage


def vectors(rows, dim, seed=0, repeats=0):
    """Of falling spread, as trained prefixes have, and of any length; the last rows repeat the first."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, dim)) * np.geomspace(1, 0.1, dim) * rng.uniform(0.1, 50, size=(rows, 1))
    made[rows - repeats :] = made[:repeats]
    return made.astype(np.float32)


def cosines(queries, rows, dim):
    """In double precision, by the definition."""
    q, x = queries[:, :dim].astype(np.float64), rows[:, :dim].astype(np.float64)
    return (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)


def saved_index(folder):
    """The folder of an index of 50 rows with ids and texts: 8 dims as int8, then 16 as fp16."""
    stages = [Stage(8, 20, "int8"), Stage(16)]
    index = FunnelIndex.build(vectors(50, 16), stages, force=True, ids=[f"r{i}" for i in range(50)], texts=["t"] * 50)
    return index.save(folder)


def stage_files(folder):
    """The files of the current version of an index, sorted."""
    (version,) = folder.glob("v*")
    return sorted(version.iterdir())


def signed(folder, file, data):
    """Other contents of a file, and its digest in the manifest."""
    file.write_bytes(data)
    found = json.loads((folder / "index.json").read_text())
    found["files"][file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(found))
