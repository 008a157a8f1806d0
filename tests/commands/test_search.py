"""`acge search`: files of texts to hits, what is kept between calls, and what is told of files that cannot be read."""

import gzip
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
from acge_lightning.commands.search import _files, _texts
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.search import FunnelIndex

ROOT = Path(__file__).parents[2]
TEXTS = ["今天天气很好，我们去公园。", "怎么退货？", "how do I return this", "天气", "我们怎么去公园？"]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(f"\n{TEXTS[0]}\n  \n{TEXTS[1]}\n", encoding="utf-8")
    (folder / "b.md").write_text("# 退货\n\nhow do I\nreturn this\n\n\n天气\n", encoding="utf-8")
    (folder / "more" / "c.jsonl").write_text(json.dumps({"text": TEXTS[4], "n": 1}) + "\n", encoding="utf-8")
    with gzip.open(folder / "more" / "d.csv.gz", "wt", encoding="utf-8") as file:
        file.write('text,label\n"退货，公园",1\n')
    (folder / ".hidden.txt").write_text("not this")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def run(encoder, source, *overrides):
    from test_conf import composed

    from acge_lightning.commands.search import run as search_command

    search_command(composed([f"model={encoder}", f"source={source}", *overrides], "search"))


def test_texts_of_all_kinds_of_files_with_their_places(source):
    assert _texts(source, _files(source), "text") == [
        ("a.txt:2", TEXTS[0]),
        ("a.txt:4", TEXTS[1]),
        ("b.md:1", "# 退货"),
        ("b.md:3", "how do I return this"),
        ("b.md:7", "天气"),
        ("more/c.jsonl:1", TEXTS[4]),
        ("more/d.csv.gz:2", "退货，公园"),
    ]


def test_the_hits_are_those_of_exact_search(source, small_encoder, capsys):
    run(small_encoder, source, "query='how to return'", "k=3")
    out = capsys.readouterr().out
    encoder, found = load(small_encoder), _texts(source, _files(source), "text")
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


def test_the_index_is_used_again_until_something_changes(source, small_encoder, tmp_path, capsys):
    kept = f"index={tmp_path / 'index'}"
    query = ["query=['退货','公园']", "k=1"]
    run(small_encoder, source, kept, *query)
    assert "7 texts of 4 files are indexed" in capsys.readouterr().out
    (version,) = (tmp_path / "index").glob("v*")
    (source / "a.txt").touch()
    run(small_encoder, source, kept, *query)
    out = capsys.readouterr().out
    assert "up to date" in out
    assert sum("│" in line for line in out.splitlines()) == 2
    assert version.is_dir()
    (source / "a.txt").write_text("退货\n", encoding="utf-8")
    run(small_encoder, source, kept, *query)
    out = capsys.readouterr().out
    assert "The source changed since" in out
    assert "1.0000 │ a.txt:1" in out
    assert not version.exists()
    run(small_encoder, source, kept, "stages=[{dim: 8, shortlist: 4}, {dim: 16}]", "force=true", *query)
    out = capsys.readouterr().out
    assert "The settings changed since" in out
    assert "8 fp16 →4→ 16 fp16" in out
    (next((tmp_path / "index").glob("v*")) / "0.codes.npy").write_bytes(b"")
    run(small_encoder, source, kept, "stages=[{dim: 8, shortlist: 4}, {dim: 16}]", "force=true", *query)
    out = capsys.readouterr().out
    assert "0.codes.npy is damaged" in out
    assert "It is built again." in out
    assert len(FunnelIndex.load(tmp_path / "index")) == 6


def test_another_model_builds_the_index_again(source, small_encoder, tmp_path, capsys):
    other = load(small_encoder)
    other.backbone.embedding.weight.data *= -1
    other.backbone.embedding.weight.data[3:7] *= 2
    run(small_encoder, source, f"index={tmp_path / 'index'}", "query='退货'")
    run(export(other, tmp_path / "other"), source, f"index={tmp_path / 'index'}", "query='退货'")
    assert "The model changed since" in capsys.readouterr().out


@pytest.fixture
def trained(small_encoder, tmp_path):
    """An encoder with a shorter prefix."""
    encoder = load(small_encoder)
    encoder.matryoshka_dims = (16, 8)
    return export(encoder, tmp_path / "trained")


def test_tuning_writes_what_the_report_draws(source, trained, tmp_path, capsys):
    from acge_lightning.report.page import report

    queries = tmp_path / "queries.txt"
    queries.write_text("退货\n公园\n天气\n", encoding="utf-8")
    out = tmp_path / "funnel"
    kept = f"index={tmp_path / 'index'}"
    run(trained, source, kept, f"tune={queries}", f"out={out}", "k=2", "query='退货'")
    told = capsys.readouterr().out
    assert "is the fastest that finds 99% of the exact hits" in told
    points = json.loads((out / "funnel.json").read_text())["points"]
    assert len(points) > 1
    assert sum(p["chosen"] for p in points) == 1
    assert (out / "funnel.png").read_bytes().startswith(b"\x89PNG")
    report([str(out)], tmp_path / "page.html")
    assert "times faster than exact search" in (tmp_path / "page.html").read_text(encoding="utf-8")
    run(trained, source, kept, "k=2", "query='退货'")
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"good\n\xff\xfe bad\n", r"a\.txt, line 2: is not valid UTF-8"),
        ("a.md", b"good\n\ntext\n\xff bad\n", r"a\.md, line 3: is not valid UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}', r"a\.jsonl, line 2: field 'text' is not valid UTF-8"),
        ("a.csv", b"text\nx\n\xff\n", r"a\.csv, line 3: field 'text' is not valid UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}', r"a\.jsonl, line 2: has no text in 'text'"),
        ("a.txt.gz", gzip.compress(b"words " * 99)[:-9], r"a\.txt\.gz cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2: .*JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl, line 1: .*field=….*\['body'\]"),
        ("a.csv", b"text\n1,2\n", r"a\.csv, line 2"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.doc", b"x", "unknown kind of file"),
    ],
)
def test_files_that_cannot_be_indexed_are_named(tmp_path, name, content, told):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        _texts(file, _files(file), "text")


def test_rows_without_a_text_can_be_skipped_and_are_counted(tmp_path, caplog):
    lone, text = b'{"text": "\\ud800"}\n', b'{"text": "x"}\n'
    (tmp_path / "a.jsonl").write_bytes(text + lone + b"{}\n" + text + b"{text\n" + b'{"text": " "}\n')
    (tmp_path / "b.csv").write_bytes(b'text,n\n"a,1\nb,2\n\xff,3\n')
    (tmp_path / "c.txt").write_bytes(b"good\n\xff bad\n\nlast\n")
    (tmp_path / "d.md").write_bytes(b"one\n\xff two\n\nthree\n")
    found = _texts(tmp_path, _files(tmp_path), "text", "skip", 0.6)
    assert found == [
        ("a.jsonl:1", "x"), ("a.jsonl:4", "x"), ("b.csv:3", "b"), ("c.txt:1", "good"), ("c.txt:4", "last"), ("d.md:4", "three")
    ]  # fmt: skip
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith(f"{tmp_path / 'a.jsonl'}, line 2: field 'text' is not valid UTF-8")
    assert f"{tmp_path / 'a.jsonl'}: 1 rows of an empty text are left out, the first in line 6" in told
    assert told[-1] == f"{tmp_path}: 7 bad rows skipped, 6 kept"
    with pytest.raises(
        InputError, match=r"7 rows are bad, 53\.8% of all; max_bad_fraction allows 50\.0%.*max_bad_fraction=0\.539"
    ):
        _texts(tmp_path, _files(tmp_path), "text", "skip", 0.5)
    with pytest.raises(InputError, match="on_bad_row='quarantine' is unknown: choose raise or skip"):
        _texts(tmp_path, _files(tmp_path), "text", "quarantine")


def test_a_source_without_files_is_told(tmp_path):
    with pytest.raises(InputError, match=r"holds no file of \.txt"):
        _files(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        _files(tmp_path / "nowhere")


def test_wrong_stages_are_told(source, small_encoder):
    for stages, told in (("[{dim: 8}, {dim: 16}]", "not trained"), ("[{dims: 8}]", "has 'dims'"), ("8", "no list of stages")):
        with pytest.raises(InputError, match=told):
            run(small_encoder, source, f"stages={stages}", "query=x")


EMPTY = "\u200b\u200d"  # of no width: no token of this encoder


def test_texts_without_direction_are_left_out_with_file_and_line(source, cleaning_encoder, caplog, capsys):
    (source / "e.txt").write_text(f"公园\n{EMPTY}\n", encoding="utf-8")
    run(cleaning_encoder, source, "query='公园'", "k=9")
    assert "1 of 9 texts have no direction and are left out: e.txt:2" in caplog.text
    out = capsys.readouterr().out
    assert "8 texts of 5 files are indexed" in out
    assert "e.txt:1" in out
    assert sum("│" in line for line in out.splitlines()) == 8


def test_a_bad_query_does_not_end_the_others(source, cleaning_encoder, monkeypatch, capsys):
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
    run(cleaning_encoder, source, "k=1")
    told = capsys.readouterr()
    assert told.out.count("query encoded") == 4
    lines = [line.strip() for line in told.out.splitlines()]
    assert lines.index("退货") < lines.index("天气")
    assert "'\\udcff\\udcfe' has no answer: texts[0] has half a surrogate pair" in told.err
    assert "'\\u200b\\u200d' has no answer: query 0 is zero" in told.err
    assert "3 of 7 queries had no answer" in told.err


def test_a_bad_query_among_those_given_is_an_error_at_the_end(source, cleaning_encoder, capsys):
    with pytest.raises(InputError, match="1 of 3 queries had no answer"):
        run(cleaning_encoder, source, f"query=['退货','{EMPTY}',2024]", "k=1")
    assert capsys.readouterr().out.count("query encoded") == 2
    run(cleaning_encoder, source, "query=2024", "k=1")


def test_queries_without_direction_do_not_tune(source, cleaning_encoder, tmp_path, capsys):
    encoder = load(cleaning_encoder)
    encoder.matryoshka_dims = (16, 8)
    trained = export(encoder, tmp_path / "trained")
    (tmp_path / "queries.txt").write_text(f"退货\n{EMPTY}\n公园\n", encoding="utf-8")
    run(trained, source, f"tune={tmp_path / 'queries.txt'}", f"out={tmp_path / 'funnel'}", "k=2", "query='退货'")
    told = capsys.readouterr().out
    assert "1 of 3 queries have no direction and are left out: queries.txt:2" in told
    assert "is the fastest" in told


# ---- what lies in a folder of texts


def test_what_the_program_wrote_into_the_source_is_not_read(source, trained, tmp_path, capsys):
    queries = tmp_path / "queries.txt"
    queries.write_text("退货\n公园\n", encoding="utf-8")
    run(trained, source, f"index={source / 'first'}", "query='退货'")
    run(
        trained,
        source,
        f"index='{source / 'more' / '索引'}'",
        f"tune={queries}",
        f"out={source / 'funnel'}",
        "k=2",
        "query='退货'",
    )
    assert (source / "funnel" / "funnel.json").is_file()
    capsys.readouterr()
    for index in ("first", "more/索引"):
        run(trained, source, f"index='{source / index}'", "query='退货'", "k=99")
        out = capsys.readouterr().out
        assert "up to date" in out
        assert "of 7 texts" in out


def test_an_index_json_of_the_user_is_a_text(source):
    (source / "page").mkdir()
    (source / "page" / "index.json").write_text('{"text": "mine"}\n')
    (source / "funnel.json").write_text('{"text": "mine too"}\n')
    found = [place for place, _ in _texts(source, _files(source), "text")]
    assert "page/index.json:1" in found
    assert "funnel.json:1" in found


def test_an_index_that_cannot_be_kept_is_told_before_anything_is_read(source, small_encoder, monkeypatch):
    monkeypatch.setattr("acge_lightning.commands.search._texts", lambda *args, **how: pytest.fail("read"))
    for index in (source, source / "a.txt"):
        with pytest.raises(InputError, match="something else than an index"):
            run(small_encoder, source, f"index={index}", "query=x")


def test_queries_to_tune_with_are_no_texts(source, small_encoder):
    for tune in ("a.txt", "more", "."):
        with pytest.raises(InputError, match="is one of the texts that are indexed"):
            run(small_encoder, source, f"tune={source / tune}", "query=x")


def test_names_that_are_not_utf8_are_written_out(source, small_encoder, capsys):
    (source / os.fsdecode(b"\xff.txt")).write_text("公园\n", encoding="utf-8")
    run(small_encoder, source, "query='公园'", "k=1")
    assert r"\xff.txt:1" in capsys.readouterr().out


def test_links_and_pipes_are_told_and_not_waited_for(source, caplog):
    (source / "gone.txt").symlink_to("nowhere")
    (source / "circle.txt").symlink_to("circle.txt")
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe.txt")
    (source / "same.txt").symlink_to("a.txt")
    assert [file.name for file in _files(source)] == ["a.txt", "b.md", "c.jsonl", "d.csv.gz", "same.txt"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "4 entries that are no files of their own are left out" in told
    for name in ("gone.txt", "circle.txt", "loop", "pipe.txt"):
        assert str(source / name) in told
    with pytest.raises(InputError, match=r"pipe\.txt is no file"):
        _files(source / "pipe.txt")
    with pytest.raises(InputError, match=r"gone\.txt is not there"):
        _files(source / "gone.txt")


def test_a_file_that_vanishes_is_named(source, small_encoder, monkeypatch):
    files = _files(source)
    monkeypatch.setattr("acge_lightning.commands.search._files", lambda source: files)
    (source / "b.md").unlink()
    with pytest.raises(InputError, match=r"b\.md cannot be read"):
        run(small_encoder, source, "query=x")
    with pytest.raises(InputError, match=r"b\.md cannot be read"):
        _texts(source, files, "text")


def test_a_hostile_text_is_shown_and_not_obeyed(source, small_encoder, capsys):
    (source / "[red]x.txt").write_text("公园 \x1b[2J\x1b]0;pwned\x07\u202e [bold]b[/bold] [/] :smile:\n", encoding="utf-8")
    run(small_encoder, source, "query=['公园 \x1b[2J [bold]b','[/]']", "k=2", f"index='{source.parent / '[bold]index'}'")
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
def test_the_program_reads_queries_until_their_end(source, small_encoder, tmp_path):
    command = [sys.executable, "-m", "acge_lightning", "search", f"model={small_encoder}", f"source={source}", "k=1"]
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
