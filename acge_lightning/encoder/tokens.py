"""Token ids of texts of any lengths, without padding, and how texts become them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acge_lightning.encoder.truncation import WordEnds, truncate
from acge_lightning.errors import InputError, check_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, without padding.

    Args:
        ids: Int64[sum of lengths], all texts one after the other; they alone move to the device.
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
    def cat(cls, columns: Sequence[Tokens]) -> Tokens:
        """The texts of all columns, one column after the other."""
        return cls(torch.cat([column.ids for column in columns]), torch.cat([column.lengths for column in columns]))

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        """The same tokens with their ids on another device."""
        return replace(self, ids=self.ids.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Tokens:
        """The same tokens in page-locked memory."""
        return replace(self, ids=self.ids.pin_memory())

    def chunks(self, batch_tokens: int, packed: bool = False, cores: int = 1) -> Iterator[Tensor]:
        """Splits the rows, longest first, into chunks of at most `batch_tokens` tokens.

        Args:
            batch_tokens: most tokens of a chunk; a single text with more forms a chunk of its own.
            packed: whether padding does not count: a chunk's size is the sum of its lengths, not rows x width.
            cores: packed chunks that are at least as many as these are made smaller, so that every core gets as many of them,
                all about as large.

        Yields:
            Int64[m] row indices (CPU).
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
        shifts = self.lengths.cumsum(0)[rows] - lengths.cumsum(0)  # start of each row here less its start in the result
        positions = torch.arange(int(lengths.sum())) + shifts.repeat_interleave(lengths)
        return Tokens(self.ids[positions.to(self.ids.device)], lengths)

    def distinct(self) -> tuple[Tokens, Tensor]:
        """Each text once, in the order of first occurrence, and the row of every text among them: Int64[n] (CPU)."""
        first_rows: dict[bytes, int] = {}
        texts = enumerate(self.ids.cpu().split(self.lengths.tolist()))
        equal_rows = torch.tensor([first_rows.setdefault(text.numpy().tobytes(), i) for i, text in texts], dtype=torch.long)
        distinct_rows, rows = equal_rows.unique(return_inverse=True)
        return self.select(distinct_rows), rows

    def padded(self, rows: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """The chosen rows, right-padded to their own longest: `(input_ids, attention_mask)`, both Int64[m, width]."""
        device = self.ids.device
        lengths = self.lengths[rows]
        starts = self.lengths.cumsum(0)[rows] - lengths
        columns = torch.arange(max(1, int(lengths.max())), device=device)
        mask = columns < lengths.to(device)[:, None]
        positions = torch.where(mask, starts.to(device)[:, None] + columns, 0)
        if len(self.ids) == 0:
            return torch.full_like(positions, pad_id), mask.long()
        return torch.where(mask, self.ids[positions], pad_id), mask.long()


def _padded_ends(widths: Tensor, budget: int) -> Iterator[int]:
    """Where chunks end whose rows are padded to the first one, the longest."""
    end = 0
    while end < len(widths):
        end += max(1, budget // int(widths[end]))
        yield end


def _packed_ends(widths: Tensor, budget: int, cores: int) -> list[int]:
    """Where chunks end that are filled up one after the other.

    For several cores, the number of chunks is rounded up to a multiple of the cores, and the budget is the smallest that needs
    no more chunks than that.
    """
    totals = widths.cumsum(0).tolist()

    def ends_within(budget: int) -> list[int]:
        ends = [0]
        while ends[-1] < len(totals):
            tokens_before = totals[ends[-1] - 1] if ends[-1] else 0
            ends.append(max(ends[-1] + 1, bisect_right(totals, tokens_before + budget)))
        return ends[1:]

    ends = ends_within(budget)
    if cores == 1 or len(ends) < cores:
        return ends
    chunk_count = -(-len(ends) // cores) * cores
    return ends_within(bisect_left(range(budget), True, key=lambda smaller: len(ends_within(smaller)) <= chunk_count))


class Tokenize:
    """Turns texts into `Tokens`: a fast tokenizer, its truncation and its special tokens in one picklable callable.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: most tokens of a text, special tokens included; longer texts are cut and keep their closing token. Of a
            text of over 2**16 characters that has less than a token in 256 (`truncate`), no more is looked at.
        special_tokens: whether the tokenizer's own special tokens ([CLS], [SEP] …) are added.

    Raises:
        InputError: a `max_length` that leaves no room for a token of the text beside the special ones; no token to pad with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, special_tokens: bool = True):
        special_count = tokenizer.num_special_tokens_to_add() if special_tokens else 0
        if max_length <= special_count:
            raise InputError(
                f"max_length={max_length} does not fit: {special_count} special tokens leave no room for a text, "
                f"give at least {special_count + 1}"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise InputError("the tokenizer has no token to pad texts with: set its pad_token to one of its tokens")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.special_tokens = special_tokens
        self._word_ends: WordEnds | None = None

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of the texts; an empty list gives no rows.

        Raises:
            InputError: a text with a lone surrogate.
        """
        if not texts:
            return Tokens.from_lists([])
        try:
            return Tokens.from_lists(self._encode([self._truncate(text) for text in texts])["input_ids"])
        except TypeError:  # which says neither what is wrong nor where
            for i, text in enumerate(texts):
                check_unicode(text, f"texts[{i}]")
            raise

    def _encode(self, texts: list[str], **options: Any) -> Any:
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

    def _truncate(self, text: str) -> str:
        """As much of a text as its tokens come from."""

        def word_ends() -> WordEnds:
            if self._word_ends is None:
                self._word_ends = WordEnds.from_tokenizer(self.tokenizer)
            return self._word_ends

        def count_tokens(prefix: str) -> tuple[int, int]:
            encoding = self._encode([prefix], return_offsets_mapping=True)
            return len(encoding["input_ids"][0]), max((end for _, end in encoding["offset_mapping"][0]), default=0)

        return truncate(text, self.max_length, word_ends, count_tokens)

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""
        return int(self.tokenizer.pad_token_id)
