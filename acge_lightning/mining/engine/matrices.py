"""Matrices of numbers as columns of Arrow tables, a row each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def column_of(matrix: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Write a matrix [n, m] as a column of n rows, of their bytes.

    >>> matrix_of(pa.chunked_array([column_of(np.eye(2, dtype=np.float32))]), np.float32).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    content = np.ascontiguousarray(matrix)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(content.itemsize * content.shape[1]), len(content), [None, pa.py_buffer(content)]
    )


def matrix_of(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    """Read a column of `column_of`, whose numbers are of this type: [n, m]."""
    array, width = column.combine_chunks(), column.type.byte_width
    content = np.frombuffer(array.buffers()[1] or b"", np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return content.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)
