"""The terms of a text, for BM25 and TF-IDF: words of Latin scripts, characters and pairs of them of others."""

from __future__ import annotations

import re
from itertools import pairwise

_RUN = re.compile(r"([a-z0-9]+)|([^\W\d_a-z]+)")


def terms(text: str) -> list[str]:
    """Split a text into Latin words and numbers; of other scripts, into characters and pairs of neighbours.

    >>> terms("BERT 模型")
    ['bert', '模', '型', '模型']
    """
    pieces = []
    for word, run in _RUN.findall(text.casefold()):
        pieces += [word] if word else [*run, *map("".join, pairwise(run))]
    return pieces
