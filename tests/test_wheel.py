"""The wheel: what is in it, and that it works where neither the repository nor a development install is at hand."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """A virtual environment that holds the wheel; the packages that it needs come from the environment of the tests.

    Their folder is named in a .pth file. Python does not read .pth files in a folder that it reached that way, so the
    development install of the package, which is one, is out of sight.
    """
    home = tmp_path_factory.mktemp("home")
    venv.create(home, with_pip=False)
    target = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(home), "platbase": str(home)}))
    pip = [sys.executable, "-m", "pip", "--python", str(python(home)), "install"]
    run(*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel), cwd=home)
    theirs = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (target / "dependencies.pth").write_text("\n".join(sorted(theirs)), encoding="utf-8")
    return home


def python(home):
    return home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_wheel_holds_the_package_and_its_configuration_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [licence] = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert b"Apache License" in archive.read(licence)
    assert {f"acge_lightning/{p}" for p in ("conf/train.yaml", "conf/encoder/static.yaml")} <= names
    assert "acge_lightning/sample/sts/sample_zh/train.jsonl.gz" in names
    info = licence.split("/")[0]
    ours = {f"acge_lightning/{p}" for p in files(ROOT / "acge_lightning")}
    ours |= {f"acge_lightning/conf/{p}" for p in files(ROOT / "conf")}
    assert {name for name in names if not name.startswith(f"{info}/")} == ours


def test_installed_package_finds_its_configuration(home, tmp_path):
    code = "import acge_lightning, acge_lightning.config.sources as c; print(acge_lightning.__file__); print(c.config_dir())"
    file, config = run(str(python(home)), "-c", code, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(home)
    assert Path(config).is_relative_to(home)
    assert files(Path(config)) == files(ROOT / "conf")


SHORT = ["+experiment=quickstart", "trainer.max_steps=2"]
DEVICES = ["trainer.accelerator=cpu", "trainer.devices=2", "+trainer.strategy=ddp"]


@pytest.mark.parametrize("start", ["acge", "-m acge_lightning"])
@pytest.mark.parametrize("devices", [[], DEVICES], ids=["one", "two"])
def test_program_runs_from_an_empty_folder(start, devices, home, tmp_path):
    folder = tmp_path / "一 (1)"
    folder.mkdir()
    command = [str(python(home).with_name(start))] if start == "acge" else [str(python(home)), *start.split()]
    run(*command, "train", *SHORT, *devices, cwd=folder)
    assert len(list(folder.rglob("export/modules.json"))) == 1
