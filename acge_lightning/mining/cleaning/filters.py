"""Find texts that are no use as they are: empty, of the wrong length or language, full of markup, not valid Unicode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.findings import Findings
from acge_lightning.mining.normalise import Texts, as_strings

# Language -> the units of its script, as RE2 counts them: a Chinese character, or a word of letters.
_SCRIPTS = {
    "zh": r"\p{Han}",
    "en": r"\p{Latin}+",
    "ja": r"[\p{Han}\p{Hiragana}\p{Katakana}]",
    "ko": r"\p{Hangul}+",
    "ru": r"\p{Cyrillic}+",
}
_WORDS = r"[\p{Han}\p{Hiragana}\p{Katakana}]|\p{Latin}+|\p{Hangul}+|\p{Cyrillic}+|\p{L}"
_MARKUP = (
    r"(?i)</?(?:br|div|span|table|tbody|tr|td|ul|ol|li|img|font|strong|iframe|script|style|html|body|h[1-6])\b"
    r"|</[a-z]+>|<[a-z]+\s+[a-z-]+=|&(?:nbsp|lt|gt|amp|quot|#\d+)\b|\]\(\s*(?:https?:|/)|\{\{[^{}]*\}\}|\[\[[^\[\]]*\]\]"
)


def text_issues(
    texts: Texts,
    shortest: int = 1,
    longest: int | None = None,
    languages: Sequence[str] = (),
    language_share: float = 0.5,
    markup: bool = True,
) -> list[Findings]:
    r"""Find texts that a training set is better without; `clean_texts` comes first.

    Languages are told by script alone: `zh` counts Chinese characters, simplified or traditional, and `en` words of Latin
    letters, in whatever language. A text is of the languages asked for if these make up the share of its characters and
    words; a text without a letter (12:30, a row of dots) is of none.

    Args:
        texts: n of them; null is an empty text.
        shortest: in characters, blanks around the text left out.
        longest: as `shortest`; None: no limit.
        languages: of zh, en, ja, ko, ru, any of which will do; none: not looked at.
        language_share: 0 … 1.
        markup: whether to look for what is left of HTML, wiki markup and templates.

    Returns:
        Findings that are not empty: `not valid Unicode` (half a surrogate pair), `empty`, `too short` and `too long` (values:
        characters), `language` (values: the share), `markup` (values: how many remains). A row may be in several.

    Raises:
        InputError: an unknown language, or limits that leave nothing.

    >>> for findings in text_issues(["好", "this is English", "", "a<br>b", "\ud83d"], languages=["zh"]):
    ...     print(findings.reason, findings.rows.tolist(), findings.values.tolist())
    not valid Unicode [4] [nan]
    empty [2] [0.0]
    language [1, 3] [0.0, 0.0]
    markup [3] [1.0]
    """
    _check(shortest, longest, languages)
    array = as_strings(texts)
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(array)).to_numpy()
    invalid = _invalid(texts, array)
    seen = ~invalid & (lengths > 0)
    issues = [
        ("not valid Unicode", invalid, np.full(len(array), np.nan)),
        ("empty", ~invalid & (lengths == 0), lengths),
        ("too short", seen & (lengths < shortest), lengths),
        ("too long", seen & (lengths > (longest or np.inf)), lengths),
    ]
    if languages:
        total = _count(array, _WORDS)
        share = _count(array, "|".join(_SCRIPTS[language] for language in languages)) / np.maximum(total, 1)
        issues.append(("language", seen & (share < language_share), share))
    if markup:
        remains = _count(array, _MARKUP)
        issues.append(("markup", seen & (remains > 0), remains))
    return [
        Findings(reason, rows, np.full(len(rows), -1), values[rows].astype(np.float64))
        for reason, mask, values in issues
        if len(rows := np.flatnonzero(mask))
    ]


def _check(shortest: int, longest: int | None, languages: Sequence[str]) -> None:
    for language in languages:
        if language not in _SCRIPTS:
            raise InputError(f"languages has {language!r}, which no script tells: give some of {', '.join(_SCRIPTS)}")
    if longest is not None and longest < shortest:
        raise InputError(f"longest={longest} is below shortest={shortest}, which leaves no text: give a greater one")


def _invalid(texts: Texts, array: pa.LargeStringArray) -> np.ndarray:
    """Bool[n]: the text has half a surrogate pair; an Arrow array has none, a list is looked at where U+FFFD stands now."""
    rows = np.zeros(len(array), bool)
    if not isinstance(texts, (pa.Array, pa.ChunkedArray)):
        for row in np.flatnonzero(pc.match_substring(array, "\ufffd").to_numpy(zero_copy_only=False)).tolist():
            rows[row] = texts[row] != array[row].as_py()
    return rows


def _count(array: pa.LargeStringArray, pattern: str) -> np.ndarray:
    return pc.count_substring_regex(array, pattern).to_numpy()
