"""Cleaning of texts, and what makes a text no use."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.filters import text_issues
from acge_lightning.mining.cleaning.markup import clean_text, clean_texts

UNTOUCHED = [
    "a < b && c > d",
    "if (a<b) {c>d}",
    "Map<K, V> 和 List<String>",
    "见[1](附录)与 f[i](x)",
    "R&B AT&T; &nosuch;",
    "<unk> <mask>",
    "x <b and c> y",
    "只有<p>一个",
    "👨\u200d👩\u200d👧",
    "نمی\u200cخواهم",
    "- 一\n- 二",
    "**重点**",
    "&lt;div&gt; 是标签",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_only_looks_like_markup_stays(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a\x00b\x1fc\ufeff ", "abc"),
        ("a\u200bb\u200e\u2060c\u200d", "abc"),
        ("一\r\n二\r三\u2028四", "一\n二\n三\n四"),
        ("好<br/>的<BR>吧<div class='x'>", "好 的 吧"),
        ('<b>好</b>的<a href="u">链接</a>', "好的链接"),
        ("<script>var a = '<p>';</script>好<!-- 注\n释 -->的<style>p{}</style>", "好 的"),
        ("&quot;好&quot;&nbsp;&#20320;&#x597d;&hellip;", '"好" 你好…'),
        ("a &lt; b &amp;&amp; c", "a < b && c"),
        ("a &amp;lt; b", "a < b"),
        ("见[官网](https://a.cn/x?y=1)和![图](./a.png)", "见官网和图"),
        ("\u3000好\u3000", "好"),
    ],
)
def test_remains_are_removed(text, expected):
    assert clean_text(text) == expected


PIECES = [
    "<b>",
    "</b>",
    "<br>",
    "&lt;",
    "&amp;",
    "lt;",
    "<",
    ">",
    "[",
    "](",
    "http://",
    ")",
    "\u200d",
    "\x00",
    " ",
    "a",
    "好",
    "<!--",
    "-->",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_cleaning_twice_changes_nothing_and_many_are_cleaned_like_one(text):
    once = clean_text(text)
    assert clean_text(once) == once
    assert clean_texts([text, "好"]).to_pylist() == [once, "好"]


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_is_cleaned_the_same_alone_and_in_an_array(text):
    assert clean_texts(pa.array([text, None, text])).to_pylist() == [clean_text(text), "", clean_text(text)]


@pytest.mark.parametrize("piece", ["<", "<!--", "<b>", "<a ", "[a](", "&amp;", "\u200d", "<script>"])
def test_a_megabyte_of_remains_ends(piece):
    text = piece * (1_000_000 // len(piece))
    assert len(clean_text(text)) <= len(text)


def found(texts, **options):
    return {findings.reason: findings.rows.tolist() for findings in text_issues(texts, **options)}


def test_every_issue_has_its_rows():
    texts = ["正常的中文句子", "", " \u3000", "短", "长" * 50, "<div>残留", "half \ud800 pair", None, "&nbsp 和 {{模板}}"]
    expected = {"not valid Unicode": [6], "empty": [1, 2, 7], "too short": [3], "too long": [4], "markup": [5, 8]}
    assert found(texts, shortest=2, longest=40) == expected
    lengths = {findings.reason: findings.values.tolist() for findings in text_issues(texts, shortest=2, longest=40)}
    assert lengths["too long"] == [50.0]
    assert lengths["markup"] == [1.0, 2.0]


def test_languages_are_told_by_script():
    texts = [
        "这是中文",
        "這是繁體",
        "this is English",
        "これはペンです",
        "12:30",
        "买 iPhone 手机壳吗",
        "Это русский",
        "한국어 입니다",
    ]
    for language, rows in {"zh": [0, 1, 5], "en": [2], "ru": [6], "ko": [7]}.items():
        assert set(range(8)) - set(found(texts, languages=[language])["language"]) == set(rows)
    assert found(texts, languages=["zh", "en"])["language"] == [3, 4, 6, 7]
    assert found(texts[:1] + texts[5:6], languages=["zh"], language_share=0.9) == {"language": [1]}


def test_nothing_to_find_and_nothing_at_all():
    assert text_issues(["好"]) == text_issues([]) == text_issues(pa.array([], pa.string()), languages=["zh"]) == []
    with pytest.raises(InputError, match="'fr', which no script tells: give some of zh, en"):
        text_issues(["a"], languages=["fr"])
    with pytest.raises(InputError, match="longest=1 is below shortest=2"):
        text_issues(["a"], shortest=2, longest=1)
