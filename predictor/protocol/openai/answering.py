"""How a request for generation is answered, whichever API it is of: whole, or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.http.codec import Codec
from predictor.protocol.http.deadline import counted, requested_timeout, while_connected
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body
from predictor.protocol.http.sse import event_stream
from predictor.protocol.openai.keys import IgnoredKeys
from predictor.protocol.openai.request import decode_body
from predictor.protocol.served import Models, find_in_body, require_generating
from predictor.tasks.answers import Completion, Piece, json_size, of_type
from predictor.tasks.request import GenerationRequest


class GenerationCall(Protocol):
    """A decoded request."""

    @property
    def request(self) -> GenerationRequest:
        """The request for the task."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the reply is streamed."""
        ...

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of keys that are not followed."""
        ...


class ReplyEvents(Protocol):
    """The events of one stream."""

    @property
    def last(self) -> str | None:
        """Data of the event after all others; None for none."""
        ...

    def opening(self) -> Iterable[object]:
        """Return the events before the first piece."""
        ...

    def encode(self, piece: Piece) -> Iterable[object]:
        """Return the events of a piece."""
        ...

    def error(self, status: int, sentence: str) -> object:
        """Return the event of an error, which ends the stream."""
        ...


_Call = TypeVar("_Call", bound=GenerationCall)
_CallIn = TypeVar("_CallIn", bound=GenerationCall, contravariant=True)


class ReplyForm(Protocol[_CallIn]):
    """The form of an API's replies."""

    def whole(self, call: _CallIn, model: str, completions: Sequence[Completion]) -> object:
        """Return the reply as a JSON value.

        Args:
            call: The request.
            model: The model that has answered.
            completions: Its replies, one for each prompt.
        """
        ...

    def events(self, call: _CallIn, model: str) -> ReplyEvents:
        """Return what makes events of the reply."""
        ...


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers requests of one family of APIs.

    Attributes:
        models: The models that are served.
        codec: Decodes the bodies of requests.
        ignored: Logs the keys that are not followed.
        protocol: The name by which requests are counted.
    """

    models: Models
    codec: Codec
    ignored: IgnoredKeys
    protocol: str = "openai"

    async def answer(
        self,
        request: Request,
        decode: Callable[[Mapping[str, object]], _Call],
        form: ReplyForm[_Call],
    ) -> Response:
        """Return the answer to a request.

        Args:
            request: The request.
            decode: Returns what its body says.
            form: The form of the reply.

        Raises:
            PredictorError: It cannot be answered.
        """
        with ExitStack() as count:
            # The body names the model, and may be no JSON at all; until it is read, it is the base.
            base = next(iter(self.models.get_models()), "")
            counting = count.enter_context(counted(base, self.protocol))
            body = await read_body(request)
            name, call = await self.codec.run(len(body), decode_body, body, decode)
            model = find_in_body(self.models, name)
            counting.model_name = model.name
            await require_generating(model)
            if isinstance(call, RequestError):
                raise call
            self.ignored.log(call.ignored)
            timeout = requested_timeout(request.headers)
            if call.stream:
                stream = await model.stream(call.request, timeout)
                events = form.events(call, model.name)
                return event_stream(
                    count.pop_all(),
                    stream,
                    events.encode,
                    opening=events.opening(),
                    encode_error=events.error,
                    last=events.last,
                )
            answers = await while_connected(request, model.answer(call.request, timeout))
            completions = of_type(answers, Completion)
            return await off_loop(
                json_size(answers), lambda: JSONAnswer(form.whole(call, model.name, completions))
            )
