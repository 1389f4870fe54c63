"""The middleware of every HTTP path, the SDK's too: limits bodies, and hides raw exceptions.

Plain ASGI, so that nothing is buffered on the way.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor.errors import BodyTooLarge
from predictor.protocol.http.error_forms import error_response


class Border:
    """Refuses bodies over a limit, and answers exceptions that no handler caught.

    Starlette runs the handler for ``Exception`` outside of all middleware, and the SDK sets one
    that shows the exception's text (``RESTServer._add_exception_handlers``). Catching here, inside
    of it, leaves it nothing to show.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._most = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(receive, send, self._most)
        try:
            call.check_announced(scope)
            await self._app(scope, call.receive, call.send)
            call.check_received()
        except Exception as error:
            if call.has_started:
                raise
            await error_response(scope["path"], error)(scope, receive, send)


class _Call:
    """One HTTP call: counts what is received, knows whether the answer has begun."""

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self._receive = receive
        self._send = send
        self._most = most
        self._received = 0
        self.has_started = False

    def check_announced(self, scope: Scope) -> None:
        """Check the ``Content-Length``, before a byte is read (the server checked its form)."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if int(announced) > self._most:
            raise self._too_large()

    def check_received(self) -> None:
        """Check the bytes received so far, for a body without a ``Content-Length``."""
        if self._received > self._most and not self.has_started:
            raise self._too_large()

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.check_received()
        return message

    async def send(self, message: Message) -> None:
        # Whatever a framework makes of our refusal on its way up (FastAPI: a 400), a 413 it is.
        if self._received > self._most and not self.has_started:
            return
        self.has_started = True
        await self._send(message)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than the limit of {self._most} bytes.")
