"""The time limit of a request, its metrics, and its cancellation when the client hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from predictor.bulk import is_bulk
from predictor.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    PredictorError,
    RequestError,
)
from predictor.metrics import REQUEST_SECONDS, REQUESTS

TIMEOUT_HEADER = "x-request-timeout"
"""Seconds that the client waits. A gRPC call has its own deadline besides."""

_T = TypeVar("_T")


def requested_timeout(headers: Mapping[str, str] | None) -> float | None:
    """Return the time limit in a request's headers, in seconds, or None.

    Raises:
        RequestError: The header is no number of seconds above 0.
    """
    text = (headers or {}).get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(f"The header {TIMEOUT_HEADER} must be a number of seconds above 0.")
    return seconds


@dataclass(slots=True)
class CountedRequest:
    """A request that is counted.

    Attributes:
        model_name: The model by whose name it is counted.
    """

    model_name: str


@contextmanager
def counted(model_name: str, protocol: str) -> Iterator[CountedRequest]:
    """Count one request and its time; an exception in the context decides the outcome.

    Bulk work is not counted: it may wait for hours, and is tried again while the model stalls.

    Args:
        model_name: The model. If its body names another, the caller sets that when it is read.
        protocol: The protocol.
    """
    began = asyncio.get_running_loop().time()
    outcome = "ok"
    request = CountedRequest(model_name)
    if is_bulk():
        yield request
        return
    try:
        yield request
    except BaseException as error:
        outcome = _outcome(error)
        raise
    finally:
        REQUESTS.labels(request.model_name, protocol, outcome).inc()
        seconds = asyncio.get_running_loop().time() - began
        REQUEST_SECONDS.labels(request.model_name, protocol).observe(seconds)


def _outcome(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit | ClientDisconnect):
        return "cancelled"
    kinds: dict[type[PredictorError], str] = {
        RequestError: "bad_request",
        Overloaded: "rejected",
        NotReady: "not_ready",
        DeadlineExceeded: "deadline",
    }
    return next((word for kind, word in kinds.items() if isinstance(error, kind)), "failed")


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Return the result of `work`; cancel it when the client hangs up.

    Raises:
        ClientDisconnect: The client has hung up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _end(task, gone)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(BaseException):
            await task
