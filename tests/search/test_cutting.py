"""Documents to passages by the tokens of an encoder: their places, their sizes, and the headings encoded with them."""

from itertools import pairwise

import pytest

from acge_lightning import load
from acge_lightning.errors import InputError
from acge_lightning.search.cutting import check_sizes, cut_documents
from acge_lightning.search.documents import Document, read_documents
from acge_lightning.search.text_files import list_files

SENTENCES = [f"第{i}天，今天天气很好，我们去公园。" for i in range(400)]


@pytest.fixture(scope="module")
def encoder(small_encoder):
    return load(small_encoder)


def passages_of(encoder, documents, budget=32, overlap=8):
    return list(cut_documents(documents, encoder.tokenize, budget, overlap))


def test_a_line_of_many_thousand_characters_is_many_passages(encoder):
    line = "".join(SENTENCES * 12)
    assert len(line) > 85_000
    passages = passages_of(encoder, [Document("a.txt", 7, line)], 64, 8)
    assert len(encoder.tokenize.tokenizer.tokenize(line)) / 64 < len(passages) < len(line) / 64
    starts = [passage.place.column - 1 for passage in passages]
    for start, passage in zip(starts, passages, strict=True):
        assert line[start : start + len(passage.text)] == passage.text
        assert len(encoder.tokenize([passage.text]).ids) <= 64 + 2  # by itself a text may be split in another way
        assert passage.text.endswith("。")
    ends = [start + len(passage.text) for start, passage in zip(starts, passages, strict=True)]
    assert starts[0] == 0
    assert ends[-1] == len(line)
    assert all(later <= end for end, (_, later) in zip(ends, pairwise(starts), strict=False))
    assert {str(passage.place) for passage in passages[:1]} == {"a.txt:7"}
    assert len({passage.place for passage in passages}) == len(passages)


def test_lines_of_markdown_are_those_of_the_file(encoder, tmp_path):
    days = "\n\n".join(SENTENCES[:30])
    text = f"intro\n\n# 售后\n\n## 退货\n\n{days}\n\n## 换货\n\n  联系客服。\n".replace("\n", "\r\n")
    (tmp_path / "a.md").write_bytes(text.encode())
    passages = passages_of(encoder, read_documents(list_files(tmp_path), "text"))
    lines = text.split("\r\n")
    for passage in passages:
        first, last = passage.place.line, passage.place.last_line
        assert passage.text == "\n".join(lines[first - 1 : last]).strip() or passage.place.column > 1
        assert passage.text.splitlines()[-1] in lines[last - 1]
    assert (passages[0].place.line, passages[0].place.path) == (1, ())
    assert (passages[1].place.line, passages[1].place.path, passages[1].place.above) == (3, ("售后", "退货"), ())
    assert passages[2].encoded == f"售后 > 退货\n{passages[2].text}"
    assert (passages[-1].text, passages[-1].place.path) == ("## 换货\n\n  联系客服。", ("售后", "换货"))
    assert passages[-1].encoded == f"售后\n{passages[-1].text}"


def test_a_value_of_a_table_has_the_line_of_its_row(encoder):
    value = "\n" + "\n".join(SENTENCES[:20])
    passages = passages_of(encoder, [Document("a.csv", 3, value, "row"), Document("a.csv", 30, " short ", "row")])
    assert {passage.place.line for passage in passages[:-1]} == {3}
    assert [passage.place.column for passage in passages][:1] == [1]
    for passage in passages[1:-1]:
        start = passage.place.column - 1
        assert value[start : start + len(passage.text)] == passage.text
    assert (passages[-1].text, str(passages[-1].place)) == ("short", "a.csv:30")


def test_sizes_that_cannot_be_are_refused(encoder):
    assert check_sizes(encoder, None) == (256, 32)
    assert check_sizes(encoder, 100, 50) == (100, 50)
    for tokens, overlap, told in (
        (7, 0, "passage_tokens=7"), (513, 0, "from 8 to 512"), (True, 0, "whole number"), ("64", 0, "whole number"),
        (64, 33, "overlap_tokens=33 must be a whole number from 0 to 32"), (None, -1, "overlap_tokens=-1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=told):
            check_sizes(encoder, tokens, overlap)
