"""Cuts long texts before they are tokenised, since only their first tokens count.

The tokens stay the same where that is certain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acge_lightning.encoder.tokenizer_steps import tokenizer_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters for each token that counts: texts of up to _WHOLE are tokenised whole; of longer ones, _FIRST_TRY are tokenised
# first, and never more than _MOST, or than _LEAST_MOST characters in all if those are more.
_WHOLE, _FIRST_TRY, _MOST = 64, 16, 256
_LEAST_MOST = 2**16
_EXTRA_WORDS = 16  # after the last token that counts: a tokenizer's pattern, an accent and a run of spaces look ahead
_LOCAL_NORMALIZERS = {
    *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD"),
    *("Lowercase", "StripAccents", "Strip", "Nmt", "Precompiled", "Prepend"),
}
_SPACE_PATTERNS = {" {2,}", r"\s+", r" +"}  # of a Replace normalizer that makes one space of several
_SPLIT_AT_SPACES = {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}
_SPACE_SYMBOLS = (" ", "Ġ", "▁")  # stand for a space within the pieces of a vocabulary


@dataclass(frozen=True)
class WordEnds:
    """Where the words of a tokenizer end.

    Args:
        pattern: matches where a word ends, whatever comes before and after; None if there is no such place for certain.
        longest_added_token: its characters; an added token may hold several words.
        keeps_last: whether a long text's last tokens count, not its first.
    """

    pattern: re.Pattern[str] | None
    longest_added_token: int = 0
    keeps_last: bool = False

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> WordEnds:
        """The word ends of a tokenizer, from the description of its steps."""
        if not tokenizer.is_fast or tokenizer.truncation_side != "right":
            return cls(None, keeps_last=tokenizer.truncation_side != "right")
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        longest = max((len(token["content"]) for token in description["added_tokens"]), default=0)
        if not all(map(_is_local, tokenizer_steps(description["normalizer"]))):
            return cls(None)
        steps = list(tokenizer_steps(description["pre_tokenizer"]))
        kinds = [step["type"] for step in steps]
        if kinds and kinds[0] in _SPLIT_AT_SPACES:
            punctuation = "，。！？；、" if {"BertPreTokenizer", "Punctuation"} & set(kinds) else ""
            return cls(re.compile(rf"(?<=[^\s{punctuation}])[ \n{punctuation}]+(?=[^\s{punctuation}])"), longest)
        if (kinds and kinds[0] == "Metaspace" and steps[0].get("split")) or _has_no_inner_spaces(description["model"]):
            return cls(re.compile(r"(?<=\S) +(?=\S)"), longest)
        return cls(None)


def _is_local(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer leaves spaces where they are and looks at a few characters at a time."""
    if step["type"] != "Replace":
        return step["type"] in _LOCAL_NORMALIZERS
    pattern = step["pattern"].get("String")
    if pattern is None:
        return step["pattern"].get("Regex") in _SPACE_PATTERNS and step["content"] == " "
    return (pattern == " " and step["content"] == "▁") or (pattern.strip() == pattern != "")


def _has_no_inner_spaces(model: Mapping[str, Any]) -> bool:
    """Whether every piece of a vocabulary begins a word or stays within one, so that none leads from one word to the next."""
    if model["type"] not in ("BPE", "Unigram") or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return False
    pieces = model["vocab"] if model["type"] == "BPE" else (piece for piece, _ in model["vocab"])
    return not any(symbol in piece.lstrip("".join(_SPACE_SYMBOLS)) for piece in pieces for symbol in _SPACE_SYMBOLS)


def truncate(
    text: str, max_length: int, word_ends: Callable[[], WordEnds], count_tokens: Callable[[str], tuple[int, int]]
) -> str:
    """As much of a text as has its first tokens.

    They are those of the whole text if it has at most 2**16 characters, or at most 256 for each token, or if so many
    characters hold `max_length` tokens and 16 words more, for tokenizers whose words end at spaces (`WordEnds`). What is longer
    and does not, such as a megabyte without a space, is cut there.

    Args:
        text: of any length.
        max_length: tokens that count.
        word_ends: gives those of the tokenizer; it is called for long texts only.
        count_tokens: how many tokens that count a text has, and where in it the last of them ends.
    """
    if len(text) <= _WHOLE * max_length:
        return text
    ends, limit = word_ends(), min(len(text), max(_MOST * max_length, _LEAST_MOST))
    size = _FIRST_TRY * max_length
    while ends.pattern is not None and size < limit:
        count, last_end = count_tokens(text[:size])
        if count >= max_length:
            matches = list(ends.pattern.finditer(text, last_end + ends.longest_added_token, size))
            if len(matches) > _EXTRA_WORDS:
                return text[: matches[_EXTRA_WORDS].end()]
        size *= 4
    return text[-limit:] if ends.keeps_last else text[:limit]
