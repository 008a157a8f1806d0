"""Checkpoints that are killed while written, cut, flipped, packed or poisoned; disks that are full."""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from acge_lightning.config.building import instantiate
from acge_lightning.config.sources import config_dir
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import draft
from acge_lightning.training import checkpoint as code
from acge_lightning.training.checkpoint import SafeCheckpointIO, newest, read


def state(step, size=2000):
    generator = torch.Generator().manual_seed(step)
    return {"global_step": step, "state_dict": {"w": torch.randn(size, generator=generator)}, "loops": {"a": [1, None, "x"]}}


def same(found, step, size=2000):
    return found["global_step"] == step and torch.equal(found["state_dict"]["w"], state(step, size)["state_dict"]["w"])


@pytest.fixture
def io():
    return SafeCheckpointIO()


# ---- writing and reading


def test_it_returns_what_was_saved(io, tmp_path):
    io.save_checkpoint(state(3), tmp_path / "new" / "a.ckpt")
    assert same(io.load_checkpoint(tmp_path / "new" / "a.ckpt"), 3)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.ckpt", "a.ckpt.sha256"]


def test_the_manifest_is_that_of_sha256sum(io, tmp_path):
    for step in (1, 2):
        io.save_checkpoint(state(step), tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    assert (tmp_path / "a.ckpt.sha256").read_text() == f"{hashlib.sha256(content).hexdigest()}  a.ckpt\n"
    subprocess.run(["sha256sum", "--check", "--strict", "a.ckpt.sha256"], cwd=tmp_path, check=True, capture_output=True)


def test_removing_takes_the_manifest_along(io, tmp_path):
    io.save_checkpoint(state(1), tmp_path / "a.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_the_newest_has_the_most_steps(io, tmp_path):
    assert newest(tmp_path / "missing") is None
    assert newest(tmp_path) is None
    for name, step in (("b", 30), ("a", 200), ("c", 4)):
        io.save_checkpoint(state(step), tmp_path / f"{name}.ckpt")
    assert newest(tmp_path) == tmp_path / "a.ckpt"
    (tmp_path / "a.ckpt").write_bytes(b"")
    assert newest(tmp_path) == tmp_path / "b.ckpt"
    (tmp_path / "b.ckpt.sha256").unlink()
    assert newest(tmp_path) == tmp_path / "c.ckpt"


@pytest.mark.parametrize("stage", ["draft", "manifest", "file"])
def test_dying_between_any_two_writes_leaves_a_good_file(stage, io, tmp_path, monkeypatch):
    """The old one until the file is put in place, then the new one; the next save mends the manifest."""
    path = tmp_path / "a.ckpt"
    io.save_checkpoint(state(1), path)
    calls = []

    def replace(source, target):
        calls.append(Path(target).name)
        if calls == {"draft": ["a.ckpt.sha256"], "manifest": ["a.ckpt.sha256", "a.ckpt"]}.get(stage):
            raise KeyboardInterrupt
        os.rename(source, target)
        if stage == "file" and len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            io.save_checkpoint(state(2), path)
    assert same(read(path), 2 if stage == "file" else 1)
    io.save_checkpoint(state(3), path)
    assert same(read(path), 3)
    assert len((tmp_path / "a.ckpt.sha256").read_text().splitlines()) == 1


def test_drafts_of_dead_processes_are_removed(tmp_path):
    kept, gone = tmp_path / ".mine.draft", tmp_path / ".b.ckpt.0123abcd.draft"
    for file in (gone, kept):
        file.write_text("x")
    with draft(tmp_path / "c.ckpt") as held:
        SafeCheckpointIO().save_checkpoint(state(1), tmp_path / "a.ckpt")
        assert held.exists()
    assert not gone.exists()
    assert kept.exists()


@pytest.fixture
def precious(tmp_path):
    """A folder beside that of the checkpoints, with what nobody may touch."""
    folder = tmp_path / "precious"
    folder.mkdir()
    SafeCheckpointIO().save_checkpoint(state(9), folder / "other.ckpt")
    (folder / "thesis.txt").write_text("thesis")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../precious/thesis.txt",
        "../precious/other.ckpt",
        "link/other.ckpt",
        "../checkpoints/mine.txt",
        "folder.ckpt",
    ],
)
def test_only_checkpoints_of_its_own_folder_are_removed(name, io, tmp_path, precious, caplog):
    folder = tmp_path / "checkpoints"
    io.save_checkpoint(state(1), folder / "a.ckpt")
    (folder / "link").symlink_to(precious)
    (folder / "folder.ckpt").mkdir()
    (folder / "mine.txt").write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    io.remove_checkpoint(folder / name)
    assert "is not removed" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    SafeCheckpointIO().remove_checkpoint(folder / "a.ckpt")  # another process has written it
    assert (folder / "a.ckpt").is_file()
    io.remove_checkpoint(folder / "a.ckpt")
    assert not (folder / "a.ckpt").exists()


def test_links_are_replaced_and_not_followed(io, tmp_path, precious):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a.ckpt", "a.ckpt.sha256"):
        (folder / name).symlink_to(precious / "thesis.txt")
    io.save_checkpoint(state(1), folder / "a.ckpt")
    assert same(io.load_checkpoint(folder / "a.ckpt"), 1)
    (folder / "a.ckpt").unlink()
    (folder / "a.ckpt").symlink_to(precious / "thesis.txt")
    io.remove_checkpoint(folder / "a.ckpt")
    assert not (folder / "a.ckpt").is_symlink()
    assert (precious / "thesis.txt").read_text() == "thesis"


@pytest.mark.parametrize("name", ["a.ckpt", "a.ckpt.sha256"])
def test_a_folder_in_the_place_of_a_file_is_kept(name, io, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        io.save_checkpoint(state(1), tmp_path / "a.ckpt")
    with pytest.raises(InputError):
        io.load_checkpoint(tmp_path / "a.ckpt")
    assert (tmp_path / name / "x").is_file()


def test_a_pipe_is_no_checkpoint_and_is_not_waited_for(io, tmp_path):
    io.save_checkpoint(state(1), tmp_path / "a.ckpt")
    os.mkfifo(tmp_path / "b.ckpt")
    assert newest(tmp_path) == tmp_path / "a.ckpt"
    with pytest.raises(InputError, match=r"b\.ckpt is no file"):
        read(tmp_path / "b.ckpt")
    (tmp_path / "a.ckpt.sha256").unlink()
    os.mkfifo(tmp_path / "a.ckpt.sha256")
    with pytest.raises(InputError, match="no manifest"):
        read(tmp_path / "a.ckpt")


# ---- what is refused


def test_an_address_is_refused(io):
    for address in ("https://example.org/a.ckpt", "s3://bucket/a.ckpt"):
        with pytest.raises(InputError, match="is an address"):
            io.load_checkpoint(address)
        with pytest.raises(InputError, match="is an address"):
            io.save_checkpoint(state(1), address)


class Poison:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def signed(path):
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def test_code_is_never_run(io, tmp_path):
    """Whatever the caller says of `weights_only`, and although the digest is right."""
    torch.save(state(1) | {"extra": Poison(tmp_path / "ran")}, tmp_path / "a.ckpt")
    signed(tmp_path / "a.ckpt")
    for weights_only in (True, False, None):
        with pytest.raises(InputError, match=r"a\.ckpt cannot be read"):
            io.load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    assert newest(tmp_path) is None
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # the poison works


def test_a_packed_archive_is_refused(io, tmp_path):
    torch.save(state(1) | {"zeros": torch.zeros(1_000_000)}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as source,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    signed(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)  # torch itself opens it
    with pytest.raises(InputError, match="larger in memory"):
        io.load_checkpoint(tmp_path / "a.ckpt")


def test_overlapping_entries_are_refused(io, tmp_path):
    """Stored entries that share their bytes: many times the file in memory."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as bomb:
        bomb.writestr("archive/data/0", bytes(100_000))
        for i in range(1, 50):
            info = zipfile.ZipInfo.from_file(__file__, f"archive/data/{i}")
            first = bomb.filelist[0]
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.file_size = info.compress_size = first.file_size
            bomb.filelist.append(info)
            bomb.NameToInfo[info.filename] = info
    signed(path)
    with pytest.raises(InputError, match="larger in memory"):
        io.load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_archive_is_refused(content, io, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    signed(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no checkpoint archive"):
        io.load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("kind", ["damaged", "without manifest", "missing"])
def test_the_newest_good_one_is_read_instead(kind, io, tmp_path, caplog):
    for name, step in (("best", 5), ("older", 3), ("last", 9)):
        io.save_checkpoint(state(step), tmp_path / f"{name}.ckpt")
    if kind == "damaged":
        content = bytearray((tmp_path / "last.ckpt").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "last.ckpt").write_bytes(content)
    elif kind == "missing":
        io.remove_checkpoint(tmp_path / "last.ckpt")
    else:
        (tmp_path / "last.ckpt.sha256").unlink()
    assert same(io.load_checkpoint(tmp_path / "last.ckpt"), 5)
    assert str(tmp_path / "last.ckpt") in caplog.text
    assert f"going on from {tmp_path / 'best.ckpt'} (step 5)" in caplog.text
    for name in ("best", "older"):
        io.remove_checkpoint(tmp_path / f"{name}.ckpt")
    with pytest.raises(InputError, match="no other good checkpoint"):
        io.load_checkpoint(tmp_path / "last.ckpt")


def damage(content, rng):
    """One flipped bit, or a cut, or a page of zeros where there was something else."""
    kind = rng.choice(("flip", "cut", "zero"))
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    at = rng.randrange(len(content))
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    else:
        changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
    return bytes(changed)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.heavy)])
def test_every_damage_is_noticed(count, io, tmp_path):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    io.save_checkpoint(state(1), tmp_path / "best.ckpt")
    io.save_checkpoint(state(2), path)
    good = path.read_bytes()
    done = 0
    while done < count:
        bad = damage(good, rng)
        if bad == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(InputError):
            read(path)
        assert same(io.load_checkpoint(path), 1)
        assert newest(tmp_path) == tmp_path / "best.ckpt"
        done += 1
    path.write_bytes(good)
    assert same(io.load_checkpoint(path), 2)


# ---- killed while saving

SIZE = 2_000_000  # numbers of a checkpoint: 8 MB


def saver(folder, first):
    """A process that saves without end, two files in turn; it says when it begins a save."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        io, content, step = SafeCheckpointIO(), state(0, SIZE), first
        while True:
            content["global_step"] = step
            content["state_dict"]["w"][0] = step
            os.write(writer, b"x")
            io.save_checkpoint(content, folder / ("last.ckpt" if step % 2 else "best.ckpt"))
            step += 1
    os.close(writer)
    return pid, reader


def kill_while_saving(folder, count):
    rng, io, step, dead = random.Random(0), SafeCheckpointIO(), 1, 0
    io.save_checkpoint(state(0, SIZE), folder / "best.ckpt")
    orphans = 0
    for _ in range(count):
        pid, reader = saver(folder, step)
        for _ in range(rng.randrange(1, 4)):
            os.read(reader, 1)
        time.sleep(rng.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.close(reader)
        dead += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        orphans += len(list(folder.glob(".*.draft"))) > 0
        found = newest(folder)
        content = SafeCheckpointIO().load_checkpoint(found)
        assert content["global_step"] >= step - 1
        assert content["state_dict"]["w"][0] == content["global_step"] or content["global_step"] == 0
        assert len(list(folder.glob(".*.draft"))) <= 1
        step = content["global_step"] + 1
    assert dead == count
    return orphans, step


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.heavy)])
def test_killed_while_saving_the_newest_good_one_loads(count, elsewhere, tmp_path, monkeypatch):
    """With temporary files on the same file system, and on another one."""
    if elsewhere:
        if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system")
        monkeypatch.setenv("TMPDIR", "/dev/shm")
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    before = set(Path(tempfile.gettempdir()).glob("*.draft"))
    orphans, step = kill_while_saving(tmp_path, count)
    assert orphans > count / 5  # many did die while they wrote
    assert step > 1
    assert set(Path(tempfile.gettempdir()).glob("*.draft")) <= before


# ---- full disks


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_checkpoint(small_disk, io, monkeypatch):
    """With the check of free space, and where the space goes after the check."""
    io.save_checkpoint(state(1, 1_500_000), small_disk / "last.ckpt")
    with pytest.raises(InputError, match=r"disk has [\d,]+ bytes free, a checkpoint needs [\d,]+"):
        io.save_checkpoint(state(2, 4_000_000), small_disk / "last.ckpt")
    monkeypatch.setattr(code, "_check_space", lambda *_: None)
    with pytest.raises(InputError, match="what was there before is kept"):
        io.save_checkpoint(state(2, 4_000_000), small_disk / "last.ckpt")
    assert same(io.load_checkpoint(small_disk / "last.ckpt"), 1, 1_500_000)
    assert sorted(p.name for p in small_disk.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.parametrize("code_of", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_a_disk_that_fails_at_any_flush_costs_no_checkpoint(after, code_of, io, tmp_path, monkeypatch):
    """Draft, manifest, folder: the old one is kept, or the new one is whole."""
    io.save_checkpoint(state(1), tmp_path / "last.ckpt")
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > after:
            raise OSError(code_of, os.strerror(code_of))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="cannot be written"):
            io.save_checkpoint(state(2), tmp_path / "last.ckpt")
    found = io.load_checkpoint(tmp_path / "last.ckpt")
    assert same(found, 1 if after < 3 else 2)
    assert not list(tmp_path.glob(".*.draft"))


def test_the_space_is_checked_before_anything_is_touched(io, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(code.shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    monkeypatch.setattr(code, "_write", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(InputError) as caught:
        io.save_checkpoint(state(1, 1_000_000), tmp_path / "a.ckpt")
    for word in (str(tmp_path), "5,000,000", f"{4_000_000 + code._SLACK:,}"):
        assert word in str(caught.value)


# ---- in a run


def test_the_default_config_uses_it_and_keeps_two():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["paths.output_dir=out", "logger=none"])
    (plugin,) = instantiate(cfg.trainer.plugins)
    assert isinstance(plugin, SafeCheckpointIO)
    kept = instantiate(cfg.callbacks.checkpoint)
    assert kept.save_last is True
    assert kept.save_top_k == 1
