"""Write one HTML page that compares runs and evaluations, without scripts or network. Needs matplotlib, Jinja."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acge_lightning.files.atomic import check_replaceable, write_text
from acge_lightning.lazy import naming_extra
from acge_lightning.report.blocks import Block
from acge_lightning.report.runs import Run, read_runs
from acge_lightning.report.sections import sections
from acge_lightning.report.style import INK
from acge_lightning.terminal import visible

with naming_extra("a report needs"):
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

_MOST_NAMES = 3  # in the title
_MARKER = b'name="generator" content="acge report"'  # each page has it


def report(paths: str | Sequence[str] | Mapping[str, str], out: str | Path) -> list[Run]:
    """Write the page.

    Args:
        paths: folders of runs and `results.json` files, as in `read_runs`.
        out: the HTML file.

    Returns:
        The runs, with a remark on each file that was missing or damaged.

    Raises:
        InputError: nothing to compare, nowhere to write, or the file is there and is no report.
    """
    out = Path(out).expanduser()
    check_replaceable(out, _MARKER, "a report")
    runs = read_runs(paths)
    text = page(runs)
    write_text(out, text)
    return runs


def page(runs: Sequence[Run]) -> str:
    """Render the page, with a section for each kind of data that the runs have."""
    return render(_title(runs), sections(runs))


def render(title: str, sections: Mapping[str, list[Block]]) -> str:
    """Render a page of sections, by title; those without blocks are left out."""
    titled_blocks = {re.sub(r"\W+", "-", name.lower()): (name, blocks) for name, blocks in sections.items() if blocks}
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, finalize=_visible, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(title=title, sections=titled_blocks, ink=INK)


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    return ", ".join(names) if len(names) <= _MOST_NAMES else f"{', '.join(names[:2])} and {len(names) - 2} others"


def _visible(value: Any) -> Any:
    """Write out invisible characters of a text; figures have done so already."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
