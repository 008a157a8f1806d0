"""Make the blocks of a report's page: text, tables, pictures, and folds around them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from acge_lightning.lazy import naming_extra
from acge_lightning.report.style import INK, STYLE
from acge_lightning.terminal import visible

with naming_extra("a report needs"):
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

Block = dict[str, Any]  # its `kind` says how `page.html` shows it
Pictures = Mapping[str, Figure]
NONE = "–"


def paragraph(text: str, kind: str = "text") -> Block:
    """Make a paragraph of text; `kind` is `text`, `warning` or `pre`."""
    return {"kind": kind, "text": text}


def grid(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """Make a table; a cell is a text, or a pair of a text and its kind: `best`, `bad`, `mean`."""
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    return {"kind": "table", "caption": caption, "head": head, "rows": cells}


def fold(title: str, blocks: Sequence[Block]) -> Block:
    """Hide blocks behind a title that opens them when it is clicked."""
    return {"kind": "fold", "title": title, "blocks": blocks}


def gallery(pictures: Pictures, prefix: str, text: str, shared: bool = True) -> list[Block]:
    """Show the figures whose names begin with a prefix; a shared legend stands once above them."""
    figures = [figure for name, figure in pictures.items() if name.startswith(prefix)]
    legends = [legend_of(figure) for figure in figures]
    common_legend = list(dict.fromkeys(item for legend in legends for item in legend)) if shared else []
    drawings = [(svg(figure), [] if shared else legend) for figure, legend in zip(figures, legends, strict=True)]
    return [paragraph(text), {"kind": "pictures", "pictures": drawings, "legend": common_legend}] if figures else []


def legend_of(figure: Figure) -> list[tuple[str, str, str, str]]:
    """Read name, colour, dashes and dot of each line of a figure's legend."""
    dots, dashes = dict(zip("os^Dv", "●■▲◆▼", strict=True)), {"-": "", "--": "6 3", "-.": "7 3 1 3", ":": "2 2"}
    return [
        (
            text.get_text(),
            str(line.get_color()),
            dashes.get(str(line.get_linestyle()), ""),
            dots.get(str(line.get_marker()), ""),
        )
        for legend in figure.legends
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    ]


def svg(figure: Figure) -> Markup:
    """Write a figure as inline SVG: real text, in the page's text colour, its label for screen readers, no legend."""
    for legend in list(figure.legends):
        legend.remove()
    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has a font for them
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = visible(file.getvalue())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z]\w*_\d+"', "", text).replace(INK, "currentColor")
    width, height = figure.get_size_inches() * 72
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(visible(str(figure.get_label())))}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1))  # matplotlib has escaped its texts


def number(value: float | None, digits: str = ".4f") -> str:
    """Write a value in digits; None is a dash."""
    return NONE if value is None else format(value, digits)
