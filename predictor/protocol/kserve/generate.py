"""The generate extension: one text in, one text out, whole or streamed.

The source is the Open Inference Protocol's ``generate_rest.yaml``. Parameters may stand beside the
text as well, as Triton's clients have them. Statuses for errors are in `error_forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import (
    JSONAnswer,
    check_keys,
    optional,
    parse_document,
    present,
    require_type,
)
from predictor.protocol.http.requests import read_body, resolve_model
from predictor.protocol.http.sse import event_stream
from predictor.protocol.served import Models, ServedModel, require_generating
from predictor.tasks.answers import Completion, Piece, ScoredToken, of_type
from predictor.tasks.parameters import ALL_NAMES, parse_parameters
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt

_NAMES = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "stop": "stop",
    "seed": "seed",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "forced_bos_token_id": "forced_bos_token_id",
    "min_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos",
    "stop_token_ids": "stop_token_ids",
    "allowed_token_ids": "allowed_token_ids",
    "bad_words": "bad_words",
    "add_special_tokens": "add_special_tokens",
    "timeout": "timeout",
}
"""The extension's parameters, and additional ones, with the names of `GenerationParameters`."""

_BESIDE = ("text_input", "id", "parameters", "stream")
_PARAMETERS = (*_NAMES, "details")

_DEFAULT_TEMPERATURE, _DEFAULT_TOKENS = 1.0, 20


@dataclass(frozen=True, slots=True)
class GenerateEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)

    async def generate(self, request: Request) -> Response:
        """``POST /v2/models/{model}/generate``: the whole reply."""
        model = resolve_model(self.models, request)
        with counted(model.name, "generate"):
            await require_generating(model)
            body = await read_body(request)
            typed = await self.codec.run(len(body), decode_body, body)
            call = model.answer(typed, requested_timeout(request.headers))
            (completion,) = of_type(await while_connected(request, call), Completion)
        return JSONAnswer(_about(completion.text, model) | _details(completion))

    async def generate_stream(self, request: Request) -> Response:
        """``POST /v2/models/{model}/generate_stream``: the reply in events as it comes."""
        model = resolve_model(self.models, request)
        with ExitStack() as count:
            count.enter_context(counted(model.name, "generate"))
            await require_generating(model)
            body = await read_body(request)
            typed = await self.codec.run(len(body), decode_body, body, True)
            stream = await model.stream(typed, requested_timeout(request.headers))
            return event_stream(count.pop_all(), stream, Events(model).encode)


def decode_body(body: bytes, streams: bool = False) -> GenerationRequest:
    """Return the request of a body; raises the errors of `decode`."""
    return decode(parse_document(body), streams=streams)


def decode(document: Mapping[str, object], *, streams: bool = False) -> GenerationRequest:
    """Return the request of a body.

    Args:
        document: The body.
        streams: Whether the path is that of streams.

    Raises:
        RequestError: The body is not of the extension's form, or a parameter is wrong.
    """
    given = present(document)
    check_keys(given, (*_BESIDE, *_PARAMETERS), "the body")
    if "text_input" not in given:
        raise RequestError("The body has no 'text_input'.")
    text = require_type(given["text_input"], str, "text_input")
    if optional(given, "stream", bool, "stream") and not streams:
        raise RequestError("stream is true; replies are streamed at generate_stream.")
    return GenerationRequest((Prompt(text, _parameters(_all_parameters(given))),))


class Events:
    """The events of one stream; each has at most one token.

    The schema requires a token beside the finish reason. It is the reply's last one, which an
    earlier event may have had: a token is sent before it is known that none follows.
    """

    def __init__(self, model: ServedModel) -> None:
        """Create the events of a model's reply."""
        self._model = model
        self._last: ScoredToken | None = None

    def encode(self, piece: Piece) -> Iterator[object]:
        """Yield the events of a piece; the text comes with the last of its tokens."""
        for token in piece.tokens[:-1]:
            yield _about("", self._model) | {"token": _token(token)}
        event = _about(piece.text, self._model)
        if piece.tokens:
            self._last = piece.tokens[-1]
            event["token"] = _token(self._last)
        if piece.ending is not None and self._last is not None:
            event["details"] = {"finish_reason": piece.ending, "token": _token(self._last)}
        yield event


def _all_parameters(given: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters in the object of this name, and those beside the text."""
    nested = present(optional(given, "parameters", dict, "parameters") or {})
    check_keys(nested, _PARAMETERS, "parameters")
    flat = {key: value for key, value in given.items() if key in _PARAMETERS}
    for key in flat.keys() & nested.keys():
        raise RequestError(f"{key} is given twice, in the body and in its parameters.")
    return flat | nested


def _parameters(given: Mapping[str, object]) -> GenerationParameters:
    named = {key: value for key, value in given.items() if key in _NAMES}
    if isinstance(named.get("stop"), str):
        named["stop"] = [named["stop"]]
    optional(named, "stop", list, "stop")
    details = optional(given, "details", bool, "details") or False
    specified: dict[str, object] = {"temperature": _DEFAULT_TEMPERATURE}
    specified |= {_NAMES[key]: value for key, value in named.items()}
    try:
        parameters = parse_parameters(specified | ({"logprobs": 0} if details else {}), ALL_NAMES)
    except RequestError as error:
        # Sentences begin with the parameter's name, which is another one for the client.
        raise RequestError(str(error).replace("max_new_tokens", "max_tokens", 1)) from None
    return replace(parameters, default_new_tokens=_DEFAULT_TOKENS)


def _about(text: str, model: ServedModel) -> dict[str, object]:
    return {"text_output": text, "model_name": model.name, "model_version": model.version}


def _details(completion: Completion) -> dict[str, object]:
    if not completion.tokens:
        return {}
    logprobs = [_token(token) for token in completion.tokens]
    return {"details": {"finish_reason": completion.ending, "logprobs": logprobs}}


def _token(token: ScoredToken) -> dict[str, object]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
    }
