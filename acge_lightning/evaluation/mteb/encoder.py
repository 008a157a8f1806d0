"""Wrap an encoder as a model of mteb 2."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from acge_lightning.data.evaluation_set import distinct_texts
from acge_lightning.encoder.encoder import Encoder, StaticBackbone
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra
from acge_lightning.metrics.ranking import similarities

_ROWS = 256  # of queries whose scores of 64 bits are in memory at a time


def mteb_library() -> Any:
    """Import the library mteb; an InputError says how to install it."""
    with naming_extra("MTEB's tasks need"):
        import mteb
    return mteb


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch after the block, which may draw or seed: mteb does."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class MTEBEncoder:
    """An encoder as mteb calls it (its `EncoderProtocol`); made by `as_mteb`.

    Args:
        encoder: gives the vectors.
        mteb_model_meta: mteb's description of it.
        dim: how many leading dims; None for what the encoder gives by default.
        prompts: mteb's task, type or role -> name of one of the encoder's prompts.
    """

    def __init__(self, encoder: Encoder, mteb_model_meta: Any, dim: int | None, prompts: Mapping[str, str]):
        self.encoder, self.mteb_model_meta, self.dim, self.prompts = encoder, mteb_model_meta, dim, prompts

    def prompt(self, task: Any, role: Any = None) -> str | None:
        """Return the prompt for a task's texts: the first that exists of task and role, task, type and role, type, role."""
        keys = [task.name, task.type]
        if role is not None:
            keys = [f"{task.name}-{role.value}", task.name, f"{task.type}-{role.value}", task.type, role.value]
        return next((self.prompts[key] for key in keys if key in self.prompts), None)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, prompt_type: Any = None, **options: Any
    ) -> np.ndarray:
        """Encode the texts of batches to vectors of length 1, Float32[texts, dim]; equal texts have equal vectors.

        Raises:
            InputError: vectors that are not finite.
        """
        texts, numbers = distinct_texts([text for batch in inputs for text in batch["text"]])
        vectors = self.encoder.encode(texts, self.dim, prompt=self.prompt(task_metadata, prompt_type)).numpy()
        if not np.isfinite(vectors).all():
            raise InputError(f"{task_metadata.name}: the encoder gave vectors that are not finite (NaN or infinity)")
        return vectors[numbers]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the cosines Float32[n, m] of all rows, on a GPU if there is one; those of equal rows are equal."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows1, rows2 = (torch.as_tensor(values, device=device) for values in (embeddings1, embeddings2))
        distinct, distinct_index = rows2.unique(dim=0, return_inverse=True)
        distinct = distinct.double()
        return torch.cat([similarities(chunk, distinct)[:, distinct_index].cpu() for chunk in rows1.split(_ROWS)])

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the cosine of each row with the same row of the other."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


@isolated_randomness()
def as_mteb(encoder: Encoder, name: str, dim: int | None = None, prompts: Mapping[str, str] | None = None) -> MTEBEncoder:
    """Wrap an encoder as a model of mteb 2.

    Its revision is the hash of weights, tokenizer and settings, so that results of other weights are never taken for its own;
    a `dim` and prompts are mteb's `experiment_kwargs`.

    Args:
        encoder: any of this package.
        name: `owner/name`, or a name, which becomes `local/name`.
        dim: how many leading dims are kept, then normalised; all by default.
        prompts: name of a task (`T2Retrieval`), type (`Retrieval`), role (`query`, `document`), or task or type with role
            (`Retrieval-query`) -> name of one of the encoder's prompts.

    Raises:
        InputError: mteb is not installed, a name that cannot be a folder, an unknown prompt, or a `dim` that does not fit.
    """
    mteb_library()
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"name={name!r} cannot name a model: give owner/name, of letters, digits and . _ -")
    prompts = dict(prompts or {})
    for key, prompt in prompts.items():
        if prompt not in encoder.prompts:
            raise InputError(f"prompts.{key}={prompt!r} is unknown: this encoder has {sorted(encoder.prompts) or 'no prompts'}")
    size = encoder.check_dim(encoder.truncate_dim if dim is None else dim)
    settings: dict[str, Any] = {} if size == encoder.dim else {"embed_dim": size}
    if prompts:
        settings["prompts"] = {key: encoder.prompts[prompt] for key, prompt in prompts.items()}
    backbone: Any = encoder.backbone  # torch types a module's submodules as tensors or modules
    lookup = backbone.embedding if isinstance(backbone, StaticBackbone) else backbone.get_input_embeddings()
    weights = list(encoder.parameters())
    meta = ModelMeta.create_empty(
        overwrites={
            "name": name if "/" in name else f"local/{name}",
            "revision": encoder_hash(encoder),
            "n_parameters": sum(w.numel() for w in weights),
            "n_embedding_parameters": lookup.weight.numel(),
            "memory_usage_mb": sum(w.numel() * w.element_size() for w in weights) / 2**20,
            "max_tokens": encoder.tokenize.max_length,
            "embed_dim": size,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": bool(prompts),
            "experiment_kwargs": settings or None,
        }
    )
    return MTEBEncoder(encoder, meta, size, prompts)
