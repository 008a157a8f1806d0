"""What a row of a data set must hold: five records for seven task families, and the checks that make them.

`fields` of a record are all that it reads; of each tuple of `required`, a file has at least one.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

Row = Mapping[str, Any]
Setting = tuple[str, Mapping[str, Any]]
_WORDS = {
    1: "1 true yes y t entailment duplicate similar same match 是 相似 相同 同义 匹配 正确 对 蕴含 蕴涵 相关 一致",
    0: "0 false no n f contradiction different dissimilar "
    "否 不是 不相似 不同 不相同 不同义 不匹配 错误 错 不正确 不对 矛盾 不相关 不一致",
    None: "neutral 中立 中性",
}
NEUTRAL = "neutral"
_BINARY = {word: value for value, words in _WORDS.items() for word in words.split()}


class RowError(ValueError):
    """A row or a file that does not fit its record: which field, why, and what to do.

    Args:
        field: of the record.
        reason: in words.
        setting: the argument of the data set that mends it, and its value: `("columns", {"score": "label"})`.
    """

    def __init__(self, field: str | None, reason: str, setting: Setting | None = None):
        super().__init__(reason if field is None else f"field {field!r} {reason}")
        self.setting = setting


def text_id(text: str) -> int:
    """64-bit hash of a text, the same for texts that differ only in case, width or white space.

    >>> text_id("ＡＢＣ  d") == text_id("abc D")
    True
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)


def _value(row: Row, field: str) -> Any:
    if field not in row:
        raise RowError(field, f"is missing; the row has {sorted(row)}: give it one, or on_bad_row=skip")
    return row[field]


def _text(row: Row, field: str) -> str:
    return clean(_value(row, field), field)


def clean(value: Any, field: str) -> str:
    """A text without white space around it.

    Raises:
        RowError: it is no text, or empty, or not valid UTF-8.
    """
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}, not a text")
    value = value.strip()
    if not value:
        raise RowError(field, "is empty: give a text, or on_bad_row=skip")
    return valid(value, field)


def valid(value: str, field: str | None) -> str:
    """The text itself.

    Raises:
        RowError: it has lone surrogates, from JSON or from bytes that are not UTF-8: no tokenizer takes them.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(field, "is not valid UTF-8: mend its encoding, or on_bad_row=skip") from None
    return value


def _texts(row: Row, field: str, required: bool) -> tuple[str, ...]:
    """A text or a list of texts; nothing (absent, null, empty) only where it is not required."""
    value = _value(row, field) if required else row.get(field)
    if isinstance(value, str):
        value = [value] if required or value.strip() else []
    if value is None and not required:
        return ()
    if not isinstance(value, Sequence):
        raise RowError(field, f"is {value!r:.60}, not a text or a list of texts")
    if required and not value:
        raise RowError(field, "is an empty list: give at least one text, or on_bad_row=skip")
    return tuple(clean(item, field) for item in value)


def number(row: Row, field: str) -> float:
    """A finite number, or a text that is one.

    Raises:
        RowError: it is missing, or something else.
    """
    value = _value(row, field)
    try:
        parsed = float(value.replace("_", "?") if isinstance(value, str) else value)  # 1_0 is a number in Python only
    except (TypeError, ValueError, OverflowError):
        raise RowError(field, f"is {value!r:.60}, not a number: {_as_number(value)}") from None
    if not math.isfinite(parsed):
        raise RowError(field, f"is {value!r:.60}, not a finite number")
    return parsed


def row_weight(row: Row, column: str) -> float:
    """How often a row is drawn, against others of weight 1.

    Raises:
        RowError: it is missing, no finite number, or below 0.
    """
    weight = number(row, column)
    if weight < 0:
        raise RowError(column, f"is {weight:g}, and a weight is 0 or more: give it one, or on_bad_row=skip")
    return weight


def _as_number(value: Any) -> str:
    """How to write a percentage, a number with a decimal comma or with a unit."""
    text = unicodedata.normalize("NFKC", value).strip() if isinstance(value, str) else ""
    match = re.fullmatch(r"([+-]?\d+)(?:\.(\d+)|,(\d{1,2}))?\s*(%|分)?", text, re.ASCII)
    if match is None:
        return "write one, such as 0.8, or on_bad_row=skip"
    meant = float(f"{match[1]}.{match[2] or match[3] or 0}")
    return f"write it as {meant / 100 if match[4] == '%' else meant:g}, and all others so too"


def _word(value: Any, field: str, what: str) -> str:
    """A word or a whole number as text; a whole number of floating point, 1.0, is 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(field, f"is {value!r:.60}, not a {what}: give a word or a whole number")
    return clean(str(value), field)


def _whole(word: str) -> str:
    """`1.0` as `1`: a number that csv has as text, or pandas as floating point."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", word, flags=re.ASCII)


def identifier(value: Any, field: str) -> str:
    """The name of a query or a document, without white space around it.

    Raises:
        RowError: it is neither a word nor a whole number, or empty, or not valid UTF-8.
    """
    return _word(value, field, "name")


def _part(value: Any, field: str) -> str:
    """A text that may be empty or null."""
    if value is not None and not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}, not a text")
    return valid(value or "", field)


def _binary(row: Row, field: str) -> int | None:
    """0, 1, or None for neutral."""
    value = _value(row, field)
    label = as_label(value)
    if label in _BINARY:
        return _BINARY[label]
    if re.fullmatch(r"\d", label):  # the order of NLI's numbers differs from set to set
        reason = f"is {value!r:.60}: it must be 1 or 0. Where 0, 1, 2 are entailment, neutral, contradiction"
        raise RowError(field, reason, ("labels", {"0": 1, "1": None, "2": 0}))
    words = "相似, 不相似, 是, 否, yes, no, entailment, neutral, contradiction"
    reason = f"is {value!r:.60}: it must be 1, 0, or a word such as {words}. Say what others mean"
    raise RowError(field, reason, ("labels", {label if isinstance(value, str) and 0 < len(label) <= 20 else "…": 1, "…": 0}))


def as_label(value: Any) -> str:
    """A label as it is compared: without white space around it, case, width, and the `.0` of a whole number.

    >>> as_label(" Ｙes"), as_label(1.0), as_label(True)
    ('yes', '1', 'true')
    """
    return _whole(unicodedata.normalize("NFKC", str(value)).strip().casefold())


@dataclass(frozen=True)
class TripletRecord:
    """A query, texts that answer it, and texts that do not. `{"query": …, "positive": […], "negative": […]}`."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    fields: ClassVar = ("query", "positive", "negative")
    required: ClassVar = (("query",), ("positive",))

    @classmethod
    def parse(cls, row: Row) -> Self:
        """From a row; `positive` and `negative` may be one text or a list, and `negative` may be absent."""
        return cls(_text(row, "query"), _texts(row, "positive", True), _texts(row, "negative", False))

    @property
    def texts(self) -> tuple[str, ...]:
        """All its texts: query, positives, negatives."""
        return (self.query, *self.positive, *self.negative)


@dataclass(frozen=True)
class ScoredPairRecord:
    """Two texts and how similar they are. `{"text1": …, "text2": …, "score": 3.8}` or a binary `label`."""

    text1: str
    text2: str
    score: float
    fields: ClassVar = ("text1", "text2", "score", "label")
    required: ClassVar = (("text1",), ("text2",), ("score", "label"))

    @classmethod
    def parse(cls, row: Row) -> Self | None:
        """From a row; None for a neutral label."""
        graded = "score" in row or "label" not in row
        score = number(row, "score") if graded else cls._label(row)
        texts = _text(row, "text1"), _text(row, "text2")
        return None if score is None else cls(*texts, float(score))

    @staticmethod
    def _label(row: Row) -> int | None:
        """0, 1, or None for neutral; other numbers may be scores, which only the user knows."""
        value = _value(row, "label")
        if as_label(value) not in _BINARY and re.fullmatch(r"[+-]?\d+(\.\d+)?", as_label(value), re.ASCII):
            raise RowError("label", f"is {value!r:.60}: a label is 1 or 0. If it is a score", ("columns", {"score": "label"}))
        return _binary(row, "label")

    @property
    def texts(self) -> tuple[str, ...]:
        """Both texts."""
        return self.text1, self.text2


@dataclass(frozen=True)
class PairRecord:
    """Two texts that belong together (1) or not (0). `{"text1": …, "text2": …, "label": 1}`; NLI words are understood."""

    text1: str
    text2: str
    label: int
    fields: ClassVar = ("text1", "text2", "label")
    required: ClassVar = (("text1",), ("text2",), ("label",))

    @classmethod
    def parse(cls, row: Row) -> Self | None:
        """From a row; None for a neutral label."""
        label = _binary(row, "label")
        texts = _text(row, "text1"), _text(row, "text2")
        return None if label is None else cls(*texts, label)

    @property
    def texts(self) -> tuple[str, ...]:
        """Both texts."""
        return self.text1, self.text2


@dataclass(frozen=True)
class LabelledRecord:
    """A text and its class. `{"text": …, "label": "refund"}`; the label is a word or a whole number, of which 1.0 is 1."""

    text: str
    label: str
    fields: ClassVar = ("text", "label")
    required: ClassVar = (("text",), ("label",))

    @classmethod
    def parse(cls, row: Row) -> Self:
        """From a row."""
        return cls(_text(row, "text"), _whole(_word(_value(row, "label"), "label", "class")))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text."""
        return (self.text,)


@dataclass(frozen=True)
class TextRecord:
    """A text alone. `{"text": …}`."""

    text: str
    fields: ClassVar = ("text",)
    required: ClassVar = (("text",),)

    @classmethod
    def parse(cls, row: Row) -> Self:
        """From a row."""
        return cls(_text(row, "text"))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text."""
        return (self.text,)


@dataclass(frozen=True)
class DocumentRecord:
    """A query or a document of a BEIR folder. `{"_id": "d7", "text": …, "title": …}`; a title stands before the text.

    Both may be empty: published corpora have such documents, which are candidates like others.
    """

    key: str
    text: str
    fields: ClassVar = ("_id", "text", "title")
    required: ClassVar = (("_id",), ("text",))

    @classmethod
    def parse(cls, row: Row) -> Self:
        """From a row; `title` may be absent."""
        key = identifier(_value(row, "_id"), "_id")
        title, text = (_part(value, field) for field, value in (("title", row.get("title")), ("text", _value(row, "text"))))
        return cls(key, f"{title} {text}".strip())

    @property
    def texts(self) -> tuple[str, ...]:
        """Title and text."""
        return (self.text,)


Record = TripletRecord | ScoredPairRecord | PairRecord | LabelledRecord | TextRecord | DocumentRecord
