"""One call from its payload to its answer, whatever the protocol.

The model decodes a call, runs `DecodedCall.request` and gives the completions to
`DecodedCall.encode`; which protocol it speaks it need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kserve import InferRequest, InferResponse

from predictor.protocol.http.json_body import parse_document
from predictor.protocol.kserve import encoder_codec, v1, v2
from predictor.protocol.kserve.response_style import OUR_STYLE, ResponseStyle
from predictor.tasks.encoder_spec import EncoderRequest, EncoderTaskSpec
from predictor.tasks.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class DecodedCall:
    """A decoded call and the way back.

    Attributes:
        request: What the call asks for.
        encode: Makes the protocol's answer of one completion for each prompt, or one answer to each
            thing asked, in their order: a dict in V1, an `InferResponse` in V2.
    """

    request: GenerationRequest | EncoderRequest
    encode: Callable[[Sequence[Any]], dict[str, object] | InferResponse]


def decode_call(
    payload: dict[str, object] | bytes | InferRequest,
    *,
    model_name: str,
    model_version: str,
    style: ResponseStyle = OUR_STYLE,
    head: EncoderTaskSpec | None = None,
) -> DecodedCall:
    """Returns the exchange for a payload: V2 for an `InferRequest`, V1 for a JSON object.

    Args:
        payload: What kserve gives to ``Model.preprocess``: an `InferRequest`, a dict, or the body
            as it came (kserve does not decode JSON whose content type has a charset).
        model_name: Name for the response.
        model_version: Version for the response.
        style: What is meant where the payload leaves something open.
        head: What is asked of a model that reads; None of one that generates.

    Raises:
        RequestError: The payload is not a valid request of its protocol.
    """
    names: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if not isinstance(payload, InferRequest):
        document = parse_document(payload) if isinstance(payload, bytes) else payload
        if head is not None:
            return DecodedCall(
                encoder_codec.decode_v1(document, head), partial(encoder_codec.encode_v1, head)
            )
        request = v1.decode(document, style.unsaid)
        return DecodedCall(request, v1.encode_plain if style.plain else v1.encode)
    if head is not None:
        asked = encoder_codec.decode_v2(payload, head)
        return DecodedCall(asked.request, partial(encoder_codec.encode_v2, asked, head, **names))
    call = v2.decode(payload, style.unsaid)
    return DecodedCall(call.request, partial(v2.encode, call, **names))


def signature(head: EncoderTaskSpec | None) -> dict[str, list[dict[str, object]]]:
    """Returns the metadata of a model's inputs and outputs, by these two names."""
    if head is None:
        return {"inputs": v2.inputs(), "outputs": v2.outputs()}
    return {"inputs": encoder_codec.inputs(head), "outputs": encoder_codec.outputs(head)}
