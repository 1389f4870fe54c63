"""The one dimension of a V2 tensor that a client leaves open, as -1.

The protocol has none, but KServe's Hugging Face server never looks at shapes, and its clients send
the ``[-1]`` of the metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.kserve.tensors import DATATYPES, FORMATS, size_of
from predictor.protocol.sdk import raw_data
from predictor.sentences import quote


def close_shape(tensor: Any) -> None:
    """Give the one open dimension of a kserve `InferInput` the size that its data have.

    A shape that is wrong for other reasons is left for `size_of` to refuse.

    Raises:
        RequestError: The other dimensions do not divide the number of elements.
    """
    shape = list(tensor.shape)
    is_open = [type(dimension) is int and dimension == -1 for dimension in shape]
    if is_open.count(True) != 1 or tensor.datatype not in DATATYPES:
        return
    where = f"Input {quote(tensor.name)}"
    position = is_open.index(True)
    others = size_of(shape[:position] + shape[position + 1 :], where)
    count = _count(tensor, len(shape))
    if count % others if others else count:
        raise RequestError(f"{where} has {count} elements, which do not fill the shape {shape}.")
    shape[position] = count // others if others else 0
    tensor.shape = shape


def _count(tensor: Any, dimensions: int) -> int:
    """Return the number of a tensor's elements; about that, if its data are malformed."""
    raw = raw_data(tensor)
    if raw is None:
        return _leaves(tensor.data, dimensions) if isinstance(tensor.data, list) else 0
    if tensor.datatype == "BYTES":
        return _frames(raw)
    return len(raw) // struct.calcsize(FORMATS[tensor.datatype])


def _leaves(data: Sequence[Any], dimensions: int) -> int:
    rows = data
    for _ in range(dimensions - 1):
        if not any(isinstance(row, list) for row in rows):
            break
        rows = list(chain.from_iterable(row for row in rows if isinstance(row, list)))
    return len(rows)


def _frames(raw: bytes) -> int:
    count = offset = 0
    while offset < len(raw):
        offset += 4 + int.from_bytes(raw[offset : offset + 4], "little")
        count += 1
    return count
