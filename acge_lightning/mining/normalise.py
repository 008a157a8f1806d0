"""Keys by which texts are the same, whatever their width, case, script, punctuation and blanks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acge_lightning.errors import InputError
from acge_lightning.lazy import naming_extra
from acge_lightning.mining.engine.shards import Run, in_process

Texts: TypeAlias = Sequence[str | None] | pa.Array | pa.ChunkedArray
SIDE = "\n"  # between the two sides of a row's key
_ITEM = "\t"  # between the texts of one side
_CHUNK, _SHARD = 5_000, 20_000  # rows that are worked on at once, and of a shard
_CHUNK_SIZE = 4_000_000  # bytes
_SURROGATE = re.compile("[\ud800-\udfff]")
_JOINT = re.compile(r"\d[-./:](?=\d)")  # 1.5 is not 15, 3-5 not 35
_KEPT = str.maketrans("#%-./:", "♯℅−∙∕∶")  # NFKC leaves no ℅, and writes none of the others for these
_NO_CONTENT = r"[\pP\pZ\pC\p{Sk}~|\s\x{FE00}-\x{FE0F}\x{FFFD}]+"
_FAMILIES = {
    **dict.fromkeys(("sts", "pair"), ("text1", "text2")),
    **dict.fromkeys(("classification", "clustering", "unlabelled"), ("text",)),
    **dict.fromkeys(("triplet", "reranking", "retrieval"), ("query", "positive")),
}


def duplicate_keys(texts: Texts, script: bool = True, run: Run = in_process) -> pa.LargeStringArray:
    r"""Make the key of each text; texts of one key are exact duplicates.

    NFKC, no case, traditional characters written as simplified ones (OpenCC's `t2s`), and neither punctuation nor blanks nor
    control characters. What changes the meaning stays: `#`, `%`, symbols with emoji among them, and a point, hyphen, slash or
    colon between two digits. A sign before a number (-5) is lost. A text of punctuation alone has it as its key. Half a
    surrogate pair, which no file of ours holds, counts as punctuation: `text_issues` finds it.

    Args:
        texts: n of them; null is an empty text.
        script: whether traditional and simplified characters are the same; needs the package opencc.
        run: what works on shards.

    Returns:
        n keys, without null.

    Raises:
        InputError: `script`, and opencc is not installed.

    >>> duplicate_keys(["Ｃ＃ 很好，用！", "c#很好用", "C很好用", "3.5 元", "35元", "……"]).to_pylist()
    ['c♯很好用', 'c♯很好用', 'c很好用', '3∙5元', '35元', '......']
    """
    array = texts if isinstance(texts, (pa.Array, pa.ChunkedArray)) else None
    sizes = [len(text or "") for text in texts] if array is None else pc.fill_null(pc.binary_length(array), 0).to_numpy()
    parts = (
        array.slice(start, end - start) if array is not None else texts[start:end]
        for start, end in spans(np.asarray(sizes), _SHARD)
    )
    keys = run(key_table, (pa.table({"text": as_strings(part)}) for part in parts), script=script)
    return pa.concat_arrays([pa.array([], pa.large_string()), *(table["key"].combine_chunks() for table in keys)])


def key_table(table: pa.Table, script: bool) -> pa.Table:
    """Make the keys of a shard of texts: a table with `text` -> one with `key`."""
    convert = _simplifier() if script else str
    texts = table["text"].combine_chunks()
    chunks = spans(pc.binary_length(texts).to_numpy(), _CHUNK)
    return pa.table({"key": pa.chunked_array([_keys(texts[start:end], convert) for start, end in chunks], pa.large_string())})


def text_keys(texts: Texts) -> list[str]:
    """Make the key of each text, as `duplicate_keys`, as a list."""
    return duplicate_keys(texts).to_pylist()


def row_keys(columns: Mapping[str, Any], family: str, script: bool = True, run: Run = in_process) -> pa.LargeStringArray:
    r"""Make the key of each row of a data set: rows of one key are the same row, written twice.

    | family | key |
    |---|---|
    | classification, clustering, unlabelled | of `text` |
    | sts, pair | of `text1` and `text2`, in either order |
    | triplet, reranking, retrieval | of `query` and all of `positive`, in any order; of `query` where a row has no positive |

    Args:
        columns: column -> n texts; `positive` may be lists of texts. A `pyarrow.Table` will do.
        family: of the data set.
        script: as in `duplicate_keys`.
        run: as there.

    Returns:
        n keys; two sides stand with `"\n"` between them, which no text's key holds.

    Raises:
        InputError: an unknown family, or a column that is not there.

    >>> row_keys({"text1": ["你好！", "再见"], "text2": ["再见", "你好"]}, "sts").to_pylist()
    ['你好\n再见', '你好\n再见']
    """
    if family not in _FAMILIES:
        raise InputError(f"{family!r} is no family: give one of {', '.join(_FAMILIES)}")
    names = list(getattr(columns, "column_names", columns))
    fields = [name for name in _FAMILIES[family] if name in names or name != "positive"]
    for field in fields:
        if field not in names:
            raise InputError(f"rows of the family {family} need a column {field!r}; there are {', '.join(names) or 'none'}")
    sides = [_side_keys(columns[field], script, run) for field in fields]
    if len(sides) == 1:
        return sides[0]
    if family in ("sts", "pair"):
        swapped = pc.greater(sides[0], sides[1])
        sides = [pc.if_else(swapped, sides[1], sides[0]), pc.if_else(swapped, sides[0], sides[1])]
    return pc.binary_join_element_wise(*sides, pa.scalar(SIDE, pa.large_string()))


def as_strings(texts: Texts) -> pa.LargeStringArray:
    r"""Write texts as an Arrow array: "" for null, U+FFFD for half a surrogate pair, which Arrow does not take.

    >>> as_strings(["a", None, "\ud800b"]).to_pylist()
    ['a', '', '�b']
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], pa.large_string())
    if not isinstance(texts, pa.Array):
        try:
            texts = pa.array(texts, pa.large_string())
        except UnicodeEncodeError:
            texts = pa.array([text and _SURROGATE.sub("\ufffd", text) for text in texts], pa.large_string())
    return pc.fill_null(texts.cast(pa.large_string()), "")


def spans(sizes: np.ndarray, rows: int) -> list[tuple[int, int]]:
    """Cut rows into chunks of at most `rows`, and of at most a few megabytes unless one row has more.

    Args:
        sizes: Int64[n] bytes, or characters, of each row.
        rows: of a chunk.

    Returns:
        Begin and end of each chunk.

    >>> spans(np.array([1, 1, 1, 5_000_000, 1]), 2)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends, start, chunks = np.cumsum(sizes), 0, []
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + _CHUNK_SIZE, side="right"))
        chunks.append((start, min(start + rows, max(fitting, start + 1))))
        start = chunks[-1][1]
    return chunks


def _keys(texts: pa.LargeStringArray, convert: Callable[[str], str]) -> pa.LargeStringArray:
    """The keys of one chunk: steps that Arrow lacks are taken on all its texts as one string, with line feeds between them."""
    plain = pc.replace_substring_regex(pc.utf8_normalize(texts, "NFKC"), "[\n\t\x00]", " ")
    joined = "\n".join(plain.to_pylist()).replace("#", "♯").replace("%", "℅")
    joined = convert(_JOINT.sub(lambda match: match[0].translate(_KEPT), joined).casefold())
    folded = pa.array(joined.split("\n"), pa.large_string())
    keys = pc.replace_substring_regex(folded, _NO_CONTENT, "")
    empty = pc.equal(pc.binary_length(keys), 0)
    return pc.if_else(empty, pc.replace_substring_regex(folded, r"[\pZ\pC\s]+", ""), keys) if pc.any(empty).as_py() else keys


def _side_keys(column: Any, script: bool, run: Run) -> pa.LargeStringArray:
    """The key of each text, or of each list of texts, whose order does not count."""
    kind = getattr(column, "type", None)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) if kind is not None else _has_lists(column)
    if not is_list:
        return duplicate_keys(column, script, run)
    rows = [row if isinstance(row, list) else [row] for row in _rows(column)]
    keys = iter(duplicate_keys([text for row in rows for text in row], script, run).to_pylist())
    return pa.array([_ITEM.join(sorted(next(keys) for _ in row)) for row in rows], pa.large_string())


def _rows(column: Any) -> Iterable[Any]:
    rows = column.to_pylist() if isinstance(column, (pa.Array, pa.ChunkedArray)) else column
    return ([] if row is None else list(row) if isinstance(row, tuple) else row for row in rows)


def _has_lists(column: Sequence[Any]) -> bool:
    return any(isinstance(row, (list, tuple)) for row in column)


@cache
def _simplifier() -> Callable[[str], str]:
    with naming_extra("keys without a difference of script need", ", or script=False"):
        import opencc
    return opencc.OpenCC("t2s").convert
