"""Second scorers of (query, text) pairs: a cross-encoder from a local folder, or another encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from acge_lightning.encoder.build import position_limit, quiet, read_tokenizer
from acge_lightning.encoder.model_settings import no_larger, read_config, read_settings, reading
from acge_lightning.encoder.weight_files import read_weights
from acge_lightning.errors import InputError

Embed = Callable[[list[str], str | None], np.ndarray]
_DEFAULT_LENGTH = 512
_PAIRS = 512  # that are tokenised together
_TOKENS, _TOKENS_ON_GPU = 4096, 65536  # that are scored together


def is_cross_encoder(folder: Path) -> bool:
    """Whether a model folder is that of a cross-encoder, by the classes that its config names."""
    architectures = read_settings(folder / "config.json", {}).get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


class CrossEncoder:
    """Scores pairs by a transformer that reads both texts together: the sigmoid of its one output.

    Weights are read as tensors alone, and no code of the folder is run.

    `hash` is 24 hexadecimal digits of its weights.

    Args:
        folder: of a sequence-classification model of transformers with one output.
        device: where to put it; the CPU by default.
        max_length: most tokens of a pair, of which the longer text is cut; what the folder says by default.

    Raises:
        InputError: the folder is damaged or incomplete, or its model has several outputs.
    """

    def __init__(self, folder: str | Path, device: str | torch.device | None = None, max_length: int | None = None):
        folder = Path(folder).expanduser()
        weights = read_weights(folder)
        self.hash = _hash(weights)
        config = read_config(folder, weights)
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise InputError(f"{folder}: {config.model_type} has no sequence classification: it is no cross-encoder")
        if config.num_labels != 1:
            raise InputError(f"{folder}: it has {config.num_labels} outputs: a cross-encoder that scores pairs has one")
        with reading(folder), quiet(), no_larger(folder, weights):
            loaded = _model_class(config).from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
            )
            model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
            self._tokenizer = read_tokenizer(folder)
        missing = sorted(report["missing_keys"])
        if missing:
            raise InputError(f"{folder}: the weights lack {len(missing)} tensors, {missing[0]} first: the file is incomplete")
        limit = position_limit(model.base_model) or _DEFAULT_LENGTH
        self._length = int(min(max_length or self._tokenizer.model_max_length, limit))
        self._model = model.to(device or "cpu").eval()  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Score pairs of a query and a text, those of about the same length together: Float32[m], each from 0 to 1."""
        result = np.empty(len(pairs), dtype=np.float32)
        for rows in blocks_of_pairs(pairs):
            queries, texts = zip(*(pairs[i] for i in rows.tolist()), strict=True)
            tokens = self._tokenizer(list(queries), list(texts), truncation="longest_first", max_length=self._length)
            lengths = np.array([len(ids) for ids in tokens["input_ids"]])
            for chunk in self._chunks(lengths):
                batch = {name: self._padded(name, [tokens[name][i] for i in chunk.tolist()]) for name in tokens}
                result[rows[chunk]] = self._model(**batch).logits[:, 0].float().sigmoid().cpu().numpy()
        return result

    def _chunks(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Pairs that are scored together, the longest first: as many as have, padded, the tokens of a batch."""
        budget = _TOKENS if self._model.device.type == "cpu" else _TOKENS_ON_GPU
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            count = max(1, budget // max(1, int(lengths[order[0]])))
            yield order[:count]
            order = order[count:]

    def _padded(self, name: str, rows: list[list[int]]) -> torch.Tensor:
        """Int64[n, longest] of one input of the model."""
        padding = int(self._tokenizer.pad_token_id) if name == "input_ids" else 0
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=padding).to(self._model.device)


def blocks_of_pairs(pairs: Sequence[tuple[str, str]]) -> Iterator[np.ndarray]:
    """Yield Int64[m] rows of pairs that a `CrossEncoder` works on at once, the longest ones first; they depend on no other."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]), reverse=True)
    for start in range(0, len(order), _PAIRS):
        yield np.array(order[start : start + _PAIRS])


class EncoderScorer:
    """Scores pairs by the cosine of the vectors that an encoder gives their texts.

    Args:
        embed: texts and the name of a prompt -> Float32[n, D], of length 1.
        query_prompt: name of one of its prompts, for queries.
        text_prompt: the same for texts.
    """

    def __init__(self, embed: Embed, query_prompt: str | None = None, text_prompt: str | None = None):
        self._embed, self._prompts = embed, (query_prompt, text_prompt)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Score pairs of a query and a text: Float32[m], from -1 to 1, with six decimals."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        queries, texts = (self._vectors(side, i) for i, side in enumerate(zip(*pairs, strict=True)))
        return np.concatenate([_cosines(queries, texts, i) for i in range(0, len(pairs), _PAIRS)])

    def _vectors(self, texts: Sequence[str], side: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the distinct texts of a side, and the row of each text."""
        number: dict[str, int] = {}
        rows = np.array([number.setdefault(text, len(number)) for text in texts])
        return self._embed(list(number), self._prompts[side]), rows


def _cosines(queries: tuple[np.ndarray, np.ndarray], texts: tuple[np.ndarray, np.ndarray], start: int) -> np.ndarray:
    """Those of a block of pairs."""
    (a, a_rows), (b, b_rows), part = queries, texts, slice(start, start + _PAIRS)
    return np.round(np.einsum("nd,nd->n", a[a_rows[part]], b[b_rows[part]]), 6)


def _hash(weights: Mapping[str, torch.Tensor]) -> str:
    """24 hexadecimal digits of some tensors and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


def _model_class(config: Any) -> type[PreTrainedModel]:
    return cast("type[PreTrainedModel]", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])
