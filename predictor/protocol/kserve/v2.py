"""The V2 protocol's inference request and response, over REST and gRPC alike.

Works on the SDK's `InferRequest` and `InferResponse`; how these become bytes is left to
`rest_codec` and to the SDK's gRPC conversion. The prompt is the one BYTES input that is not named
as a parameter: the metadata calls it ``text``, but clients of KServe's own Hugging Face server say
``input-0``, so any name will do. Each generation parameter may be an input too; the protocol's
metadata cannot mark an input as optional, so `inputs` lists the prompt only.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import to_http_parameters

from predictor.errors import RequestError, nearest
from predictor.protocol.http.json_body import check_count
from predictor.protocol.kserve.tensors import elements, size_of
from predictor.protocol.kserve.v2_parameters import parse_v2_parameters
from predictor.sentences import quote
from predictor.tasks.parameters import NAMES
from predictor.tasks.request import (
    UNSAID,
    Completion,
    GenerationParameters,
    GenerationRequest,
    Prompt,
)

_PROMPT = "text"
_OUTPUTS = {
    "text": "BYTES",
    "finish_reason": "BYTES",
    "prompt_tokens": "INT32",
    "completion_tokens": "INT32",
}
"""The outputs, named as the fields of `Completion`, and their data types."""


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded V2 request and what its response takes over from it.

    Attributes:
        request: What the call asks for.
        id: The request's id, or a new one if it had none.
        shape: Shape of the prompt tensor, which is that of every output.
        outputs: Names of the outputs to answer with, in this order.
        raw: Whether the outputs go into gRPC's ``raw_output_contents``.
    """

    request: GenerationRequest
    id: str
    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    raw: bool


def inputs() -> list[dict[str, object]]:
    """Returns the metadata of the inputs: name, datatype, shape."""
    return [{"name": _PROMPT, "datatype": "BYTES", "shape": [-1]}]


def outputs() -> list[dict[str, object]]:
    """Returns the metadata of the outputs: name, datatype, shape."""
    return [
        {"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in _OUTPUTS.items()
    ]


def decode(request: InferRequest, unsaid: GenerationParameters = UNSAID) -> Call:
    """Returns what a V2 request asks for.

    Args:
        request: The request.
        unsaid: What holds where it says nothing.

    Raises:
        RequestError: The tensors do not make a request: there is no prompt or more than one tensor
            that could be it, a tensor is malformed, a parameter wrong, an output unknown.
    """
    prompt, parameter_tensors = _tell_apart(request.inputs)
    check_count(size_of(prompt.shape, f"Input {quote(prompt.name)}"))
    texts = [str(text) for text in elements(prompt)]
    if not texts:
        raise RequestError(f"Input {quote(prompt.name)} has no element; give at least one prompt.")
    given = to_http_parameters(request.parameters or {})
    parameters = parse_v2_parameters(given, parameter_tensors, len(texts), unsaid)
    prompts = tuple(Prompt(*pair) for pair in zip(texts, parameters, strict=True))
    return Call(
        request=GenerationRequest(prompts),
        id=request.id or str(uuid.uuid4()),
        shape=tuple(prompt.shape),
        outputs=_requested(request.request_outputs or ()),
        raw=request.from_grpc and request.use_binary_outputs,
    )


def encode(
    call: Call, completions: Sequence[Completion], *, model_name: str, model_version: str
) -> InferResponse:
    """Returns the response for one completion per prompt, with the outputs that were asked for."""
    if len(completions) != len(call.request.prompts):
        raise ValueError(f"{len(completions)} completions, {len(call.request.prompts)} prompts")
    return InferResponse(
        response_id=call.id,
        model_name=model_name,
        model_version=model_version,
        infer_outputs=[_output(name, call.shape, completions) for name in call.outputs],
        use_binary_outputs=call.raw,
    )


def _output(name: str, shape: tuple[int, ...], completions: Sequence[Completion]) -> InferOutput:
    data = [getattr(completion, name) for completion in completions]
    return InferOutput(name=name, shape=list(shape), datatype=_OUTPUTS[name], data=data)


def _tell_apart(tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns the prompt tensor and the parameter tensors."""
    _check_names(tensors)
    for tensor in tensors:
        _check_own_parameters(tensor)
    others = [tensor for tensor in tensors if tensor.name not in NAMES]
    strange = [tensor for tensor in others if tensor.datatype != "BYTES"]
    if strange:
        name = strange[0].name
        hint = nearest(name, NAMES)
        raise RequestError(f"Input {quote(name)} is neither BYTES nor a parameter; {hint}")
    if len(others) != 1:
        count = "none" if not others else " and ".join(quote(other.name) for other in others[:2])
        raise RequestError(f"inputs must have one BYTES tensor of prompts; here there is {count}.")
    return others[0], [tensor for tensor in tensors if tensor.name in NAMES]


def _check_own_parameters(tensor: Any) -> None:
    for name in tensor.parameters or {}:
        if name in NAMES:
            place = f"input {quote(tensor.name)}"
            raise RequestError(f"{name} is a parameter of the request, not of {place}.")


def _check_names(tensors: Sequence[Any]) -> None:
    if not tensors:
        raise RequestError("inputs is empty; give a BYTES tensor with at least one prompt.")
    check_once([tensor.name for tensor in tensors], "Input")


def _requested(requested: Sequence[Any]) -> tuple[str, ...]:
    names = [output.name for output in requested]
    for name in names:
        if name not in _OUTPUTS:
            known = ", ".join(_OUTPUTS)
            raise RequestError(f"There is no output {quote(name)}; known are {known}.")
    check_once(names, "Output")
    return tuple(names or _OUTPUTS)


def check_once(names: Sequence[str], what: str) -> None:
    """Checks that no name is there twice.

    Raises:
        RequestError: One is.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RequestError(f"{what} {quote(name)} is there twice.")
        seen.add(name)
