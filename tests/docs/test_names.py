"""Dotted names of the package that documents, configs and docstrings give: each of them is there."""

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bacge_lightning(?:\.(?!md\b)[A-Za-z_]+)+")


def is_there(name):
    words = name.split(".")
    for end in range(len(words), 0, -1):
        try:
            module = import_module(".".join(words[:end]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, words[end:], module)
        except AttributeError:
            return False
        return True
    return False


def test_each_name_leads_to_something():
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    files += [file for folder in ("conf", "acge_lightning", "tools") for file in (ROOT / folder).rglob("*.*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".md", ".py", ".yaml")]
    names = {name for text in texts for name in NAME.findall(text)}
    assert len(names) > 100
    assert sorted(name for name in names if not is_there(name)) == []
    assert not is_there("acge_lightning.adaptive.FunnelIndex")
