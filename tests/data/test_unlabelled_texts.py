"""Texts alone: their augmented views and evaluation sets."""

from itertools import groupby

import numpy as np
import pytest
from family_rows import texts_of, uniform, write

from acge_lightning.data.epoch import batch_sizes
from acge_lightning.data.records import text_id
from acge_lightning.data.unlabelled import _QUESTION_WORDS, view
from acge_lightning.errors import InputError

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


@pytest.mark.parametrize("augment", ["span_crop", "clause", "question", "char_delete", "char_repeat"])
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


def test_a_question_is_a_clause_with_a_question_word_in_place_of_a_part():
    text = "保修期是一年，自购买之日起算；是的。"
    clauses = ("保修期是一年", "自购买之日起算")
    found = [view(text, "question", draw) for draw in uniform(400)]
    questions = [one for one in found if one.endswith("？")]
    assert {one for one in found if not one.endswith("？")} == set(clauses)
    assert 150 < len(questions) < 250
    for question in questions:
        made_of = [
            (clause, start, end, word)
            for clause in clauses
            for word in _QUESTION_WORDS
            for start in range(len(clause))
            for end in range(start + 2, len(clause) + 1)
            if f"{clause[:start]}{word}{clause[end:]}？" == question
        ]
        assert made_of, question
        assert all(2 <= end - start <= len(clause) // 2 + 1 for clause, start, end, _ in made_of)
    assert len({word for word in _QUESTION_WORDS if any(word in question for question in questions)}) == len(_QUESTION_WORDS)


@pytest.mark.parametrize(("count", "batch", "neighbours"), [(60, 12, 3), (61, 12, 4), (7, 12, 5), (100, 8, 8)])
def test_neighbours_come_into_a_batch_together(tmp_path, make, count, batch, neighbours):
    write(tmp_path / "train.jsonl", [{"text": f"第{i}段"} for i in range(count)])
    data = make("unlabelled", batch_size=batch, neighbours=neighbours)
    sizes = batch_sizes(count, batch)
    orders = [data.order(np.random.default_rng(seed), uniform(count), sizes) for seed in range(40)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) > (30 if count > batch else 1)
    following = np.mean([np.mean(np.diff(order) == 1) for order in orders])
    assert following >= (neighbours - 1) / neighbours - 0.1
    begins = {int(order[i + 1]) % neighbours for order in orders for i in np.flatnonzero(np.diff(order) != 1)}
    assert len(begins) == min(neighbours, count - 1) or count <= batch  # runs begin elsewhere in each epoch
    drawn = np.array([5, 1, 1, 0, 2])
    assert sorted(data.order(np.random.default_rng(0), uniform(count), np.array([5]), drawn)) == sorted(drawn)


@pytest.mark.parametrize("neighbours", [0, 13])
def test_neighbours_that_do_not_fit_into_a_batch_are_refused(tmp_path, make, neighbours):
    with pytest.raises(InputError, match=f"neighbours={neighbours} do not fit batch_size=12: give 1 to 12"):
        make("unlabelled", batch_size=12, neighbours=neighbours)


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


@pytest.mark.parametrize("augment", ["none", "span_crop", "clause", "question", "char_delete", "char_repeat"])
def test_views_are_functions_of_the_draw_and_leave_short_texts(augment):
    assert [view(text, augment, 0.3) for text in ("", "a", "ab", "abc")] == ["", "a", "ab", "abc"]
    draws = uniform(50)
    assert [view(SENTENCE, augment, d) for d in draws] == [view(SENTENCE, augment, d) for d in draws]
    least = {"none": 0, "clause": 1, "question": 1}.get(augment, 20)
    assert (len({view(SENTENCE, augment, d) for d in draws}) > max(1, least)) == (augment != "none")
    for draw in (0.0, np.nextafter(1, 0)):
        assert view(SENTENCE, augment, draw)
