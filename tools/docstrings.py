"""Extension of griffe, which `mkdocs.yml` names: examples and YAML of docstrings become blocks of code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_YAML = re.compile(r"^YAML::\n\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n|[ ]*$).+)*", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring whose `YAML::` and `>>>` blocks are fenced."""

    def yaml(match: re.Match[str]) -> str:
        lines = [line.removeprefix("    ") for line in match[1].rstrip().split("\n")]
        return "\n".join(["YAML:", "", "```yaml", *lines, "```", ""])

    return _EXAMPLE.sub(lambda match: f"```python\n{match[0]}\n```", _YAML.sub(yaml, text))


class Docstrings(Extension):
    """Rewrites each docstring when it is read."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
