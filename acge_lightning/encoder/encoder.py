"""Text in, embeddings out: the importable model. Imports neither Lightning nor Hydra."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from acge_lightning.encoder.packing import is_packed, packed_states, pool_packed
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.encoder.truncation import Words, cut
from acge_lightning.errors import InputError, check_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pooling = Literal["mean", "cls", "last"]
_BLOCK = 4096  # texts tokenised together in `encode`
_STARTING = threading.Lock()  # held while the number of threads that torch gives to new ones is not ours


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


def _on_cores(job: Callable[[Tensor], Tensor], items: Sequence[Tensor]) -> list[Tensor]:
    """As `map`; where no gradient is wanted, each item on one core, several at a time: cores that share an item wait more."""
    with _STARTING:
        cores = torch.get_num_threads()
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or cores == 1 or len(items) < cores:
        return [job(item) for item in items]
    started = threading.Barrier(cores + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch gives a thread its number when first asked, and would undo the next line later
        torch.set_num_threads(1)  # of this thread, and of all that meet torch from now on
        started.wait()

    with ThreadPoolExecutor(cores, initializer=begin) as pool:
        with _STARTING:
            try:
                results = pool.map(torch.no_grad()(job), items)  # at least as many as cores, so that all threads start
                started.wait()
            except BaseException:
                started.abort()
                raise
            finally:
                torch.set_num_threads(cores)  # those of the pool keep to one
        return list(results)


class Tokenize:
    """Texts to `Tokens`: a fast tokenizer, its truncation and its special tokens in one picklable callable.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: most tokens of a text, special tokens included; longer texts are cut and keep their closing token. Of a
            text of over 2**16 characters that has less than a token in 256 (`cut`), no more is looked at.
        special_tokens: whether the tokenizer's own special tokens ([CLS], [SEP] …) are added.

    Raises:
        InputError: a `max_length` that leaves no room for a token of the text beside the special ones; no token to pad with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, special_tokens: bool = True):
        added = tokenizer.num_special_tokens_to_add() if special_tokens else 0
        if max_length <= added:
            raise InputError(
                f"max_length={max_length} does not fit: {added} special tokens leave no room for a text, "
                f"give at least {added + 1}"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise InputError("the tokenizer has no token to pad texts with: set its pad_token to one of its tokens")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.special_tokens = special_tokens
        self._words: Words | None = None

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of the texts; an empty list gives no rows.

        Raises:
            InputError: a text with a lone surrogate.
        """
        if not texts:
            return Tokens.from_lists([])
        try:
            return Tokens.from_lists(self._encoded([self._cut(text) for text in texts])["input_ids"])
        except TypeError:  # which says neither what is wrong nor where
            for i, text in enumerate(texts):
                check_unicode(text, f"texts[{i}]")
            raise

    def _encoded(self, texts: list[str], **options: Any) -> Any:
        return self.tokenizer(
            texts,
            add_special_tokens=self.special_tokens,
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            **options,
        )

    def _cut(self, text: str) -> str:
        """As much of a text as its tokens are of."""

        def words() -> Words:
            if self._words is None:
                self._words = Words.of(self.tokenizer)
            return self._words

        def tokens(prefix: str) -> tuple[int, int]:
            encoding = self._encoded([prefix], return_offsets_mapping=True)
            return len(encoding["input_ids"][0]), max((end for _, end in encoding["offset_mapping"][0]), default=0)

        return cut(text, self.max_length, words, tokens)

    @property
    def pad_id(self) -> int:
        """The id that fills rows up."""
        return int(self.tokenizer.pad_token_id)


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
    """The head after pooling: a linear map, then an activation named by its class in `torch.nn` (default: none)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "Identity"):
        super().__init__()
        known = vars(nn.modules.activation)
        choice = nn.Identity if activation == "Identity" else known.get(activation)
        if activation not in ("Identity", *nn.modules.activation.__all__):
            raise InputError(f"activation {activation!r} is not a class of torch.nn: try Identity, Tanh or GELU")
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = choice()

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

    def __init__(
        self,
        backbone: nn.Module,
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

        def encoded(rows: Tensor) -> Tensor:
            if packed:
                return step(self._encode_packed, tokens.select(rows))
            return step(self._encode_padded, tokens.padded(rows, self.tokenize.pad_id))

        def step(encode_chunk: Callable[[Any], Tensor], chunk: Any) -> Tensor:
            if recompute and torch.is_grad_enabled():
                return checkpoint(encode_chunk, chunk, use_reentrant=False)
            return encode_chunk(chunk)

        vectors = _on_cores(encoded, chunks) if on_cores else map(encoded, chunks)
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
        blocks = [order[i : i + _BLOCK] for i in range(0, len(order), _BLOCK)]
        if progress:
            from acge_lightning.terminal import track

            blocks = track(blocks, "encode", "texts", len(texts), size=len)
        with evaluation_mode(self):
            for block in blocks:
                tokens, which = self.tokenize([texts[i] for i in block]).distinct()
                vectors = self(tokens.to(self.device), batch_tokens)[:, :dim].float()
                result[torch.tensor(block)] = normalize(vectors, dim=-1).cpu()[which]
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
