"""HTTP endpoints of OpenAI's API: the models, completions, chat completions and responses.

The source is OpenAI's API reference as its Python client has it (``openai.types``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.requests import resolve_model
from predictor.protocol.openai.answering import Answering
from predictor.protocol.openai.keys import IgnoredKeys
from predictor.protocol.openai.request import decode_chat, decode_completion
from predictor.protocol.openai.response import ChatFormat, ChoicesForm, CompletionFormat
from predictor.protocol.openai.responses.events import ResponseForm
from predictor.protocol.openai.responses.request import decode_response
from predictor.protocol.served import Models, model_list, model_row


@dataclass(frozen=True, slots=True)
class OpenAIEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests.
        created: Unix time that the models' objects have.
        ignored: Logs the keys that are not followed.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)
    created: int = field(default_factory=lambda: int(time.time()))
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def list_models(self, _request: Request) -> JSONAnswer:
        """``GET {prefix}/v1/models``: the models."""
        return JSONAnswer(model_list(self.models, self.created))

    async def model(self, request: Request) -> JSONAnswer:
        """``GET {prefix}/v1/models/{model}``: one model."""
        return JSONAnswer(model_row(resolve_model(self.models, request).name, self.created))

    async def completions(self, request: Request) -> Response:
        """``POST {prefix}/v1/completions``: continues prompts."""
        form = ChoicesForm(CompletionFormat())
        return await self._answering().answer(request, decode_completion, form)

    async def chat_completions(self, request: Request) -> Response:
        """``POST {prefix}/v1/chat/completions``: replies to a conversation."""
        return await self._answering().answer(request, decode_chat, ChoicesForm(ChatFormat()))

    async def responses(self, request: Request) -> Response:
        """``POST {prefix}/v1/responses``: replies to items of a conversation."""
        return await self._answering().answer(request, decode_response, ResponseForm())

    def _answering(self) -> Answering:
        return Answering(self.models, self.codec, self.ignored)
