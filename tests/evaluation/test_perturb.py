"""Perturbed texts: seeded, bounded, and told what is missing."""

import random
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.errors import InputError
from acge_lightning.evaluation import perturb as module
from acge_lightning.evaluation.perturb import KINDS, perturb, similar

TEXTS = ["怎么把手机里的照片传到电脑上？", "How do I return this?", "ＢＥＲＴ模型 2.0", "", "款"]


def edits(a, b):
    """Levenshtein distance, by a plain table."""
    table = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, table[0] = table[0], i
        for j, y in enumerate(b, 1):
            last, table[j] = table[j], min(table[j] + 1, table[j - 1] + 1, last + (x != y))
    return table[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_changed_alike_whatever_stands_beside_it(kind):
    if kind == "script":
        pytest.importorskip("opencc")
    found = perturb(TEXTS, kind)
    assert perturb(TEXTS[::-1], kind)[::-1] == found
    assert (found == TEXTS) == (kind == "clean")
    assert found[3] == ""


@given(st.text(max_size=60), st.integers(0, 3), st.sampled_from([0.05, 0.2, 0.5]))
@settings(max_examples=200, deadline=None)
def test_typos_are_as_many_as_asked_for(text, seed, share):
    found = perturb([text], "typos", seed, share)[0]
    assert edits(text, found) <= 2 * max(1, round(share * len(text)))  # a swap is two
    assert bool(found) == bool(text)
    assert perturb([text], "typos", seed, 0.0) == [text]


def test_typos_of_every_sort_come_up_and_follow_the_seed():
    text = "怎么把手机里的照片传到电脑上"
    found = [perturb([text], "typos", seed)[0] for seed in range(60)]
    assert {len(t) - len(text) for t in found} == {-1, 0, 1}
    assert any(sorted(t) == sorted(text) and t != text for t in found)  # swapped
    assert len(set(found)) > 30


SHI = "示士世柿事拭誓逝势是嗜噬适仕侍释饰氏市恃室视试"
SOUNDS = [("款", "侩快宽款匡筐狂"), ("我", "挝蜗涡窝我斡卧握沃"), ("是", SHI), ("g", "fh"), ("Q", "W")]


@pytest.mark.parametrize(("letter", "sounds"), SOUNDS)
def test_similar_characters_sound_alike_or_lie_beside(letter, sounds):
    found = {similar(letter, random.Random(seed)) for seed in range(50)}
    assert found <= set(sounds)
    assert letter not in found


@given(st.characters())
@settings(max_examples=300)
def test_similar_takes_any_character(letter):
    assert len(similar(letter, random.Random(0))) == 1


@given(st.text(max_size=40))
def test_widths_twice_give_the_text_back_and_mean_the_same(text):
    wide = perturb([text], "width")[0]
    assert perturb([wide], "width") == [text]
    assert unicodedata.normalize("NFKC", wide) == unicodedata.normalize("NFKC", text)


def test_scripts_go_both_ways():
    pytest.importorskip("opencc")
    assert perturb(["头发和发展", "頭髮和發展", "abc"], "script") == ["頭髮和發展", "头发和发展", "abc"]


def test_a_missing_opencc_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    module._converter.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'acge-lightning\[eval\]'"):
        perturb(["头发"], "script")


def test_wrong_arguments_are_told():
    with pytest.raises(InputError, match="choose from clean, typos"):
        perturb(["a"], "noise")
    with pytest.raises(InputError, match="share=2"):
        perturb(["a"], "typos", share=2)
