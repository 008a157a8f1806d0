"""The gradient of each sample by itself, squared and added up, from one batched forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from acge_lightning.encoder.encoder import Encoder, StaticBackbone, evaluation_mode
from acge_lightning.encoder.packing import fits, is_packed, packed_states, pool_packed
from acge_lightning.encoder.tokens import Tokens

Losses = Callable[[tuple[Tensor, ...], Tensor], Tensor]
_CACHED = 1 << 18  # entries of a weight that are squared together, so that they stay in the cores' caches
_KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding)


class SampleGradients:
    """Sums over samples i of (d loss_i / d theta)^2, entry by entry, for all parameters of an encoder.

    Not the square of a batch's gradient, in which the samples' gradients have already cancelled. All texts of some samples run
    through the encoder together, packed. What a layer took in meets the gradient of what it gave out: the rows of both that are
    one sample's give its gradient of the weight as one product, which is squared, added to the sum and forgotten. So gradients
    are held of one sample and one layer only, and the passes cost what they cost in training.

    Static encoders and the architectures of `packing.MODEL_TYPES` go this way; any other goes sample by sample,
    several times slower. Used as a context, within which the encoder is in evaluation mode (no dropout) and its parameters
    need no gradient:

    Args:
        encoder: as it was, after the context.
        absolute: sum sizes in place of squares.

    >>> from acge_lightning.encoder.vocabulary import train_vocabulary
    >>> from acge_lightning.encoder.build import static
    >>> encoder = static(train_vocabulary(["a b c", "b c"], "bpe", 9), dim=2)
    >>> with SampleGradients(encoder) as gradients:
    ...     gradients.add([encoder.tokenize(["a", "b", "b"])], lambda vectors, rows: vectors[0].sum(1))
    >>> gradients.totals["backbone.embedding.weight"].sum(1).tolist()[2:4]  # a once, b twice, two dims each
    [2.0, 4.0]
    """

    def __init__(self, encoder: Encoder, absolute: bool = False):
        self.encoder, self.absolute = encoder, absolute
        self.totals = {name: torch.zeros_like(p, requires_grad=False) for name, p in encoder.named_parameters()}
        self.together = _is_readable(encoder)
        self._rows: dict[int, _Rows] = {}

    def __enter__(self) -> SampleGradients:
        """Ready the encoder."""
        backbone: Any = self.encoder.backbone  # of one of many classes of transformers
        with ExitStack() as restore:
            restore.enter_context(evaluation_mode(self.encoder))
            for p in self.encoder.parameters():
                restore.callback(p.requires_grad_, p.requires_grad)
                p.requires_grad_(not self.together)
            if self.together and not isinstance(backbone, StaticBackbone) and not is_packed(backbone):
                restore.callback(backbone.set_attn_implementation, backbone.config._attn_implementation)
                from acge_lightning.encoder.packed_attention import use_packed_attention

                use_packed_attention(backbone)
            for name, module in self.encoder.named_modules() if self.together else ():
                if isinstance(module, _KINDS):
                    restore.callback(module.register_forward_hook(self._watch(name)).remove)
            self._restore = restore.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave it as it was."""
        self._restore.close()

    def add(self, columns: Sequence[Tokens], losses: Losses) -> None:
        """Add the squared gradients of n samples.

        Args:
            columns: of n texts each; sample i has text i of every column.
            losses: the columns' vectors, Float[m, D] each, of the samples that Int64[m] numbers -> their losses Float[m], each
                of which depends on its own sample's vectors only.
        """
        with torch.enable_grad():
            (self._add_together if self.together else self._add_one_by_one)(columns, losses)

    def _add_one_by_one(self, columns: Sequence[Tokens], losses: Losses) -> None:
        parameters = dict(self.encoder.named_parameters())
        for i in range(len(columns[0])):
            row = torch.tensor([i])
            loss = losses(tuple(self.encoder(column.select(row)) for column in columns), row).sum()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        self._sum(self.totals[name], gradient)

    def _add_together(self, columns: Sequence[Tokens], losses: Losses) -> None:
        n = len(columns[0])
        tokens = Tokens.cat(columns)
        order = tokens.lengths.argsort(descending=True, stable=True)
        tokens = tokens.select(order)
        back = order.argsort()
        sample = back[:n].argsort().argsort()[order % n]  # of each text; numbered as their first texts come
        device = tokens.ids.device
        self._rows = {len(rows): _Rows.of(rows, n, device) for rows in (sample, sample.repeat_interleave(tokens.lengths))}
        vectors = self._embed(tokens)[back.to(device)]
        value = losses(vectors.split(n), torch.arange(n)).sum()
        if value.requires_grad:
            value.backward()

    def _embed(self, tokens: Tokens) -> Tensor:
        backbone, dense = self.encoder.backbone, self.encoder.dense
        if isinstance(backbone, StaticBackbone):
            hidden = backbone.embedding(tokens.ids)
        else:
            hidden = packed_states(backbone, tokens.ids, tokens.lengths)
        pooled = pool_packed(hidden, tokens.lengths, self.encoder.pooling)
        return pooled if dense is None else dense(pooled)

    # ---- at a layer

    def _watch(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                if isinstance(module, nn.Embedding):
                    output.requires_grad_()  # where the backward pass ends
                inputs = args[0].detach()
                output.register_hook(lambda gradient: self._add_layer(name, module, inputs, gradient))

        return hook

    def _add_layer(self, name: str, module: Any, inputs: Tensor, gradient: Tensor) -> None:
        gradient = gradient.flatten(0, -2)
        rows = self._rows[len(gradient)]
        gradient = rows.sorted(gradient)
        weight: Any = self.totals.get(f"{name}.weight")  # None of a LayerNorm without one
        if isinstance(module, nn.Embedding):
            self._add_rows(weight, module.padding_idx, rows, rows.sorted(inputs.flatten()), gradient)
            return
        inputs = rows.sorted(inputs.flatten(0, -2))
        if isinstance(module, nn.Linear):
            self._add_products(weight, rows, inputs, gradient)
        elif weight is not None:
            normed = layer_norm(inputs, module.normalized_shape, None, None, module.eps)
            weight.add_(self._size(rows.sums(normed.mul_(gradient))).sum(0))
        if getattr(module, "bias", None) is not None:
            self.totals[f"{name}.bias"].add_(self._size(rows.sums(gradient)).sum(0))

    def _add_rows(self, total: Tensor, padding: int | None, rows: _Rows, ids: Tensor, gradient: Tensor) -> None:
        """Of an embedding: the gradients of a sample's rows with the same id add up before they are squared."""
        if padding is not None:
            gradient = gradient.masked_fill((ids == padding)[:, None], 0)
        keys, key_index = torch.unique(rows.sample * len(total) + ids, return_inverse=True)
        sums = gradient.new_zeros(len(keys), gradient.shape[1]).index_add_(0, key_index, gradient)
        total.index_add_(0, keys % len(total), self._size(sums))

    def _add_products(self, total: Tensor, rows: _Rows, inputs: Tensor, gradient: Tensor) -> None:
        """Of a matrix: the outer products of a sample's rows add up before they are squared."""
        if len(rows.bounds) == len(gradient) + 1 and max(b - a for a, b in pairwise(rows.bounds)) == 1:
            total.addmm_(self._size(gradient).T, self._size(inputs))
            return
        step = max(1, _CACHED // total.shape[1])
        for top in range(0, len(total), step):
            block, by_output = total[top : top + step], gradient[:, top : top + step].T
            product = torch.empty_like(block)
            for start, end in pairwise(rows.bounds):
                torch.mm(by_output[:, start:end], inputs[start:end], out=product)
                self._sum(block, product)

    def _size(self, gradient: Tensor) -> Tensor:
        return gradient.abs() if self.absolute else gradient.square()

    def _sum(self, total: Tensor, gradient: Tensor) -> None:
        """Without a copy in between."""
        if self.absolute:
            total.add_(gradient.abs_())
        else:
            total.addcmul_(gradient, gradient)


@dataclass(frozen=True)
class _Rows:
    """Which rows of a layer's input are which sample's."""

    order: Tensor | None  # Int64[rows] that brings those of a sample together; None where they are
    sample: Tensor  # Int64[rows], of each row then, ascending
    bounds: list[int]  # sample i has the rows bounds[i] … bounds[i + 1] - 1

    @classmethod
    def of(cls, sample: Tensor, n: int, device: torch.device) -> _Rows:
        bounds = [0, *sample.bincount(minlength=n).cumsum(0).tolist()]
        order = None if bool((sample.diff() >= 0).all()) else sample.argsort(stable=True).to(device)
        return cls(order, sample.sort().values.to(device), bounds)

    def sorted(self, values: Tensor) -> Tensor:
        return values if self.order is None else values[self.order]

    def sums(self, values: Tensor) -> Tensor:
        """Float[rows, d] -> Float[n, d]."""
        return values.new_zeros(len(self.bounds) - 1, values.shape[1]).index_add_(0, self.sample, values)


def _is_readable(encoder: Encoder) -> bool:
    """Whether every parameter is that of a layer which we can read, and each used once."""
    backbone: Any = encoder.backbone
    if not isinstance(backbone, StaticBackbone) and not fits(backbone.config):
        return False
    own = [name for name, module in encoder.named_modules() if type(module) in _KINDS]
    names = [name for name, _ in encoder.named_parameters(remove_duplicate=False)]
    return len(names) == len(list(encoder.parameters())) and {name.rpartition(".")[0] for name in names} <= set(own)
