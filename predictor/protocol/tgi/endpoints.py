"""HTTP endpoints of Text Generation Inference: ``/generate``, ``/generate_stream`` and ``POST /``.

The source is TGI 3.3 (``router/src/server.rs``). Errors have TGI's form (`error_forms`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body
from predictor.protocol.http.sse import event_stream
from predictor.protocol.openai.keys import IgnoredKeys
from predictor.protocol.served import Models, ServedModel, find, require_generating
from predictor.protocol.tgi.request import Call, decode_body
from predictor.protocol.tgi.response import Events, stream_error, whole
from predictor.tasks.answers import Completion, json_size, of_type


@dataclass(frozen=True, slots=True)
class TGIEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests.
        ignored: Logs the keys that are not followed.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def generate(self, request: Request) -> Response:
        """``POST /generate``: the whole reply."""
        return await self._answer(request, streams=False)

    async def generate_stream(self, request: Request) -> Response:
        """``POST /generate_stream``: the reply in events as it comes."""
        return await self._answer(request, streams=True)

    async def either(self, request: Request) -> Response:
        """``POST /``: a list with the whole reply, or a stream if the body asks for one."""
        return await self._answer(request, streams=None)

    async def _answer(self, request: Request, *, streams: bool | None) -> Response:
        with ExitStack() as count:
            base = next(iter(self.models.get_models()), "")
            counting = count.enter_context(counted(base, "tgi"))
            await require_generating(find(self.models, base))
            body = await read_body(request)
            call = await self.codec.run(len(body), decode_body, body, streams)
            self.ignored.log(call.ignored)
            model = find(self.models, call.adapter or base)
            counting.model_name = model.name
            timeout = requested_timeout(request.headers)
            if call.stream:
                stream = await model.stream(call.request, timeout)
                events = Events(call).encode
                return event_stream(count.pop_all(), stream, events, encode_error=stream_error)
            return await _whole(request, model, call, in_list=streams is None)


async def _whole(request: Request, model: ServedModel, call: Call, *, in_list: bool) -> Response:
    timeout = requested_timeout(request.headers)
    answers = await while_connected(request, model.answer(call.request, timeout))
    completions = of_type(answers, Completion)

    def encode() -> Response:
        answer = whole(call, completions)
        return JSONAnswer([answer] if in_list else answer)

    return await off_loop(json_size(answers), encode)
