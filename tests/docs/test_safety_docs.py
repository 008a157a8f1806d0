"""docs/safety.md: each promise names tests that are there, and says which of them are long."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
NAMED = re.findall(r"(⏳ )?`((?:\w+/)?test_\w+\.py)::(test_\w+)`", TEXT)


def heavy(file):
    """Names of the tests of a file -> whether they are marked as long, in all their cases."""
    body = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: any(ast.unparse(mark) == "pytest.mark.heavy" for mark in node.decorator_list) for node in tests}


def test_each_promise_has_a_test():
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| Promise", "| What happens"))
    ]
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"`(\w+/)?test_\w+\.py::test_\w+` \|$", row)] == []


def test_the_tests_are_there_and_marked_as_they_are():
    assert len(NAMED) > 50
    known = {file: heavy(file) for _, file, _ in NAMED}
    wrong = [f"{file}::{name}" for mark, file, name in NAMED if known[file].get(name) is not bool(mark)]
    assert wrong == []
