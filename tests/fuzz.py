"""Folders with seeded damage, and a driver that uses each of them in a process of its own, within limits of time and memory.

    cases = [*damaged_files(folder), *damaged_json(folder, seed=0, count=100)]
    found = outcomes(folder, cases, "test_fuzz_models:use", tmp_path)
    assert [one for one in found if not one.is_fine] == []

`use` is named as module:function, so that the process that runs it need not be this one. It gets the path of a damaged copy.
What it may end with: nothing, or an `InputError` of one line. All else is a fault: another exception, a signal, too much time,
code that is run, or a file opened in the folder `outside`, which lies beside the copy and which nobody should look into.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60  # of one case, on a busy machine
MEMORY = 3 * 2**30  # bytes that one case may ask for beside what the libraries take
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**12, 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *("", "abc", "12", "\0", "../outside/file", "/etc/passwd", "a" * 5000, "é漢"),
    *([], {}, [None], [[]], {"a": 1}, [1, 2, 3], ["../outside/file"], {"type": "x"}),
]
_RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect")


@dataclass(frozen=True)
class Case:
    """A damage: `apply` is given the copy of the folder."""

    name: str
    apply: Callable[[Path], object]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: its kind is `ok`, `InputError`, `raw error`, `forbidden`, `signal` or `timeout`."""

    name: str
    kind: str
    text: str

    @property
    def is_fine(self) -> bool:
        return self.kind == "ok" or (self.kind == "InputError" and "\n" not in self.text.strip() and len(self.text) < 2000)


# ---- damages


def damaged_files(folder: Path) -> Iterator[Case]:
    """Each file missing, empty, cut, of other bytes, of another kind, a link; each folder a file."""

    def of(path: Path, name: str, change: Callable[[Path], object]) -> Case:
        return Case(f"{path}: {name}", lambda copy: change(copy / path))

    for found in sorted(folder.rglob("*")):
        path = found.relative_to(folder)
        if found.is_dir():
            yield of(path, "missing", shutil.rmtree)
            yield of(path, "a file", lambda file: (shutil.rmtree(file), file.write_text("{}")))
            continue
        yield of(path, "missing", Path.unlink)
        yield of(path, "empty", lambda file: file.write_bytes(b""))
        yield of(path, "cut", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]))
        yield of(path, "other bytes", _scramble)
        yield of(path, "not UTF-8", lambda file: file.write_bytes(b'{"a": "\xff\xfe"}'))
        yield of(path, "deep", lambda file: file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000))
        yield of(path, "a key twice", lambda file: file.write_text('{"model_type": "bert", "model_type": "gpt2"}'))
        yield of(path, "a folder", lambda file: (file.unlink(), file.mkdir()))
        yield of(path, "a pipe", lambda file: (file.unlink(), os.mkfifo(file)))
        yield of(path, "a broken link", lambda file: (file.unlink(), file.symlink_to("nowhere")))
        yield of(path, "a link to itself", lambda file: (file.unlink(), file.symlink_to(file.name)))
        yield of(path, "a link to /dev/zero", lambda file: (file.unlink(), file.symlink_to("/dev/zero")))
        yield of(path, "unreadable", lambda file: file.chmod(0))


def _scramble(file: Path) -> None:
    content, chance = bytearray(file.read_bytes()), random.Random(file.name)
    for _ in range(1 + len(content) // 50):
        content[chance.randrange(len(content))] = chance.randrange(256)
    file.write_bytes(content)


def damaged_json(folder: Path, seed: int, count: int, skip: Sequence[str] = ()) -> Iterator[Case]:
    """`count` changes of single values, and of keys, in the folder's JSON files; large tables count as one value."""
    chance = random.Random(seed)
    files = [file for file in sorted(folder.rglob("*.json")) if str(file.relative_to(folder)) not in skip]
    places = [(file, place) for file in files for place in _places(json.loads(file.read_text(encoding="utf-8")))]
    for number in range(count):
        file, place = chance.choice(places)
        change = chance.choice(["value"] * 8 + ["missing", "in a list"])
        value = chance.choice(VALUES)
        path = file.relative_to(folder)
        what = (
            f"{path} {'.'.join(map(str, place))}: {change} {str(value)[:20]!r}"
            if change == "value"
            else f"{path} {place}: {change}"
        )
        yield Case(f"{number} {what}", lambda copy, p=path, at=place, c=change, v=value: _change(copy / p, at, c, v))


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    yield place
    if isinstance(value, dict) and len(value) < 200:
        for key, inner in value.items():
            yield from _places(inner, (*place, key))
    elif isinstance(value, list) and len(value) < 200:
        for i, inner in enumerate(value):
            yield from _places(inner, (*place, i))


def _change(file: Path, place: tuple, change: str, value: Any) -> None:
    root = [json.loads(file.read_text(encoding="utf-8"))]
    holder, key = root, 0
    for step in place:
        holder, key = holder[key], step
    if change == "missing":
        del holder[key]
    else:
        holder[key] = value if change == "value" else [holder[key]]
    file.write_text(json.dumps(root[0]) if root else "", encoding="utf-8")


# ---- the driver


def outcomes(folder: Path, cases: Sequence[Case], use: str, scratch: Path, seconds: float = SECONDS) -> list[Outcome]:
    """What `use` comes to at a copy of the folder with each case's damage.

    One process loads the libraries; a fork of it takes each case.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, use, str(seconds)]
    runner = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    found = []
    with runner:
        for case in cases:
            place = scratch / "case"
            shutil.copytree(folder, place / "folder")
            (place / "outside").mkdir()
            (place / "outside" / "file").write_text("secret")
            case.apply(place / "folder")
            runner.stdin.write(f"{place / 'folder'}\n")
            runner.stdin.flush()
            line = runner.stdout.readline()
            assert line, "the process that runs the cases has died"
            found.append(Outcome(case.name, *json.loads(line)))
            shutil.rmtree(place)
        runner.stdin.close()
    return found


def _serve(use: str, seconds: float) -> None:
    """Answers each path that comes in with the kind and the text of an outcome."""
    module, _, name = use.partition(":")
    function = getattr(importlib.import_module(module), name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        answers.write(json.dumps(_in_a_fork(function, Path(line.rstrip("\n")), seconds)) + "\n")
        answers.flush()


def _in_a_fork(function: Callable[[Path], object], folder: Path, seconds: float) -> tuple[str, str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, json.dumps(_used(function, folder)).encode()[:60_000])
        os._exit(0)
    os.close(write)
    answer, end = b"", time.monotonic() + seconds
    while select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(read, 2**16)
        if not part:
            break
        answer += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    status = os.waitpid(child, 0)[1]
    if answer:
        return tuple(json.loads(answer))
    if os.WIFSIGNALED(status) and time.monotonic() < end:
        return "signal", signal.Signals(os.WTERMSIG(status)).name
    return ("timeout", f"more than {seconds} s") if time.monotonic() >= end else ("signal", f"exit status {status}")


def _used(function: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    from acge_lightning.data.excel import PROGRAM
    from acge_lightning.errors import InputError

    seen: list[str] = []

    def audit(event: str, details: tuple) -> None:
        if event == "subprocess.Popen" and list(details[1][:3]) == [sys.executable, "-P", str(PROGRAM)]:
            return  # reads a workbook
        if event in _RUNS_CODE or (event == "exec" and str(folder.parent) in str(getattr(details[0], "co_filename", ""))):
            seen.append(f"{event} {details!r:.200}")
        elif event == "open" and isinstance(details[0], str):
            path = os.path.realpath(details[0])
            writes = isinstance(details[1], str) and set("wax+") & set(details[1])
            elsewhere = writes and path != os.devnull and not path.startswith(f"{os.path.realpath(folder)}/")
            if path.startswith(f"{folder.parent}/outside") or path == "/etc/passwd" or elsewhere:
                seen.append(f"{event} {details!r:.200}")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    sys.addaudithook(audit)
    try:
        function(folder)
        kind, text = "ok", ""
    except InputError as error:
        kind, text = "InputError", str(error)
    except BaseException as error:
        kind, text = "raw error", f"{type(error).__name__}: {error}"[:3000]
    return ("forbidden", "; ".join(seen)[:3000]) if seen else (kind, text)


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
