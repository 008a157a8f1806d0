"""Texts alone: their augmented views and evaluation sets."""

from itertools import groupby

import numpy as np
import pytest
from family_rows import texts_of, uniform, write

from acge_lightning.data.records import text_id
from acge_lightning.data.unlabelled import view

SENTENCE = "今天天气很好，我们一起去公园散步，看看湖边的花开了没有。"
LONG = [SENTENCE, "The quick brown fox jumps over the lazy dog", "aabbccddee" * 5, "一二三四", "a b c d e f g h"]


def test_unlabelled_examples(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": f" T{i} "} for i in range(9)])
    data = make("unlabelled")
    found = data.examples(np.array([8, 1, 1]), uniform(3))
    assert found.columns == (["T8", "T1", "T1"], ["T8", "T1", "T1"])
    assert found.roles == ("text", "text")
    assert found.labels is None
    assert [ids.tolist() for ids in found.ids] == [[text_id(t) for t in ("T8", "T1", "T1")]] * 2
    assert len(data) == 9
    assert list(data.train_texts()) == [f"T{i}" for i in range(9)]


def test_unlabelled_evaluation_is_the_texts(tmp_path, make):
    write(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    assert make("unlabelled").evaluation("dev") is None
    write(tmp_path / "dev.jsonl", [{"text": "c"}, {"text": "d"}])
    found = make("unlabelled").evaluation("dev")
    assert (texts_of(found), found.roles) == (["c", "d"], ((2, "text"),))
    assert found.labels is found.judgements is found.classes is None


@pytest.mark.parametrize("augment", ["span_crop", "clause", "char_delete", "char_repeat"])
def test_the_second_view_of_a_batch_is_augmented(tmp_path, make, augment):
    write(tmp_path / "train.jsonl", [{"text": text} for text in LONG])
    draws = uniform(len(LONG))
    found = make("unlabelled", augment=augment).examples(np.arange(len(LONG)), draws)
    assert found.columns[0] == LONG
    assert found.columns[1] == [view(text, augment, draw) for text, draw in zip(LONG, draws, strict=True)]
    assert found.columns[1] != LONG
    assert found.ids[0].tolist() == found.ids[1].tolist()  # of the text, so that equal texts are masked


@pytest.mark.parametrize("text", LONG)
def test_span_crop_is_a_part_of_half_to_nine_tenths(text):
    sizes, starts = set(), set()
    for draw in uniform(300):
        found = view(text, "span_crop", draw)
        assert found in text
        assert found == found.strip()
        assert round(len(text) * 0.5) - 2 * (" " in text) <= len(found) <= round(len(text) * 0.9)
        sizes.add(len(found))
        starts.add(text.index(found))
    assert len(sizes) > 1
    assert len(starts) > 1 or len(text) < 5


def test_clause_is_one_of_the_clauses_of_a_text():
    text = "保修期是一年，自购买之日起算；是的。Version 2.5.1 of it, made by us! 需要发票吗？需要。"
    expected = {"保修期是一年", "自购买之日起算", "Version 2.5.1 of it", "made by us", "需要发票吗"}  # four characters or more
    assert {view(text, "clause", draw) for draw in uniform(200)} == expected
    alone = "没有标点的一句话也要有另一半"
    assert {view(alone, "clause", draw) for draw in uniform(50)} == {view(alone, "span_crop", draw) for draw in uniform(50)}


@pytest.mark.parametrize("text", LONG)
def test_char_delete_drops_a_tenth(text):
    def is_subsequence(short, whole):
        left = iter(whole)
        return all(c in left for c in short)

    gone = max(1, len(text) // 10)
    views = {view(text, "char_delete", draw) for draw in uniform(200)}
    assert len(views) > 2
    for found in views:
        assert is_subsequence(found, text)
        assert len(text) - gone - (2 if " " in text else 0) <= len(found) <= len(text) - gone


@pytest.mark.parametrize("text", LONG)
def test_char_repeat_collapses_back_to_the_text(text):
    def doubled(found):
        """How often, if every run of `found` is the run of `text`, at most twice as long."""
        runs = [[(c, len(list(run))) for c, run in groupby(s)] for s in (found, text)]
        assert [c for c, _ in runs[0]] == [c for c, _ in runs[1]]
        assert all(n <= m <= 2 * n for (_, m), (_, n) in zip(*runs, strict=True))
        return len(found) - len(text)

    counts = {doubled(view(text, "char_repeat", draw)) for draw in uniform(300)}
    assert min(counts) == 1
    assert max(counts) <= max(2, len(text) // 3)
    assert max(counts) >= max(2, len(text) // 3 - 2)


@pytest.mark.parametrize("augment", ["none", "span_crop", "clause", "char_delete", "char_repeat"])
def test_views_are_functions_of_the_draw_and_leave_short_texts(augment):
    assert [view(text, augment, 0.3) for text in ("", "a", "ab", "abc")] == ["", "a", "ab", "abc"]
    draws = uniform(50)
    assert [view(SENTENCE, augment, d) for d in draws] == [view(SENTENCE, augment, d) for d in draws]
    assert (len({view(SENTENCE, augment, d) for d in draws}) > (1 if augment == "clause" else 20)) == (augment != "none")
    for draw in (0.0, np.nextafter(1, 0)):
        assert view(SENTENCE, augment, draw)
