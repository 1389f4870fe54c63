"""The elements of a V2 tensor from any transport, and the bytes of an output.

Data types, row-major order and the binary forms are those of the Open Inference Protocol
(``inference_rest.md``, "Tensor Data", and the binary tensor data extension): numbers are
little-endian, an element of BYTES is a 4-byte little-endian length and that many bytes. Here such
an element must be UTF-8 text.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import kind
from predictor.protocol.sdk import raw_data
from predictor.sentences import quote

Element = str | int | float | bool

FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""The data types of numbers, and their letters in `struct`."""

DATATYPES = (*FORMATS, "BYTES")
"""The data types that a tensor may have. BF16 is in the protocol, but in no version of the SDK."""

MAX_TENSORS = 1024
"""Inputs, outputs or parameters of a request. A field or a parameter is an input, and no task has
more than some dozen; as an object of the SDK each takes a thousand bytes."""

_MOST_DIMENSIONS = 32
"""A longer shape is an attempt to make the server multiply large numbers."""

_LARGEST_DIMENSION = 2**63 - 1


def elements(tensor: Any) -> list[Element]:
    """Return the elements of a kserve `InferInput` in row-major order.

    Floating-point elements are rounded to the tensor's data type, so that the same tensor has the
    same elements over every transport.

    Raises:
        RequestError: Name, data type, shape and data do not make a tensor.
    """
    where = f"Input {quote(tensor.name)}"
    check_datatype(tensor.datatype, where)
    size = size_of(tensor.shape, where)
    raw = raw_data(tensor)
    if raw is None:
        return _from_list(_flat(tensor.data, tensor.shape, size, where), tensor.datatype, where)
    if tensor.datatype == "BYTES":
        return _from_frames(raw, size, where)
    return _from_numbers(raw, tensor.datatype, size, where)


def check_datatype(datatype: str, where: str) -> None:
    """Check that a data type is one of `DATATYPES`.

    Raises:
        RequestError: It is not.
    """
    if datatype not in DATATYPES:
        datatypes = ", ".join(DATATYPES)
        raise RequestError(f"{where} has datatype {quote(datatype)}; known are {datatypes}.")


def check_dimensions(shape: Sequence[object], where: str) -> None:
    """Refuse a shape of too many dimensions; raises `RequestError`."""
    if len(shape) > _MOST_DIMENSIONS:
        raise RequestError(f"{where} has more than {_MOST_DIMENSIONS} dimensions.")


def check_tensors(count: int, what: str) -> None:
    """Refuse more tensors than a request may have.

    Args:
        count: Their number.
        what: ``"inputs"`` or ``"outputs"``.

    Raises:
        RequestError: Names both numbers.
    """
    if count > MAX_TENSORS:
        raise RequestError(f"A request has at most {MAX_TENSORS} {what}; here are {count}.")


def size_of(shape: Sequence[object], where: str) -> int:
    """Return the number of elements of a shape.

    Raises:
        RequestError: It is no shape.
    """
    check_dimensions(shape, where)
    size = 1
    for dimension in shape:
        if isinstance(dimension, bool) or not isinstance(dimension, int):
            raise RequestError(f"{where} has {kind(dimension)} in its shape instead of an integer.")
        if not 0 <= dimension <= _LARGEST_DIMENSION:
            raise RequestError(f"{where} has a dimension below 0 or above {_LARGEST_DIMENSION}.")
        size *= dimension
    return size


def to_raw(values: Iterable[Element], datatype: str) -> bytes:
    """Return the binary form of elements that are of `datatype`."""
    if datatype != "BYTES":
        numbers = list(values)
        return struct.pack(f"<{len(numbers)}{FORMATS[datatype]}", *numbers)
    texts = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _flat(data: object, shape: Sequence[int], size: int, where: str) -> list[object]:
    if not isinstance(data, list):
        raise RequestError(f"{where} must have a list of data, not {kind(data)}.")
    if any(isinstance(element, list) for element in data):
        return _unnested(data, shape, where)
    _check_count(len(data), size, shape, where)
    return data


def _unnested(data: list[object], shape: Sequence[int], where: str) -> list[object]:
    rows: list[object] = [data]
    for dimension in shape:
        lists = [row for row in rows if isinstance(row, list) and len(row) == dimension]
        if len(lists) != len(rows):
            raise RequestError(f"{where} has nested data that is not of shape {list(shape)}.")
        rows = list(chain.from_iterable(lists))
    if any(isinstance(row, list) for row in rows):
        raise RequestError(f"{where} has data nested more deeply than its shape {list(shape)}.")
    return rows


def _check_count(count: int, size: int, shape: Sequence[int], where: str) -> None:
    if count != size:
        raise RequestError(f"{where} has {count} elements; its shape {list(shape)} says {size}.")


def _from_list(values: list[object], datatype: str, where: str) -> list[Element]:
    if datatype == "BYTES":
        return [_text(value, number, where) for number, value in enumerate(values)]
    if datatype == "FP16":
        raise RequestError(f"{where} is FP16, which can be sent as binary data only.")
    return [_number(value, datatype, number, where) for number, value in enumerate(values)]


def _text(value: object, number: int, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise RequestError(f"{where} is BYTES; element {number} must not be {kind(value)}.")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{where} has element {number} that is not valid UTF-8.") from None


def _number(value: object, datatype: str, number: int, where: str) -> Element:
    wanted = bool if datatype == "BOOL" else int | float if datatype.startswith("FP") else int
    if not isinstance(value, wanted) or isinstance(value, bool) != (datatype == "BOOL"):
        raise RequestError(f"{where} is {datatype}; element {number} must not be {kind(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{where} has element {number} that is not finite.")
    code = f"<{FORMATS[datatype]}"
    try:
        rounded: Element = struct.unpack(code, struct.pack(code, value))[0]
    except (struct.error, OverflowError):
        raise RequestError(f"{where} has element {number} out of {datatype}'s range.") from None
    return rounded


def _from_numbers(raw: bytes, datatype: str, size: int, where: str) -> list[Element]:
    needed = size * struct.calcsize(f"<{FORMATS[datatype]}")
    if len(raw) != needed:
        raise RequestError(f"{where} has {len(raw)} bytes of data; its shape needs {needed}.")
    return list(struct.unpack(f"<{size}{FORMATS[datatype]}", raw))


def _from_frames(raw: bytes, size: int, where: str) -> list[Element]:
    texts: list[Element] = []
    offset = 0
    while offset < len(raw):
        start = offset + 4
        length = int.from_bytes(raw[offset:start], "little")
        offset = start + length
        if offset > len(raw):
            raise RequestError(f"{where} has binary data that ends within element {len(texts)}.")
        texts.append(_text(raw[start:offset], len(texts), where))
    if len(texts) != size:
        raise RequestError(f"{where} has {len(texts)} elements; its shape says {size}.")
    return texts
