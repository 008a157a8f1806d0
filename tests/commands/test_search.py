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
from conftest import NOTES

from acge_lightning import load
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.search import FunnelIndex

ROOT = Path(__file__).parents[2]
TEXTS = [("a.txt:2", NOTES[0]), ("a.txt:4", NOTES[1]), ("more/c.jsonl:1", NOTES[4]), ("more/d.csv.gz:2", "退货，公园")]


def run(encoder, source, *overrides):
    from test_conf import composed

    from acge_lightning.commands.search import run as search_command

    search_command(composed([f"model={encoder}", f"source={source}", *overrides], "search"))


def test_the_hits_are_those_of_exact_search(notes, small_encoder, capsys):
    run(small_encoder, notes, "query='how to return'", "k=3")
    out = capsys.readouterr().out
    encoder = load(small_encoder)
    found = [*TEXTS, ("b.md:1-7", "# 退货\n\nhow do I\nreturn this\n\n\n天气")]
    cosines = (encoder.encode("how to return") @ encoder.encode([text for _, text in found]).T)[0].numpy()
    lines = [line for line in out.splitlines() if re.match(r"│ +-?\d", line)]
    assert len(lines) == 3
    for line, row in zip(lines, np.argsort(-cosines)[:3], strict=True):
        assert found[row][0] in line
        assert f"{cosines[row]:.4f}" in line
        assert " ".join(found[row][1].split()) in line
    assert "5 passages of 4 files are indexed" in out
    assert "query encoded" in out
    assert " ms" in out


def test_the_index_is_used_again_until_something_changes(notes, small_encoder, tmp_path, capsys):
    kept = f"index={tmp_path / 'index'}"
    query = ["query=['退货','公园']", "k=1"]
    run(small_encoder, notes, kept, *query)
    assert "5 passages of 4 files are indexed" in capsys.readouterr().out
    (version,) = (tmp_path / "index").glob("v*")
    (notes / "a.txt").touch()
    run(small_encoder, notes, kept, *query)
    out = capsys.readouterr().out
    assert "up to date" in out
    assert out.count("query encoded") == 2
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
    assert len(FunnelIndex.load(tmp_path / "index")) == 4


def test_another_model_builds_the_index_again(notes, small_encoder, tmp_path, capsys):
    other = load(small_encoder)
    other.backbone.embedding.weight.data *= -1
    other.backbone.embedding.weight.data[3:7] *= 2
    run(small_encoder, notes, f"index={tmp_path / 'index'}", "query='退货'")
    run(export(other, tmp_path / "other"), notes, f"index={tmp_path / 'index'}", "query='退货'")
    assert "The model changed since" in capsys.readouterr().out


def test_only_what_is_new_is_encoded_again(notes, small_encoder, tmp_path, capsys, monkeypatch):
    from acge_lightning.encoder.encoder import Encoder

    index = tmp_path / "index"
    run(small_encoder, notes, f"index={index}", "query='退货'", "k=99")
    (notes / "a.txt").write_text("退货\n\n怎么退货？\n", encoding="utf-8")
    (notes / "new.md").write_text("# 新\n\n公园\n", encoding="utf-8")
    (notes / "more" / "c.jsonl").unlink()
    capsys.readouterr()
    encoded, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, *a, **o: encoded.append(texts) or encode(self, texts, *a, **o))
    run(small_encoder, notes, f"index={index}", "query='退货'", "k=99")
    out = capsys.readouterr().out
    assert "5 passages of 4 files are indexed, 2 of them new" in out
    assert encoded == [["退货", "# 新\n\n公园"], "退货"]
    kept = FunnelIndex.load(index)
    run(small_encoder, notes, f"index={tmp_path / 'whole'}", "query='退货'")
    whole = FunnelIndex.load(tmp_path / "whole")
    assert kept.rows.table.to_pylist() == whole.rows.table.to_pylist()
    for one, other in zip(kept.vectors.stores, whole.vectors.stores, strict=True):
        np.testing.assert_allclose(one.codes.numpy(), other.codes.numpy(), atol=1e-6)
    other = load(small_encoder)
    other.backbone.embedding.weight.data *= -1
    other.backbone.embedding.weight.data[3:7] *= 2
    export(other, tmp_path / "other")
    encoded.clear()
    run(tmp_path / "other", notes, f"index={index}", "query='退货'")
    assert len(encoded[0]) == 5


def test_an_index_of_other_sizes_or_of_an_earlier_version_is_built_again(notes, small_encoder, tmp_path, capsys):
    index = tmp_path / "index"
    for setting in ("passage_tokens=8", "overlap_tokens=4"):
        run(small_encoder, notes, f"index={index}", "query='退货'", "passage_tokens=64")
        capsys.readouterr()
        run(small_encoder, notes, f"index={index}", "query='退货'", setting)
        assert "The settings changed since" in capsys.readouterr().out
    old = FunnelIndex.load(index)
    saved = FunnelIndex.from_texts(["退货", "公园"], load(small_encoder), ids=["a.txt:1", "a.txt:2"])
    saved.note = {key: old.note[key] for key in ("source", "model")} | {"settings": {"field": "text"}}
    saved.save(index)
    run(small_encoder, notes, f"index={index}", "query='退货'")
    assert "The way of cutting and the settings changed since" in capsys.readouterr().out
    assert len(FunnelIndex.load(index)) == 5


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
    assert "1 of 7 passages have no direction and are left out: e.txt:2" in caplog.text
    out = capsys.readouterr().out
    assert "6 passages of 5 files are indexed" in out
    assert "e.txt:1" in out


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
    assert "'\\udcff\\udcfe' has no answer: the query has half a surrogate pair" in told.err
    assert "'\\u200b\\u200d' has no answer: the encoder knows none of its tokens" in told.err
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


# ---- what is shown of hits


def test_json_is_all_that_the_standard_output_has(notes, small_encoder, tmp_path, capsys):
    (notes / "long.txt").write_text("今天天气很好，我们去公园。" * 60 + "怎么退货？\n", encoding="utf-8")
    (notes / "broken.jsonl").write_text("{", encoding="utf-8")
    (notes / "b.md").write_text("# 退货\n\n## how\n\nreturn \x1b \u202e this\n", encoding="utf-8")
    query = ["query=['how do I return','\udcff','退货']", "k=3", f"index={tmp_path / 'index'}", "overlap_tokens=0"]
    with pytest.raises(InputError, match="1 of 3 queries had no answer"):
        run(small_encoder, notes, "format=json", *query)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["query"] for line in lines] == ["how do I return", "\udcff", "退货"]
    assert "half a surrogate pair" in lines[1]["error"]
    assert "broken.jsonl, line 1: is not JSON" in err
    assert "passages of 5 files are indexed" in err
    assert "The index is in" in err
    hit = next(hit for hit in lines[0]["hits"] if hit["file"] == "b.md")
    text = "# 退货\n\n## how\n\nreturn \x1b \u202e this"
    assert (hit["line"], hit["last_line"], hit["heading"], hit["text"]) == (1, 5, "退货 > how", text)
    assert hit["score"] == pytest.approx(cosine(small_encoder, "how do I return", text), abs=1e-5)
    assert not re.search("[\x1b\u202e]", out)
    whole = (notes / "long.txt").read_text(encoding="utf-8")
    for hit in lines[2]["hits"]:
        if hit["file"] == "long.txt":
            start = hit["column"] - 1
            assert whole[start : start + len(hit["text"])] == hit["text"]
        assert hit["part"] in hit["text"]
    with pytest.raises(InputError, match="format=xml is unknown: choose text or json"):
        run(small_encoder, notes, "format=xml", *query)


def cosine(encoder, one, other):
    return float(load(encoder).encode(one) @ load(encoder).encode(other).T)


def test_near_equal_hits_are_one_and_others_take_their_places(tmp_path, small_encoder, capsys):
    texts = ["怎么退货？", "今天天气很好", "怎么退货", "how do I return this", "怎么 退货？", "公园", "怎么退货！！"] * 3
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    run(small_encoder, tmp_path / "a.txt", "format=json", "query='怎么退货'", "k=4")
    (hits,) = (json.loads(line)["hits"] for line in capsys.readouterr().out.splitlines())
    assert len(hits) == 4
    assert hits[0]["text"] == "怎么退货"
    assert [hit["like_it"] for hit in hits if "退" in hit["text"] and " " not in hit["text"]] == [8]
    assert all(hit["like_it"] == len(hit["like_it_at"]) for hit in hits)
    run(small_encoder, tmp_path / "a.txt", "query='怎么退货'", "k=4")
    assert "+8 like it" in capsys.readouterr().out
    run(small_encoder, tmp_path / "a.txt", "format=json", "query='怎么退货'", "k=99")
    (hits,) = (json.loads(line)["hits"] for line in capsys.readouterr().out.splitlines())
    assert sum(1 + hit["like_it"] for hit in hits) == len(texts)


def test_the_part_that_fits_is_shown_with_its_lines_and_headings(tmp_path, small_encoder, capsys, monkeypatch):
    other = "今天天气很好，我们去公园。" * 10
    text = f"# 说明\n\n{other}\n\n## 售后\n\n{other}\n\n{other}怎么退货？{other}{other}\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    run(small_encoder, tmp_path, "query='怎么退货？'", "k=2", "passage_tokens=512")
    out = capsys.readouterr().out
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "a.md:5-9" in plain
    assert "说明 > 售后" in plain
    assert "…怎么退货？" in plain
    assert "\x1b[1;32m怎么退货\x1b[0m？" in out


# ---- typed queries


class Terminal(io.StringIO):
    """A terminal at which these keys are typed, a list of lines and of keys that interrupt."""

    def isatty(self):
        return True


def test_no_typed_query_ends_the_others(notes, cleaning_encoder, monkeypatch, capsys):
    typed = iter(["退货", KeyboardInterrupt, "", "  ", "\udcff", "x" * 200_000, EMPTY, "\0", "公园", "stop", "天气", EOFError])
    prompts = []

    def ask(prompt):
        prompts.append(prompt)
        key = next(typed)
        if isinstance(key, type):
            raise key
        return key

    from acge_lightning.commands import search as command

    def answered(index, query, k, answer=command.answer):
        if query == "stop":
            raise KeyboardInterrupt
        if query.startswith("x"):
            raise RuntimeError("out of memory")
        return answer(index, query, k)

    monkeypatch.setattr(command, "answer", answered)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin", Terminal())
    run(cleaning_encoder, notes, "k=1")
    out, err = capsys.readouterr()
    assert len(prompts) == 12
    assert [line.strip() for line in out.splitlines() if line.strip() in ("退货", "公园", "天气")] == ["退货", "公园", "天气"]
    for told in ("Ctrl-D ends.", "half a surrogate pair", "knows none of its tokens", "RuntimeError: out of memory", "stopped"):
        assert told in err
    assert "4 of 8 queries had no answer" in err


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
        assert "of 5 passages" in out


def test_an_index_that_cannot_be_kept_is_told_before_anything_is_read(notes, small_encoder, monkeypatch):
    monkeypatch.setattr("acge_lightning.commands.search.read_documents", lambda *args, **how: pytest.fail("read"))
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
    assert "error: source must be given" in missing.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts", "索引"]
