"""Hooks of mkdocs: the reference is made of docstrings and YAML, Chinese pages have a Chinese frame and can be searched.

`mkdocs.yml` names this file. The pages that it makes: `reference/settings.md`, `reference/tasks.md` and a page a room of the
package in `reference/python/`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
CHINESE = "zh/"
_FRONT_PAGES: list[dict[str, str]] = []
_HAN = re.compile(r"(?<=[\u3400-\u9fff])(?=[\u3400-\u9fff])")
SETTINGS = """# Commands and settings

Each key with its default, as the YAML has it. Any of them can be typed: `key=value`. `acge train --cfg job` prints what a line
composes. [Data sets have a page of their own](tasks.md).
"""
TASKS = """# Data sets with a YAML

`task=[NAME,…]` chooses. A YAML says what differs from the defaults of its family.
"""
_GROUPS = {  # group of conf/ -> how it is chosen
    "experiment": "+experiment=NAME",
    "encoder": "encoder=NAME",
    "loss": "+loss@task.TASK.loss=NAME",
    "matryoshka": "matryoshka=NAME",
    "strategy": "strategy=NAME",
    "optim": "optim=NAME",
    "module": "module=NAME",
    "trainer": "trainer=NAME",
    "callbacks": "callbacks=[NAME,…]",
    "logger": "logger=NAME",
    "paths": "paths=NAME",
    "debug": "debug=NAME",
    "sweep": "wandb sweep conf/sweep/NAME.yaml",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of docstrings and of YAML."""
    pages = {"reference/settings.md": settings_page(), "reference/tasks.md": tasks_page()}
    listed = rooms(config)
    pages |= {f"reference/python/{room}.md": room_page(room, listed) for room in listed}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


# ---- the reference


def rooms(config: MkDocsConfig) -> list[str]:
    """The rooms that `nav` lists."""
    return re.findall(r"reference/python/(\w+)\.md", str(config.nav))


def room_page(room: str, listed: Collection[str]) -> str:
    """The public names of a room: each a directive of mkdocstrings, or a link where the page of a listed room has it."""
    name = room if room == "acge_lightning" else f"acge_lightning.{room}"
    package = import_module(name)
    entries = []
    for public in package.__all__:
        full = f"{module_of(package, public)}.{public}"
        elsewhere = full.split(".")[1] != room and full.split(".")[1] in listed
        entries.append(f"- [`{public}`][{full}]" if elsewhere else f"::: {full}")
    links = [entry for entry in entries if entry.startswith("- ")]
    own = [entry for entry in entries if not entry.startswith("- ")]
    return "\n\n".join([f"# {name}", package.__doc__ or "", "\n".join(links), *own, ""])


def module_of(package: Any, public: str) -> str:
    """The module that defines a public name, where mkdocstrings finds it without aliases."""
    value = getattr(package, public)
    return getattr(value, "__module__", None) or package.__name__


def settings_page() -> str:
    """Every YAML of conf/ but the tasks: that of a command first, then group by group."""
    lines = [SETTINGS]
    for file in sorted(CONF.glob("*.yaml"), key=lambda file: (file.stem != "train", file.stem)):
        lines += [f"## acge {file.stem}", "", *yaml_block(file)]
    for group, choice in _GROUPS.items():
        lines += [f"## {group}", "", f"`{choice}`", ""]
        for file in sorted((CONF / group).glob("*.yaml")):
            lines += [f"### {group}/{file.stem}", "", *yaml_block(file)]
    return "\n".join(lines)


def tasks_page() -> str:
    """The YAML of every task, its family's defaults first."""
    families, tasks = sorted((CONF / "task" / "family").glob("*.yaml")), sorted((CONF / "task").glob("*.yaml"))
    lines = [TASKS]
    for title, files in (("family", families), ("task", tasks)):
        lines += [f"## {title}", ""]
        for file in files:
            lines += [f"### {title}/{file.stem}", "", *yaml_block(file)]
    return "\n".join(lines)


def yaml_block(file: Path) -> list[str]:
    """A YAML file as a fenced block."""
    return ["```yaml", file.read_text(encoding="utf-8").rstrip(), "```", ""]


# ---- two languages


def on_config(config: MkDocsConfig) -> None:
    """Keep the front pages of both languages, before pages lead elsewhere."""
    _FRONT_PAGES.extend(config.extra["alternate"])


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Navigation) -> dict[str, Any]:
    """Give a page the frame of its language: words of the theme, the other pages, the way to its counterpart.

    Pages are written one after the other, each from the config as it is then.
    """
    chinese = page.file.src_uri.startswith(CHINESE)
    config.theme["language"] = "zh" if chinese else "en"
    config.extra["alternate"] = alternates(page, nav)
    own = copy.copy(nav)
    [chinese_section] = [item for item in nav.items if item.title == "中文"]
    own.items = (chinese_section.children or []) if chinese else [item for item in nav.items if item is not chinese_section]
    return context | {"nav": own}


def alternates(page: Page, nav: Navigation) -> list[dict[str, str]]:
    """The page in both languages; where it is there in one only, the other one's front page."""
    bare = page.file.src_uri.removeprefix(CHINESE)
    urls = {other.file.src_uri: other.url for other in nav.pages}
    links = {"en": urls.get(bare), "zh": urls.get(CHINESE + bare)}
    return [entry | {"link": links[entry["lang"]] or entry["link"]} for entry in _FRONT_PAGES]


def on_post_build(config: MkDocsConfig) -> None:
    """Part the Chinese characters of the search index by blanks of no width: the search takes each for a word."""
    file = Path(config.site_dir) / "search" / "search_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    for entry in index["docs"]:
        for key in ("title", "text"):
            entry[key] = _HAN.sub("\u200b", entry[key])
    file.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
