"""Texts, names and errors on the terminal: shown as they are, and obeyed by nobody."""

import ast
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

import acge_lightning
from acge_lightning.report import tables as report
from acge_lightning.report.longtail import tables
from acge_lightning.terminal import (
    Console,
    ProgressBar,
    end,
    highlighted,
    make_logs_visible,
    one_line,
    show,
    show_json,
    track,
    visible,
)

PACKAGE = Path(acge_lightning.__file__).parent
HOSTILE = "a\x1b[2J\x1b]0;pwned\x07\x9b31m\r\b\u202eb [bold]c[/bold] [/] :smile:"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_shown(text):
    assert not OBEYED.search(text)
    assert "[bold]c[/bold] [/] :smile:" in text
    assert r"\x1b]0;pwned\x07" in text


def test_what_a_terminal_obeys_is_written_out_and_the_rest_stays():
    assert visible("今天\tok\n\u200dא é") == "今天\tok\n\u200dא é"
    assert_shown(visible(HOSTILE))
    assert visible(visible(HOSTILE)) == visible(HOSTILE)
    assert visible("\udcff") == r"\udcff"
    assert one_line("a\nb") == r"a\nb"


def test_lines_tables_heads_and_titles(capsys):
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    show(HOSTILE, table)
    show(HOSTILE, stderr=True)
    out, err = capsys.readouterr()
    assert_shown(err)
    assert_shown(out)
    assert out.count("[bold]c[/bold]") == 5


def test_styles_are_kept_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    table = Table("x", title="t")
    table.add_row("\x1b[2Jy", style="bold")
    console.print(table)
    assert "\x1b[1m" in console.file.getvalue()
    assert "\x1b[2J" not in console.file.getvalue()
    assert r"\x1b[2Jy" in console.file.getvalue()


def test_highlighted_parts_are_shown_and_not_obeyed():
    text = highlighted("a\x1b[2Jbcd [bold]", [(4, 7), (6, 8), (20, 30)], "bold")
    assert text.plain == r"a\x1b[2Jbcd [bold]"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans if span.style] == [("Jbcd", "bold")]
    assert highlighted("", []).plain == ""


def test_json_is_a_line_that_a_parser_gives_back(capsys, monkeypatch):
    value = {HOSTILE: ["今天\n\t\u2028", "\udcff", "\U000e0041", 1.5, None]}
    show_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == value
    assert "今天" in line
    assert not OBEYED.search(line)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    show_json(value)
    sys.stdout.flush()
    assert json.loads(sys.stdout.buffer.getvalue()) == value


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_counts_and_rate_and_obeys_no_name(capsys):
    with ProgressBar(HOSTILE, "texts", 10) as bar:
        bar.advance(4)
        bar.print_line(f"{HOSTILE}\n4 texts are done")
    err = capsys.readouterr().err
    assert_shown(err)
    line, last = err.splitlines()[0], err.splitlines()[-1]
    assert line.endswith(r"\n4 texts are done")
    assert "4/10 texts" in last


def test_a_bar_that_is_not_shown_still_prints_lines(capsys):
    with ProgressBar("work", "texts", 10, shown=False) as bar:
        bar.advance(10)
        bar.print_line("done")
    assert capsys.readouterr().err.strip() == "done"  # older versions of rich end with an empty line


@pytest.mark.parametrize(
    ("seconds", "rate", "left"), [(0.5, "2.0/s", "0:00:45"), (4, "4.0 s each", "0:06:00"), (0.0001, "10,000.0/s", "0:00:01")]
)
def test_a_bar_on_a_terminal_shows_rate_and_what_is_left(monkeypatch, seconds, rate, left):
    """By a clock that goes on by so many seconds an item."""
    clock, screen = [0.0], Tty()
    monkeypatch.setattr("rich.console.monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("work", "texts", 100) as bar:
        for _ in range(10):
            clock[0] += seconds
            bar.advance()
        bar.rename("other work")
    last = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).strip().splitlines()[-1]
    assert last.startswith("other work")
    assert last.endswith(f"10/100 texts {rate} {left}")


@pytest.mark.parametrize("items", [["ab", "c"], iter(["ab", "c"])])
def test_what_is_gone_through_is_counted_by_size(items, capsys):
    assert list(track(items, HOSTILE, "letters", 3, size=len)) == ["ab", "c"]
    err = capsys.readouterr().err
    assert_shown(err)
    assert "3/3 letters" in err
    assert list(track("abcd", "work", "letters")) == [*"abcd"]
    assert "4/4 letters" in capsys.readouterr().err


def test_logs(monkeypatch, capsys):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())  # put back at the end
    make_logs_visible()
    logger, handler = logging.getLogger("hostile"), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.warning("%s is odd", HOSTILE)
    logger.removeHandler(handler)
    assert_shown(handler.stream.getvalue())


def test_an_error_is_one_line():
    with pytest.raises(SystemExit) as ended:
        end(f"{HOSTILE}\nforged")
    assert_shown(ended.value.code)
    assert ended.value.code.strip().count("\n") == 0


def test_tables_of_scores_show_names_as_they_are(capsys):
    row = {"encoder": HOSTILE, "family": HOSTILE, "dataset": HOSTILE, "metric": HOSTILE, "dim": 8, "hash": "h", "mark": "m"}
    row |= {"value": 0.5, "error": None, "note": HOSTILE, "n": 1}
    difference = {"encoder": HOSTILE, "against": HOSTILE, "family": HOSTILE, "dataset": HOSTILE}
    result = {
        "rows": [row, row | {"error": HOSTILE, "value": None, "dataset": "x"}],
        "encoders": [{"name": HOSTILE, "dim": 8}],
        "differences": [difference | {"difference": 0.1, "low": 0.0, "high": 0.2}],
        "leaks": [],
    }
    show(report.leak_table(result), *report.evaluation_tables(result))
    show(report.score_table({}, {f"{HOSTILE}/mean": 0.5}), report.suite_table({HOSTILE: {HOSTILE: {"main_score": 1.0}}}))
    with report.evaluation_progress(2) as add:
        add(row)
    entry = {"dataset": HOSTILE, "perturbation": HOSTILE, "shots": 1, "encoder": HOSTILE, "dim": 8, "error": None}
    entry |= {"values": dict.fromkeys(("all", "head", "tail"), 0.5), "spread": dict.fromkeys(("all", "head", "tail"), 0.1)}
    show(*tables({"rows": [entry, entry | {"error": HOSTILE}], "differences": []}))
    out, err = capsys.readouterr()
    assert not OBEYED.search(out + err)
    assert_shown(err)


def test_nothing_is_printed_but_through_here():
    """Neither `print` nor rich's own console, markup, texts or bars, in any other module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name in ("terminal.py", "excel_sheet.py"):  # the second one writes to the process that has started it
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file}, line {getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "pprint")), where
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
                assert [name.name for name in node.names] == ["Table"], where
            assert not (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "rich" for name in node.names)), where
            if isinstance(node, ast.Attribute) and node.attr == "write":
                assert ast.unparse(node.value) not in ("sys.stdout", "sys.stderr"), where
