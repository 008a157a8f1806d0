"""Keys of texts and rows: what is the same text, and what is not."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import own_texts, variant

from acge_lightning.errors import InputError
from acge_lightning.mining.normalise import duplicate_keys, row_keys


def keys(*texts, **options):
    return duplicate_keys(list(texts), **options).to_pylist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＡＢＣ１２３", "abc123"),
        ("今天，天气好！", "今天天气好"),
        ("今 天\t天\n气\u3000好", "今天天气好"),
        ("機器學習", "机器学习"),
        ("a\u200bb\ufeffc\x00d", "abcd"),
        ("①②", "12"),
        ("不错~~~", "不错～"),
        ("\ud800好", "好"),
        ("❤️", "❤"),
    ],
)
def test_variants_have_one_key(one, other):
    assert keys(one) == keys(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5元", "15元"),
        ("3-5天", "35天"),
        ("1.2.3", "12.3"),
        ("12:30", "1230"),
        ("C#", "C"),
        ("C++", "C"),
        ("5%", "5"),
        ("a<b", "a>b"),
        ("好👍", "好👎"),
        ("……", "！！"),
        ("", "。"),
    ],
)
def test_what_changes_the_meaning_changes_the_key(one, other):
    assert keys(one) != keys(other)


def test_script_counts_where_it_is_asked_to():
    assert keys("機器", script=False) != keys("机器", script=False)


def test_width_and_script_variants_of_many_texts_have_their_keys():
    texts = own_texts(300)
    for kind in ("width", "script"):
        pairs = [(text, changed) for text in texts if (changed := variant(text, kind))]
        assert len(pairs) > 200
        assert keys(*(a for a, _ in pairs)) == keys(*(b for _, b in pairs))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[])), max_size=5))
def test_a_key_does_not_depend_on_the_texts_around_it(texts):
    together = keys(*texts)
    assert together == [key for text in texts for key in keys(text)]
    assert together == duplicate_keys(texts[::-1]).to_pylist()[::-1]
    for key in together:
        assert not [c for c in key if unicodedata.category(c)[0] in "ZC" and unicodedata.category(c) != "Cn"]


def test_arrays_lists_and_nulls_will_do():
    texts = ["Ａ", None, "b "]
    expected = ["a", "", "b"]
    parts = [pa.chunked_array([texts[:1], texts[1:]]), pa.array(texts, pa.large_string()).slice(0), pa.array(texts), texts]
    assert [duplicate_keys(part).to_pylist() for part in parts] == [expected] * 4
    assert duplicate_keys([]).to_pylist() == []
    assert duplicate_keys(pa.chunked_array([], pa.string())).to_pylist() == []


def test_many_rows_and_long_ones_keep_their_order():
    texts = [f"第{i}行" for i in range(45_000)] + ["长" * 1_000_000]
    result = duplicate_keys(texts)
    assert result.to_pylist() == [f"第{i}行" for i in range(45_000)] + ["长" * 1_000_000]


def test_a_row_has_the_key_of_what_counts():
    sides = {"text1": ["你好！", "再见"], "text2": ["再见", "你好"], "label": [1, 0]}
    assert len(set(row_keys(sides, "pair").to_pylist())) == 1
    triplets = {"query": ["问", "问", "问"], "positive": [["一", "二"], ["二", "一。"], ["一"]], "negative": [["x"]] * 3}
    first, second, third = row_keys(triplets, "triplet").to_pylist()
    assert first == second != third
    assert row_keys(pa.table(triplets), "retrieval").to_pylist() == [first, second, third]
    assert row_keys({"query": ["问"], "positive": ["一"]}, "reranking").to_pylist() == [third]
    assert row_keys({"text": ["好！"]}, "unlabelled").to_pylist() == ["好"]


def test_what_is_not_there_is_said():
    with pytest.raises(InputError, match=r"family sts need a column 'text2'; there are text1"):
        row_keys({"text1": ["a"]}, "sts")
    with pytest.raises(InputError, match="'nli' is no family: give one of sts"):
        row_keys({"text1": ["a"]}, "nli")
