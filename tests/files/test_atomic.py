"""A file is the old one or the new one, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from acge_lightning.continual.anchor import Anchor
from acge_lightning.errors import InputError
from acge_lightning.evaluation import results
from acge_lightning.files import atomic as files
from acge_lightning.files.atomic import check_replaceable, lock, sweep, whole, write_text
from acge_lightning.report.tables import summarise, write_result
from acge_lightning.search.tune import Tuned


def tuned(folder):
    Tuned(chosen=None, points=[]).write(folder / "funnel.json")


def summary(folder):
    (folder / "0" / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / "0" / ".hydra" / "overrides.yaml").write_text("[]\n")
    summarise(folder)


def page(folder):
    from acge_lightning.report.page import report

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
    WRITERS[name](tmp_path)
    (tmp_path / name).write_bytes(old := (tmp_path / name).read_bytes() + b"\n")
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
    assert (tmp_path / name).read_bytes() == old
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    WRITERS[name](tmp_path)
    assert (tmp_path / name).read_bytes() == old[:-1]


KINDS = ("result.json", "results.json", "results.csv", "summary.csv", "report.html")


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_somebody_else_is_kept(name, tmp_path):
    """Of the commands that write them; what names its file by `whole` alone has asked before."""
    (tmp_path / name).write_text('{"mine": 1}')
    write = {
        **WRITERS,
        "results.json": lambda folder: results.add(folder / name, results.NOTHING | {"format": 1}),
        "results.csv": lambda folder: results.check(folder / "results.json"),
    }[name]
    with pytest.raises(InputError, match=rf"{name} (is there and is not|holds no results)"):
        write(tmp_path)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


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
    (tmp_path / "circle").symlink_to("circle")
    write_text(tmp_path / "circle", "new")
    assert (tmp_path / "circle").read_text() == "new"
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


# ---- what cannot be written, and what killed processes leave


def run(script, *words):
    """A script in a process of its own."""
    head = "import os, signal, sys\nfrom acge_lightning.files.atomic import *\n"
    command = [sys.executable, "-c", head + script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    for file, told in (("a.txt/b.txt", "cannot be written .File exists."), ("", "is a folder: give the name of a file")):
        with pytest.raises(InputError, match=told):
            write_text(tmp_path / file, "new")
    full = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(sys.argv[1], "x" * 2000)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run(full, tmp_path / "a.txt")
    told = f"InputError {tmp_path / 'a.txt'} cannot be written (File too large): what was there before is kept\n"
    assert (done.stdout, done.stderr) == (told, "")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


KILLED = """
with whole(sys.argv[1]) as draft:
    draft.write_text("x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_drafts_of_killed_processes_are_swept_by_the_next_writer(tmp_path):
    for name in ("a.txt", "b.txt"):
        assert run(KILLED, tmp_path / name).returncode == -signal.SIGKILL
    (tmp_path / ".a.txt.of-mine").write_text("mine")
    assert len(list(tmp_path.glob(".*.draft"))) == 2
    with whole(tmp_path / "c.txt") as draft:
        draft.write_text("c")
        write_text(tmp_path / "a.txt", "a")
        assert len(list(tmp_path.glob(".b.txt.*.draft"))) == 1
        assert list(tmp_path.glob(".a.txt.*")) == [tmp_path / ".a.txt.of-mine"]
        sweep(tmp_path)
        assert list(tmp_path.glob(".*.draft")) == [draft]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt.of-mine", "a.txt", "c.txt"]


def test_many_writers_of_one_file_leave_one_whole_text(tmp_path):
    texts = [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [write_text(tmp_path / "a.txt", text) for _ in range(10)], texts))
    assert (tmp_path / "a.txt").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_lock_is_held_by_one(tmp_path):
    file, count = tmp_path / "counter", 0

    def add(_):
        nonlocal count
        with lock(file):
            seen = count
            threading.Event().wait(0.001)
            count = seen + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert count == 40
    assert list(tmp_path.iterdir()) == []


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path):
    holder = "with lock(sys.argv[1]):\n    print(os.getpid(), os.uname().nodename, flush=True)\n    sys.stdin.read()\n"
    script = f"import os, sys\nfrom acge_lightning.files.atomic import *\n{holder}"
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        pid, host = process.stdout.readline().split()
        with pytest.raises(InputError, match=rf"in use by process {pid} on {host}: wait for it, or give another output"):
            lock(tmp_path / ".lock", wait=False).__enter__()
        process.kill()
    assert (tmp_path / ".lock").exists()
    with lock(tmp_path / ".lock", wait=False):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()


def test_a_forked_child_does_not_keep_a_lock(tmp_path):
    script = """
with lock(sys.argv[1]):
    child = os.fork()
    if not child:
        signal.pause()
with lock(sys.argv[1], wait=False):
    print("free")
os.kill(child, signal.SIGKILL)
"""
    assert run(script, tmp_path / ".lock").stdout == "free\n"


def test_a_lock_is_no_way_to_another_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / ".lock").symlink_to("thesis.txt")
    with pytest.raises(InputError, match="cannot be written"):
        lock(tmp_path / ".lock").__enter__()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_only_files_of_a_kind_replace_each_other(tmp_path):
    file = tmp_path / "report.html"
    check_replaceable(file, b"ours", "a report")
    for text, fine in (("", True), ("<html>ours", True), ("<html>", False)):
        file.write_text(text)
        if fine:
            check_replaceable(file, b"ours", "a report")
        else:
            with pytest.raises(InputError, match=r"report\.html is there and is not a report: it is kept; give another name"):
                check_replaceable(file, b"ours", "a report")
    check_replaceable("/dev/null", b"ours", "a report")


def test_a_killed_owner_frees_its_lock_although_a_process_that_it_forked_lives(tmp_path):
    """As workers that load data do, for some seconds."""
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        with lock(tmp_path / "lock", wait=False):
            worker = os.fork()
            if worker:
                os.write(writer, str(worker).encode())
            while True:
                signal.pause()
    worker = int(os.read(reader, 20))
    with pytest.raises(InputError, match=f"in use by process {owner} on "), lock(tmp_path / "lock", wait=False):
        pass
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    try:
        with lock(tmp_path / "lock", wait=False):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reader)
        os.close(writer)
    assert not (tmp_path / "lock").exists()
