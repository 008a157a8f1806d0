"""The passages that the encoders of the package learn search from."""

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from acge_lightning.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import zoo_passages


def write(file, rows):
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8") as written:
        written.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("longest", [1, 7, 30, 1000])
def test_joined_paragraphs_lose_nothing_and_are_no_longer_than_asked(longest):
    paragraphs = [f"第{'一二三四五六七八九'[i % 9] * (i % 12)}段{'。' * (i % 2)}" for i in range(60)]
    passages = list(zoo_passages.joined(paragraphs, longest))
    assert "".join(passages).replace("，", "") == "".join(paragraphs)
    assert all(len(passage) <= longest or passage in paragraphs for passage in passages)
    assert all(len(one + following) > longest for one, following in pairwise(passages))


def test_passages_of_articles_come_in_order_then_those_of_pairs(tmp_path, capsys):
    long = "退货须在七天之内" * 9
    write(
        tmp_path / "unlabelled/lctt_tech/train.jsonl.gz",
        [{"text": "一" * 120}, {"text": "二" * 90 + "。"}, {"text": "三" * 70}],
    )
    write(tmp_path / "unlabelled/laws/train.jsonl.gz", [{"text": "短"}])
    write(tmp_path / "pairs/docs_web/train.jsonl.gz", [{"query": "q", "positive": [long, "短"]}])
    write(tmp_path / "pairs/tatoeba_zh/train.jsonl.gz", [{"query": "q", "positive": [long + "x"]}])
    zoo_passages.main([str(tmp_path), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "3 passages are in" in said
    assert "2 of fewer than 60 characters were left out" in said
    with gzip.open(tmp_path / "out" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert texts == ["一" * 120 + "，" + "二" * 90 + "。", "三" * 70, long]
    first = (tmp_path / "out" / "train.jsonl.gz").read_bytes()
    zoo_passages.main([str(tmp_path), str(tmp_path / "out")])
    assert (tmp_path / "out" / "train.jsonl.gz").read_bytes() == first


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    for name in (*zoo_passages.ARTICLES, "pairs/docs_web"):
        write(tmp_path / name / "train.jsonl.gz", [])
    write(tmp_path / "out" / "train.jsonl.gz", [{"text": "theirs"}])
    theirs = (tmp_path / "out" / "train.jsonl.gz").read_bytes()
    with pytest.raises(InputError, match="of ours: it is kept"):
        zoo_passages.main([str(tmp_path), str(tmp_path / "out")])
    assert (tmp_path / "out" / "train.jsonl.gz").read_bytes() == theirs


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="has no unlabelled/lctt_tech: give the folder that `acge clean` has written"):
        zoo_passages.main([str(tmp_path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_two_folders_are_needed():
    with pytest.raises(SystemExit, match="give two folders"):
        zoo_passages.main(["one"])
