"""HTTP endpoints of OpenAI's API: the models, completions and chat completions.

The source is OpenAI's API reference as its Python client has it (``openai.types``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.error_forms import openai_error
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body, resolve_model
from predictor.protocol.http.sse import event_stream
from predictor.protocol.openai.keys import IgnoredKeys
from predictor.protocol.openai.request import Call, decode_body, decode_chat, decode_completion
from predictor.protocol.openai.response import (
    ChatFormat,
    Chunks,
    CompletionFormat,
    Envelope,
    Format,
    encode,
)
from predictor.protocol.served import (
    Models,
    find,
    model_list,
    model_row,
    require_generating,
)
from predictor.tasks.answers import Completion, json_size, of_type

_LAST = "[DONE]"


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
        return await self._answer(request, decode_completion, CompletionFormat())

    async def chat_completions(self, request: Request) -> Response:
        """``POST {prefix}/v1/chat/completions``: replies to a conversation."""
        return await self._answer(request, decode_chat, ChatFormat())

    async def _answer(
        self,
        request: Request,
        decode: Callable[[Mapping[str, object]], Call],
        form: Format,
    ) -> Response:
        with ExitStack() as count:
            # The body names the model, and may be no JSON at all; until it is read, it is the base.
            base = next(iter(self.models.get_models()), "")
            counting = count.enter_context(counted(base, "openai"))
            body = await read_body(request)
            name, call = await self.codec.run(len(body), decode_body, body, decode)
            model = find(self.models, name)
            counting.model_name = model.name
            await require_generating(model)
            if isinstance(call, RequestError):
                raise call
            self.ignored.log(call.ignored)
            timeout = requested_timeout(request.headers)
            envelope = Envelope.new(form, model.name)
            if call.stream:
                stream = await model.stream(call.request, timeout)
                events = Chunks(form, envelope, call).encode
                return event_stream(
                    count.pop_all(),
                    stream,
                    events,
                    encode_error=openai_error,
                    last=_LAST,
                )
            answers = await while_connected(request, model.answer(call.request, timeout))
            completions = of_type(answers, Completion)
            return await off_loop(
                json_size(answers),
                lambda: JSONAnswer(encode(form, envelope, call, completions)),
            )
