"""HTTP endpoints below ``/openai``: the models, completions and chat completions.

The source is OpenAI's API reference as its Python client has it (``openai.types``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.protocol.http.deadline import asked_timeout, counted, while_connected
from predictor.protocol.http.error_forms import openai_error
from predictor.protocol.http.json_body import parse_document
from predictor.protocol.http.sse import event_stream
from predictor.protocol.kserve.rest_inference import read_body
from predictor.protocol.kserve.rest_status import SERVER_NAME, asked
from predictor.protocol.openai.request import Asked, decode_chat, decode_completion, model_name
from predictor.protocol.openai.response import (
    ChatStyle,
    Chunks,
    CompletionStyle,
    Head,
    Style,
    encode,
)
from predictor.protocol.served import Models, find, require_generating

_LAST = "[DONE]"


@dataclass(frozen=True, slots=True)
class OpenAIEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        created: Unix time that is told as the models'.
    """

    models: Models
    created: int = field(default_factory=lambda: int(time.time()))

    async def list_models(self, _request: Request) -> JSONResponse:
        """``GET /openai/v1/models``: the models."""
        rows = [self._row(name) for name in self.models.get_models()]
        return JSONResponse({"object": "list", "data": rows})

    async def model(self, request: Request) -> JSONResponse:
        """``GET /openai/v1/models/{model}``: one model."""
        return JSONResponse(self._row(asked(self.models, request).name))

    async def completions(self, request: Request) -> Response:
        """``POST /openai/v1/completions``: continues prompts."""
        return await self._answer(request, decode_completion, CompletionStyle())

    async def chat_completions(self, request: Request) -> Response:
        """``POST /openai/v1/chat/completions``: replies to a conversation."""
        return await self._answer(request, decode_chat, ChatStyle())

    async def _answer(
        self,
        request: Request,
        decode: Callable[[Mapping[str, object]], Asked],
        style: Style,
    ) -> Response:
        with ExitStack() as count:
            # The body names the model, and may be no JSON at all; there is one model here.
            count.enter_context(counted(next(iter(self.models.get_models()), ""), "openai"))
            document = parse_document(await read_body(request))
            model = find(self.models, model_name(document))
            await require_generating(model)
            wish = decode(document)
            timeout = asked_timeout(request.headers)
            head = Head.new(style, model.name)
            if wish.stream:
                stream = await model.stream(wish.request, timeout)
                events = Chunks(style, head, wish).encode
                return event_stream(
                    count.pop_all(),
                    stream,
                    events,
                    encode_error=openai_error,
                    last=_LAST,
                )
            completions = await while_connected(request, model.answer(wish.request, timeout))
        return JSONResponse(encode(style, head, wish, completions))

    def _row(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": SERVER_NAME}
