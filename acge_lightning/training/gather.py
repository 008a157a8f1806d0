"""Batches across devices: the embeddings of all ranks, with gradient, so that each rank has the loss of the whole batch."""

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
    """The same columns, labels and ids, of all ranks one after the other; as they are where there is one process.

    Every rank then computes the loss of the global batch. The backward of the gathering adds up the gradients of all ranks,
    which are equal, and data-parallel training divides by their number: what is left is the gradient that one process would
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
    mine = [len(column) for column in embeddings] + [0] * (_COLUMNS - len(embeddings))
    rows = torch.tensor([*mine, 0 if labels is None else len(labels)], device=device)
    sizes = torch.stack(_gathered(rows))  # [ranks, columns + 1]
    per_rank = sizes[:, :_COLUMNS].tolist()
    vectors = _columns(all_gather(_filled(torch.cat(list(embeddings)), sizes[:, :_COLUMNS].sum(1))), per_rank)
    hashes = _columns(_gathered(_filled(torch.cat(list(ids)), sizes[:, :_COLUMNS].sum(1))), per_rank)
    if labels is not None:
        parts = _gathered(_filled(labels, sizes[:, -1]))
        labels = torch.cat([part[:n] for part, n in zip(parts, sizes[:, -1].tolist(), strict=True)])
    return vectors, labels, hashes


def anywhere(here: Sequence[bool], device: torch.device) -> list[bool]:
    """Of some questions that every rank answers for itself: to which any of them says yes."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(here)
    return torch.stack(_gathered(torch.tensor(here, dtype=torch.int32, device=device))).any(0).tolist()


def _gathered(own: Tensor) -> list[Tensor]:
    """What each rank gave, without gradient; all of one shape."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return parts


def _filled(own: Tensor, rows: Tensor) -> Tensor:
    """`own` with empty rows below, up to the largest number of rows of any rank."""
    missing = int(rows.max()) - len(own)
    return torch.cat([own, own.new_zeros(missing, *own.shape[1:])]).contiguous() if missing else own.contiguous()


def _columns(parts: Sequence[Tensor], sizes: list[list[int]]) -> tuple[Tensor, ...]:
    """The columns over all ranks, from the ranks' columns one below the other; columns that no rank has are left out."""
    split = [part[: sum(rows)].split(rows) for part, rows in zip(parts, sizes, strict=True)]
    joined = (torch.cat(column) for column in zip(*split, strict=True))
    return tuple(column for column in joined if len(column))
