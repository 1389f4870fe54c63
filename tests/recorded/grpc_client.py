"""Makes calls over gRPC and returns the answers as JSON values."""

from __future__ import annotations

import base64
import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2

from tests.recorded.forms import Grpc
from tests.recorded.tensors import unpack

_SECONDS = 60
_HEALTH = ("Check", "Watch")


def send(channel: grpc.Channel, call: Grpc) -> dict[str, Any]:
    """Returns the answer, the first message of a stream, or the error."""
    is_health = call.method in _HEALTH
    messages = health_pb2 if is_health else _messages()
    service = "grpc.health.v1.Health" if is_health else "inference.GRPCInferenceService"
    name = "HealthCheck" if is_health else call.method
    # An unknown method is called with the messages of another.
    kind = getattr(messages, f"{name}Request", None) or messages.ServerLiveRequest
    reply = getattr(messages, f"{name}Response", None) or messages.ServerLiveResponse
    make = channel.unary_stream if call.method == "Watch" else channel.unary_unary
    method = make(
        f"/{service}/{call.method}",
        request_serializer=kind.SerializeToString,
        response_deserializer=reply.FromString,
    )
    metadata = tuple(call.metadata.items())
    try:
        answer = method(kind(**call.message), timeout=_SECONDS, metadata=metadata)
        message = next(answer) if call.method == "Watch" else answer
    except grpc.RpcError as error:
        return _refusal(error)
    document = MessageToDict(message, preserving_proto_field_name=True)
    return {"code": "OK", "message": _readable(document)}


@functools.cache
def _messages() -> ModuleType:
    """Returns the protocol's message classes, without importing kserve, which takes seconds."""
    kserve = importlib.util.find_spec("kserve")
    assert kserve is not None
    assert kserve.origin is not None
    file = Path(kserve.origin).parent / "protocol" / "grpc" / "grpc_predict_v2_pb2.py"
    spec = importlib.util.spec_from_file_location("recorded_messages", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refusal(error: Any) -> dict[str, Any]:
    trailing = dict(error.trailing_metadata() or ())
    trailing.pop("x-request-id", None)  # is another each time
    answer = {"code": error.code().name, "details": error.details()}
    return answer | ({"trailing": trailing} if trailing else {})


def _readable(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a message with the bytes of its tensors decoded."""
    outputs = document.get("outputs", [])
    for output in outputs:
        rows = output.get("contents", {}).get("bytes_contents")
        if rows:
            output["contents"]["bytes_contents"] = [base64.b64decode(row).decode() for row in rows]
    raws = document.get("raw_output_contents", [])
    if raws:
        document["raw_output_contents"] = [
            unpack(output["datatype"], base64.b64decode(raw))
            for output, raw in zip(outputs, raws, strict=True)
        ]
    return document
