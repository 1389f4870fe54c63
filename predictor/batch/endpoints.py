"""Answers the request of a line by the endpoint of its URL, as if it had come over HTTP.

The endpoints are those of the server, which get a request whose body is there already. So a line
and a call of the same body are decoded, refused and answered alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from predictor.batch.lines import LineRequest, LineResponse
from predictor.bulk import bulk_work
from predictor.cache_scope import within_scope
from predictor.errors import RequestError
from predictor.protocol.app import Endpoint
from predictor.protocol.http.request_record import RequestRecord, begin
from predictor.sentences import quote

_JSON = (b"content-type", b"application/json")


class BatchEndpoints:
    """The endpoints that a line may name.

    Attributes:
        prompt_tokens: Tokens of all prompts and texts that were answered.
        completion_tokens: Tokens of all replies.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], *, scope: bytes = b"") -> None:
        """Take the endpoints.

        Args:
            endpoints: The endpoints by their paths.
            scope: The scope of all lines in the prefix cache, see `predictor.cache_scope`.
        """
        self._endpoints = endpoints
        self._scope = scope
        self.prompt_tokens = self.completion_tokens = 0

    async def answer(self, request: LineRequest) -> LineResponse:
        """Return the response to a request, with whatever status. Cancelling this cancels it.

        Raises:
            RequestError: There is no endpoint of its URL.
        """
        endpoint = self._endpoints.get(request.url)
        if endpoint is None:
            raise RequestError(
                f"There is no endpoint {quote(request.url)} for batches; there are "
                f"{', '.join(self._endpoints)}."
            )
        call = _request(request)
        record = begin(call.scope)
        with bulk_work(), within_scope(self._scope):
            response = await endpoint(call)
        self._count(record)
        return LineResponse(response.status_code, record.id, bytes(response.body))

    def _count(self, record: RequestRecord) -> None:
        self.prompt_tokens += record.prompt_tokens or 0
        self.completion_tokens += record.completion_tokens or 0


def _request(request: LineRequest) -> Request:
    """Return an HTTP request whose client never hangs up."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": request.url,
        "query_string": b"",
        "headers": [_JSON],
        "path_params": {},
    }
    messages: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return Request(scope, receive)
