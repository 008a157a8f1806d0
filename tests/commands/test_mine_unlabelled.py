"""`acge mine pairs=…`: queries and positives of text without labels, and negatives for them."""

import hashlib
import json

import pytest
from test_conf import composed

from acge_lightning.commands import mine
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.data import RetrievalDataset
from acge_lightning.errors import InputError

NOTES = """---
title: 手册
---
前言没有标题。

# 售后

## 退货
签收后七天内可以无理由退货。

退款三个工作日内原路退回。

## 换货

## 发票
退货后发票可以在订单页面申请。
"""


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "笔记 (1)"
    folder.mkdir()
    (folder / "手册.md").write_text(NOTES, encoding="utf-8")
    (folder / "抄本.md").write_text(NOTES, encoding="gb18030")
    (folder / "空.md").write_text("\n\n", encoding="utf-8")
    (folder / "问答.txt").write_text("第一行说退货\n\n第二行说发票\n第二行说发票\n第三行说会员\n", encoding="utf-8")
    rows = [
        {"title": "会员", "text": "会员积分每年年底清零。"},
        {"title": "", "text": "没有标题的"},
        {"title": "同", "text": "同"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(source, pairs, out, *words):
    words = [
        "bm25",
        f"source={source}",
        f"out={out}",
        f"pairs={pairs}",
        "relative_margin=null",
        f"paths.output_dir={out}",
        *words,
    ]
    mine.run(with_names(composed(arguments(["model=" + words[0], *words[1:]]), "mine")))
    lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return {(row["query"], row["positive"][0]): row["negative"] for row in map(json.loads, lines)}


def test_headings_with_the_text_under_them(notes, tmp_path, capsys):
    rows = run(notes, "headings", tmp_path / "out")
    expected = {
        ("售后 > 退货", "签收后七天内可以无理由退货。\n\n退款三个工作日内原路退回。"),
        ("售后 > 发票", "退货后发票可以在订单页面申请。"),
    }
    assert set(rows) == expected
    assert rows["售后 > 退货", "签收后七天内可以无理由退货。\n\n退款三个工作日内原路退回。"] == [
        "退货后发票可以在订单页面申请。"
    ]
    assert "2 pairs of headings were made of 3 files" in " ".join(capsys.readouterr().out.split())
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["pairs"] == "headings"
    digests = {entry["file"]: entry["sha256"] for entry in manifest["sources"]}
    assert digests["手册.md"] == hashlib.sha256(NOTES.encode()).hexdigest()
    assert len(RetrievalDataset(tmp_path / "out", holdout=0, cache_dir=tmp_path / "cache")) == 2


def test_passages_that_follow_each_other(notes, tmp_path):
    rows = run(notes, "passages", tmp_path / "out")
    assert {query for query, _ in rows} == {"签收后七天内可以无理由退货。", "第一行说退货", "第二行说发票"}
    assert ("第一行说退货", "第二行说发票") in rows
    assert ("第二行说发票", "第三行说会员") in rows  # a line that comes twice is no positive of itself
    assert all(query not in negatives for (query, _), negatives in rows.items())


def test_titles_with_their_texts(notes, tmp_path):
    assert set(run(tmp_path / "rows.jsonl", "titles", tmp_path / "out", "range_max=5")) == {("会员", "会员积分每年年底清零。")}


@pytest.mark.parametrize(
    ("pairs", "source", "message"),
    [
        ("headers", "笔记 (1)", "pairs=headers is unknown: choose from headings, passages, titles"),
        ("headings", "rows.jsonl", "makes no pair of headings: they need Markdown files"),
        ("titles", "笔记 (1)", "makes no pair of titles: they need rows with a title and a text"),
        ("headings", "nowhere", "nowhere"),
    ],
)
def test_what_makes_no_pair_is_said(notes, tmp_path, pairs, source, message):
    with pytest.raises(InputError, match=message):
        run(f"'{tmp_path / source}'", pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
