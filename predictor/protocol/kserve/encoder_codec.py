"""V1 and V2 for the tasks that read texts: the same two forms for all, by what a head says.

V1: an instance is a string, the head's first field, or an object with the fields by name, and
optional ``parameters`` of its own, which override the request's. V2: each field is a BYTES input of
n elements, or of one that holds for all n; where one field is required, a lone input may have any
name. Parameters are the request's. What they mean, and what is answered, is the head's business
(`predictor.tasks.encoder_spec`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import to_http_parameters

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, check_keys, kind, require_type
from predictor.protocol.kserve.tensors import elements, size_of
from predictor.protocol.kserve.v2 import check_once
from predictor.protocol.kserve.v2_parameters import PROTOCOL_PARAMETERS, fraction
from predictor.sentences import quote
from predictor.tasks.encoder_spec import Ask, Column, EncoderRequest, EncoderTaskSpec
from predictor.tasks.parameters import timeout

_TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """A decoded V2 request and what its response takes over from it.

    Attributes:
        request: What the call asks for.
        id: The request's id, or a new one if it had none.
        outputs: Names of the outputs to answer with, in this order; empty for all.
        raw: Whether the outputs go into gRPC's ``raw_output_contents``.
    """

    request: EncoderRequest
    id: str
    outputs: tuple[str, ...]
    raw: bool


def inputs(head: EncoderTaskSpec) -> list[dict[str, object]]:
    """Returns the metadata of a head's inputs: name, datatype, shape."""
    return [
        {"name": field.name, "datatype": "BYTES", "shape": [-1]}
        for field in head.fields
        if field.required
    ]


def outputs(head: EncoderTaskSpec) -> list[dict[str, object]]:
    """Returns the metadata of a head's outputs: name, datatype, shape."""
    return [
        {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        for output in head.outputs
    ]


def decode_v1(document: Mapping[str, object], head: EncoderTaskSpec) -> EncoderRequest:
    """Returns the request of a V1 body.

    Raises:
        RequestError: The body is not of the form above, or a field or parameter is wrong.
    """
    check_keys(document, ("instances", "parameters"), "the body")
    if "instances" not in document:
        raise RequestError("The body has no 'instances'.")
    instances = require_type(document["instances"], list, "instances")
    if not instances:
        raise RequestError("instances is empty; give at least one.")
    check_count(len(instances))
    shared = dict(require_type(document.get("parameters", {}), dict, "parameters"))
    limit = _timeout(shared)
    return EncoderRequest(
        tuple(
            decode_instance(instance, f"instances[{number}]", head, shared)
            for number, instance in enumerate(instances)
        ),
        limit,
    )


def decode_instance(
    instance: object, where: str, head: EncoderTaskSpec, shared: Mapping[str, object]
) -> Ask:
    """Returns what a V1 instance asks.

    Args:
        instance: A string, or an object with fields.
        where: What it is called in sentences.
        head: Whose fields they are.
        shared: Parameters that hold where the instance has none of its own.

    Raises:
        RequestError: It is neither, or a field or parameter is wrong.
    """
    if isinstance(instance, str):
        instance = {head.fields[0].name: instance}
    if not isinstance(instance, dict):
        raise RequestError(f"{where} must be a string or an object, not {kind(instance)}.")
    keys = {key: field.name for field in head.fields for key in (field.name, *field.aliases)}
    check_keys(instance, (*keys, "parameters"), where)
    own = require_type(instance.get("parameters", {}), dict, f"{where}.parameters")
    fields: dict[str, str] = {}
    for key, value in instance.items():
        if key == "parameters":
            continue
        if keys[key] in fields:
            raise RequestError(f"{where} has its {keys[key]} twice.")
        fields[keys[key]] = require_type(value, str, f"{where}.{key}")
    for field in head.fields:
        if field.required and field.name not in fields:
            raise RequestError(f"{where} has no {field.name!r}.")
    try:
        return head.decode(fields, {**shared, **own})
    except RequestError as error:
        raise RequestError(f"{where}: {error}" if own else str(error)) from None


def encode_v1(head: EncoderTaskSpec, answers: Sequence[Any]) -> dict[str, object]:
    """Returns the V1 response for answers, in their order."""
    return {"predictions": [head.prediction(answer) for answer in answers]}


def decode_v2(request: InferRequest, head: EncoderTaskSpec) -> EncoderCall:
    """Returns what a V2 request asks for.

    Raises:
        RequestError: It has not the inputs that the head takes, or a parameter is wrong.
    """
    if not request.inputs:
        raise RequestError("inputs is empty; give a BYTES tensor with at least one text.")
    check_once([tensor.name for tensor in request.inputs], "Input")
    tensors = _by_field(request.inputs, head)
    sizes = {
        name: size_of(tensor.shape, f"Input {quote(tensor.name)}")
        for name, tensor in tensors.items()
    }
    count = max(sizes.values())
    check_count(count)
    for name, size in sizes.items():
        if size not in (1, count):
            counts = "1" if count == 1 else f"1 or {count}"
            raise RequestError(f"Input {quote(name)} has {size} elements instead of {counts}.")
    if not count:
        raise RequestError("The inputs have no element; give at least one text.")
    texts = {name: [str(text) for text in elements(tensor)] for name, tensor in tensors.items()}
    parameters = _parameters(request)
    limit = _timeout(parameters)
    named = _requested(request.request_outputs or (), head, parameters)
    asks = tuple(
        head.decode(
            {name: own[row if len(own) > 1 else 0] for name, own in texts.items()}, parameters
        )
        for row in range(count)
    )
    return EncoderCall(
        request=EncoderRequest(asks, limit),
        id=request.id or str(uuid.uuid4()),
        outputs=named,
        raw=request.from_grpc and request.use_binary_outputs,
    )


def encode_v2(
    call: EncoderCall,
    head: EncoderTaskSpec,
    answers: Sequence[Any],
    *,
    model_name: str,
    model_version: str,
) -> InferResponse:
    """Returns the response for one answer to each thing asked."""
    columns = {column.name: column for column in head.columns(answers)}
    return InferResponse(
        response_id=call.id,
        model_name=model_name,
        model_version=model_version,
        infer_outputs=[_output(columns[name]) for name in call.outputs or columns],
        use_binary_outputs=call.raw,
    )


def _output(column: Column) -> InferOutput:
    return InferOutput(
        name=column.name,
        shape=list(column.shape),
        datatype=column.datatype,
        data=list(column.data),
    )


def _by_field(tensors: Sequence[Any], head: EncoderTaskSpec) -> dict[str, Any]:
    """The input of each field."""
    required = [field.name for field in head.fields if field.required]
    names = [field.name for field in head.fields]
    found = {tensor.name: tensor for tensor in tensors if tensor.name in names}
    strange = [tensor for tensor in tensors if tensor.name not in names]
    if len(required) == 1 and len(strange) == 1 and required[0] not in found:
        found[required[0]] = strange.pop()
    if strange:
        known = ", ".join(names)
        raise RequestError(f"There is no input {quote(strange[0].name)}; known are {known}.")
    for name in required:
        if name not in found:
            raise RequestError(f"inputs has no {name!r}.")
    for tensor in found.values():
        if tensor.datatype != "BYTES":
            raise RequestError(
                f"Input {quote(tensor.name)} must be BYTES, not {quote(tensor.datatype)}."
            )
    return found


def _parameters(request: InferRequest) -> dict[str, object]:
    given = to_http_parameters(request.parameters or {})
    return {
        name: fraction(name, value)
        for name, value in given.items()
        if name not in PROTOCOL_PARAMETERS
    }


def _timeout(parameters: dict[str, object]) -> float | None:
    """Takes the time limit out of parameters."""
    said = parameters.pop(_TIMEOUT, None)
    return None if said is None else timeout(_TIMEOUT, said)


def _requested(
    requested: Sequence[Any], head: EncoderTaskSpec, parameters: dict[str, object]
) -> tuple[str, ...]:
    """The outputs by name; what is only answered where a parameter asks is asked for by it."""
    known = {output.name: output for output in head.outputs}
    names = [output.name for output in requested]
    for name in names:
        if name not in known:
            raise RequestError(f"There is no output {quote(name)}; known are {', '.join(known)}.")
        asked_by = known[name].asked_by
        if asked_by is not None:
            parameters[asked_by] = True
    check_once(names, "Output")
    return tuple(names)
