"""Programs that find no home folder, no reader of what they print, or a terminal that lacks characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acge_lightning.commands import environment as surroundings

PRINTS = """
import sys
{before}
from acge_lightning.commands.environment import ensure_home, lasting_output
ensure_home()
with lasting_output():
    from rich.console import Console
    from rich.table import Table
    table = Table("名", title="分数")
    table.add_row("句子 \\udcff")
    for _ in range({times}):
        Console().print(table, "结束")
        print("怎么退货？", flush=True)
    print("也在这里", file=sys.stderr)
open("done", "w").close()
"""


def run(folder, before="", times=1, **how):
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | how.pop("env", {})} | how
    (folder / "prints.py").write_text(PRINTS.format(before=before, times=times), encoding="utf-8")
    return subprocess.Popen([sys.executable, "prints.py"], cwd=folder, **how)


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
    ids=["latin-1", "ascii", "C", "utf-8"],
)
def test_characters_that_a_terminal_lacks_are_question_marks(env, tmp_path):
    done = run(tmp_path, env=env)
    out, err = done.communicate(timeout=100)
    assert (done.returncode, err.count(b"Traceback")) == (0, 0), err
    assert (tmp_path / "done").exists()
    if env.get("PYTHONIOENCODING") == "utf-8":
        assert "怎么退货？" in out.decode()
    else:
        assert b"?????" in out


def test_a_reader_that_leaves_stops_nothing(tmp_path):
    done = run(tmp_path, times=3000)
    assert done.stdout.readline()
    done.stdout.close()
    with done.stderr:
        err = done.stderr.read()
    assert (done.wait(100), err.count(b"Error")) == (0, 0), err
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_below_what_is_printed_is_told_at_the_end(tmp_path):
    with open("/dev/full", "w") as full:
        done = run(tmp_path, stdout=full)
        _, err = done.communicate(timeout=100)
    assert done.returncode == 1
    assert err.decode().splitlines()[-1] == (
        "error: what was printed could not be written (No space left on device): its end is lost"
    )


def test_closed_streams_are_no_place_for_the_next_file(tmp_path):
    """Or what is printed would end in it."""
    before = "import os; os.close(1); os.close(2); sys.stdout = sys.stderr = None"
    done = run(tmp_path, before, stdin=subprocess.DEVNULL)
    assert (*done.communicate(timeout=100), done.returncode) == (b"", b"", 0)
    assert (tmp_path / "done").read_text() == ""


def test_without_a_home_there_is_one_until_the_end(monkeypatch, tmp_path, capsys):
    ended = []
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(surroundings.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(surroundings.atexit, "register", lambda *call, **how: ended.append((call, how)))
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    surroundings.ensure_home()
    home = Path("~").expanduser()
    assert home.parent == tmp_path
    assert home.stat().st_mode & 0o777 == 0o700
    assert "set HOME" in capsys.readouterr().err
    (((call, folder), how),) = ended
    call(folder, **how)
    assert not home.exists()
    surroundings.ensure_home()
    assert len(ended) == 1
