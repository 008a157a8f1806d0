"""Read the words of a command line: what is given without a key, lists without brackets."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from acge_lightning.commands.usage import USAGE, Usage
from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import literal, split
from acge_lightning.config.targets import closest
from acge_lightning.errors import InputError

_OVERRIDE = re.compile(r"(\+{0,2}|~)([A-Za-z_][\w-]*)([\w./@:$-]*)(=.*)?", re.ASCII | re.DOTALL)

_FLAGS = (  # that Hydra takes beside those of `read_flags`
    *("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--shell-completion"),
    *("--config-path", "--config-name", "--config-dir", "--cfg", "--package", "--info"),
    *("-h", "-r", "-m", "-sc"),
)


def with_keys(name: str, words: Sequence[str]) -> list[str]:
    """Give each word its key, so that all read `key=value`; flags and what has a key already stay as they are.

    Args:
        name: of the command.
        words: those after the command.

    Raises:
        InputError: a word too many, one for a key that is given too, or an unknown flag.
    """
    usage, keys = USAGE[name], top_keys(name)
    is_multirun = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    overrides: list[str] = []
    positionals: list[str] = []
    for word in words:
        _check_flag(word)
        if _is_positional(word, usage, keys, len(positionals)):
            positionals.append(word)
        else:
            overrides.append(word if is_multirun else _bracketed(word, usage))
    return [*_assigned(name, positionals, overrides), *(_added(word, keys) for word in overrides)]


def _check_flag(word: str) -> None:
    """Refuse a flag that Hydra does not have: settings are given as key=value."""
    name, _, value = word.partition("=")
    if word.startswith("-") and not any(flag.startswith(name) for flag in _FLAGS if len(name) > 1):
        raise InputError(f"there is no flag {name}: settings have no dashes, {name.lstrip('-')}={value or '…'}")


def top_keys(name: str) -> set[str]:
    """Read the keys and groups that the config of a command has at its top."""
    lines = (config_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"  - (?:optional )?(\w+):|(\w+):", line) for line in lines)
    return {match[1] or match[2] for match in matches if match}


def _is_positional(word: str, usage: Usage, keys: Collection[str], count: int) -> bool:
    """Tell whether a word is the value of the next positional, rather than a flag or an override."""
    match = _OVERRIDE.fullmatch(word)
    if word.startswith("-") or (match and match[1] == "~"):
        return False
    if match is None or match[4] is None:
        return True
    is_text = count < len(usage.positionals) and usage.positionals[count][1].endswith("!")
    if match[1] or match[2] in keys or not is_text:
        return False
    near = None if match[3] else closest(match[2], keys)
    if near:
        key = usage.positionals[count][1].rstrip("!")
        raise InputError(f"there is no key {match[2]}: did you mean {near}{match[4]}? For a text write {key}='{word}'")
    return True  # a text that happens to hold an equals sign


def _assigned(name: str, words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Make overrides of the words without a key."""
    left, assigned = list(words), []
    given = {word.lstrip("+").partition("=")[0]: word for word in overrides}
    for title, slot in USAGE[name].positionals:
        key = slot.rstrip("!…")
        if left and key in given:
            raise InputError(f"{title} is given twice, as {left[0]!r} and as {given[key]!r}: leave one of them out")
        if left and slot.endswith("…"):
            has_form = len(left) == 1 and left[0][:1] in ("[", "{")
            assigned.append(f"{key}={left[0] if has_form else '[' + ','.join(map(literal, left)) + ']'}")
            left = []
        elif left:
            word = left.pop(0)
            assigned.append(f"{key}={literal(word) if slot.endswith('!') else word}")
    if left:
        raise InputError(_too_many(name, left[0]))
    return assigned


def _too_many(name: str, word: str) -> str:
    if name == "train" and (config_dir() / "experiment" / f"{word}.yaml").is_file():
        return f"{word!r} has no key: did you mean +experiment={word}?"
    titles = " ".join(title for title, _ in USAGE[name].positionals)
    takes = f"{titles} and key=value" if titles else "key=value only"
    return f"{word!r} has no key: acge {name} takes {takes}; acge {name} --help shows them"


def _bracketed(word: str, usage: Usage) -> str:
    """Put brackets around `a,b` for a key that takes a list."""
    key, equals, value = word.partition("=")
    if equals and key.lstrip("+") in usage.lists and len(split(value) or ()) > 1:
        return f"{key}=[{value}]"
    return word


def _added(word: str, keys: Collection[str]) -> str:
    """Choose an experiment as Hydra wants it: with a plus, for it has no choice before."""
    return f"+{word}" if word.startswith("experiment=") and "experiment" not in keys else word
