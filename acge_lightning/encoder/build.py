"""Builds fresh encoders with random weights, and prepares the tokenizer and backbone of fresh and pretrained ones."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from acge_lightning.encoder.dropout import use_fast_dropout
from acge_lightning.encoder.encoder import Dense, Encoder, Pooling, StaticBackbone, evaluation_mode
from acge_lightning.encoder.model_settings import check_steps, check_tokenizer, one_line, reading
from acge_lightning.encoder.packing import MODEL_TYPES, PACKED, fits
from acge_lightning.encoder.tokens import Tokenize
from acge_lightning.encoder.vocabulary import SPECIAL
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedModel

_ALIASES = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
_ENCODER_DECODERS = ("t5", "mt5", "umt5")
_VOCABULARY_FILES = ("tokenizer.json", "vocab*", "*.model")


def static(
    tokenizer: str | Path | Tokenizer | PreTrainedTokenizerBase,
    dim: int = 512,
    dropout: float = 0.0,
    max_length: int = 512,
    dense: int | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Encoder:
    """A fresh static encoder: it averages one vector a token, adds no special tokens, and trains in minutes on a CPU.

    Args:
        tokenizer: folder, `tokenizer.json`, or a tokenizer.
        dim: size of a token's vector. Vectors begin in random directions; with a unigram vocabulary, which knows how rare its
            tokens are, a token's length is in proportion to its surprisal (a random projection of TF-IDF), else about 1.
        dropout: share of tokens of a text that a training step leaves out.
        max_length: most tokens of a text.
        dense: size of a Dense head, or None.
        prompts: name -> text put before a text.

    Raises:
        InputError: no tokenizer there, or a size below 1.

    YAML::

        encoder: {_target_: acge_lightning.encoder.static, tokenizer: FOLDER, dim: 512}
    """
    if dim < 1:
        raise InputError(f"dim={dim} does not fit: a token's vector has at least one dim, 512 by default")
    tokenizer = read_tokenizer(tokenizer)
    backbone = StaticBackbone(len(tokenizer), dim, dropout)
    nn.init.normal_(backbone.embedding.weight, std=dim**-0.5)
    with torch.no_grad():
        backbone.embedding.weight *= _surprisal(tokenizer)[:, None]
    tokenize = Tokenize(tokenizer, max_length, special_tokens=False)
    return Encoder(backbone, tokenize, "mean", None if dense is None else Dense(dim, dense), prompts)


def _surprisal(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Float[tokens]: -log p of each token over their mean, from a unigram vocabulary; ones from another kind."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    if model.get("type") != "Unigram":
        return torch.ones(len(tokenizer))
    scores = dict(model["vocab"])
    values = torch.tensor([-scores.get(token, 0.0) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    scored = values > 0
    return torch.where(scored, values / values[scored].mean(), 1.0) if scored.any() else torch.ones(len(tokenizer))


def transformer(
    tokenizer: str | Path | Tokenizer | PreTrainedTokenizerBase,
    config: Mapping[str, Any],
    pooling: Pooling = "mean",
    max_length: int = 512,
    dense: int | None = None,
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Encoder:
    """A fresh transformer encoder, whose weights are drawn as its config says.

    Args:
        tokenizer: folder, `tokenizer.json`, or a tokenizer; it decides the size of the vocabulary.
        config: `model_type` (for example `bert`) and fields of that transformers config.
        pooling: `mean`, `cls` or `last`.
        max_length: most tokens of a text, special tokens included.
        dense: size of a Dense head (acge: 1792), or None.
        gradient_checkpointing: compute each layer's activations again in the backward pass.
        attention: `packed` (texts without padding), `sdpa`, `eager` or `flash_attention_2`; the first that the model knows by
            default.
        prompts: name -> text put before a text.

    Raises:
        InputError: an unknown `model_type` or field, sizes that do not fit together, more tokens than positions.

    YAML::

        encoder:
          _target_: acge_lightning.encoder.transformer
          tokenizer: FOLDER
          config: {model_type: bert, hidden_size: 256, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 1024}
    """
    tokenizer = read_tokenizer(tokenizer)
    settings = _config_settings(dict(config), tokenizer)
    try:
        model_config = AutoConfig.for_model(**settings)
        attention_of_library = None if attention == PACKED else attention
        backbone = auto_class(model_config).from_config(model_config, attn_implementation=attention_of_library)
    except (ValueError, ImportError, TypeError) as error:
        raise InputError(f"config or attention={attention!r} does not describe a model: {error}") from error
    tokenize = Tokenize(tokenizer, check_max_length(backbone, max_length))
    prepare_backbone(backbone, gradient_checkpointing, attention)
    encoder = Encoder(backbone, tokenize, pooling, prompts=prompts)
    encoder.dense = None if dense is None else Dense(encoder.hidden_size, dense)
    return encoder.train()


def _config_settings(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The config with the tokenizer's sizes; an unknown model or a misspelt field is an error."""
    model_type: Any = config.get("model_type")
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise InputError(f"config.model_type={model_type!r} is no architecture of transformers: try bert") from error
    unknown = sorted(set(config) - set(default.to_dict()) - set(default.attribute_map))
    if unknown:
        raise InputError(f"config.{unknown[0]} is no field of a {model_type} config: check its spelling")
    return config | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def read_tokenizer(source: str | Path | Tokenizer | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, from a `tokenizer.json`, or as it is; it always has a padding token."""
    if isinstance(source, (str, Path)):
        source = _tokenizer_at(Path(source).expanduser())
    if isinstance(source, Tokenizer):
        source = PreTrainedTokenizerFast(tokenizer_object=source)
        vocabulary = source.get_vocab()
        for name, token in [*SPECIAL.items(), *_ALIASES.items()]:
            if getattr(source, name) is None and token in vocabulary:
                setattr(source, name, token)
    if not isinstance(source, PreTrainedTokenizerBase):
        raise InputError(f"tokenizer is {type(source).__name__}: give a folder, a tokenizer.json, or a tokenizer")
    if source.pad_token_id is None:
        source.pad_token = source.eos_token or source.unk_token or source.convert_ids_to_tokens(0)
    return source


def _tokenizer_at(path: Path) -> Tokenizer | PreTrainedTokenizerBase:
    """The tokenizer of a folder or a `tokenizer.json`, after its files have been checked."""
    with reading(path):
        if path.is_file():
            check_steps(path)
            return Tokenizer.from_file(str(path))
        if path.is_dir():
            check_tokenizer(path)
        # without a vocabulary, transformers would make one up
        has_vocabulary = any(file.is_file() for pattern in _VOCABULARY_FILES for file in path.glob(pattern))
        if has_vocabulary and any((path / name).is_file() for name in ("tokenizer_config.json", "config.json")):
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
            if not tokenizer.is_fast:
                raise InputError(
                    f"{path}: {type(tokenizer).__name__} is a tokenizer in Python: one of the tokenizers library is needed"
                )
            return tokenizer
        if (path / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(path / "tokenizer.json"))
    raise InputError(f"{path}: no tokenizer there: give a folder that holds tokenizer.json, or that file")


def position_limit(backbone: nn.Module) -> int | None:
    """Most tokens that a backbone has positions for; None if it has no limit."""
    config = getattr(backbone, "config", None)
    if config is None:
        return None
    limits = [getattr(config, "max_position_embeddings", None)]
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    # RoBERTa's positions begin after the padding index
    if table is not None and getattr(table, "padding_idx", None) is not None:
        limits.append(len(table.weight) - table.padding_idx - 1)
    return min((limit for limit in limits if limit and limit > 0), default=None)


def check_max_length(backbone: nn.Module, max_length: int) -> int:
    """`max_length`, or an error if it is below 1 or the backbone has fewer positions."""
    limit = position_limit(backbone)
    if max_length < 1 or (limit is not None and max_length > limit):
        raise InputError(f"max_length={max_length} does not fit: this model has positions for 1 to {limit or '∞'} tokens")
    return max_length


def auto_class(config: PreTrainedConfig) -> type[AutoModel] | type[AutoModelForTextEncoding]:
    """The class that makes a config's model: of T5 and its like only the encoder."""
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if config.model_type in _ENCODER_DECODERS else AutoModel


def prepare_backbone(backbone: PreTrainedModel, gradient_checkpointing: bool, attention: str | None) -> None:
    """Prepare a backbone in place: no pooler, packed attention where it fits, fast dropout, gradient checkpointing if wanted.

    The pooler's weights would be reached by no loss.

    Raises:
        InputError: packed attention for a model that it does not fit, or a model that gives no vectors for tokens alone.
    """
    _drop_pooler(backbone)
    module: Any
    for module in backbone.modules():
        if hasattr(module, "chunk_size_feed_forward"):  # it saves memory, but takes some lengths only
            module.chunk_size_feed_forward = 0
    can_pack = fits(backbone.config)
    if attention == PACKED and not can_pack:
        raise InputError(
            f"attention=packed is for {', '.join(MODEL_TYPES)} whose tokens all see the whole text, "
            f"not {backbone.config.model_type} as it is configured: leave it null"
        )
    if attention == PACKED or (attention is None and can_pack):
        from acge_lightning.encoder.packed_attention import use_packed_attention

        use_packed_attention(backbone)
    use_fast_dropout(backbone)
    backbone.config.return_dict = True  # outputs are read by name
    if not can_pack:
        if getattr(backbone.config, "use_cache", False):
            backbone.config.use_cache = False  # of keys and values, for a decoder's next token
        _check_output(backbone)
    if gradient_checkpointing:
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def has_optional_pooler(backbone: PreTrainedModel) -> bool:
    """Tell whether the architecture has a pooler that it can be made without."""
    return "add_pooling_layer" in inspect.signature(type(backbone).__init__).parameters


def _drop_pooler(backbone: PreTrainedModel) -> None:
    """Take the pooler away, or freeze it where the architecture cannot be made without one."""
    if getattr(backbone, "pooler", None) is None:
        return
    if has_optional_pooler(backbone):
        backbone.register_module("pooler", None)
    else:
        backbone.pooler.requires_grad_(False)


def _check_output(backbone: PreTrainedModel) -> None:
    """Raise an error if the model does not give a vector of `hidden_size` for each token of a text."""
    model_type = backbone.config.model_type
    ids = torch.ones(1, 3, dtype=torch.long, device=backbone.device)
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]), evaluation_mode(backbone):
            states = backbone(input_ids=ids, attention_mask=ids).last_hidden_state
    except Exception as error:  # whatever the architecture misses
        reason = one_line(error)
        raise InputError(f"{model_type} models are not supported: one cannot be run on token ids alone ({reason})") from error
    expected = (1, 3, getattr(backbone.config, "hidden_size", None))
    if tuple(states.shape) != expected:
        raise InputError(
            f"{model_type} models are not supported: one gives {tuple(states.shape)} for {expected} (texts, tokens, dims)"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notices for a while."""
    verbosity, had_progress_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if had_progress_bar:
            hf_logging.enable_progress_bar()
