"""Long texts are cut before they are tokenised, as only their first tokens count; to the same tokens where that is certain."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE, _FIRST, _MOST = 64, 16, 256  # characters for each token that counts: tokenised whole, tried first, looked at at all
_LEAST_MOST = 2**16  # characters that are looked at in any case
_WORDS = 16  # after the last token that counts: a tokenizer's pattern, an accent and a run of spaces look ahead
_LOCAL = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "Precompiled", "Prepend"}
_SPACES = {" {2,}", r"\s+", r" +"}  # patterns of a Replace normalizer that leave a space of spaces
_AT_SPACES = {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}
_MARKS = (" ", "Ġ", "▁")  # a space within the pieces of a vocabulary


@dataclass(frozen=True)
class Words:
    """What is known of a tokenizer's words.

    Args:
        end: matches a place where a word ends whatever comes before and after; None if no such place is known.
        longest: characters of the longest added token, which may hold several words.
        last: whether a long text's last tokens count, not its first.
    """

    end: re.Pattern[str] | None
    longest: int = 0
    last: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Words:
        """Those of a tokenizer."""
        if not tokenizer.is_fast or tokenizer.truncation_side != "right":
            return cls(None, last=tokenizer.truncation_side != "right")
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        longest = max((len(token["content"]) for token in described["added_tokens"]), default=0)
        if not all(map(_is_local, _steps(described["normalizer"]))):
            return cls(None)
        steps = list(_steps(described["pre_tokenizer"]))
        kinds = [step["type"] for step in steps]
        if kinds and kinds[0] in _AT_SPACES:
            punctuation = "，。！？；、" if {"BertPreTokenizer", "Punctuation"} & set(kinds) else ""
            return cls(re.compile(rf"(?<=[^\s{punctuation}])[ \n{punctuation}]+(?=[^\s{punctuation}])"), longest)
        if (kinds and kinds[0] == "Metaspace" and steps[0].get("split")) or _has_no_inner_spaces(described["model"]):
            return cls(re.compile(r"(?<=\S) +(?=\S)"), longest)
        return cls(None)


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The normalizers or pre-tokenizers of a sequence, or the one that there is."""
    if part is not None and part["type"] == "Sequence":
        for step in part.get("normalizers", part.get("pretokenizers", [])):
            yield from _steps(step)
    elif part is not None:
        yield part


def _is_local(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer leaves spaces where they are and looks at a few characters at a time."""
    if step["type"] != "Replace":
        return step["type"] in _LOCAL
    pattern = step["pattern"].get("String")
    if pattern is None:
        return step["pattern"].get("Regex") in _SPACES and step["content"] == " "
    return (pattern == " " and step["content"] == "▁") or (pattern.strip() == pattern != "")


def _has_no_inner_spaces(model: Mapping[str, Any]) -> bool:
    """Whether every piece of a vocabulary begins a word or stays within one, so that none leads from one word to the next."""
    if model["type"] not in ("BPE", "Unigram") or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return False
    pieces = model["vocab"] if model["type"] == "BPE" else (piece for piece, _ in model["vocab"])
    return not any(mark in piece.lstrip("".join(_MARKS)) for piece in pieces for mark in _MARKS)


def cut(text: str, max_length: int, words: Callable[[], Words], tokens: Callable[[str], tuple[int, int]]) -> str:
    """As much of a text as has its first tokens.

    They are those of the whole text if it has at most 2**16 characters, or at most 256 for each token, or if so many
    characters hold `max_length` tokens and 16 words more, for tokenizers whose words end at spaces (`Words`). What is longer
    and does not, such as a megabyte without a space, is cut there.

    Args:
        text: of any length.
        max_length: tokens that count.
        words: gives what is known of the tokenizer's words; it is called for long texts only.
        tokens: how many tokens that count a text has, and where in it the last of them ends.
    """
    if len(text) <= _WHOLE * max_length:
        return text
    known, most = words(), min(len(text), max(_MOST * max_length, _LEAST_MOST))
    size = _FIRST * max_length if known.end else most
    while size < most:
        count, end = tokens(text[:size])
        ends = list(known.end.finditer(text, end + known.longest, size)) if count >= max_length else []
        if len(ends) > _WORDS:
            return text[: ends[_WORDS].end()]
        size *= 4
    return text[-most:] if known.last else text[:most]
