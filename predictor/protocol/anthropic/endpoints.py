"""HTTP endpoints of Anthropic's API: messages, and the tokens that they would have."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.anthropic.request import decode_count, decode_message
from predictor.protocol.anthropic.response import MessageForm
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body
from predictor.protocol.openai.answering import Answering
from predictor.protocol.openai.keys import IgnoredKeys
from predictor.protocol.openai.request import decode_body
from predictor.protocol.served import Models, find, require_generating


@dataclass(frozen=True, slots=True)
class AnthropicEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests.
        ignored: Logs the keys that are not followed.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def messages(self, request: Request) -> Response:
        """``POST /v1/messages``: replies to a conversation, in Anthropic's form."""
        answering = Answering(self.models, self.codec, self.ignored, "anthropic")
        return await answering.answer(request, decode_message, MessageForm())

    async def count_tokens(self, request: Request) -> Response:
        """``POST /v1/messages/count_tokens``: the tokens of a conversation."""
        body = await read_body(request)
        name, call = await self.codec.run(len(body), decode_body, body, decode_count)
        model = find(self.models, name)
        await require_generating(model)
        if isinstance(call, RequestError):
            raise call
        conversation, tokens = call.conversation, model.text_tokens()
        with tokens.admitted(len(body)):
            ids = await off_loop(len(body), lambda: tokens.encode_chat(conversation))
        return JSONAnswer({"input_tokens": len(ids)})
