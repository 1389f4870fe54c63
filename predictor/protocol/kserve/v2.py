"""The V2 protocol's inference request and response, over REST and gRPC alike.

Works on the SDK's `InferRequest` and `InferResponse`; `rest_codec` and the SDK's gRPC conversion
turn these into bytes. Which input tensor is which field is decided in `v2_inputs`, the parameters
in `v2_parameters`, the output tensors of an answer in `v2_answers`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse

from predictor.errors import RequestError
from predictor.protocol.kserve.kserve_answers import kserve_columns
from predictor.protocol.kserve.open_shapes import close_shape
from predictor.protocol.kserve.v2_answers import columns
from predictor.protocol.kserve.v2_inputs import check_once, decode_inputs
from predictor.protocol.kserve.v2_parameters import decode_parameters
from predictor.protocol.kserve_spec import OUTPUT
from predictor.protocol.sdk import to_http_parameters
from predictor.sentences import quote
from predictor.tasks.answers import Answer
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import RawInstance, TaskSpec


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """Everything that a response depends on besides the answers.

    Attributes:
        datatypes: The data types of the task's outputs, by name.
        id: The request's id, or a new one if it had none.
        shape: Shape of the tensor of the task's first field.
        outputs: Names of the requested outputs, in order; empty for all.
        raw: Whether the outputs go into gRPC's ``raw_output_contents``.
    """

    datatypes: Mapping[str, str]
    id: str
    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    raw: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded V2 request: the typed request and the form of its response."""

    request: TaskRequest
    form: ResponseForm


def signature(spec: TaskSpec) -> dict[str, list[dict[str, object]]]:
    """Return the metadata of a model's inputs and outputs, by these two names.

    The protocol cannot mark an input as optional, so only the required fields are listed.
    """
    return {
        "inputs": [
            {"name": field.name, "datatype": "BYTES", "shape": [-1]}
            for field in spec.fields
            if field.required
        ],
        "outputs": [
            {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
            for output in spec.outputs
        ],
    }


def decode(request: InferRequest, spec: TaskSpec) -> Call:
    """Return the typed request of a V2 request.

    Args:
        request: The request.
        spec: The model's task.

    Raises:
        RequestError: The tensors do not fit the task's fields, a tensor is malformed, a parameter
            wrong or an output unknown.
    """
    for tensor in request.inputs:
        close_shape(tensor)
    inputs = decode_inputs(request.inputs, spec)
    outputs = tuple(output.name for output in request.request_outputs or ())
    parameters = decode_parameters(
        to_http_parameters(request.parameters or {}), inputs.parameters, inputs.count
    )
    shared = parameters.shared | _added_by(outputs, spec)
    instances = (RawInstance(inputs.row(n), parameters.row(n)) for n in range(inputs.count))
    form = ResponseForm(
        datatypes={output.name: output.datatype for output in spec.outputs},
        id=request.id or str(uuid.uuid4()),
        shape=inputs.shape,
        outputs=outputs,
        raw=request.from_grpc and request.use_binary_outputs,
    )
    return Call(spec.request(shared, instances), form)


def encode(
    form: ResponseForm, answers: Sequence[Answer], *, model_name: str, model_version: str
) -> InferResponse:
    """Return the response, with the outputs that were requested.

    Args:
        form: The response's form.
        answers: The answers, in the order of the instances.
        model_name: Name for the response.
        model_version: Version for the response.
    """
    make = kserve_columns if OUTPUT in form.datatypes else columns
    by_name = make(answers, form.shape)
    return InferResponse(
        response_id=form.id,
        model_name=model_name,
        model_version=model_version,
        infer_outputs=[
            InferOutput(
                name=name,
                shape=list(by_name[name].shape),
                datatype=by_name[name].datatype or form.datatypes[name],
                data=list(by_name[name].data),
            )
            for name in form.outputs or by_name
        ],
        use_binary_outputs=form.raw,
    )


def _added_by(names: Sequence[str], spec: TaskSpec) -> dict[str, Any]:
    """Return the parameters that add the requested outputs to an answer.

    Raises:
        RequestError: An output is unknown or requested twice.
    """
    outputs = {output.name: output.requested_by for output in spec.outputs}
    for name in names:
        if name not in outputs:
            raise RequestError(f"There is no output {quote(name)}; known are {', '.join(outputs)}.")
    check_once(names, "Output")
    parameters = (outputs[name] for name in names)
    return {parameter: True for parameter in parameters if parameter is not None}
