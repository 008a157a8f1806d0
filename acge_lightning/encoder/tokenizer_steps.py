"""The steps of a tokenizer, as its `tokenizer.json` describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def tokenizer_steps(description: Any) -> Iterator[dict[str, Any]]:
    """The normalizers or pre-tokenizers of a description, those within sequences one by one; none for anything but an object.

    Args:
        description: the value of `normalizer` or `pre_tokenizer`.

    >>> lowercase, nfc = {"type": "Lowercase"}, {"type": "NFC"}
    >>> [step["type"] for step in tokenizer_steps({"type": "Sequence", "normalizers": [lowercase, nfc]})]
    ['Lowercase', 'NFC']
    """
    if not isinstance(description, dict):
        return
    lists = (description[key] for key in ("normalizers", "pretokenizers") if isinstance(description.get(key), list))
    steps = next(lists, None)
    if steps is None:
        yield description
    else:
        for step in steps:
            yield from tokenizer_steps(step)
