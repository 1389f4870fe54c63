"""One call from its payload to its answer, whatever the protocol.

The model opens an exchange, runs `Exchange.request` and gives the completions to `Exchange.encode`;
which protocol it speaks it need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kserve import InferRequest, InferResponse

from predictor.protocol import v1, v2
from predictor.protocol.document import parse_document
from predictor.protocol.style import OUR_STYLE, Style
from predictor.tasks.request import Completion, GenerationRequest


@dataclass(frozen=True, slots=True)
class Exchange:
    """A decoded call and the way back.

    Attributes:
        request: What the call asks for.
        encode: Makes the protocol's answer of one completion for each prompt, in the prompts'
            order: a dict in V1, an `InferResponse` in V2.
    """

    request: GenerationRequest
    encode: Callable[[Sequence[Completion]], dict[str, object] | InferResponse]


def open_exchange(
    payload: dict[str, object] | bytes | InferRequest,
    *,
    model_name: str,
    model_version: str,
    style: Style = OUR_STYLE,
) -> Exchange:
    """Returns the exchange for a payload: V2 for an `InferRequest`, V1 for a JSON object.

    Args:
        payload: What kserve gives to ``Model.preprocess``: an `InferRequest`, a dict, or the body
            as it came (kserve does not decode JSON whose content type has a charset).
        model_name: Name for the response.
        model_version: Version for the response.
        style: What is meant where the payload leaves something open.

    Raises:
        RequestError: The payload is not a valid request of its protocol.
    """
    if isinstance(payload, InferRequest):
        call = v2.decode(payload, style.unsaid)
        encode = partial(v2.encode, call, model_name=model_name, model_version=model_version)
        return Exchange(call.request, encode)
    document = parse_document(payload) if isinstance(payload, bytes) else payload
    request = v1.decode(document, style.unsaid)
    return Exchange(request, v1.encode_plain if style.plain else v1.encode)
