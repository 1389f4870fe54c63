"""V2 tensors, written and read without the server's own code."""

from __future__ import annotations

import json
import struct
from typing import Any

_CODES = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
}
LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, datatype: str, *data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    """Returns an input as REST has it in JSON."""
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": list(data)}


def texts(name: str, *data: str, shape: list[int] | None = None) -> dict[str, Any]:
    """Returns an input of texts as REST has it in JSON."""
    return tensor(name, "BYTES", *data, shape=shape)


def pack(datatype: str, data: list[Any]) -> bytes:
    """Returns the binary form of elements."""
    if datatype != "BYTES":
        return struct.pack(f"<{len(data)}{_CODES[datatype]}", *data)
    rows = [one if isinstance(one, bytes) else one.encode() for one in data]
    return b"".join(struct.pack("<I", len(row)) + row for row in rows)


def unpack(datatype: str, raw: bytes) -> list[Any]:
    """Returns the elements of a binary form."""
    if datatype != "BYTES":
        code = _CODES[datatype]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw))
    rows, offset = [], 0
    while offset < len(raw):
        (length,) = struct.unpack_from("<I", raw, offset)
        rows.append(raw[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return rows


def binary(
    inputs: list[dict[str, Any]], *, cut: int = 0, **document: Any
) -> tuple[bytes, dict[str, str]]:
    """Returns the body and the header of a REST request whose inputs are binary.

    Args:
        inputs: The inputs as in JSON.
        cut: How many bytes are missing at the end.
        document: What else is in the JSON.
    """
    raws = [pack(one["datatype"], one["data"]) for one in inputs]
    heads = [
        {
            **{key: value for key, value in one.items() if key != "data"},
            "parameters": {"binary_data_size": len(raw)},
        }
        for one, raw in zip(inputs, raws, strict=True)
    ]
    head = json.dumps({"inputs": heads, **document}).encode()
    tail = b"".join(raws)
    return head + tail[: len(tail) - cut], {LENGTH: str(len(head))}


def contents(*inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs as gRPC has them in its typed lists."""
    rows = []
    for one in inputs:
        data = [row.encode() if isinstance(row, str) else row for row in one["data"]]
        head = {key: one[key] for key in ("name", "shape", "datatype")}
        rows.append({**head, "contents": {_CONTENTS[one["datatype"]]: data}})
    return {"inputs": rows}


def raw(*inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs as gRPC has them in ``raw_input_contents``."""
    heads = [{key: one[key] for key in ("name", "shape", "datatype")} for one in inputs]
    return {
        "inputs": heads,
        "raw_input_contents": [pack(one["datatype"], one["data"]) for one in inputs],
    }
