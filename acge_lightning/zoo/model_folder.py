"""Reads the modules of a model folder: sentence-transformers' older and newer layouts, and plain transformers folders.

Weights are read as tensors alone, and no code of a model folder is ever run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import normalizers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from acge_lightning.encoder.build import auto_class, check_max_length, position_limit, quiet, read_tokenizer
from acge_lightning.encoder.encoder import Dense, Pooling, StaticBackbone
from acge_lightning.encoder.model_settings import (
    is_within,
    no_larger,
    read_config,
    read_json,
    read_settings,
    reading,
    setting,
)
from acge_lightning.encoder.packing import PACKED
from acge_lightning.encoder.positions import extend_positions
from acge_lightning.encoder.tokens import Tokenize
from acge_lightning.encoder.weight_files import read_weights
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Settings = Mapping[str, tuple[Any, ...] | None]

_LOG = logging.getLogger(__name__)
_POOLING_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_DEFAULT_LENGTH = 512
# Settings of a module that are supported -> their supported values; None for any value.
_TRANSFORMER_SETTINGS: Settings = {
    "max_seq_length": None,
    "do_lower_case": None,
    "unpad_inputs": None,  # the same vectors either way
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
}
_ARGUMENT_KINDS = ("model", "tokenizer", "config", "processor")  # `model_args`, or `model_kwargs`: arguments of transformers
_HARMLESS_ARGUMENTS = {"trust_remote_code", "dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "padding_side"}
_POOLING_KEYS = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
_DENSE_SETTINGS: Settings = {
    "in_features": None,
    "out_features": None,
    "bias": None,
    "activation_function": None,
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding",),
    "use_residual": (False,),
}
_NORMALIZE_SETTINGS: Settings = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module in order, without a closing Normalize (`encode` normalises)."""
    entries = read_json(folder / "modules.json", None)
    if entries is None:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json and no modules.json there: it is not the folder of a model")
        return [("Transformer", folder)]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{folder}/modules.json is not a list of modules: copy it again")
    modules = []
    for entry in entries:
        name = setting(folder / "modules.json", entry, "type", str, "")
        path = setting(folder / "modules.json", entry, "path", str, "")
        if not name.startswith("sentence_transformers.") or not is_within(path):
            raise InputError(
                f"{folder}/modules.json: module {name!r:.80} at {path!r:.80} is not one of sentence-transformers' own"
            )
        modules.append((name.rpartition(".")[2], folder / path))
    if modules and modules[-1][0] == "Normalize":
        _, path = modules.pop()
        if path != folder:
            _check_settings(path / "config.json", read_settings(path / "config.json", {}), _NORMALIZE_SETTINGS)
    kinds = tuple(kind for kind, _ in modules)
    starts = [("Transformer", "Pooling"), ("StaticEmbedding",)]
    if kinds not in [*starts, *((*start, "Dense") for start in starts)]:
        raise InputError(
            f"{folder}/modules.json: modules {' → '.join(kinds)[:80] or '(none)'} are not supported: "
            "they must be Transformer → Pooling or StaticEmbedding, then at most one Dense and a closing Normalize"
        )
    return modules


# ---- one module each


def read_transformer(
    folder: Path,
    max_length: int | None,
    attention: str | None,
    positions: int | Mapping[str, Any] | None = None,
    dropout: float | None = None,
) -> tuple[PreTrainedModel, Tokenize]:
    """Backbone (float32) and tokenizer of a Transformer module; an argument takes the place of the folder's setting.

    `positions` makes the table of positions longer (`encoder.extend_positions`), and is then the `max_length` by default.
    """
    settings = _transformer_settings(folder)
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: these are adapter weights (adapter_config.json): merge them into their model first")
    weights = read_weights(folder)
    with reading(folder), quiet():
        config = read_config(folder, weights)
        _check_positions(config)
        if dropout is not None:
            _set_dropout(config, dropout)
        options: dict[str, Any] = {} if attention in (None, PACKED) else {"attn_implementation": attention}
        options |= {"state_dict": weights, "dtype": torch.float32, "output_loading_info": True}
        with no_larger(folder, weights):
            model = _model_class(config).from_pretrained(None, config=config, **options)
            # annotated as the model alone, which it is without `output_loading_info`
            backbone, report = cast("tuple[PreTrainedModel, dict[str, Any]]", model)
        backbone.config.name_or_path = str(folder)
        embeddings: Any = backbone.get_input_embeddings()
        tokenizer = read_tokenizer(folder)
        _check_types(tokenizer, folder)
    if getattr(tokenizer, "chat_template", None) and "modality_config" not in settings:
        _LOG.warning(
            "%s has a chat template, which newer sentence-transformers put around texts: here they stay as they are", folder
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise InputError(f"{folder}: the weights lack {len(missing)} tensors, {missing[0]} first: the file is incomplete")
    _check_ids(tokenizer, len(embeddings.weight), folder)
    if settings.get("do_lower_case"):
        _lowercase(tokenizer)
    if positions is not None:
        extended = extend_positions(backbone, positions)
        max_length = extended if max_length is None else max_length
    limit = position_limit(backbone)
    length = settings.get("max_seq_length") if max_length is None else max_length
    if length is None:
        length = int(min(tokenizer.model_max_length, limit or _DEFAULT_LENGTH))
    return backbone, Tokenize(tokenizer, check_max_length(backbone, length))


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model class that `auto_class` would choose; unlike that, it takes weights from memory and looks for no files."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING, AutoModel

    classes: Any = (MODEL_MAPPING if auto_class(config) is AutoModel else MODEL_FOR_TEXT_ENCODING_MAPPING)[type(config)]
    if not isinstance(classes, (list, tuple)):
        return cast("type[PreTrainedModel]", classes)
    return next((kind for kind in classes if kind.__name__ in (config.architectures or ())), classes[0])


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings in the file beside the weights, if there is one; an error for one that would change the vectors."""
    file = next(iter(sorted(folder.glob("sentence_*_config.json"))), folder / "sentence_bert_config.json")
    settings = read_settings(file, {})
    setting(file, settings, "max_seq_length", int)
    setting(file, settings, "do_lower_case", bool)
    for key in (f"{kind}_{suffix}" for kind in _ARGUMENT_KINDS for suffix in ("args", "kwargs")):
        unsupported = sorted(set(setting(file, settings, key, dict, {})) - _HARMLESS_ARGUMENTS)
        settings.pop(key, None)
        if unsupported:
            raise InputError(f"{file}: {key}.{unsupported[0]} is not supported: make the model's own files say it")
    _check_settings(file, settings, _TRANSFORMER_SETTINGS)
    return settings


def _check_settings(file: Path, settings: Mapping[str, Any], supported: Settings) -> None:
    """Raise an error for a setting that would go unheeded: an unsupported one, or one of an unsupported value."""
    for name, value in settings.items():
        values = supported.get(name, ())
        if value and values is not None and value not in values:
            raise InputError(f"{file}: {name}={value!r:.80} is not supported: it would go unheeded")


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Set the dropout of hidden states and of attention."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout} is no share: give 0 to below 1, for example 0.1")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not hasattr(config, name):
            raise InputError(f"dropout={dropout} does not fit {config.model_type}, whose config has no {name}: leave it out")
        setattr(config, name, dropout)


def _check_positions(config: PreTrainedConfig) -> None:
    """Raise an error for relative positions of BERT and its like: transformers reads them from a config but ignores them."""
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind.startswith("relative_key"):
        raise InputError(f"config.json: position_embedding_type={kind!r} is not supported: transformers leaves it out")


def _check_types(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise an error if a tokenizer gives token types other than 0: the encoder passes none on."""
    if "token_type_ids" in tokenizer.model_input_names and any(tokenizer("a")["token_type_ids"]):
        raise InputError(f"{folder}: its tokenizer gives token types other than 0, which is not supported")


def _check_ids(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    """Raise an error if a token has no row in the table of embeddings, or nearly all rows have no token."""
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if tokens > rows or tokens < rows / 10:  # without a vocabulary, transformers makes up so few
        raise InputError(f"{folder}: {tokens} tokens, but its table of embeddings has {rows} rows: they do not fit")


def read_static(folder: Path, max_length: int | None) -> tuple[StaticBackbone, Tokenize]:
    """Backbone and tokenizer of a StaticEmbedding module (also model2vec's)."""
    weights = read_weights(folder)
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None or {"mapping", "weights"} & set(weights):
        raise InputError(f"{folder}/model.safetensors: StaticEmbedding with {sorted(weights)[:9]}: embedding.weight is needed")
    if table.dim() != 2 or not table.numel():
        raise InputError(f"{folder}/model.safetensors: embedding.weight is {_shape(table)}, not a table of tokens and dims")
    with reading(folder):
        backbone = StaticBackbone(*table.shape)
        backbone.embedding.weight = nn.Parameter(table)
        tokenizer = read_tokenizer(folder)
        _check_ids(tokenizer, len(table), folder)
        if max_length is None:
            max_length = (tokenizer.backend_tokenizer.truncation or {"max_length": 2**31})["max_length"]
    return backbone, Tokenize(tokenizer, max_length, special_tokens=False)


def _shape(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a single number"


def read_pooling(folder: Path) -> Pooling:
    """The mode of a Pooling module: the newer `pooling_mode`, or the older booleans, or mean if there is neither."""
    config = read_settings(folder / "config.json")
    if config is None:
        raise InputError(f"{folder}/config.json is missing: copy the Pooling module's folder again")
    file, modes = folder / "config.json", [key for key in config if key.startswith("pooling_mode_")]
    mode = config.get("pooling_mode")
    if mode is None:
        flags = [key for key in modes if setting(file, config, key, bool)]
        mode = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in flags] or "mean"
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in _POOLING_MODES:
        raise InputError(f"{file}: Pooling {str(mode)[:80]} is not supported: choose one of {sorted(_POOLING_MODES)}")
    if not setting(file, config, "include_prompt", bool, True):
        raise InputError(f"{file}: Pooling with include_prompt=false is not supported")
    _check_settings(file, config, dict.fromkeys([*_POOLING_KEYS, *modes]))
    return _POOLING_MODES[mode]


def read_dense(folder: Path) -> Dense:
    """The head of a Dense module."""
    file = folder / "config.json"
    config = read_settings(file)
    if config is None:
        raise InputError(f"{file} is missing: copy the Dense module's folder again")
    _check_settings(file, config, _DENSE_SETTINGS)
    activation = setting(file, config, "activation_function", str, "torch.nn.modules.activation.Tanh")
    if not activation.startswith("torch.nn."):
        raise InputError(f"{file}: Dense with {activation:.80} is not supported")
    sizes = setting(file, config, "out_features", int), setting(file, config, "in_features", int)
    weights, bias = read_weights(folder), setting(file, config, "bias", bool, True)
    expected = {"linear.weight": sizes, **({"linear.bias": sizes[:1]} if bias else {})}
    tensor_shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if tensor_shapes != expected or 0 in sizes:
        raise InputError(f"{folder} cannot be loaded: its tensors are {tensor_shapes}, but config.json makes them {expected}")
    dense = Dense(sizes[1], sizes[0], bias, activation.rpartition(".")[2])
    dense.load_state_dict(weights)
    return dense


def _lowercase(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer fold case before its own normalizer, in place."""
    backend = tokenizer.backend_tokenizer
    own_normalizers = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own_normalizers])
