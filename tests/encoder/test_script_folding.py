"""Traditional characters read as simplified ones: every character as OpenCC has it, and other text as it was."""

import sys
import unicodedata

import pytest
from tokenizers import normalizers

from acge_lightning.encoder.script_folding import character_map, simplified
from acge_lightning.errors import InputError


def test_every_ideograph_becomes_what_opencc_makes_of_it():
    opencc = pytest.importorskip("opencc")
    convert, normalizer = opencc.OpenCC("t2s").convert, simplified()
    ideographs = [c for c in map(chr, range(0x3400, 0x2A6E0)) if unicodedata.name(c, "").startswith("CJK UNIFIED")]
    assert len(ideographs) > 60_000
    assert [c for c in ideographs if normalizer.normalize_str(c) != convert(c)] == []


def test_other_text_stays_as_it_is():
    pytest.importorskip("opencc")
    text = "今天天气 Café é 🙂👍🏽 한국어 ひらがな カタカナ ①②③ \t\n ＡＢＣ 𝒜 שלום"
    assert simplified().normalize_str(text) == text


@pytest.mark.parametrize("count", [1, 3, 200, 3000])
def test_a_table_equals_a_loop_over_characters(count):
    keys = [chr(0x4E00 + i * 7) for i in range(count - 1)] + ["é"][:count]
    replacements = {key: f"<{i}>" if i % 3 else "" for i, key in enumerate(keys)}
    normalizer = normalizers.Precompiled(character_map(replacements))
    text = "".join(map(chr, range(0x4E00, 0x5200))) + "aé" + "".join(keys)
    assert normalizer.normalize_str(text) == "".join(replacements.get(c, c) for c in text)


@pytest.mark.parametrize("replacements", [{}, {"": "a"}, {"ab": "c"}, {"a": "b\0"}, {"\0": "a"}])
def test_what_a_table_cannot_hold_is_named(replacements):
    with pytest.raises(InputError, match="single characters"):
        character_map(replacements)


def test_without_opencc_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(InputError, match=r"fold_scripts=true needs opencc: pip install 'acge-lightning\["):
        simplified()
