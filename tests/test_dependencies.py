"""The files of versions keep in step with pyproject.toml."""

import re
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from acge_lightning.lazy import EXTRAS as MODULES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {extra: list(map(Requirement, lines)) for extra, lines in PROJECT["optional-dependencies"].items()}
TOOLS = [r for r in EXTRAS.pop("dev") if canonicalize_name(r.name) != PROJECT["name"]]  # for development, of any version
DIRECT = [*map(Requirement, PROJECT["dependencies"]), *(r for lines in EXTRAS.values() for r in lines)]


def pins(file):
    lines = re.findall(r"^([^#\s]+)==(\S+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    names = [canonicalize_name(name) for name, _ in lines]
    assert len(names) == len(set(names))
    return dict(zip(names, (Version(version) for _, version in lines), strict=True))


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_lowest_version_of_a_dependency_is_the_one_that_is_tested(requirement):
    [bound] = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    assert pins("constraints-lowest.txt")[canonicalize_name(requirement.name)] == bound


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
@pytest.mark.parametrize("requirement", [*DIRECT, *TOOLS], ids=str)
def test_a_pinned_version_is_one_that_is_allowed(requirement, file):
    assert pins(file)[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_extras_that_messages_name_are_those_of_pyproject():
    """Each module of the table belongs to a package of that extra, or to one that it needs, as installed here."""
    providers = packages_distributions()
    for extra, modules in MODULES.items():
        packages = {canonicalize_name(requirement.name) for requirement in EXTRAS[extra]}
        for package in list(packages):
            packages |= {canonicalize_name(Requirement(line).name) for line in requires(package) or ()}
        for module in modules:
            assert packages & set(map(canonicalize_name, providers[module])), (extra, module)
    assert set(EXTRAS) - set(MODULES) == {"docs"}
    for extra, modules in MODULES.items():
        assert len(modules) >= len(EXTRAS[extra])
