"""Rewrite the arguments of the command line in Hydra's grammar, as a person means them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from acge_lightning.errors import InputError

_KEY = re.compile(r"(\+{0,2}|~)([\w./@:$-]+)", re.ASCII)
_NAME = re.compile(r"[\w./-]+", re.ASCII)  # of a mapping: Hydra reads no other ones
_TEXT = re.compile(  # keys whose values are texts, names and paths
    r"(query|model|source|field|index|tune|out|output|resume|runs|pictures|pca|name)|paths\..+|(.+\.)?(path|tokenizer|\w*dir|dirpath)"
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def arguments(words: Sequence[str]) -> list[str]:
    """Put the quotes that Hydra needs around each `key=value` of the shell.

    Values of keys that hold texts, names or paths are literal; of other keys, those that Hydra cannot parse. Hydra's own forms
    keep their meaning: `null`, `[a,b]`, `{name: a}`, `${…}` (but in a query), a value quoted as a whole, and with `-m` sweeps.

    Raises:
        InputError: a mapping with names that Hydra cannot read.
    """
    is_multirun = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    return [_argument(argument, is_multirun) for argument in words]


def _argument(argument: str, is_multirun: bool) -> str:
    r"""Rewrite one argument.

    >>> [_argument(a, False) for a in ("query=[求助] 怎么办", "model=my model", "k=3", "runs=[运行 1,b]", "query=null")]
    ['query="[求助] 怎么办"', 'model=my model', 'k=3', 'runs=["运行 1",b]', 'query=null']
    """
    key, equals, value = argument.partition("=")
    match = _KEY.fullmatch(key)
    return f"{key}={_value(value, match[2], is_multirun)}" if equals and match else argument


def restated(override: str) -> str:
    """Rewrite an override of a job, as Hydra has it, in a form that `arguments` does not change."""
    parsed = _parser().parse_override(override)
    value = parsed.value()
    return f"{parsed.get_key_element()}={quote(value)}" if isinstance(value, str) else override


def quote(text: str) -> str:
    r"""Put a text in double quotes; backslashes before a quote, or at the end, are doubled.

    >>> print(quote('say "a\\b\\"'))
    "say \"a\b\\\""
    """
    return '"' + re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text) + '"'


def _value(value: str, key: str, is_multirun: bool) -> str:
    text, parsed = _TEXT.fullmatch(key) is not None, _parsed(value)
    if parsed is not None and (not text or _is_plain(value, parsed, key)):
        return value
    if is_multirun and (parsed is None or parsed.is_sweep_override()):
        items = _split(value) or [value]
        if len(items) > 1:
            return ",".join(_value(item.strip(), key, False) for item in items)
        if parsed is not None:  # choice(…), range(…)
            return value
    return _container(value, key) or quote(value if _interpolates(value, key) else _escaped(value))


def _is_plain(value: str, parsed: Override, key: str) -> bool:
    """Tell whether Hydra reads a text unchanged: as its letters, as null, or as a quoted whole."""
    if parsed.is_sweep_override():
        return False
    if value[:1] in ("'", '"') or parsed.value() is None:
        return True
    return parsed.value() == value and ("${" not in value or _interpolates(value, key))


def _interpolates(value: str, key: str) -> bool:
    """Tell whether OmegaConf reads an interpolation in a value; a query never has one."""
    if key == "query" or not re.search(r"(?<!\\)\$\{", value):
        return False
    try:
        return OmegaConf.is_interpolation(OmegaConf.create({"value": value}), "value")
    except GrammarParseError:
        return False


def _escaped(text: str) -> str:
    """Escape all interpolations of a text."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def _container(value: str, key: str) -> str | None:
    """Quote each item of a list or a mapping as needed; None for other values."""
    items = _split(value[1:-1]) if value[:1] + value[-1:] in ("[]", "{}") else None
    if items is None or not all(pair.strip() for pair in items):
        return value if items == [""] else None
    if value[0] == "[":
        return f"[{','.join(_value(pair.strip(), key, False) for pair in items)}]"
    pairs = [pair.partition(":") for pair in items]
    if key == "query" or not all(colon for _, colon, _ in pairs):
        return None
    for name, _, _ in pairs:
        if not _NAME.fullmatch(name.strip()):
            raise InputError(f"{key}={value}: the command line takes names of ASCII letters only: change {name.strip()!r}")
    return "{" + ",".join(f"{name.strip()}: {_value(item.strip(), key, False)}" for name, _, item in pairs) + "}"


def _split(text: str) -> list[str] | None:
    """Split a text at commas outside of quotes and brackets; None if a bracket or a quote stays open."""
    items, closing_brackets, open_quote, start = [], [], "", 0
    for position, letter in enumerate(text):
        before = text[start:position].rstrip()
        if open_quote:
            open_quote = "" if letter == open_quote and not before.endswith("\\") else open_quote
        elif letter in "'\"" and (not before or before[-1] in "[{(:,"):
            open_quote = letter
        elif letter in _PAIRS:
            closing_brackets.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not closing_brackets or closing_brackets.pop() != letter:
                return None
        elif letter == "," and not closing_brackets:
            items.append(text[start:position])
            start = position + 1
    return None if closing_brackets or open_quote else [*items, text[start:]]


def _parsed(value: str) -> Override | None:
    """Parse a value by Hydra's grammar; None if it does not fit."""
    try:
        return _parser().parse_override(f"key={value}")
    except (HydraException, ValueError, RecursionError):  # also of a number with thousands of digits
        return None


@lru_cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
