"""Engines: whatever does the work, and whatever is killed meanwhile, the same bytes come out."""

import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import cross_encoder
import numpy as np
import pyarrow as pa
import pytest
import shard_functions
from conftest import SAMPLE
from hydra import compose, initialize_config_dir
from seeded import seeded

from acge_lightning.commands import clean, mine
from acge_lightning.commands.mine_shards import BlockEncoder
from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.data import readers
from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.mining import normalise
from acge_lightning.mining.cleaning import row_shards
from acge_lightning.mining.engine import in_process, open_engine
from acge_lightning.mining.negatives.miner import embedded
from acge_lightning.zoo.pretrained import load

NUMBERS = [pa.table({"n": [n]}) for n in range(6)]


def run(*words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("clean", arguments(words))
    clean.run(with_names(config))


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    return shard_functions.write_dirty(tmp_path_factory.mktemp("data") / "dirty")


@pytest.fixture(scope="module")
def serial(dirty, tmp_path_factory):
    out = tmp_path_factory.mktemp("serial") / "out"
    run(f"source={dirty}", f"out={out}")
    return files(out)


@pytest.fixture
def small_shards(monkeypatch):
    """Cut data into many shards: who starts an engine cuts them, workers take what they get."""
    monkeypatch.setattr(readers, "_LARGE", 0)
    monkeypatch.setattr(row_shards, "spans", partial(readers.spans, size=20))
    monkeypatch.setattr(normalise, "_SHARD", 50)


def check_same(engine, dirty, serial, tmp_path):
    run(f"source={dirty}", f"out={tmp_path / 'out'}", f"engine={engine}", "workers=2")
    assert files(tmp_path / "out") == serial
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".work")] == []


def test_local_writes_the_bytes_of_serial_whatever_the_shards(dirty, serial, small_shards, tmp_path, caplog):
    assert b"leak, exact" in serial["quarantine/pair-faq.jsonl"]
    assert b"near duplicate" in serial["quarantine/unlabelled-pile.jsonl"]
    check_same("local", dirty, serial, tmp_path)
    for message in ("train-4.csv: sentence1 → text1, sentence2 → text2", "train-1.jsonl, line 41: is not JSON"):
        assert sum(message in line for line in caplog.messages) == 1, "what workers log is told, once"


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_errors_are_those_of_serial(engine, dirty, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    messages = []
    for name in ("serial", engine):
        with pytest.raises(InputError) as error:
            run(f"source={dirty}", f"out={tmp_path / 'out'}", "on_bad_row=raise", f"engine={name}", "workers=2")
        messages.append(str(error.value))
    assert "train-1.jsonl, line 41: is not JSON" in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.heavy
def test_ray_writes_the_bytes_of_serial_whatever_the_shards(dirty, serial, small_shards, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    check_same("ray", dirty, serial, tmp_path)


def numbers(found):
    return [n for table in found for n in table["n"].to_pylist()]


def check_failure_and_resume(engine, folder):
    """An error is that of the function; what was done before is not done again, and other settings and rows are."""
    given = {"folder": str(folder)}
    with pytest.raises(InputError) as caught, open_engine(engine, folder / "out", 2) as shards:
        numbers(shards(shard_functions.failing, NUMBERS, at=4, **given))
    assert str(caught.value) == "4 is no number: take another"
    assert set(shard_functions.calls(folder)) >= {0, 1, 2, 3}
    shutil.rmtree(folder / ".kept", ignore_errors=True)
    shutil.copytree(folder / ".out.work", folder / ".kept")
    for file in folder.glob("calls-*"):
        file.unlink()
    with open_engine(engine, folder / "out", 1) as shards:
        with pytest.raises(InputError, match="4 is no number"):
            numbers(shards(shard_functions.failing, NUMBERS[:5], at=4, **given))
        (folder / "mended").touch()
        assert numbers(shards(shard_functions.failing, NUMBERS, at=4, **given)) == [0, 2, 4, 6, 8, 10]
        assert set(shard_functions.calls(folder)) <= {4, 5}
        assert numbers(shards(shard_functions.doubled, NUMBERS[:2], by=3, **given)) == [0, 3]
        assert numbers(shards(shard_functions.doubled, [pa.table({"n": [7, 8]})] * 9, by=3, **given)) == [21, 24] * 9
        assert {0, 1, 7} <= set(shard_functions.calls(folder))
        with pytest.raises(InputError, match="is in use by process"), open_engine("local", folder / "out"):
            pass
    assert not (folder / ".out.work").exists()


def check_killed_workers(engine, folder):
    """A worker that is killed is replaced, and nothing is lost; a shard that kills all of them is named."""
    with open_engine(engine, folder / "out", 2) as shards:
        assert numbers(shards(shard_functions.killed, NUMBERS, folder=str(folder), times=2)) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(InputError, match=r"shard 3 of killed: the process that worked on it was .* times"):
            numbers(shards(shard_functions.killed, NUMBERS, folder=str(folder), times=99))
        assert numbers(shards(shard_functions.killed, NUMBERS[:3], folder=str(folder), times=0)) == [0, 2, 4]


def test_local_resumes_by_shard_and_says_what_serial_says(tmp_path):
    check_failure_and_resume("local", tmp_path)


@pytest.mark.heavy
def test_local_replaces_workers_that_are_killed(tmp_path):
    check_killed_workers("local", tmp_path)


@pytest.mark.heavy
def test_ray_resumes_by_shard_and_replaces_workers(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # Ray's workers import the functions
    check_failure_and_resume("ray", tmp_path)
    check_killed_workers("ray", tmp_path)


def test_a_damaged_shard_is_done_again(tmp_path):
    for _ in range(2):
        with suppress(KeyError), open_engine("local", tmp_path / "out", 1) as shards:
            assert numbers(shards(shard_functions.doubled, NUMBERS, folder=str(tmp_path))) == [0, 2, 4, 6, 8, 10]
            raise KeyError  # so that the folder stays
        for file in (tmp_path / ".out.work").glob("*.result"):
            file.write_bytes(file.read_bytes()[:-20])
    assert shard_functions.calls(tmp_path) == sorted([*range(6), *range(6)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine=dask"], "engine=dask is unknown: choose from serial, local, ray"),
        (["workers=0", "engine=local"], "workers=0 must"),
    ],
)
def test_what_no_engine_can_do(dirty, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        run(f"source={dirty}", f"out={tmp_path / 'out'}", *words)


def test_a_cluster_that_is_not_there(dirty, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(InputError, match=r"ray_address=127\.0\.0\.1:1: no cluster there \(.*refused\)"):
        run(f"source={dirty}", f"out={tmp_path / 'out'}", "engine=ray", "ray_address='127.0.0.1:1'")


def test_without_ray_the_extra_is_named(dirty, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"engine=ray needs ray: pip install 'acge-lightning\[ray\]'"):
        run(f"source={dirty}", f"out={tmp_path / 'out'}", "engine=ray")
    assert [path.name for path in tmp_path.iterdir()] == []


# ---- acge mine


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    return cross_encoder.save(tmp_path_factory.mktemp("cross") / "encoder")


def mine_with(engine, model, scorer, cache, out):
    words = [f"model={model}", f"scorer={scorer}", f"source=[{SAMPLE / 'retrieval/sample_zh'}]", f"paths.cache_dir={cache}"]
    words += ["paths.output_dir=.", "scores=true", "near=null", "negatives=2", f"out={out}", f"engine={engine}", "workers=2"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("mine", words)
    mine.run(config)
    return files(out)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("with_cross_encoder", [True, False])
def test_mined_rows_are_those_of_serial(engine, with_cross_encoder, small_encoder, cross, tmp_path, monkeypatch):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr("acge_lightning.mining.negatives.miner._TEXTS", 64)
    monkeypatch.setattr("acge_lightning.mining.negatives.scorers._PAIRS", 200)
    scorer = cross if with_cross_encoder else seeded(small_encoder, tmp_path / "second")
    expected = mine_with("serial", small_encoder, scorer, tmp_path / "cache", tmp_path / "serial")
    assert mine_with(engine, small_encoder, scorer, tmp_path / "other", tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    vectors = [{f.name: f.read_bytes() for f in (tmp_path / n).rglob("*.vectors")} for n in ("cache", "other")]
    assert len(vectors[0]) > 5
    assert vectors[0] == vectors[1]


def test_blocks_embedded_elsewhere_are_those_of_this_process(small_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("acge_lightning.mining.negatives.miner._TEXTS", 4)
    texts = [*(f"第{i}个问题 weather" * (i % 5 + 1) for i in range(11)), "天气", "天气", ""]
    encoder = load(small_encoder, prompts={"query": "问："})
    here, there = (Embeddings(encoder, tmp_path / name) for name in ("here", "there"))
    for some in (texts[5:8], texts):  # of which some are there the second time
        counts = []
        vectors = embedded(there, some, None, counts.append, BlockEncoder(in_process, small_encoder, None, there.hash))
        np.testing.assert_array_equal(vectors, embedded(here, some))
        np.testing.assert_allclose(vectors, encoder.encode(some).numpy(), atol=1e-6)
        assert sum(counts) == len(some)
    assert {f.name for f in (tmp_path / "here").rglob("*")} == {f.name for f in (tmp_path / "there").rglob("*")}
    with pytest.raises(InputError, match="has changed since the run began: start it again"):
        embedded(there, ["退货"], None, compute=BlockEncoder(in_process, small_encoder, None, "other"))
