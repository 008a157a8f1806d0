"""Ragged token ids: texts of any lengths, without padding."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, without padding.

    Args:
        ids: Int64[sum of lengths], all texts one after the other; the only part that moves to the device.
        lengths: Int64[n], on the CPU, where chunk sizes are decided.
    """

    ids: Tensor
    lengths: Tensor

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]]) -> Tokens:
        """Tokens from a list of token ids a text."""
        rows = list(rows)
        flat = [i for row in rows for i in row]
        return cls(torch.tensor(flat, dtype=torch.long), torch.tensor([len(row) for row in rows], dtype=torch.long))

    @classmethod
    def cat(cls, parts: Sequence[Tokens]) -> Tokens:
        """The texts of all parts in order."""
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.lengths for p in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        """The same tokens with their ids on another device."""
        return replace(self, ids=self.ids.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Tokens:
        """The same tokens in page-locked memory."""
        return replace(self, ids=self.ids.pin_memory())

    def chunks(self, batch_tokens: int, packed: bool = False, cores: int = 1) -> Iterator[Tensor]:
        """Rows, longest first, in groups whose size stays within `batch_tokens`.

        The size is rows x width, as padded, or the sum of lengths if `packed`. A single text longer than the budget forms a
        chunk of its own. Packed chunks that are at least as many as `cores` are made smaller, so that every core gets as many
        of them, all about as large. Yields Int64[m] row indices (CPU).
        """
        order = self.lengths.argsort(descending=True, stable=True)
        widths = self.lengths[order].clamp(min=1)
        start = 0
        for end in _packed_ends(widths, batch_tokens, cores) if packed else _padded_ends(widths, batch_tokens):
            yield order[start:end]
            start = end

    def select(self, rows: Tensor) -> Tokens:
        """The chosen rows, in the order of `rows` (Int64[m], CPU)."""
        lengths = self.lengths[rows]
        shift = self.lengths.cumsum(0)[rows] - lengths.cumsum(0)  # where each begins here less where it begins there
        index = torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
        return Tokens(self.ids[index.to(self.ids.device)], lengths)

    def distinct(self) -> tuple[Tokens, Tensor]:
        """Each text once, in the order of first occurrence, and which of them every text is: Int64[n] (CPU)."""
        seen: dict[bytes, int] = {}
        texts = enumerate(self.ids.cpu().split(self.lengths.tolist()))
        first = torch.tensor([seen.setdefault(text.numpy().tobytes(), i) for i, text in texts], dtype=torch.long)
        rows, which = first.unique(return_inverse=True)
        return self.select(rows), which

    def padded(self, rows: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """The chosen rows, right-padded to their own longest: `(input_ids, attention_mask)`, both Int64[m, width]."""
        device = self.ids.device
        lengths = self.lengths[rows]
        starts = self.lengths.cumsum(0)[rows] - lengths
        position = torch.arange(max(1, int(lengths.max())), device=device)
        mask = position < lengths.to(device)[:, None]
        index = torch.where(mask, starts.to(device)[:, None] + position, 0)
        if len(self.ids) == 0:
            return torch.full_like(index, pad_id), mask.long()
        return torch.where(mask, self.ids[index], pad_id), mask.long()


def _padded_ends(widths: Tensor, budget: int) -> Iterator[int]:
    end = 0
    while end < len(widths):
        end += max(1, budget // int(widths[end]))
        yield end


def _packed_ends(widths: Tensor, budget: int, cores: int) -> list[int]:
    """Where chunks end that are filled up one after the other; for several cores, with the smallest budget that will do."""
    totals = widths.cumsum(0).tolist()

    def filled(budget: int) -> list[int]:
        ends = [0]
        while ends[-1] < len(totals):
            before = totals[ends[-1] - 1] if ends[-1] else 0
            ends.append(max(ends[-1] + 1, bisect_right(totals, before + budget)))
        return ends[1:]

    ends = filled(budget)
    if cores == 1 or len(ends) < cores:
        return ends
    chunks = -(-len(ends) // cores) * cores
    return filled(bisect_left(range(budget), True, key=lambda less: len(filled(less)) <= chunks))
