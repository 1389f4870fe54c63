"""A V1 or V2 payload as the SDK gives it to a model: decoded, with the way back.

Only `PredictorModel.preprocess` needs this, for callers that use the model as a ``kserve.Model``.
Our own endpoints know which protocol they speak and call `v1` or `v2` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kserve import InferRequest, InferResponse

from predictor.protocol.http.json_body import parse_document
from predictor.protocol.kserve import v1, v2
from predictor.protocol.response_style import OUR_STYLE, ResponseStyle
from predictor.tasks.answers import Answer
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import TaskSpec


@dataclass(frozen=True, slots=True)
class DecodedCall:
    """A decoded payload.

    Attributes:
        request: The typed request.
        encode: Encodes the answers, in the order of the instances: a dict in V1, an
            `InferResponse` in V2.
    """

    request: TaskRequest
    encode: Callable[[Sequence[Answer]], dict[str, object] | InferResponse]


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A decoded payload and its answers, in order."""

    call: DecodedCall
    answers: tuple[Answer, ...]


def decode_call(
    payload: dict[str, object] | bytes | InferRequest,
    *,
    model_name: str,
    model_version: str,
    spec: TaskSpec | None = None,
    style: ResponseStyle = OUR_STYLE,
) -> DecodedCall:
    """Return a decoded payload: V2 for an `InferRequest`, V1 for a JSON object.

    Args:
        payload: The argument of ``Model.preprocess``: an `InferRequest`, a dict, or the body as it
            came (kserve does not decode JSON whose content type has a charset).
        model_name: Name for the response.
        model_version: Version for the response.
        spec: The model's task; None for generation.
        style: How V1 answers.

    Raises:
        RequestError: The payload is not a valid request of its protocol.
    """
    spec = spec or GenerationSpec(style.defaults)
    if isinstance(payload, InferRequest):
        call = v2.decode(payload, spec)
        encode_v2 = partial(
            v2.encode, call.form, model_name=model_name, model_version=model_version
        )
        return DecodedCall(call.request, encode_v2)
    document = parse_document(payload) if isinstance(payload, bytes) else payload
    encode_v1 = partial(v1.encode, predictions=style.predictions)
    return DecodedCall(v1.decode(document, spec), encode_v1)
