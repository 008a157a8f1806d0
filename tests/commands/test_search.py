"""`acge search`: files of texts to hits, what is kept between calls, and what is told of files that cannot be read."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acge_lightning import load
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.search import FunnelIndex
from acge_lightning.search.text_files import list_files, read_texts

ROOT = Path(__file__).parents[2]


def run(encoder, source, *overrides):
    from test_conf import composed

    from acge_lightning.commands.search import run as search_command

    search_command(composed([f"model={encoder}", f"source={source}", *overrides], "search"))


def test_the_hits_are_those_of_exact_search(notes, small_encoder, capsys):
    run(small_encoder, notes, "query='how to return'", "k=3")
    out = capsys.readouterr().out
    encoder, found = load(small_encoder), read_texts(notes, list_files(notes), "text")
    cosines = (encoder.encode("how to return") @ encoder.encode([text for _, text in found]).T)[0].numpy()
    lines = [line for line in out.splitlines() if "│" in line]
    assert len(lines) == 3
    for line, row in zip(lines, np.argsort(-cosines)[:3], strict=True):
        assert found[row][0] in line
        assert f"{cosines[row]:.4f}" in line
        assert found[row][1] in line
    assert "7 texts of 4 files are indexed" in out
    assert "query encoded" in out
    assert " ms" in out


def test_the_index_is_used_again_until_something_changes(notes, small_encoder, tmp_path, capsys):
    kept = f"index={tmp_path / 'index'}"
    query = ["query=['退货','公园']", "k=1"]
    run(small_encoder, notes, kept, *query)
    assert "7 texts of 4 files are indexed" in capsys.readouterr().out
    (version,) = (tmp_path / "index").glob("v*")
    (notes / "a.txt").touch()
    run(small_encoder, notes, kept, *query)
    out = capsys.readouterr().out
    assert "up to date" in out
    assert sum("│" in line for line in out.splitlines()) == 2
    assert version.is_dir()
    (notes / "a.txt").write_text("退货\n", encoding="utf-8")
    run(small_encoder, notes, kept, *query)
    out = capsys.readouterr().out
    assert "The source changed since" in out
    assert "1.0000 │ a.txt:1" in out
    assert not version.exists()
    run(small_encoder, notes, kept, "stages=[{dim: 8, shortlist: 4}, {dim: 16}]", "force=true", *query)
    out = capsys.readouterr().out
    assert "The settings changed since" in out
    assert "8 fp16 →4→ 16 fp16" in out
    (next((tmp_path / "index").glob("v*")) / "0.codes.npy").write_bytes(b"")
    run(small_encoder, notes, kept, "stages=[{dim: 8, shortlist: 4}, {dim: 16}]", "force=true", *query)
    out = capsys.readouterr().out
    assert "0.codes.npy is damaged" in out
    assert "It is built again." in out
    assert len(FunnelIndex.load(tmp_path / "index")) == 6


def test_another_model_builds_the_index_again(notes, small_encoder, tmp_path, capsys):
    other = load(small_encoder)
    other.backbone.embedding.weight.data *= -1
    other.backbone.embedding.weight.data[3:7] *= 2
    run(small_encoder, notes, f"index={tmp_path / 'index'}", "query='退货'")
    run(export(other, tmp_path / "other"), notes, f"index={tmp_path / 'index'}", "query='退货'")
    assert "The model changed since" in capsys.readouterr().out


@pytest.fixture
def trained(small_encoder, tmp_path):
    """An encoder with a shorter prefix."""
    encoder = load(small_encoder)
    encoder.matryoshka_dims = (16, 8)
    return export(encoder, tmp_path / "trained")


def test_tuning_writes_what_the_report_draws(notes, trained, tmp_path, capsys):
    from acge_lightning.report.page import report

    queries = tmp_path / "queries.txt"
    queries.write_text("退货\n公园\n天气\n", encoding="utf-8")
    out = tmp_path / "funnel"
    kept = f"index={tmp_path / 'index'}"
    run(trained, notes, kept, f"tune={queries}", f"out={out}", "k=2", "query='退货'")
    told = capsys.readouterr().out
    assert "is the fastest that finds 99% of the exact hits" in told
    points = json.loads((out / "funnel.json").read_text())["points"]
    assert len(points) > 1
    assert sum(p["chosen"] for p in points) == 1
    assert (out / "funnel.png").read_bytes().startswith(b"\x89PNG")
    report([str(out)], tmp_path / "page.html")
    assert "times faster than exact search" in (tmp_path / "page.html").read_text(encoding="utf-8")
    run(trained, notes, kept, "k=2", "query='退货'")
    assert "up to date" in capsys.readouterr().out


def test_wrong_stages_are_told(notes, small_encoder):
    for stages, told in (("[{dim: 8}, {dim: 16}]", "not trained"), ("[{dims: 8}]", "has 'dims'"), ("8", "no list of stages")):
        with pytest.raises(InputError, match=told):
            run(small_encoder, notes, f"stages={stages}", "query=x")


EMPTY = "\u200b\u200d"  # of no width: no token of this encoder


def test_texts_without_direction_are_left_out_with_file_and_line(notes, cleaning_encoder, caplog, capsys):
    (notes / "e.txt").write_text(f"公园\n{EMPTY}\n", encoding="utf-8")
    run(cleaning_encoder, notes, "query='公园'", "k=9")
    assert "1 of 9 texts have no direction and are left out: e.txt:2" in caplog.text
    out = capsys.readouterr().out
    assert "8 texts of 5 files are indexed" in out
    assert "e.txt:1" in out
    assert sum("│" in line for line in out.splitlines()) == 8


def test_a_bad_query_does_not_end_the_others(notes, cleaning_encoder, monkeypatch, capsys):
    piped = [
        "退货".encode(),
        b"",
        b"\xff\xfe",
        EMPTY.encode(),
        b"\xe5\x85 cut",
        b"long " * 20_000,
        "公园\0".encode(),
        "天气".encode(),
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(piped)), encoding="utf-8"))
    run(cleaning_encoder, notes, "k=1")
    told = capsys.readouterr()
    assert told.out.count("query encoded") == 4
    lines = [line.strip() for line in told.out.splitlines()]
    assert lines.index("退货") < lines.index("天气")
    assert "'\\udcff\\udcfe' has no answer: texts[0] has half a surrogate pair" in told.err
    assert "'\\u200b\\u200d' has no answer: query 0 is zero" in told.err
    assert "3 of 7 queries had no answer" in told.err


def test_a_bad_query_among_those_given_is_an_error_at_the_end(notes, cleaning_encoder, capsys):
    with pytest.raises(InputError, match="1 of 3 queries had no answer"):
        run(cleaning_encoder, notes, f"query=['退货','{EMPTY}',2024]", "k=1")
    assert capsys.readouterr().out.count("query encoded") == 2
    run(cleaning_encoder, notes, "query=2024", "k=1")


def test_queries_without_direction_do_not_tune(notes, cleaning_encoder, tmp_path, capsys):
    encoder = load(cleaning_encoder)
    encoder.matryoshka_dims = (16, 8)
    trained = export(encoder, tmp_path / "trained")
    (tmp_path / "queries.txt").write_text(f"退货\n{EMPTY}\n公园\n", encoding="utf-8")
    run(trained, notes, f"tune={tmp_path / 'queries.txt'}", f"out={tmp_path / 'funnel'}", "k=2", "query='退货'")
    told = capsys.readouterr().out
    assert "1 of 3 queries have no direction and are left out: queries.txt:2" in told
    assert "is the fastest" in told


# ---- what lies in a folder of texts


def test_what_the_program_wrote_into_the_source_is_not_read(notes, trained, tmp_path, capsys):
    queries = tmp_path / "queries.txt"
    queries.write_text("退货\n公园\n", encoding="utf-8")
    run(trained, notes, f"index={notes / 'first'}", "query='退货'")
    run(
        trained,
        notes,
        f"index='{notes / 'more' / '索引'}'",
        f"tune={queries}",
        f"out={notes / 'funnel'}",
        "k=2",
        "query='退货'",
    )
    assert (notes / "funnel" / "funnel.json").is_file()
    capsys.readouterr()
    for index in ("first", "more/索引"):
        run(trained, notes, f"index='{notes / index}'", "query='退货'", "k=99")
        out = capsys.readouterr().out
        assert "up to date" in out
        assert "of 7 texts" in out


def test_an_index_that_cannot_be_kept_is_told_before_anything_is_read(notes, small_encoder, monkeypatch):
    monkeypatch.setattr("acge_lightning.commands.search.read_texts", lambda *args, **how: pytest.fail("read"))
    for index in (notes, notes / "a.txt"):
        with pytest.raises(InputError, match="something else than an index"):
            run(small_encoder, notes, f"index={index}", "query=x")


def test_queries_to_tune_with_are_no_texts(notes, small_encoder):
    for tune in ("a.txt", "more", "."):
        with pytest.raises(InputError, match="is one of the texts that are indexed"):
            run(small_encoder, notes, f"tune={notes / tune}", "query=x")


def test_names_that_are_not_utf8_are_written_out(notes, small_encoder, capsys):
    (notes / os.fsdecode(b"\xff.txt")).write_text("公园\n", encoding="utf-8")
    run(small_encoder, notes, "query='公园'", "k=1")
    assert r"\xff.txt:1" in capsys.readouterr().out


def test_a_hostile_text_is_shown_and_not_obeyed(notes, small_encoder, capsys):
    (notes / "[red]x.txt").write_text("公园 \x1b[2J\x1b]0;pwned\x07\u202e [bold]b[/bold] [/] :smile:\n", encoding="utf-8")
    run(small_encoder, notes, "query=['公园 \x1b[2J [bold]b','[/]']", "k=2", f"index='{notes.parent / '[bold]index'}'")
    out = capsys.readouterr().out
    assert not re.search("[\x1b\x07\u202e]", out)
    for shown in (
        "[red]x.txt:1",
        r"\x1b[2J\x1b]0;pwned\x07\u202e [bold]b[/bold] [/] :smile:",
        "[bold]index",
        r"\x1b[2J [bold]b",
    ):
        assert shown in out


@pytest.mark.heavy
def test_the_program_reads_queries_until_their_end(notes, small_encoder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "acge_lightning",
        "search",
        f"model={small_encoder}",
        f"source={notes}",
        "k=1",
    ]
    how = {"capture_output": True, "text": True, "cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, input="退货\n\n公园\n", check=True, **how)
    assert done.stdout.count("query encoded") == 2
    assert done.stdout.index("退货") < done.stdout.index("公园")
    asked = subprocess.run([*command, "query=it's 退货？ ${x} \\", "index=索引"], check=True, **how)
    assert "it's 退货？ ${x} \\" in asked.stdout
    (tmp_path / "索引" / "index.json").stat()
    missing = subprocess.run([*command[:-2], "k=1"], input="", check=False, **how)
    assert missing.returncode != 0
    assert "error: conf key source must be given" in missing.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts", "索引"]
