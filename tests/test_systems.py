"""The package on a pretended Windows and macOS: it imports, locks, replaces, trains, scores and searches there."""

import json
import os
import textwrap
from pathlib import Path

import pytest
from conftest import SAMPLE
from systems import NO_NAME, start

PACKAGE = Path(__file__).parents[1] / "acge_lightning"
MODULES = sorted(
    ".".join(["acge_lightning", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if file.name != "__main__.py"
)
SYSTEMS = ("windows", "macos")


def done(system, code, folder, *words, timeout=280):
    run = start(system, textwrap.dedent(code), folder, *words, timeout=timeout)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_pretence_takes_away_what_it_should(tmp_path):
    """On the pretended Windows, what this package did before fails."""
    code = """
        import os, sys, subprocess
        ours = {"__name__": "acge_lightning.x"}
        exec("import os, signal", ours)
        assert not any(hasattr(ours["os"], name) for name in ("fork", "O_NOFOLLOW", "getuid"))
        assert not hasattr(ours["signal"], "SIGUSR1") and hasattr(ours["signal"], "SIGTERM")
        def fails(call, kind):
            try:
                call()
            except kind:
                return
            raise SystemExit(f"{call} works")
        fails(lambda: exec("import fcntl", ours), ModuleNotFoundError)
        fails(lambda: os.open(".", os.O_RDONLY), PermissionError)
        with open("a", "w", encoding="utf-8") as file:
            fails(lambda: os.replace("a", "b"), PermissionError)
            fails(lambda: os.unlink("a"), PermissionError)
        with open("a", encoding="utf-8") as file:
            fails(lambda: os.fsync(file.fileno()), OSError)
        fails(lambda: open("a:b", "w", encoding="utf-8"), OSError)
        fails(lambda: subprocess.Popen([sys.executable], pass_fds=[1]), ValueError)
        code = "ours = {'__name__': 'acge_lightning.x'}; exec('import os', ours); print(hasattr(ours['os'], 'fork'))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    """
    done("windows", code, tmp_path)


def test_every_module_can_be_imported_on_windows(tmp_path):
    code = f"""
        from importlib import import_module
        for name in {MODULES}:
            import_module(name)
        from acge_lightning.callbacks import Signals
        print(Signals("x").path.name)
    """
    assert done("windows", code, tmp_path, timeout=580).strip() == "interrupted.ckpt"


@pytest.mark.parametrize("system", SYSTEMS)
def test_files_and_folders_are_replaced_and_locks_are_held(system, tmp_path):
    code = """
        import os, subprocess, sys
        from pathlib import Path
        from acge_lightning.errors import InputError
        from acge_lightning.files.atomic import lock, sweep, write_text
        from acge_lightning.files.folder import recover, whole_folder
        here = Path(".")
        write_text("报告 (1).txt", "one")
        write_text("报告 (1).txt", "two")
        assert Path("报告 (1).txt").read_text(encoding="utf-8") == "two"
        for text in ("one", "two"):
            with whole_folder("model") as new:
                (new / "a.txt").write_text(text, encoding="utf-8")
        assert Path("model/a.txt").read_text(encoding="utf-8") == "two"
        other = "from acge_lightning.files.atomic import lock\\nwith lock('.lock', wait=False): print('mine')"
        run = lambda: subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        with lock(".lock"):
            told = run()
            assert "is in use by process" in told.stderr and str(os.getpid()) in told.stderr, told.stderr
        assert run().stdout == "mine\\n"
        killed = "import os\\nfrom acge_lightning.files.atomic import draft\\nfrom pathlib import Path\\n"
        killed += "d = draft(Path('x.txt')); d.__enter__(); e = draft(Path('y'), folder=True); e.__enter__(); os._exit(9)"
        assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
        assert len([p for p in here.iterdir() if p.name.endswith(".draft")]) == 2
        sweep(here)
        Path("model").rename(".model.0123abcd.old")
        recover(Path("model"))
        assert Path("model/a.txt").is_file()
        print(sorted(p.name for p in here.iterdir() if p.name.startswith(".")))
    """
    assert done(system, code, tmp_path).strip() == "[]"


@pytest.mark.heavy
@pytest.mark.parametrize("system", ["windows", "macos"])
def test_it_trains_scores_and_searches(system, tmp_path):
    """With workers that are started by spawn, and a path in Chinese with blanks and brackets."""
    data = tmp_path / "数据 [1]" / "sts"
    data.mkdir(parents=True)
    (data / "sample_zh").symlink_to(SAMPLE / "sts" / "sample_zh")
    notes = tmp_path / "笔记 (1)"
    notes.mkdir()
    (notes / "常见.txt").write_text("怎么退货？\n天气很好\n银行卡丢了怎么办\n", encoding="utf-8")
    tiny = ["task=sample_sts", "task.sample_sts.data.max_dev=40", "+task.sample_sts.data.max_train=200", "trainer.max_steps=2"]
    tiny += ["encoder.dim=16", "encoder.tokenizer.vocab_size=1200", "trainer.accelerator=cpu", "mixture.num_workers=1"]
    lines = [
        ["train", "name=运行 (1)", *tiny, "paths.output_dir=运行 (1)", "max_dev=50"],
        ["evaluate", "运行 (1)", "数据 [1]", "processes=2", "out=scores.json"],
        ["search", "运行 (1)", "笔记 (1)", "怎么退货", "index=索引"],
        ["search", "运行 (1)", "笔记 (1)", "怎么退货", "index=索引"],
        ["report", "运行 (1)", "scores.json"],
    ]
    code = """
        import json, sys
        from acge_lightning.commands import cli
        if __name__ == "__main__":
            for line in json.loads(sys.argv[1]):
                sys.argv = ["acge", *line]
                cli.main()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(code), encoding="utf-8")
    code = "import runpy, sys; sys.argv[0] = 'script.py'; runpy.run_path('script.py', run_name='__main__')"
    shown = done(system, code, tmp_path, json.dumps(lines), timeout=580)
    assert "The index in 索引 is up to date." in shown
    assert (tmp_path / "运行 (1)" / "export" / "modules.json").is_file()
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["rows"][0]["error"] is None
    assert (tmp_path / "report.html").is_file()
    names = [name for _, folders, files in os.walk(tmp_path) for name in (*folders, *files)]
    assert not [name for name in names if NO_NAME & set(name)]
    assert not [name for name in names if name.endswith((".draft", ".draft.lock", ".old"))]
