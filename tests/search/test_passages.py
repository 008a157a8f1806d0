"""Passages of long texts: nothing is lost, the budget is kept, and what is cut is cut where a reader would."""

import re
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.search.markdown import structure
from acge_lightning.search.passages import cut, token_ends

WORDS = [
    "word",
    "退货",
    "了。",
    "Yes.",
    "no;",
    "\n",
    "\n\n",
    "# Head\n",
    "\n## 标题\n",
    "```\n",
    "- item\n",
    " ",
    "\t",
    "x" * 40,
    "！",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=80).map("".join) | st.text(max_size=200)


def ends_of(text):
    """A tokenizer of Latin words and of single other characters."""
    return token_ends(len(text), [match.end() for match in re.finditer(r"[A-Za-z]+|[^\sA-Za-z]", text)])


def size(ends, start, end):
    return bisect_right(ends, end) - bisect_right(ends, start)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(4, 40), st.integers(0, 10), st.booleans())
def test_all_is_covered_in_order_within_the_budget(text, budget, overlap, markdown):
    ends, overlap = ends_of(text), min(overlap, budget // 2)
    passages = cut(text, ends, budget, overlap, markdown)
    covered = set()
    for passage in passages:
        piece = text[passage.start : passage.end]
        assert piece == piece.strip() != ""
        assert size(ends, passage.start, passage.end) <= budget
        covered |= set(range(passage.start, passage.end))
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    for one, other in pairwise(passages):
        assert one.start < other.start
        assert one.end < other.end
        assert size(ends, other.start, one.end) <= overlap


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(8, 40), st.booleans())
def test_what_fits_is_one_passage_and_no_overlap_repeats_nothing(text, budget, markdown):
    ends = ends_of(text)
    passages = cut(text, ends, budget, 0, markdown)
    for one, other in pairwise(passages):
        assert one.end <= other.start
        assert not text[one.end : other.start].strip()
    if len(ends) <= budget and not markdown:
        assert [text[p.start : p.end] for p in passages] == ([text.strip()] if text.strip() else [])


def pieces(text, budget, overlap=0, markdown=False):
    return [text[p.start : p.end] for p in cut(text, ends_of(text), budget, overlap, markdown)]


def test_sentences_of_chinese_and_english_end_passages():
    assert pieces("今天很好。我们去公园！你呢？好；走。", 7) == ["今天很好。", "我们去公园！", "你呢？好；走。"]
    assert pieces("It is 3.5 m. He said: “Go.” She went! Why?", 8) == ["It is 3.5 m.", "He said: “Go.”", "She went! Why?"]
    assert pieces("one two three four five six", 4) == ["one two three four", "five six"]
    assert pieces("今天天气很好我们去公园", 4) == ["今天天气", "很好我们", "去公园"]


def test_a_paragraph_ends_a_passage_before_a_sentence_does():
    text = "One two. Three four.\n\nFive six. Seven eight.\n\nNine ten."
    assert pieces(text, 8) == ["One two. Three four.", "Five six. Seven eight.", "Nine ten."]
    assert pieces(text, 12) == ["One two. Three four.\n\nFive six. Seven eight.", "Nine ten."]


def test_the_next_passage_begins_with_a_sentence_of_the_one_before():
    text = "A b c d. E f. G h i j. K l m."
    assert pieces(text, 9, 3) == ["A b c d. E f.", "E f. G h i j.", "i j. K l m."]
    assert pieces("a b c d e f g h", 4, 2) == ["a b c d", "c d e f", "e f g h"]


MARKDOWN = """intro

# Guide

## Install

Type this.

```bash
# no heading
pip install x
```

## 使用

### Search

第一句话。第二句话。

Old
===

end
"""


def test_sections_of_markdown_have_their_headings():
    passages = cut(MARKDOWN, ends_of(MARKDOWN), 60, 0, markdown=True)
    assert [(MARKDOWN[p.start : p.end].splitlines()[0], p.path, p.above) for p in passages] == [
        ("intro", (), ()),
        ("# Guide", ("Guide", "Install"), ()),
        ("## 使用", ("Guide", "使用", "Search"), ("Guide",)),
        ("Old", ("Old",), ()),
    ]


def test_the_headings_above_stand_with_every_later_passage_and_count():
    text = "# 指南\n\n## 退货\n\n" + "这是一句话。" * 20
    passages = cut(text, ends_of(text), 24, 0, markdown=True)
    assert [p.above for p in passages[:2]] == [(), ("退货",)]
    for passage in passages:
        headings = sum(len(ends_of(title)) + 1 for title in passage.above)
        assert size(ends_of(text), passage.start, passage.end) + headings <= 24


def test_code_stays_whole_where_it_fits():
    code = "```\n" + "\n".join(f"line {i}" for i in range(5)) + "\n```"
    text = f"Some words stand here. And more of them.\n\n{code}\n\nThe end."
    for budget in (20, 24, 30):
        assert any(code in piece for piece in pieces(text, budget, 4, markdown=True))
    long = "```\n" + "\n".join(f"line number {i}" for i in range(50)) + "\n```"
    assert all(piece.endswith(tuple("0123456789`")) for piece in pieces(long, 20, 0, markdown=True))


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("# One #\n## Two ##x\n###three\n#four\n#", [["One", "Two ##x", "three"], [""]]),
        ("---\ntitle: x\n# no\n---\n# yes\n", [["yes"]]),
        ("```\n# no\n~~~\n# no\n```\n# yes", [["yes"]]),
        ("```\n# an open fence hides nothing", [["an open fence hides nothing"]]),
        ("Title\n-----\n\n- item\n---\n\n| a |\n---\n\na\nb\n---\n", [["Title"]]),
        ("    # code\n\ttext # no", []),
    ],
)
def test_headings(text, paths):
    assert [[heading.title for heading in section.path] for section in structure(text)[0] if section.path] == paths


@pytest.mark.parametrize("unit", [".", "```a\n", "~~~~\n", '."', "- ", "\n", " ", "#", "a ", "。", "\n#\n", "|", "=\n"])
def test_a_long_text_of_one_thing_is_cut(unit):
    """A hundred thousand of it: what grows with the square of that takes many minutes."""
    text, ends = unit * 100_000, ends_of(unit * 100_000)
    passages = cut(text, ends, 64, 8, markdown=True)
    assert len(passages) >= len(re.findall(r"\S", text)) / (64 * 16)
    assert all(size(ends, passage.start, passage.end) <= 64 for passage in passages)
