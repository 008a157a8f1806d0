"""The encoder: text in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from acge_lightning.encoder.cores import map_on_cores
from acge_lightning.encoder.packing import is_packed, packed_states, pool_packed
from acge_lightning.encoder.tokens import Tokenize, Tokens
from acge_lightning.errors import InputError, check_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "cls", "last"]
_TEXTS_AT_ONCE = 4096  # tokenised together in `encode`


def pool(hidden: Tensor, mask: Tensor, mode: Pooling) -> Tensor:
    """One vector a text from its token vectors; right for left and for right padding.

    Args:
        hidden: Float[n, length, d].
        mask: Int64[n, length], 1 on tokens, 0 on padding.
        mode: `mean` over tokens (accumulated in fp32), `cls` the first token, `last` the last token.

    Returns:
        Float[n, d], of the dtype of `hidden`; zeros for a text without tokens.

    >>> hidden = torch.tensor([[[9.0], [1.0], [3.0]]])
    >>> left_padded = torch.tensor([[0, 1, 1]])
    >>> [pool(hidden, left_padded, mode).item() for mode in ("mean", "cls", "last")]
    [2.0, 1.0, 3.0]
    """
    if mode == "mean":
        weights = mask.unsqueeze(-1).to(torch.promote_types(hidden.dtype, torch.float32))
        return ((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)).to(hidden.dtype)
    if mode == "cls":
        position = mask.argmax(1)
    elif mode == "last":
        position = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    else:
        raise InputError(f"pooling {mode!r} is unknown: choose mean, cls or last")
    return hidden[torch.arange(len(hidden), device=hidden.device), position] * mask.amax(1, keepdim=True).to(hidden)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every row of `a` with every row of `b`: Float[n, d], Float[m, d] -> Float[n, m] in [-1, 1]."""
    if a.shape[-1] != b.shape[-1]:
        raise InputError(f"similarity of vectors of {a.shape[-1]} and {b.shape[-1]} dims: encode both with the same dim")
    return normalize(a, dim=-1) @ normalize(b, dim=-1).T


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode (no dropout) for a while; each of its modules is then back in the mode it was in.

    Gradients are left alone: `torch.no_grad` is for those.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class StaticBackbone(nn.Module):
    """A bag of token embeddings: no attention, no order; trains in minutes on a CPU.

    Args:
        vocab_size: number of tokens.
        dim: size of a token's vector.
        dropout: share of tokens of a text that a training step leaves out, so that two passes give two views.
    """

    def __init__(self, vocab_size: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = dropout

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token vectors Float[n, length, dim] and the mask of the tokens that count."""
        if self.training and self.dropout:
            keep = torch.rand(input_ids.shape, device=input_ids.device) >= self.dropout
            keep[:, 0] = True
            attention_mask = attention_mask * keep
        return self.embedding(input_ids), attention_mask


class Dense(nn.Module):
    """The head after pooling: a linear map, then an activation.

    Args:
        in_features: size of a pooled vector.
        out_features: size of an embedding.
        bias: whether the map adds a bias.
        activation: name of its class in `torch.nn`; `Identity` for none.

    Raises:
        InputError: a size below 1; an activation that torch does not have, or that needs arguments.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "Identity"):
        super().__init__()
        if activation not in ("Identity", *nn.modules.activation.__all__):
            raise InputError(f"activation {activation!r} is not a class of torch.nn: try Identity, Tanh or GELU")
        if min(in_features, out_features) < 1:
            raise InputError(f"a Dense head from {in_features} to {out_features} dims is not possible: sizes begin at 1")
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        try:
            self.activation: nn.Module = getattr(nn, activation)()
        except TypeError as error:
            raise InputError(f"activation {activation!r} needs arguments ({error}): try Identity, Tanh or GELU") from error

    def forward(self, x: Tensor) -> Tensor:
        """Float[n, in_features] -> Float[n, out_features]."""
        return self.activation(self.linear(x))


class Encoder(nn.Module):
    """A text encoder: backbone, pooling, optional dense head.

    Args:
        backbone: a transformers encoder, or `StaticBackbone`.
        tokenize: how texts become tokens.
        pooling: `mean`, `cls` or `last`.
        dense: head from the backbone's size to the embedding's (acge: 1024 -> 1792), or None.
        prompts: name -> text put before every text encoded with `prompt=name`; none by default.
        matryoshka_dims: the prefix sizes that it was trained for; empty if only the full size.
        truncate_dim: the dim that `encode` gives when it is called without one; None for all.
    """

    backbone: StaticBackbone | PreTrainedModel

    def __init__(
        self,
        backbone: StaticBackbone | PreTrainedModel,
        tokenize: Tokenize,
        pooling: Pooling = "mean",
        dense: Dense | None = None,
        prompts: Mapping[str, str] | None = None,
        matryoshka_dims: Sequence[int] = (),
        truncate_dim: int | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.dense = dense
        self.tokenize = tokenize
        self.pooling: Pooling = pooling
        self.prompts = dict(prompts or {})
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.truncate_dim = None if truncate_dim is None else self.check_dim(truncate_dim)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore an encoder that another process pickled: its attention may not be registered in this one yet."""
        super().__setstate__(state)
        if is_packed(self.backbone):
            import acge_lightning.encoder.packed_attention  # noqa: F401 (registers it with transformers)

    @property
    def dim(self) -> int:
        """Size of the full embedding."""
        if self.dense is not None:
            return self.dense.linear.out_features
        return self.hidden_size

    @property
    def hidden_size(self) -> int:
        """Size of the backbone's token vectors."""
        if isinstance(self.backbone, StaticBackbone):
            return self.backbone.embedding.embedding_dim
        return int(self.backbone.config.hidden_size)

    @property
    def batch_tokens(self) -> int:
        """Tokens encoded together unless told otherwise: what a CPU's caches hold, or what keeps a GPU busy."""
        return 2048 if self.device.type == "cpu" and not isinstance(self.backbone, StaticBackbone) else 16384

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, tokens: Tokens, batch_tokens: int | None = None, recompute: bool = False) -> Tensor:
        """Embeddings of the texts, not normalised.

        Texts are sorted by length and encoded in chunks of at most `batch_tokens` tokens, packed without padding where the
        backbone knows how (`packed`), else each padded to its own width; the result is in the order of the input.

        Args:
            tokens: n texts.
            batch_tokens: tokens a chunk; `self.batch_tokens` by default.
            recompute: drop each chunk's activations and compute them again in the backward pass (with the same dropout).

        Returns:
            Float[n, D].
        """
        if len(tokens) == 0:
            return torch.zeros(0, self.dim, device=self.device)
        packed = is_packed(self.backbone) and bool(tokens.lengths.all())
        batch_tokens = self.batch_tokens if batch_tokens is None else batch_tokens
        on_cores = packed and tokens.ids.device.type == "cpu" and not self.training  # dropout's draws have an order
        chunks = list(tokens.chunks(batch_tokens, packed, torch.get_num_threads() if on_cores else 1))

        def encode_rows(rows: Tensor) -> Tensor:
            if packed:
                return run(self._encode_packed, tokens.select(rows))
            return run(self._encode_padded, tokens.padded(rows, self.tokenize.pad_id))

        def run(encode_chunk: Callable[[Any], Tensor], chunk: Any) -> Tensor:
            if recompute and torch.is_grad_enabled():
                return checkpoint(encode_chunk, chunk, use_reentrant=False)
            return encode_chunk(chunk)

        vectors = map_on_cores(encode_rows, chunks) if on_cores else map(encode_rows, chunks)
        return torch.cat(list(vectors))[torch.cat(chunks).argsort().to(tokens.ids.device)]

    def _encode_packed(self, tokens: Tokens) -> Tensor:
        hidden = packed_states(self.backbone, tokens.ids, tokens.lengths)
        return self._head(pool_packed(hidden, tokens.lengths, self.pooling))

    def _encode_padded(self, chunk: tuple[Tensor, Tensor]) -> Tensor:
        input_ids, mask = chunk
        if isinstance(self.backbone, StaticBackbone):
            hidden, mask = self.backbone(input_ids, mask)
        else:
            hidden = self.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self._head(pool(hidden, mask, self.pooling))

    def _head(self, pooled: Tensor) -> Tensor:
        return pooled if self.dense is None else self.dense(pooled)

    @torch.no_grad()
    def encode(
        self,
        texts: str | Sequence[str],
        dim: int | None = None,
        *,
        prompt: str | None = None,
        batch_tokens: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Embeddings ready for use: cut to `dim`, then normalised to length 1.

        Args:
            texts: one text or a list.
            dim: how many leading dimensions to keep; `truncate_dim`, or else all, by default.
            prompt: name of one of `prompts`.
            batch_tokens: tokens encoded together; `self.batch_tokens` by default.
            progress: show a progress bar.

        Returns:
            Float32[n, dim] on the CPU, one row a text, also for a single string; (0, dim) for an empty list. A text without
            tokens has zeros.

        Raises:
            InputError: a `dim` outside 1 … D, an unknown prompt, an item that is not a string or has a lone surrogate.
        """
        texts = self._with_prompt([texts] if isinstance(texts, str) else list(texts), prompt)
        dim = self.check_dim(self.truncate_dim if dim is None else dim)
        result = torch.zeros(len(texts), dim)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        blocks: Iterable[list[int]] = [order[i : i + _TEXTS_AT_ONCE] for i in range(0, len(order), _TEXTS_AT_ONCE)]
        if progress:
            from acge_lightning.terminal import track

            blocks = track(blocks, "encode", "texts", len(texts), size=len)
        with evaluation_mode(self):
            for block in blocks:
                tokens, rows = self.tokenize([texts[i] for i in block]).distinct()
                vectors = self(tokens.to(self.device), batch_tokens)[:, :dim].float()
                result[torch.tensor(block)] = normalize(vectors, dim=-1).cpu()[rows]
        return result

    similarity = staticmethod(similarity)

    def check_dim(self, dim: int | None) -> int:
        """`dim`, or the full size for None; an error if the encoder has fewer."""
        if dim is None:
            return self.dim
        if not 1 <= dim <= self.dim:
            raise InputError(f"dim={dim} does not fit: this encoder's embeddings have 1 to {self.dim} dims")
        return dim

    def _with_prompt(self, texts: list[str], prompt: str | None) -> list[str]:
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{i}] is {type(text).__name__} ({text!r:.60}), not a string")
            check_unicode(text, f"texts[{i}]")
        if prompt is None:
            return texts
        if prompt not in self.prompts:
            raise InputError(f"prompt {prompt!r} is unknown: this encoder has {sorted(self.prompts) or 'no prompts'}")
        return [self.prompts[prompt] + text for text in texts]
