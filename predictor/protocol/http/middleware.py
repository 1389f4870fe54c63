"""The middleware of every HTTP path, the SDK's too.

It names requests, checks their API keys, admits them, inflates their bodies, hides raw exceptions,
and writes access lines.

It also notes in which scope of the prefix cache a request is.

Plain ASGI, so that nothing is buffered on the way.
"""

from __future__ import annotations

from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor.admission import RequestPermit
from predictor.cache_scope import ScopeHeader
from predictor.errors import BodyTooLarge, Overloaded, PredictorError
from predictor.held_permits import until_sent
from predictor.protocol.http.authentication import ApiKeys, with_bearer
from predictor.protocol.http.body_weight import counted_bytes
from predictor.protocol.http.compression import inflated
from predictor.protocol.http.error_forms import error_response
from predictor.protocol.http.gate import WITHOUT_BODY, Gate
from predictor.protocol.http.request_record import REQUEST_ID, RequestRecord, begin

_PIECE = 64 * 1024
"""Bytes of an answer that are given to the server at once. It takes more only when the client has
read the ones before, so an answer that is not read keeps its permit."""


class Border:
    """Admits requests, limits bodies, and answers exceptions that no handler caught.

    Starlette runs the handler for ``Exception`` outside of all middleware, and the SDK sets one
    that shows the exception's text (``RESTServer._add_exception_handlers``). Catching here, inside
    of it, leaves it nothing to show.
    """

    def __init__(
        self, app: ASGIApp, *, gate: Gate, keys: ApiKeys, access_log: bool = False
    ) -> None:
        self._app = app
        self._gate = gate
        self._keys = keys
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin(scope)
        scope = with_bearer(scope)
        try:
            await self._answer(scope, receive, _named(send, record))
        finally:
            if self._access_log and scope["method"] not in WITHOUT_BODY:
                record.log()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with until_sent() as held:
            await self._serve(_Call(scope, receive, send, self._gate, held))

    async def _serve(self, call: _Call) -> None:
        scope = call.scope
        try:
            self._keys.check_request(scope)
            call.permit = self._gate.admit(scope)
            call.inflate()
            await self._app(call.scope, call.receive, call.send)
            call.check_received()
        except Exception as error:
            if call.has_started:
                raise
            await error_response(scope["path"], error)(scope, *call.beyond)
        finally:
            call.release()


def _named(send: Send, record: RequestRecord) -> Send:
    """Return a `send` that notes the status, and puts the request's id on its answer."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            header = (REQUEST_ID.encode(), record.id.encode())
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return named


class CacheScope:
    """Lets every request be of the scope in its headers, see `predictor.cache_scope`."""

    def __init__(self, app: ASGIApp, *, header: ScopeHeader) -> None:
        self._app = app
        self._header = header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        octets = scope.get("headers", ())
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in octets)
        with self._header.applied(headers):
            await self._app(scope, receive, send)


class _Call:
    """One HTTP call: counts what is received, knows whether the answer has begun.

    Of a compressed body the bytes count as they come or inflated, whichever are more: a body may
    inflate to nothing, and never end. The given bytes count as `counted_bytes` says.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, gate: Gate, held: ExitStack
    ) -> None:
        self.scope = scope
        self._receive = self._arriving = receive
        self._send = send
        self.beyond = receive, send
        self._gate = gate
        self._held = held
        self._arrived = self._given = self._counted = 0
        self._refusal: PredictorError | None = None
        self.has_started = False
        self.permit: RequestPermit | None = None

    def inflate(self) -> None:
        """Receive the body as if it were not compressed; raises the errors of `inflated`."""
        self.scope, self._receive = inflated(self.scope, self._arrive)

    def check_received(self) -> None:
        """Raise the refusal of a body that has turned out too large."""
        if self._refusal is not None and not self.has_started:
            raise self._refusal

    def release(self) -> None:
        """Let another request in."""
        self._held.close()
        if self.permit is not None:
            self.permit.release()

    async def receive(self) -> Message:
        message = await self._receive()
        body = message.get("body", b"")
        self._given += len(body)
        self._counted += counted_bytes(body)
        self._claim()
        self.check_received()
        if self.permit is not None and not message.get("more_body", False):
            self.permit.resize(self._weight())
        return message

    def _weight(self) -> int:
        return self._gate.held_bytes(max(self._counted, self._arrived), self.scope)

    async def _arrive(self) -> Message:
        message = await self._arriving()
        self._arrived += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        # Whatever a framework makes of our refusal on its way up (FastAPI: a 400), it is ours.
        if self._refusal is not None and not self.has_started:
            return
        self.has_started = True
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body = message.get("body", b"")
        last = max(0, (len(body) - 1) // _PIECE * _PIECE)
        for start in range(0, last, _PIECE):
            piece = body[start : start + _PIECE]
            await self._send({**message, "body": piece, "more_body": True})
        if not message.get("more_body", False):
            self.release()  # before the client can know that it is answered, and ask again
        await self._send({**message, "body": body[last:]} if last else message)

    def _claim(self) -> None:
        """Check what has been received so far, and claim what was not announced."""
        if max(self._given, self._arrived) > self._gate.most_bytes(self.scope):
            self._refusal = self._gate.too_large(self.scope)
        elif self.permit is not None and self._refusal is None:
            try:
                self._gate.check_content(self._weight())
                self._gate.claim(self.permit, self._weight(), self.scope)
            except (BodyTooLarge, Overloaded) as error:
                self._refusal = error
