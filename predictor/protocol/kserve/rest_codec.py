"""V2 over HTTP: a body becomes an `InferRequest`, an `InferResponse` becomes a body.

Both in the two forms of the protocol: JSON alone, or JSON followed by the tensors' bytes (the
binary tensor data extension), where the header ``Inference-Header-Content-Length`` says where the
JSON ends. This module checks the JSON's structure; whether a tensor's shape, data type and data
agree is checked in `tensors`, once for every transport. Keys that the protocol does not know are
refused, but for the model's name and version, which the SDK's own client sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import orjson
from kserve import InferInput, InferRequest, InferResponse

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_keys,
    optional,
    parse_document,
    require_type,
)
from predictor.protocol.kserve.tensors import check_tensors, to_raw
from predictor.protocol.sdk import RequestedOutput

_KEYS = ("id", "inputs", "outputs", "parameters", "model_name", "model_version")
_TENSOR_KEYS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_KEYS = ("name", "parameters")

LENGTH_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class BinaryOutputs:
    """The outputs that a request wants as binary data.

    Attributes:
        usual: Whether those are binary that are not in `own`.
        own: Whether an output is binary, by name.
    """

    usual: bool
    own: Mapping[str, bool]

    @classmethod
    def of(cls, request: InferRequest) -> BinaryOutputs:
        """Return what a request says of them.

        An output is binary if its own ``binary_data`` is true, or, if it has none, if the request's
        ``binary_data_output`` is. (The SDK ignores the latter once outputs are named.)
        """
        own = {
            output.name: output.parameters["binary_data"]
            for output in request.request_outputs or ()
            if "binary_data" in output.parameters
        }
        return cls(bool((request.parameters or {}).get("binary_data_output", False)), own)

    def has(self, name: str) -> bool:
        """Return whether an output is binary."""
        return self.own.get(name, self.usual)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response's body and the headers that describe its form."""

    body: bytes
    headers: dict[str, str]


def parse_infer_request(body: bytes, *, header_length: str | None) -> InferRequest:
    """Return the request in an HTTP body, without the model's name, which is in the path.

    Args:
        body: The whole body.
        header_length: Value of the header ``Inference-Header-Content-Length``, if it was sent.

    Raises:
        RequestError: The body is not a V2 inference request.
    """
    end = len(body) if header_length is None else _json_length(header_length, len(body))
    document = parse_document(body[:end])
    check_keys(document, _KEYS, "the body")
    if "inputs" not in document:
        raise RequestError("The body has no 'inputs'.")
    items = require_type(document["inputs"], list, "inputs")
    check_tensors(len(items), "inputs")
    tensors = [_tensor(item, f"inputs[{number}]") for number, item in enumerate(items)]
    return InferRequest(
        model_name="",
        request_id=optional(document, "id", str, "id"),
        infer_inputs=tensors,
        raw_inputs=_raw_inputs(tensors, body[end:], is_announced=header_length is not None),
        parameters=_parameters(document, "parameters"),
        request_outputs=_requested_outputs(document),
    )


def encode_infer_response(response: InferResponse, binary: BinaryOutputs) -> Encoded:
    """Return the response in the form that its request chose."""
    outputs: list[dict[str, object]] = []
    raws: list[bytes] = []
    for output in response.outputs:
        form: dict[str, object] = {"data": output.data}
        if binary.has(output.name):
            raws.append(to_raw(output.data, output.datatype))
            form = {"parameters": {"binary_data_size": len(raws[-1])}}
        about = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        outputs.append({**about, **form})
    document = {
        "id": response.id,
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    header = orjson.dumps(document)
    if not raws:
        return Encoded(header, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(header))}
    return Encoded(b"".join((header, *raws)), headers)


def _json_length(header: str, length: int) -> int:
    if not (header.isascii() and header.isdigit() and len(header) <= 18):
        raise RequestError(f"The header {LENGTH_HEADER} must be a whole number.")
    if int(header) > length:
        raise RequestError(f"The header {LENGTH_HEADER} is {header}; the body has {length} bytes.")
    return int(header)


def _tensor(item: object, where: str) -> InferInput:
    given = require_type(item, dict, where)
    check_keys(given, _TENSOR_KEYS, where)
    for key in ("name", "shape", "datatype"):
        if key not in given:
            raise RequestError(f"{where} has no {key!r}.")
    parameters = _parameters(given, f"{where}.parameters")
    _check_data(given, parameters, where)
    return InferInput(
        name=require_type(given["name"], str, f"{where}.name"),
        shape=require_type(given["shape"], list, f"{where}.shape"),
        datatype=require_type(given["datatype"], str, f"{where}.datatype"),
        data=optional(given, "data", list, f"{where}.data"),
        parameters=parameters,
    )


def _check_data(given: Mapping[str, object], parameters: Mapping[str, object], where: str) -> None:
    is_binary = "binary_data_size" in parameters
    if is_binary and "data" in given:
        raise RequestError(f"{where} has both 'data' and 'binary_data_size'.")
    if not is_binary and "data" not in given:
        raise RequestError(f"{where} has no 'data'.")
    if is_binary:
        size = require_type(parameters["binary_data_size"], int, f"{where}'s binary_data_size")
        if size < 0:
            raise RequestError(f"{where}'s binary_data_size is below 0.")


def _raw_inputs(
    tensors: Sequence[InferInput], tail: bytes, *, is_announced: bool
) -> list[bytes | None]:
    """Return the bytes of each tensor, ``None`` for one whose data is in the JSON."""
    sizes = [tensor.parameters.get("binary_data_size") for tensor in tensors]
    ends = list(accumulate(size or 0 for size in sizes))
    needed = ends[-1] if ends else 0
    if not is_announced and any(size is not None for size in sizes):
        raise RequestError(f"A request with binary data needs the header {LENGTH_HEADER}.")
    if needed != len(tail):
        raise RequestError(f"The inputs need {needed} bytes of binary data; there are {len(tail)}.")
    return [
        None if size is None else tail[end - size : end]
        for size, end in zip(sizes, ends, strict=True)
    ]


def _requested_outputs(document: Mapping[str, object]) -> list[RequestedOutput]:
    outputs: list[object] = optional(document, "outputs", list, "outputs") or []
    check_tensors(len(outputs), "outputs")
    return [_requested_output(item, f"outputs[{number}]") for number, item in enumerate(outputs)]


def _requested_output(item: object, where: str) -> RequestedOutput:
    given = require_type(item, dict, where)
    check_keys(given, _OUTPUT_KEYS, where)
    if "name" not in given:
        raise RequestError(f"{where} has no 'name'.")
    name = require_type(given["name"], str, f"{where}.name")
    return RequestedOutput(name, _parameters(given, f"{where}.parameters"))


def _parameters(holder: Mapping[str, object], where: str) -> dict[str, object]:
    parameters: dict[str, object] = optional(holder, "parameters", dict, where) or {}
    for name in ("binary_data", "binary_data_output"):
        if name in parameters:
            require_type(parameters[name], bool, f"{where}.{name}")
    return parameters
