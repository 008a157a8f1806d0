"""Rewrite the arguments of the command line in Hydra's grammar, as a person means them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import GrammarParseError

_KEY = re.compile(r"(\+{0,2}|~)([\w./@:$-]+)", re.ASCII)
_NAME = re.compile(r"[\w./-]+", re.ASCII)  # of a mapping: Hydra reads no other ones
_ESCAPED = re.compile(r"\\U([0-9a-f]{8})")
_TEXT = re.compile(  # keys whose values are texts, names and paths
    r"(query|model|source|field|index|tune|out|output|resume|runs|pictures|pca|name)|paths\..+|(.+\.)?(path|tokenizer|\w*dir|dirpath)"
)
_YAML_NUMBER = re.compile(r"([+-]?)\.(inf|nan)", re.IGNORECASE)  # Hydra's grammar has them without the dot
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def arguments(words: Sequence[str]) -> list[str]:
    """Put the quotes that Hydra needs around each `key=value` of the shell.

    Values of keys that hold texts, names or paths are literal; of other keys, those that Hydra cannot parse. Hydra's own forms
    keep their meaning: `null`, `[a,b]`, `{name: a}`, `${…}` (but in a query), a value quoted as a whole, and with `-m` sweeps.

    Letters that Hydra's grammar does not take in names of a mapping are escaped; `with_names` puts them back.
    """
    is_multirun = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    return [_argument(argument, is_multirun) for argument in words]


def _argument(argument: str, is_multirun: bool) -> str:
    r"""Rewrite one argument.

    >>> [_argument(a, False) for a in ("query=[求助] 怎么办", "model=my model", "k=3", "runs=[运行 1,b]", "query=null")]
    ['query="[求助] 怎么办"', 'model=my model', 'k=3', 'runs=["运行 1",b]', 'query=null']
    >>> _argument("mixture.temperature=.inf", False)
    'mixture.temperature=inf'
    """
    key, equals, value = argument.partition("=")
    match = _KEY.fullmatch(key)
    return f"{key}={_value(value, match[2], is_multirun)}" if equals and match else argument


def with_trainer_keys(words: Sequence[str]) -> list[str]:
    """Let every setting of Lightning's Trainer be given with `+` or without, whether our files name it or not.

    >>> with_trainer_keys(["+trainer.max_steps=3", "trainer.profiler=simple", "+experiment=quickstart", "~trainer.plugins"])
    ['++trainer.max_steps=3', '++trainer.profiler=simple', '+experiment=quickstart', '~trainer.plugins']
    """
    return [re.sub(r"^\+{0,2}(?=trainer\.\w+=)", "++", word) for word in words]


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


def literal(text: str) -> str:
    """Quote a text so that it arrives letter by letter, whatever it holds."""
    return quote(_escaped(text))


def _value(value: str, key: str, is_multirun: bool) -> str:
    text, parsed = _TEXT.fullmatch(key) is not None, _parsed(value)
    if not text and (number := _YAML_NUMBER.fullmatch(value)):
        return number[1] + number[2].lower()
    if parsed is not None and (not text or _is_plain(value, parsed, key)):
        return value
    if is_multirun and (parsed is None or parsed.is_sweep_override()):
        items = split(value) or [value]
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
    items = split(value[1:-1]) if value[:1] + value[-1:] in ("[]", "{}") else None
    if items is None or not all(pair.strip() for pair in items):
        return value if items == [""] else None
    if value[0] == "[":
        return f"[{','.join(_value(pair.strip(), key, False) for pair in items)}]"
    pairs = [pair.partition(":") for pair in items]
    if key == "query" or not all(colon for _, colon, _ in pairs):
        return None
    return "{" + ",".join(f"{_name(name.strip())}: {_value(item.strip(), key, False)}" for name, _, item in pairs) + "}"


def _name(name: str) -> str:
    r"""A name of a mapping, without quotes around it, its letters escaped where Hydra does not take them.

    >>> print(_name("'是 a'"))
    \U0000662f\U00000020a
    """
    if name[:1] in ("'", '"') and name[:1] == name[-1:] and len(name) > 1:
        name = name[1:-1]
    return re.sub(r"[^\w./-]", lambda match: f"\\U{ord(match[0]):08x}", name, flags=re.ASCII)


def with_names(cfg: DictConfig) -> DictConfig:
    """Put letters back into the names of mappings that `arguments` has escaped."""
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        _restore_names(cfg)
    return cfg


def _restore_names(node: Any) -> None:
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node[key]
            if isinstance(child, (DictConfig, ListConfig)):
                _restore_names(child)
    if any(_ESCAPED.search(str(key)) for key in keys):
        items: Any = OmegaConf.to_container(node, resolve=False)
        node.clear()
        node.update({_ESCAPED.sub(_letter, key) if isinstance(key, str) else key: value for key, value in items.items()})


def _letter(match: re.Match[str]) -> str:
    """The letter of an escape; what Hydra takes anyway was not escaped by us, and stays."""
    letter = chr(int(match[1], 16)) if int(match[1], 16) < 0x110000 else match[0]
    return match[0] if _NAME.fullmatch(letter) else letter


def split(text: str) -> list[str] | None:
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
