"""Checks of V2's requests over gRPC, before the SDK makes objects of each of their parts.

A message of a few bytes may have an empty tensor in every second one. Parsed, a tensor takes a
hundred bytes, and as the SDK's object a thousand.
"""

from __future__ import annotations

from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count
from predictor.protocol.kserve.tensors import (
    MAX_TENSORS,
    check_datatype,
    check_dimensions,
    check_tensors,
)
from predictor.sentences import quote
from predictor.tasks.request import MAX_TEXTS

_MAX_FIELDS = 4 * MAX_TENSORS
"""Fields of a request: its inputs and their raw contents, its outputs and its parameters."""

_FIXED = {1: 8, 5: 4}
"""Bytes of a field's value by its wire type (https://protobuf.dev/programming-guides/encoding)."""

_CONTENTS = (
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
)


def check_fields(raw: bytes) -> None:
    """Refuse a request of too many fields, before it is parsed.

    Args:
        raw: The request's bytes. What is no protobuf is left to the parser.

    Raises:
        RequestError: There are more than any request needs.
    """
    position = count = 0
    while position < len(raw):
        count += 1
        if count > _MAX_FIELDS:
            raise RequestError(f"The message has more than {_MAX_FIELDS} fields.")
        key, position = _varint(raw, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(raw, position)
        elif kind == 2:
            length, position = _varint(raw, position)
            position += length
        else:
            position += _FIXED.get(kind, 0)


def check_parts(request: Any) -> None:
    """Check what the SDK's ``InferRequest.from_grpc`` takes for granted.

    Raises:
        RequestError: A part is not as it must be, or there are too many.
    """
    check_tensors(len(request.inputs), "inputs")
    check_tensors(len(request.outputs), "outputs")
    _check_parameters(request, "The request")
    for tensor in request.inputs:
        _check_input(tensor, f"Input {quote(tensor.name)}")
    for output in request.outputs:
        _check_parameters(output, f"Output {quote(output.name)}")
    for name, value in request.parameters.items():
        # Triton's clients send a fraction as double_param, which the SDK's messages do not have and
        # from_grpc would drop in silence.
        if value.WhichOneof("parameter_choice") is None:
            raise RequestError(f"Parameter {quote(name)} has no value; send fractions as strings.")
    raw = len(request.raw_input_contents)
    if not raw:
        return
    if raw != len(request.inputs):
        raise RequestError(f"There are {raw} raw_input_contents for {len(request.inputs)} inputs.")
    if any(tensor.HasField("contents") for tensor in request.inputs):
        raise RequestError("An input has contents although raw_input_contents are given.")


def _check_input(tensor: Any, where: str) -> None:
    check_datatype(tensor.datatype, where)
    check_dimensions(tensor.shape, where)
    _check_parameters(tensor, where)
    check_count(max(len(getattr(tensor.contents, name)) for name in _CONTENTS), MAX_TEXTS)


def _check_parameters(holder: Any, where: str) -> None:
    if len(holder.parameters) > MAX_TENSORS:
        raise RequestError(f"{where} has more than {MAX_TENSORS} parameters.")


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    value = shift = 0
    for byte in raw[position : position + 10]:
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    return value, len(raw)  # it does not end, which is for the parser to say
