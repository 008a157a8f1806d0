"""Arguments of the command line as a person means them, written in the grammar of Hydra."""

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


def arguments(given: Sequence[str]) -> list[str]:
    """What the shell hands over, each `key=value` with the quotes that Hydra wants around it.

    Values of keys that hold texts, names or paths are taken as they are typed; of other keys, those that Hydra cannot read.
    Hydra's own forms keep their meaning: `null`, `[a,b]`, `{name: a}`, `${…}` (but in a query), what is quoted as a whole, and
    with `-m` sweeps.

    Raises:
        InputError: a mapping with names that Hydra cannot read.
    """
    several = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(given))
    return [_argument(argument, several) for argument in given]


def _argument(argument: str, several: bool) -> str:
    r"""One of them.

    >>> [_argument(a, False) for a in ("query=[求助] 怎么办", "model=my model", "k=3", "runs=[运行 1,b]", "query=null")]
    ['query="[求助] 怎么办"', 'model=my model', 'k=3', 'runs=["运行 1",b]', 'query=null']
    """
    key, equals, value = argument.partition("=")
    found = _KEY.fullmatch(key)
    return f"{key}={_value(value, found[2], several)}" if equals and found else argument


def restated(override: str) -> str:
    """An override of a job, as Hydra has it, in a form that `arguments` leaves alone."""
    parsed = _parser().parse_override(override)
    value = parsed.value()
    return f"{parsed.get_key_element()}={quote(value)}" if isinstance(value, str) else override


def quote(text: str) -> str:
    r"""In double quotes: backslashes before a quote, or at the end, are doubled.

    >>> print(quote('say "a\\b\\"'))
    "say \"a\b\\\""
    """
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def _value(value: str, key: str, several: bool) -> str:
    text, parsed = _TEXT.fullmatch(key) is not None, _parsed(value)
    if parsed is not None and (not text or _is_plain(value, parsed, key)):
        return value
    if several and (parsed is None or parsed.is_sweep_override()):
        parts = _split(value) or [value]
        if len(parts) > 1:
            return ",".join(_value(part.strip(), key, False) for part in parts)
        if parsed is not None:  # choice(…), range(…)
            return value
    return _container(value, key) or quote(value if _interpolates(value, key) else _escaped(value))


def _is_plain(value: str, parsed: Override, key: str) -> bool:
    """Whether Hydra reads a text as it stands: its letters, null, or something wholly in quotes."""
    if parsed.is_sweep_override():
        return False
    if value[:1] in ("'", '"') or parsed.value() is None:
        return True
    return parsed.value() == value and ("${" not in value or _interpolates(value, key))


def _interpolates(value: str, key: str) -> bool:
    """Whether it has an interpolation, as OmegaConf reads it; a query is only ever what it says."""
    if key == "query" or not re.search(r"(?<!\\)\$\{", value):
        return False
    try:
        return OmegaConf.is_interpolation(OmegaConf.create({"value": value}), "value")
    except GrammarParseError:
        return False


def _escaped(text: str) -> str:
    """With no interpolation in it."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def _container(value: str, key: str) -> str | None:
    """A list or a mapping with each of its items quoted as needed; None for what is neither."""
    parts = _split(value[1:-1]) if value[:1] + value[-1:] in ("[]", "{}") else None
    if parts is None or not all(part.strip() for part in parts):
        return value if parts == [""] else None
    if value[0] == "[":
        return f"[{','.join(_value(part.strip(), key, False) for part in parts)}]"
    items = [part.partition(":") for part in parts]
    if key == "query" or not all(colon for _, colon, _ in items):
        return None
    for name, _, _ in items:
        if not _NAME.fullmatch(name.strip()):
            raise InputError(f"{key}={value}: the command line takes names of ASCII letters only: change {name.strip()!r}")
    return "{" + ",".join(f"{name.strip()}: {_value(item.strip(), key, False)}" for name, _, item in items) + "}"


def _split(text: str) -> list[str] | None:
    """The parts between commas that are in no quotes and no brackets; None if a bracket or a quote is left open."""
    parts, open_, quoted, start = [], [], "", 0
    for place, letter in enumerate(text):
        before = text[start:place].rstrip()
        if quoted:
            quoted = "" if letter == quoted and not before.endswith("\\") else quoted
        elif letter in "'\"" and (not before or before[-1] in "[{(:,"):
            quoted = letter
        elif letter in _PAIRS:
            open_.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not open_ or open_.pop() != letter:
                return None
        elif letter == "," and not open_:
            parts.append(text[start:place])
            start = place + 1
    return None if open_ or quoted else [*parts, text[start:]]


def _parsed(value: str) -> Override | None:
    """As Hydra reads it, if it can."""
    try:
        return _parser().parse_override(f"key={value}")
    except (HydraException, ValueError, RecursionError):  # also of a number with thousands of digits
        return None


@lru_cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
