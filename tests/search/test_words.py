"""Words of texts: near-equal texts, and the part of a text that fits a query."""

import pytest

from acge_lightning.search.words import best_part, near_equal, pairs, weights, words

LONG = " ".join(f"word{i}" for i in range(40))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("How do I return this?", "how do I  RETURN this", True),
        ("怎么退货？", "怎么退货", True),
        ("Ｈｏｗ ｔｏ", "how to", True),
        (LONG, LONG.replace("word7 ", "other "), True),
        (LONG, LONG.replace("word1", "other"), False),
        ("怎么退货", "怎么换货", False),
        ("price 100", "price 200", False),
        ("a", "b", False),
        ("！！", "？？", False),
        ("！！", " ！！", True),
        (LONG, "word1 word2", False),
    ],
)
def test_near_equal_texts(one, other, expected):
    assert near_equal(pairs(one), pairs(other)) is expected
    assert near_equal(pairs(other), pairs(one)) is expected


def test_words_stand_where_they_are_said_to():
    text = "ＡＢＣ d_e 今天天气 x2 カタ русский 好"
    assert [form for _, _, form in words(text)] == [
        "abc", "d", "e", "今天", "天天", "天气", "x2", "カタ", "русский", "好"
    ]  # fmt: skip
    assert all(text[start:end].casefold()[0].isalnum() for start, end, _ in words(text))


def part(text, query, width=40, nearest=None):
    start, end = best_part(text, weights(query, [text]), width, nearest)
    assert 0 <= start < end <= len(text)
    assert end - start <= width
    return text[start:end]


def test_the_part_with_the_words_of_the_query_is_shown():
    text = "One thing here. Another thing there. Refunds take five days in all. The last thing of them."
    assert part(text, "how long do refunds take").startswith("Refunds take five days")
    assert part(text, "thing", 200) == text
    chinese = "今天天气很好，我们去公园。" * 9 + "七天之内可以退货。" + "我们怎么去公园？" * 9
    assert part(chinese, "怎样退货", 20).startswith("七天之内可以退货。")
    assert "退货" in part("啊" * 300 + "退货" + "啊" * 300, "退货", 30)


def test_a_rare_word_counts_more_than_a_frequent_one():
    texts = ["The cat is on the mat in the house of the man. " * 3 + "Refunds come late. " + "The dog is at the door. " * 3]
    weight = weights("the refunds", [*texts, "the one", "the other"])
    assert weight["refunds"] > weight["the"]
    start, end = best_part(texts[0], weight, 30)
    assert "Refunds" in texts[0][start:end]


def test_without_words_in_common_the_nearest_part_is_asked_for():
    text = "First sentence of it. Second sentence of it. Third sentence of it. The fourth sentence of it."
    asked = []

    def nearest(parts):
        asked.extend(parts)
        return next(i for i, some in enumerate(parts) if some.startswith("Third"))

    assert part(text, "退货", 30, nearest).startswith("Third")
    assert len(asked) == 4
    assert part(text, "退货", 30).startswith("First")
    assert part("a" * 100, "退货", 30)


def test_no_word_is_cut():
    text = LONG + ". " + LONG
    for query in ("word39", "word0", "word20"):
        assert set(part(text, query, 33).replace(".", " ").split()) <= set(LONG.split())
