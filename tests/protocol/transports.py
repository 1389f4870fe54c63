"""The same V2 request in every form it can travel in, built by the SDK's and Triton's own means."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from kserve import InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from predictor.protocol.kserve.rest_codec import parse_infer_request
from predictor.protocol.kserve.tensors import to_raw

_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@dataclass
class Tensor:
    name: str
    datatype: str
    data: list[Any]
    shape: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape = self.shape or [len(self.data)]


def parsed(document: Any, tail: bytes = b"", header: str | None = None) -> InferRequest:
    """The request in a body as our own codec reads it."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail and header is None:
        header = str(len(body))
    return parse_infer_request(body + tail, header_length=header)


def as_json(tensors: list[Tensor], parameters: dict[str, Any]) -> InferRequest:
    inputs = [vars(tensor) for tensor in tensors]
    return parsed({"inputs": inputs, "parameters": parameters})


def as_nested_json(tensors: list[Tensor], parameters: dict[str, Any]) -> InferRequest:
    inputs = [
        {"name": t.name, "datatype": t.datatype, "shape": [1, *t.shape], "data": [t.data]}
        for t in tensors
    ]
    return parsed({"inputs": inputs, "parameters": parameters})


def as_binary(tensors: list[Tensor], parameters: dict[str, Any]) -> InferRequest:
    raws = [to_raw(tensor.data, tensor.datatype) for tensor in tensors]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for tensor, raw in zip(tensors, raws, strict=True)
    ]
    document = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    return parsed(document, b"".join(raws), str(len(document)))


def as_grpc_contents(tensors: list[Tensor], parameters: dict[str, Any]) -> InferRequest:
    message = _message(tensors, parameters)
    for tensor, sent in zip(tensors, message.inputs, strict=True):
        data = [v.encode() if isinstance(v, str) else v for v in tensor.data]
        getattr(sent.contents, _CONTENTS[tensor.datatype]).extend(data)
    return InferRequest.from_grpc(_over_the_wire(message))


def as_grpc_raw(tensors: list[Tensor], parameters: dict[str, Any]) -> InferRequest:
    message = _message(tensors, parameters)
    message.raw_input_contents.extend(to_raw(t.data, t.datatype) for t in tensors)
    return InferRequest.from_grpc(_over_the_wire(message))


ALL = (as_json, as_nested_json, as_binary, as_grpc_contents, as_grpc_raw)


def _message(tensors: list[Tensor], parameters: dict[str, Any]) -> Any:
    inputs = [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors]
    message = pb.ModelInferRequest(model_name="m", inputs=inputs)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}.get(type(value))
        if kind is None:  # a fraction or a list: gRPC has strings for them only
            value, kind = json.dumps(value), "string_param"
        setattr(message.parameters[name], kind, value)
    return message


def _over_the_wire(message: Any) -> Any:
    return pb.ModelInferRequest.FromString(message.SerializeToString())


def single_precision(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])
