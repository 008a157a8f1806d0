"""Remove from texts what nobody wrote: control characters, invisible ones, and what is left of HTML and Markdown."""

from __future__ import annotations

import html
import re

import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.mining.normalise import Texts, as_strings

_BLOCKS = (
    "address article aside blockquote body br caption center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 "
    "h5 h6 head header hr html iframe img input li link main meta nav ol option pre section select table tbody td textarea "
    "tfoot th thead title tr ul video"
)
_INLINE = "abbr acronym big button cite code del em font ins kbd label mark nobr small span strike strong sub sup tt var wbr"
_LETTERS = "a b i p q s u"  # tags of one letter, which a < b looks like
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))"""
TAG = re.compile(
    rf"<(?:/?(?P<name>{'|'.join(f'{_BLOCKS} {_INLINE}'.split())}){_ATTRIBUTES}*\s*/?"
    rf"|(?P<letter>[{_LETTERS.replace(' ', '')}]){_ATTRIBUTES}*\s*/?|/(?P<closed>[{_LETTERS.replace(' ', '')}])\s*)>",
    re.IGNORECASE,
)
# What begins a piece that nobody reads -> what ends it.
_HIDDEN = {r"<!--": r"-->", r"<script\b[^<>]*>": r"</script\s*>", r"<style\b[^<>]*>": r"</style\s*>"}
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:https?://|mailto:|/|\./|#)[^\s()]*(?:\s+\"[^\"]*\")?\)")
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_FORMATS = "\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb"  # invisible ones
_INVISIBLE = re.compile(f"[{_CONTROLS}{_FORMATS}]")
# Joiners stand between letters of scripts that need them, and between emoji: next to these characters they are remains.
_PLAIN = "\x00-\x7f\u3000-\u9fff\uff00-\uffef"
_JOINERS = re.compile(f"[\u200c\u200d](?=[{_PLAIN}]|$)|(?:(?<=[{_PLAIN}])|^)[\u200c\u200d]")
_JOINER_RUN = re.compile("([\u200c\u200d])[\u200c\u200d]+")
# What RE2 finds in each text that may need any of these.
_SUSPECT = rf"[<&\xa0\x{{200c}}\x{{200d}}\x{{2028}}\x{{2029}}{_CONTROLS}{_FORMATS}]|\]\(|^\s|\s$"
_PASSES = 8  # of entities within entities: &amp;amp;lt;


def clean_text(text: str) -> str:
    """Remove control characters, invisible ones, HTML and links of Markdown, and blanks around the text.

    What only looks like it stays: `a < b`, `<unk>`, `List<String>`, `[1](见附录)`, an `&` alone. Of HTML go comments, scripts
    and styles with what is in them, and the tags that HTML has, `<b>` and others of one letter only with their `</b>` or
    attributes; a tag that breaks lines becomes a blank. Entities become their characters, unless that made tags. Of a link
    its words stay.
    Line ends become line feeds, no-break spaces become spaces; other blanks within a text stay as they are.

    Returns:
        The text, which a second call would leave as it is.

    >>> clean_text("&lt;5 分&nbsp;<br/>见[官网](https://a.cn)，<b>好</b>")
    '<5 分  见官网，好'
    >>> clean_text("if a < b and c > d: Map<K, V> x")
    'if a < b and c > d: Map<K, V> x'
    """
    text = _LINE_ENDS.sub("\n", text)
    for _ in range(_PASSES):
        before = text
        text = _JOINERS.sub("", _JOINER_RUN.sub(r"\1", _INVISIBLE.sub("", text))).replace("\xa0", " ")
        if "<" in text:
            text = _without_tags(text)
        if "](" in text:
            text = _LINK.sub(r"\1", text)
        if "&" in text:
            text = _decoded(text)
        if text == before:
            break
    return text.strip()


def clean_texts(texts: Texts) -> pa.LargeStringArray:
    r"""Clean many texts: `clean_text` of each, called only where RE2 finds that there may be something to clean.

    Args:
        texts: n of them; null is an empty text, half a surrogate pair becomes U+FFFD.

    >>> clean_texts(["好", " a\x00b ", None]).to_pylist()
    ['好', 'ab', '']
    """
    array = as_strings(texts)
    suspect = pc.match_substring_regex(array, _SUSPECT)
    cleaned = pa.array([clean_text(text) for text in array.filter(suspect).to_pylist()], pa.large_string())
    return pc.replace_with_mask(array, suspect, cleaned)


def _without_tags(text: str) -> str:
    for opening, closing in _HIDDEN.items():
        text = _without_hidden(text, opening, closing)
    lowered = text.lower()
    paired = {x for x in _LETTERS.split() if f"</{x}>" in lowered and (f"<{x}>" in lowered or f"<{x} " in lowered)}

    def replacement(match: re.Match[str]) -> str:
        letter = (match["letter"] or match["closed"] or "").lower()
        if not letter:
            return " " if match["name"].lower() in _BLOCKS.split() else ""
        return "" if letter in paired or "=" in match[0] else match[0]

    return TAG.sub(replacement, text)


def _without_hidden(text: str, opening: str, closing: str) -> str:
    """A text without the pieces between two tags; looks no further than the last closing tag, so each piece is read once."""
    ends = [match.end() for match in re.finditer(closing, text, re.IGNORECASE)]
    if not ends:
        return text
    head = re.sub(f"{opening}.*?{closing}", " ", text[: ends[-1]], flags=re.IGNORECASE | re.DOTALL)
    return head + text[ends[-1] :]


def _decoded(text: str) -> str:
    """Characters for entities; if that made tags, `&lt;` and `&gt;` stay."""
    decoded = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    made_tags = _tags(decoded) > _tags(text)
    return _ENTITY.sub(lambda match: _unescaped(match[0]), text) if made_tags else decoded


def _tags(text: str) -> int:
    return sum(1 for _ in TAG.finditer(text)) + sum(len(re.findall(opening, text, re.IGNORECASE)) for opening in _HIDDEN)


def _unescaped(entity: str) -> str:
    character = html.unescape(entity)
    return entity if character in "<>&" else character
