"""Writes an encoder as a folder that every consumer of sentence-transformers models reads.

The layout is the older one of sentence-transformers, which its newer versions and the serving programs read alike. There is
no Normalize module in it: vectors are cut to a smaller dim first and normalised afterwards.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

import acge_lightning
from acge_lightning.encoder.build import has_optional_pooler, quiet
from acge_lightning.encoder.encoder import Dense, Encoder, Pooling, StaticBackbone
from acge_lightning.encoder.tokens import Tokenize
from acge_lightning.errors import InputError
from acge_lightning.export.model_card import model_card
from acge_lightning.files.folder import whole_folder
from acge_lightning.zoo.pretrained import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MODULE_PREFIX = "sentence_transformers.models."
_POOLING_KEYS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
_OTHER_POOLING_KEYS = ["pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"]
_CHECK_TEXTS = ["今天天气很好,适合出门散步。", "A probe, with UPPER case and digits 1234567890.", "", "长文本 long text " * 600]


def export(
    encoder: Encoder,
    folder: str | Path,
    provenance: Mapping[str, Any] | None = None,
    training_rows: np.ndarray | None = None,
    notes: str = "",
) -> Path:
    """Write an encoder as a folder; an existing one is replaced once the new one is complete and checked.

    The folder is loaded back and must give the same vectors.

    Args:
        encoder: on any device, of any dtype; it is left as it is.
        folder: where to write; its parents are made.
        provenance: plain data on how it was made, kept as `training.json`; `metrics` (name -> number) go into the card.
        training_rows: Int64[n] hashes of the rows that it was trained on, kept as `training_rows.npy`: with them, an
            evaluation finds out which of its rows the encoder has seen.
        notes: Markdown at the end of its card.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else than a model, or the weights are not finite.
        RuntimeError: the folder, loaded back, gives other vectors (nothing is left behind then).
    """
    with whole_folder(folder) as new:
        modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
        if isinstance(encoder.backbone, StaticBackbone):
            modules = [("StaticEmbedding", "")]
            save_file({"embedding.weight": _to_cpu(encoder.backbone.embedding.weight)}, new / "model.safetensors")
        else:
            _write_transformer(encoder, encoder.backbone, new)
        _write_tokenizer(encoder.tokenize, new)
        if encoder.dense is not None:
            modules.append(("Dense", f"{len(modules)}_Dense"))
            _write_dense(encoder.dense, new / modules[-1][1])
        _write_settings(encoder, new, modules)
        _write_provenance(new, provenance)
        if training_rows is not None:
            np.save(new / "training_rows.npy", np.unique(training_rows), allow_pickle=False)
        card = model_card(encoder, Path(folder).name, dict(provenance or {}))
        (new / "README.md").write_text(card + (f"\n{notes}" if notes else ""), encoding="utf-8")
        _check(encoder, new)
    return Path(folder)


def save_backbone(encoder: Encoder, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write the backbone and its tokenizer as a plain transformers folder, without pooling and head.

    Args:
        encoder: of which the backbone is taken; it is left as it is.
        folder: where to write; one that was written here is replaced.
        provenance: plain data on how it was made, kept as `training.json`.

    Returns:
        The folder.

    Raises:
        InputError: a static encoder, or a folder that holds something else than a model.
    """
    if isinstance(encoder.backbone, StaticBackbone):
        raise InputError(f"{folder}: a static encoder is no transformers model: use `export`")
    with whole_folder(folder) as new:
        _write_backbone(encoder.backbone, new)
        _write_tokenizer(encoder.tokenize, new)
        _write_provenance(new, provenance)
    return Path(folder)


# ---- its files


def _write_backbone(backbone: PreTrainedModel, folder: Path) -> None:
    with quiet():
        backbone.save_pretrained(folder, state_dict=backbone.state_dict() | _pooler(backbone), max_shard_size="1TB")


def _pooler(backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of the pooler that the architecture has by default and ours does not, as zeros: nothing reads them.

    Without them transformers, and so sentence-transformers, would make random ones, and report them as missing.
    """
    if getattr(backbone, "pooler", None) is not None or not has_optional_pooler(backbone):
        return {}
    with torch.device("meta"):
        pooler = cast(torch.nn.Module, type(backbone)(backbone.config).pooler)
    weight = next(backbone.parameters())
    return {f"pooler.{name}": torch.zeros(p.shape, dtype=weight.dtype) for name, p in pooler.named_parameters()}


def _write_transformer(encoder: Encoder, backbone: PreTrainedModel, folder: Path) -> None:
    _write_backbone(backbone, folder)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.tokenize.max_length, "do_lower_case": False})
    flags = dict.fromkeys([*_POOLING_KEYS.values(), *_OTHER_POOLING_KEYS], False) | {_POOLING_KEYS[encoder.pooling]: True}
    pooling = {"word_embedding_dimension": encoder.hidden_size, **flags, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", pooling)


def _write_tokenizer(tokenize: Tokenize, folder: Path) -> None:
    """Tokenizer files that cut texts at the encoder's own length, under a class name that older transformers know."""
    tokenizer = copy.deepcopy(tokenize.tokenizer)
    tokenizer.model_max_length = tokenize.max_length
    tokenizer.chat_template = None  # which sentence-transformers would put around texts
    tokenizer.backend_tokenizer.enable_truncation(tokenize.max_length)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("name_or_path", "is_local", "local_files_only", "backend"):
        config.pop(key, None)
    _write_json(file, config)


def _write_dense(dense: Dense, folder: Path) -> None:
    folder.mkdir()
    activation = type(dense.activation)
    config = {
        "in_features": dense.linear.in_features,
        "out_features": dense.linear.out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__qualname__}",
    }
    _write_json(folder / "config.json", config)
    save_file({name: _to_cpu(value) for name, value in dense.state_dict().items()}, folder / "model.safetensors")


def _write_settings(encoder: Encoder, folder: Path, modules: list[tuple[str, str]]) -> None:
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULE_PREFIX + kind} for i, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", entries)
    settings = {"prompts": encoder.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", settings)
    own_settings = {"acge_lightning": acge_lightning.__version__, "matryoshka_dims": list(encoder.matryoshka_dims)}
    _write_json(folder / "acge.json", own_settings)


def _write_provenance(folder: Path, provenance: Mapping[str, Any] | None) -> None:
    _write_json(folder / "training.json", dict(provenance or {}))


def _to_cpu(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().cpu().contiguous()


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


# ---- the check


def _check(encoder: Encoder, folder: Path) -> None:
    """Raise an error if the folder, loaded back, gives other vectors than the encoder for a few texts."""
    expected = encoder.encode(_CHECK_TEXTS, encoder.dim)
    if not expected.isfinite().all():
        raise InputError(f"{folder.name}: the weights give NaN or infinite vectors: training diverged, lower the learning rate")
    weight = next(encoder.parameters())
    attention = getattr(getattr(encoder.backbone, "config", None), "_attn_implementation", None)
    loaded = load(folder, device=weight.device, dtype=weight.dtype, attention=attention)
    vectors = loaded.encode(_CHECK_TEXTS)
    difference = (expected - vectors).abs().max().item() if expected.shape == vectors.shape else float("inf")
    if not difference < (1e-5 if weight.dtype in (torch.float32, torch.float64) else 1e-2):  # NaN is not less either
        raise RuntimeError(f"the export, loaded back, gives other vectors (largest difference {difference:.1e})")
