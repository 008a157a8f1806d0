"""Perturb texts as people type them: with typos, in other widths and in the other Chinese script. Seeded pure functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra

_KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_FULL = 0xFEE0  # from "!" to "！"
_HANZI = range(0xB0, 0xD8)  # rows of GB 2312 in which the common characters stand, by pinyin


def perturb(texts: Sequence[str], kind: str, seed: int = 0, share: float = 0.1) -> list[str]:
    """Change texts in one way; a text and a seed always give the same result, whatever the other texts.

    Args:
        texts: any.
        kind: `typos`, `width`, `script`, or `clean` for no change.
        seed: of the typos.
        share: of a text's characters that get a typo, at least one a text that has characters.

    Raises:
        InputError: an unknown kind, a share outside 0 … 1, or `script` without the package opencc.

    >>> perturb(["BERT 2.0", "ＧＰＴ"], "width")
    ['ＢＥＲＴ　２．０', 'GPT']
    """
    if kind not in KINDS:
        raise InputError(f"perturbation {kind!r} is unknown: choose from {', '.join(KINDS)}")
    if not 0 <= share <= 1:
        raise InputError(f"share={share} is no share of the characters: give 0 to 1")
    return [KINDS[kind](text, random.Random(f"{seed} {text}"), share) for text in texts]


def typos(text: str, rng: random.Random, share: float) -> str:
    """Swap neighbours, delete characters, insert or substitute similar ones: in equal shares, at random positions."""
    letters = list(text)
    positions = rng.sample(range(len(text)), min(len(text), max(1, round(share * len(text))))) if share else []
    for position in sorted(positions, reverse=True):  # from the end, so that earlier positions stay valid
        change = rng.choice(("swap", "delete", "insert", "similar"))
        if change == "swap" and position + 1 < len(letters):
            letters[position : position + 2] = reversed(letters[position : position + 2])
        elif change == "delete" and len(letters) > 1:
            del letters[position]
        elif change == "insert":
            letters.insert(position, similar(letters[position], rng))
        else:
            letters[position] = similar(letters[position], rng)
    return "".join(letters)


def similar(letter: str, rng: random.Random) -> str:
    """Draw a character that is typed instead of another: of the same or nearly the same sound, or of a key beside it.

    The 3755 common characters of GB 2312 stand in the order of their pinyin: those beside a character mostly sound like it.
    What is neither one of them nor on a key comes back as it is.

    >>> similar("款", random.Random(0)), similar("g", random.Random(0))
    ('筐', 'h')
    """
    for row in _KEYS:
        position = row.find(letter.lower()) if letter else -1
        if position >= 0:
            beside = rng.choice([row[i] for i in (position - 1, position + 1) if 0 <= i < len(row)])
            return beside.upper() if letter.isupper() else beside
    try:
        lead, trail = letter.encode("gb2312")
    except (UnicodeEncodeError, ValueError):  # not in it, or one byte only
        return letter
    if lead not in _HANZI:
        return letter
    last = 0xF9 if lead == 0xD7 else 0xFE  # the last row is not full
    neighbours = [position for position in range(trail - 2, trail + 3) if 0xA1 <= position <= last and position != trail]
    return bytes([lead, rng.choice(neighbours)]).decode("gb2312")


def width(text: str, rng: random.Random, share: float) -> str:
    """Exchange full-width and half-width Latin letters, digits, signs and spaces. Twice gives the text back."""
    return text.translate(_WIDTHS)


def script(text: str, rng: random.Random, share: float) -> str:
    """Write simplified characters as traditional ones; in a text without any, the other way round. Needs opencc."""
    other = _converter("s2t")(text)
    return other if other != text else _converter("t2s")(text)


def clean(text: str, rng: random.Random, share: float) -> str:
    """Return the text unchanged."""
    return text


@cache
def _converter(name: str) -> Callable[[str], str]:
    with naming_extra("perturbation script needs"):
        import opencc
    return opencc.OpenCC(name).convert


_WIDTHS = {i: i + _FULL for i in range(0x21, 0x7F)} | {i + _FULL: i for i in range(0x21, 0x7F)} | {0x20: 0x3000, 0x3000: 0x20}
KINDS: dict[str, Callable[[str, random.Random, float], str]] = {
    "clean": clean,
    "typos": typos,
    "width": width,
    "script": script,
}
