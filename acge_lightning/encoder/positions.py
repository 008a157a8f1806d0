"""More positions for a pretrained transformer: its table is made longer, and its config says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from acge_lightning.errors import InputError

Extension = Literal["hierarchical", "tile", "interpolate"]


def extend_table(table: Tensor, length: int, method: Extension = "hierarchical", alpha: float = 0.4) -> Tensor:
    """A longer table of learnt positions.

    With n positions p and u_j = (p_j − α p_0) / (1 − α), `hierarchical` sets position i·n + j to α u_i + (1 − α) u_j: two
    levels, as digits are to a number. The first n positions stay as they were, and each later one differs from every other.
    `tile` repeats the table, so that positions n apart look the same; `interpolate` stretches it, so that all but the first
    and the last position change.

    Args:
        table: Float[n, d].
        length: positions wanted, n or more; for `hierarchical` n² at most.
        method: see above.
        alpha: weight of the higher level, between 0 and 1 and not 0.5, where positions (i, j) and (j, i) would be the same.

    Returns:
        Float[length, d], of the dtype of `table`.

    Raises:
        InputError: an unknown method, fewer positions than there are, more than `hierarchical` can tell apart, or a bad α.

    Reference: Su, "Hierarchical decomposition of position codes" (kexue.fm/archives/7947), whose α is 0.4 as well.

    >>> extend_table(torch.tensor([[0.0], [1.0]]), 4, "tile").flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    >>> [round(x, 2) for x in extend_table(torch.tensor([[0.0], [1.0]]), 4).flatten().tolist()]
    [0.0, 1.0, 0.67, 1.67]
    """
    n = len(table)
    if length < n:
        raise InputError(f"{length} positions are fewer than the {n} that there are: leave positions out")
    if method == "tile":
        return table.repeat(-(-length // n), 1)[:length]
    if method == "interpolate":
        return interpolate(table.float().T[None], size=length, mode="linear", align_corners=True)[0].T.to(table.dtype)
    if method != "hierarchical":
        raise InputError(f"method={method!r} makes no positions: choose hierarchical, tile or interpolate")
    if not 0 < alpha < 1 or alpha == 0.5:
        raise InputError(f"alpha={alpha} does not tell positions apart: it lies between 0 and 1 and is not 0.5; 0.4 is usual")
    if length > n * n:
        raise InputError(f"{length} positions are more than {n} times {n}, which two levels of {n} can tell apart")
    places = torch.arange(length, device=table.device)
    base = (table.double() - alpha * table[0].double()) / (1 - alpha)
    extended = alpha * base[places // n] + (1 - alpha) * base[places % n]
    return torch.cat([table, extended[n:].to(table.dtype)])


def extend_positions(backbone: nn.Module, positions: int | Mapping[str, Any]) -> int:
    """Make the table of learnt positions of a backbone longer, in place; it is trained on as before.

    Args:
        backbone: a transformer of the BERT family, whose `embeddings.position_embeddings` is a table.
        positions: most tokens of a text from now on, or arguments of `extend_table`: `{length: 1024, alpha: 0.2}`.

    Returns:
        That number of tokens.

    Raises:
        InputError: a backbone without such a table (rotary positions need none), and as of `extend_table`.
    """
    options = dict(positions) if isinstance(positions, Mapping) else {"length": positions}
    length = options.get("length")
    if type(length) is not int or set(options) - {"length", "method", "alpha"}:
        raise InputError(f"positions={positions!r:.80}: give a number, or length and perhaps method and alpha")
    embeddings = getattr(backbone, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if embeddings is None or not isinstance(table, nn.Embedding):
        kind = getattr(getattr(backbone, "config", None), "model_type", "static")
        raise InputError(f"{kind} models have no table of positions that could be made longer: leave positions out")
    first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's positions begin after the padding index
    weight = table.weight.detach()
    weight = torch.cat([weight[:first], extend_table(weight[first:], **options)])
    frozen = not table.weight.requires_grad
    embeddings.position_embeddings = nn.Embedding.from_pretrained(weight, freeze=frozen, padding_idx=table.padding_idx)
    for name, value in (("position_ids", torch.arange(len(weight))), ("token_type_ids", torch.zeros(len(weight)).long())):
        if name in dict(embeddings.named_buffers(recurse=False)):
            embeddings.register_buffer(name, value[None].to(weight.device), persistent=False)
    config: Any = backbone.config
    config.max_position_embeddings = len(weight)
    return length
