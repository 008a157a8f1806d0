"""Batches across devices: gathers the embeddings of all ranks, with gradient, for the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

_COLUMNS = 4  # most columns of a batch; a rank may lack the last ones


def gather_batch(
    embeddings: Sequence[Tensor], labels: Tensor | None, ids: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor | None, tuple[Tensor, ...]]:
    """Gather the columns, labels and ids of all ranks, one rank after the other; one process gets its own back.

    Every rank then computes the loss of the global batch. The backward of the gathering adds up the gradients of all ranks,
    which are equal, and data-parallel training divides by their number: the result is the gradient that one process would
    have had of the global batch. Embeddings travel once, all columns together, at full dimension.

    Args:
        embeddings: Float[n_i, D] a column; the numbers may differ between ranks, and a rank may lack the last columns.
        labels: of this rank's rows (see `losses`), or None on all ranks.
        ids: Int64[n_i] a column.

    Returns:
        Float[sum n_i, D] a column, labels, and Int64[sum n_i] a column.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tuple(embeddings), labels, tuple(ids)
    device = embeddings[0].device
    lengths = [len(column) for column in embeddings] + [0] * (_COLUMNS - len(embeddings))
    rows = torch.tensor([*lengths, 0 if labels is None else len(labels)], device=device)
    sizes = torch.stack(_gathered(rows))  # [ranks, columns + 1]
    per_rank = sizes[:, :_COLUMNS].tolist()
    vectors = _columns(all_gather(_padded(torch.cat(list(embeddings)), sizes[:, :_COLUMNS].sum(1))), per_rank)
    hashes = _columns(_gathered(_padded(torch.cat(list(ids)), sizes[:, :_COLUMNS].sum(1))), per_rank)
    if labels is not None:
        padded = _gathered(_padded(labels, sizes[:, -1]))
        labels = torch.cat([rank_labels[:n] for rank_labels, n in zip(padded, sizes[:, -1].tolist(), strict=True)])
    return vectors, labels, hashes


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Of some flags that every rank has: whether it is set on any of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(flags)
    return torch.stack(_gathered(torch.tensor(flags, dtype=torch.int32, device=device))).any(0).tolist()


def _gathered(own: Tensor) -> list[Tensor]:
    """Each rank's tensor, without gradient; all are of one shape."""
    tensors = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(tensors, own.contiguous())
    return tensors


def _padded(own: Tensor, rows: Tensor) -> Tensor:
    """`own` with empty rows below, up to the largest number of rows of any rank."""
    missing = int(rows.max()) - len(own)
    return torch.cat([own, own.new_zeros(missing, *own.shape[1:])]).contiguous() if missing else own.contiguous()


def _columns(tensors: Sequence[Tensor], sizes: list[list[int]]) -> tuple[Tensor, ...]:
    """The columns over all ranks, from the ranks' columns one below the other; columns that no rank has are left out."""
    split = [tensor[: sum(rows)].split(rows) for tensor, rows in zip(tensors, sizes, strict=True)]
    joined = (torch.cat(column) for column in zip(*split, strict=True))
    return tuple(column for column in joined if len(column))
