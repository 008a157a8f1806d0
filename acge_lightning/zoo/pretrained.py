"""Loads encoders by path or name: folders, exports, named releases and the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from acge_lightning.encoder.build import prepare_backbone
from acge_lightning.encoder.encoder import Dense, Encoder, Pooling, StaticBackbone
from acge_lightning.encoder.model_settings import read_json, read_settings, reading, setting
from acge_lightning.errors import InputError
from acge_lightning.files.folder import read_steady
from acge_lightning.zoo.location import find_release, resolve
from acge_lightning.zoo.model_folder import read_dense, read_modules, read_pooling, read_static, read_transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
_CPU_ATTENTION = (None, "packed", "sdpa", "eager")  # attentions that work there


def load(
    path_or_name: str | Path,
    dim: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    **overrides: Any,
) -> Encoder:
    """An encoder ready for `encode`.

    Args:
        path_or_name: folder (sentence-transformers, transformers, an export, or a run that has one), a name of `models()`, or
            a hub id.
        dim: leading dims that `encode` gives by default; None for all.
        device: where to put it; the CPU by default.
        dtype: of the weights, for example `bfloat16`; float32 by default, whatever the file holds.
        revision: commit, tag or branch on the hub.
        cache_dir: where downloads are kept; the hub's own cache by default.
        **overrides: `pooling`, `dense`, `max_length`, `attention`, `prompts`, `positions` as in `from_pretrained`.

    Raises:
        InputError: nothing there, a module that we do not have, unreadable weights, or a `dim` that does not fit.
    """
    encoder = from_pretrained(path_or_name, revision=revision, cache_dir=cache_dir, dtype=dtype, **overrides)
    encoder.truncate_dim = None if dim is None else encoder.check_dim(dim)
    return encoder.to(device or "cpu").eval()


def from_pretrained(
    path: str | Path,
    pooling: Pooling | None = None,
    dense: int | None = None,
    max_length: int | None = None,
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    prompts: Mapping[str, str] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    positions: int | Mapping[str, Any] | None = None,
    dropout: float | None = None,
) -> Encoder:
    """An encoder to fine-tune (in training mode); None keeps what the folder says.

    Args:
        path: folder, name of `models()`, or hub id.
        pooling: `mean`, `cls` or `last`; `mean` for a folder that does not say.
        dense: size of the head's output; a fresh head is added to a model without one.
        max_length: most tokens of a text.
        gradient_checkpointing: compute each layer's activations again in the backward pass.
        attention: `packed` (texts without padding), `sdpa`, `eager` or `flash_attention_2`; the first that the model knows by
            default.
        prompts: name -> text put before a text.
        revision: commit, tag or branch on the hub.
        cache_dir: where downloads are kept.
        dtype: of the weights; float32 by default.
        positions: more positions of tokens than the model was trained with, 1024 or `{length: 1024, method: tile}`: its table
            is made longer (`encoder.extend_table`), and needs training.
        dropout: of hidden states and attention in training; its config's by default.

    Raises:
        InputError: as of `load`; positions for a model that has no table of them.

    YAML::

        encoder: {_target_: acge_lightning.zoo.from_pretrained, path: FOLDER, max_length: 256}
    """
    folder, release = resolve(path, revision, cache_dir), find_release(path)
    if release is not None:  # what its folder does not say
        max_length = release.max_tokens if max_length is None and positions is None else max_length
        if pooling is None and not (folder / "modules.json").is_file():
            pooling = release.pooling
    options = (pooling, dense, max_length, gradient_checkpointing, attention, prompts, positions, dropout)
    encoder = read_steady(folder, lambda: _read(folder, *options)).to(_dtype(dtype))
    if release is not None and dense is None:
        encoder.prompts = encoder.prompts or (dict(release.prompts) if prompts is None else {})
        encoder.matryoshka_dims = encoder.matryoshka_dims or release.matryoshka_dims
    if _dtype(dtype) != torch.float32:
        _check_finite(encoder, folder)
    return encoder.train()


def _read(
    folder: Path,
    pooling: Pooling | None,
    dense: int | None,
    max_length: int | None,
    gradient_checkpointing: bool,
    attention: str | None,
    prompts: Mapping[str, str] | None,
    positions: int | Mapping[str, Any] | None,
    dropout: float | None,
) -> Encoder:
    modules = dict(read_modules(folder))
    _warn_of_other_similarity(folder)
    backbone: StaticBackbone | PreTrainedModel
    if "StaticEmbedding" in modules:
        if pooling not in (None, "mean"):
            raise InputError(f"{folder}: pooling={pooling!r} does not fit a static encoder, whose tokens are averaged")
        for name, value in (("positions", positions), ("dropout", dropout)):
            if value is not None:
                raise InputError(f"{folder}: {name}={value} does not fit a static encoder, which has none: leave it out")
        backbone, tokenize = read_static(modules["StaticEmbedding"], max_length)
    else:
        backbone, tokenize = read_transformer(modules["Transformer"], max_length, attention, positions, dropout)
        prepare_backbone(backbone, gradient_checkpointing, attention)
    if pooling is None:
        pooling = read_pooling(modules["Pooling"]) if "Pooling" in modules else "mean"
    encoder = Encoder(backbone, tokenize, pooling, prompts=_prompts(folder) if prompts is None else prompts)
    if "Dense" in modules:
        encoder.dense = read_dense(modules["Dense"])
        _check_head(encoder.dense, encoder.hidden_size, dense, folder)
    elif dense is not None:
        encoder.dense = Dense(encoder.hidden_size, dense)
    if dense is None or "Dense" in modules:
        encoder.matryoshka_dims = _matryoshka_dims(folder, encoder)
    _check_finite(encoder, folder)
    if attention in _CPU_ATTENTION:
        _check_vectors(encoder, folder)
    return encoder


def _check_finite(encoder: Encoder, folder: Path) -> None:
    """Raise an error that names a tensor with NaN or infinity in it; its sum, which is quick, says whether to look closer."""
    for name, value in encoder.state_dict().items():
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{folder}: NaN or infinity in {name} ({dtype}): take other weights, training that diverges leaves these"
            )


def _check_vectors(encoder: Encoder, folder: Path) -> None:
    """Raise an error if the encoder does not give finite vectors for a text and for an empty one."""
    with reading(folder), torch.no_grad():
        vectors = encoder.eval()(encoder.tokenize(["a text, 一段文字", ""]))
    if not vectors.isfinite().all():
        raise InputError(f"{folder}: it gives vectors that are not finite, though its weights are: check its config.json")


def _matryoshka_dims(folder: Path, encoder: Encoder) -> tuple[int, ...]:
    """The prefix sizes that the folder's encoder was trained for."""
    file = folder / "acge.json"
    dims = setting(file, read_settings(file, {}), "matryoshka_dims", list, [])
    if not all(type(dim) is int and 1 <= dim <= encoder.dim for dim in dims):
        raise InputError(f"{file}: matryoshka_dims={dims!r:.80} are not whole numbers from 1 to {encoder.dim}: mend them")
    return tuple(dims)


def _check_head(head: Dense, hidden_size: int, dense: int | None, folder: Path) -> None:
    """Raise an error if a head does not take the backbone's vectors, or does not give those asked for."""
    n, m = head.linear.in_features, head.linear.out_features
    if n != hidden_size or dense not in (None, m):
        raise InputError(f"{folder} has a Dense head {n} → {m}: it does not fit dense={dense} on vectors of {hidden_size}")


def _prompts(folder: Path) -> dict[str, str]:
    """The folder's prompts, with a warning where one was meant for all texts."""
    file = folder / "config_sentence_transformers.json"
    settings = read_settings(file, {})
    default = setting(file, settings, "default_prompt_name", str)
    if default:
        _LOG.warning("%s was made to put its prompt %r before every text: encode(texts, prompt=%r)", folder, default, default)
    prompts = setting(file, settings, "prompts", dict, {})
    for name in prompts:
        setting(file, prompts, name, str)
    return {name: text for name, text in prompts.items() if text is not None}


def _warn_of_other_similarity(folder: Path) -> None:
    """Warn where the folder's encoder was made for another similarity than that of vectors of length 1."""
    file = folder / "config_sentence_transformers.json"
    name = setting(file, read_settings(file, {}), "similarity_fn_name", str) or "cosine"
    last_module = str((read_json(folder / "modules.json", None) or [{}])[-1].get("type"))
    if name != "cosine" and not (name == "dot" and last_module.endswith("Normalize")):
        _LOG.warning(
            "%s was made to compare vectors by %r, and encode makes them of length 1: they compare by cosine", folder, name
        )


def _dtype(name: str | torch.dtype | None) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name or torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={name!r} is no floating-point type of torch: try float32 or bfloat16")
    return dtype
