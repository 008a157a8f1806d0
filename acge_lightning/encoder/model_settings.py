"""Reads the files of a model folder and checks them: settings of the right kind, no model larger than its weights.

Names in these files never lead out of the folder. Links are followed, since the hub's cache consists of them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, overload

import torch
import transformers
from torch.nn.modules import module as registration
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedTokenizerFast

from acge_lightning.encoder.tokenizer_steps import tokenizer_steps
from acge_lightning.errors import InputError

_MOST_BYTES = 2**28  # of a JSON file
_KIND_NAMES = {
    int: "a whole number",
    str: "a text",
    bool: "true or false",
    dict: "a JSON object",
    list: "a list",
    float: "a number",
}
_REFUSED_KEYS = {  # entries of a config.json that would have other weights read, or the same ones otherwise
    "quantization_config": "its weights are quantised: load them once with transformers, dequantize, and save_pretrained",
    "transformers_weights": "name the file model.safetensors and delete the entry",
}
_DROPPED_KEYS: tuple[str, ...] = (
    "_name_or_path",
    "_commit_hash",
    "name_or_path",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
)
_DROPPED_KEYS += ("experts_implementation", "_experts_implementation", "fusion_config", "num_labels")
_COUNT_KEYS = re.compile("layer|dense_replace|num_labels")  # entries from which transformers makes lists of that length
_ALLOWED_COUNTS = {"num_labels": 2**20}  # such counts are taken whatever the weights are; of other keys, up to _ALLOWED_COUNT
_ALLOWED_COUNT = 1024
_MOST_TOKENS = 2**24  # of a vocabulary
_MOST_STEPS = 64  # of a tokenizer, one after the other
_MOST_GROWTH = 256  # times as long as a text may become on its way through a tokenizer
_PATH_KEYS = re.compile(r"(?!special_tokens_map)\w*_files?$|vocab$|merges$")  # of a tokenizer_config.json: such are opened


# ---- settings


def read_json(file: Path, default: Any) -> Any:
    """The value in a JSON file, or `default` if there is no such file.

    Raises:
        InputError: a file that is damaged, too large, cannot be read, or is not a regular one.
    """
    try:
        if not file.is_file():
            if file.exists() or file.is_symlink():
                raise InputError(f"{file} is no regular file, or a link to none: copy it again")
            return default
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file} has {file.stat().st_size} bytes, more than the {_MOST_BYTES} of any such file")
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({one_line(error)}): copy it again") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): see to its permissions, or copy it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys each come once; parsers disagree on one that comes twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r:.80} comes twice")
    return entries


@overload
def read_settings(file: Path, default: dict[str, Any]) -> dict[str, Any]: ...


@overload
def read_settings(file: Path, default: None = None) -> dict[str, Any] | None: ...


def read_settings(file: Path, default: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The JSON object in a file, or `default` if there is no such file; errors as of `read_json`, and for another value."""
    if not os.path.lexists(file):
        return default
    settings = read_json(file, default)
    if not isinstance(settings, dict):
        raise InputError(f"{file} is {_kind_name(settings)}, not a JSON object: copy it again")
    return settings


def setting(file: Path, settings: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of a file's entry, or `default` where it is missing or null; an error if it is of another kind."""
    value = settings.get(key)
    if value is None:
        return default
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{file}: {key}={value!r:.80} is not {_KIND_NAMES[kind]}: mend it, or copy the file again")
    return value


def _kind_name(value: Any) -> str:
    return next((name for kind, name in _KIND_NAMES.items() if type(value) is kind), "null")


# ---- the model


def read_config(folder: Path, weights: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """The transformers config in config.json; an error if it counts more layers than the weights can have."""
    file = folder / "config.json"
    settings = read_settings(file)
    if settings is None:
        raise InputError(f"{folder} cannot be loaded: there is no config.json: copy the folder again")
    check_counts(file, settings, len(weights))
    for key, remedy in _REFUSED_KEYS.items():
        if settings.get(key):
            raise InputError(f"{file}: {key} is not supported: {remedy}")
    name = setting(file, settings, "model_type", str)
    if name not in CONFIG_MAPPING:
        raise InputError(f"{folder} cannot be loaded: config.json: model_type={name!r:.80} is no architecture of transformers")
    with reading(folder):
        return CONFIG_MAPPING[name].from_dict({key: value for key, value in settings.items() if key not in _DROPPED_KEYS})


def check_counts(file: Path, config: Any, tensors: int = 0) -> None:
    """Raise an error if a config counts more than `tensors` layers, at any depth.

    Lists of that length are made before the model is.
    """
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in ((str(key), value) for key, value in entries):
        limit = max(tensors, _ALLOWED_COUNTS.get(key, _ALLOWED_COUNT))
        if isinstance(value, (dict, list)) and key not in ("id2label", "label2id"):
            check_counts(file, value, tensors)
        elif isinstance(value, (int, float)) and _COUNT_KEYS.search(key) and not value <= limit:
            raise InputError(f"{file}: {key}={value!r:.80} is more than its weights can have, {tensors} tensors: copy it again")


@contextmanager
def no_larger(folder: Path, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Stop the making of a model that is many times as large as its weights, before it takes time or memory."""
    most_tensors = 8 * len(weights) + 1024
    most_values = 8 * sum(value.numel() for value in weights.values()) + 2**26
    thread, tensors, values = threading.get_ident(), 0, 0

    def count(module: Any, name: str, value: torch.Tensor | None) -> None:
        nonlocal tensors, values
        if value is None or threading.get_ident() != thread:
            return
        tensors, values = tensors + 1, values + value.numel()
        if tensors > most_tensors or values > most_values:
            raise InputError(f"{folder}/config.json describes a model many times as large as its weights: copy it again")

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_within(name: str) -> bool:
    """Whether a relative path stays in its folder, by its text alone."""
    path = PureWindowsPath(name)  # which knows both kinds of slash, and drives
    return not path.anchor and ".." not in path.parts and "\0" not in name and len(name) < 256


# ---- the tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raise an error if a folder's tokenizer would read other folders, run Python code, or make a text far longer.

    All files that transformers and tokenizers read are checked before they read them.
    """
    file = folder / "tokenizer_config.json"
    settings, config = read_settings(file, {}), read_settings(folder / "config.json", {})
    check_counts(folder / "config.json", config)
    _check_entries(folder, file, settings)
    for name in (settings.get("tokenizer_class"), config.get("tokenizer_class")):
        tokenizer_class = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(tokenizer_class, type) and not issubclass(tokenizer_class, PreTrainedTokenizerFast):
            raise InputError(f"{file}: {name} is a tokenizer in Python: only those of `tokenizers` are read")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        read_settings(folder / name, {})
    check_steps(folder / "tokenizer.json")


def _check_entries(folder: Path, file: Path, settings: Mapping[str, Any]) -> None:
    """Raise an error for an entry of a tokenizer_config.json that would take long or leads out of the folder."""
    setting(file, settings, "model_max_length", float)
    for number in setting(file, settings, "added_tokens_decoder", dict, {}):
        if not number.isdecimal() or int(number[:9]) >= _MOST_TOKENS:
            raise InputError(f"{file}: added_tokens_decoder has {number!r:.80}, not the number of a token: copy it again")
    for key in ("init_inputs", "gguf_file"):
        if settings.get(key):
            raise InputError(f"{file}: {key} is not supported: delete the entry")
    for key, value in settings.items():
        for name in value if isinstance(value, list) else [value]:
            if _PATH_KEYS.match(key) and isinstance(name, str) and _leads_outside(folder, name):
                raise InputError(f"{file}: {key}={name!r:.80} leads out of the folder: delete the entry")


def _leads_outside(folder: Path, name: str) -> bool:
    """Whether there is a file of that name that is not the folder's; older folders name those of their makers' caches."""
    paths = [os.path.abspath(path) for path in (name, folder / name)]
    return any(os.path.exists(path) and not Path(path).is_relative_to(os.path.abspath(folder)) for path in paths)


def check_steps(file: Path) -> None:
    """Raise an error if a tokenizer.json has a great many steps, or steps that together make a text many times as long."""
    description = read_settings(file, {})
    steps = [step for key in ("normalizer", "pre_tokenizer") for step in tokenizer_steps(description.get(key))]
    if len(steps) > _MOST_STEPS:
        raise InputError(f"{file}: {len(steps)} normalizers and pre-tokenizers: more than {_MOST_STEPS} are not supported")
    growth = 1.0
    for step in steps:
        growth *= _growth(file, step)
    if growth > _MOST_GROWTH:
        raise InputError(
            f"{file}: its normalizers may make a text {growth:.0e} times as long: at most {_MOST_GROWTH} is supported"
        )


def _growth(file: Path, step: Mapping[str, Any]) -> float:
    """How many times as long a step may make a text."""
    kind = step.get("type")
    if kind == "ByteLevel":
        return 4.0
    if kind == "Precompiled":
        try:  # the size of a trie, the trie, and what it puts in place of characters
            charsmap = base64.b64decode(setting(file, step, "precompiled_charsmap", str, ""))
        except ValueError as error:
            raise InputError(f"{file}: its precompiled_charsmap is damaged: copy it again") from error
        return max(1.0, *map(len, charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")))
    if kind == "Replace":
        content, pattern = setting(file, step, "content", str, ""), setting(file, step, "pattern", dict, {})
        text = setting(file, pattern, "String", str, "")
        return max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
    return 1.0


# ---- errors


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise at a broken folder into one clear error."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder} cannot be loaded ({type(error).__name__}: {one_line(error)})") from error
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{folder} cannot be loaded (its tokenizer: {one_line(error)})") from error
