"""Decodes and encodes large bodies in a process of its own, whose work delays no one else's.

To parse a list of a million token ids holds the interpreter's lock for tens of milliseconds at one
go, whatever the switch interval, and for all of it the event loop stands still. The process is a
fork of the one that answers requests, with which it shares most of its memory, and has a lower
priority than what computes for others.

Arguments and results travel pickled. So only functions gain by it that take and return few objects,
such as one that makes an array of the token ids, or JSON of the arrays of vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

from predictor.engine.process.channel import Channel
from predictor.errors import PredictorError
from predictor.protocol.http.off_loop import SMALL, off_loop
from predictor.tasks.answers import Answer, Vector

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Outcome = tuple[int, bool, Any]
"""The key of a call, whether it has a result, and the result or the exception."""

_NICENESS = 10
"""About a tenth of a processor if all are busy: a large request waits rather than its neighbours'
next tokens."""

_AT_ONCE = 2
"""Bodies on their way to the process, each of which is in memory twice. While one is decoded, the
next arrives."""


class Codec(Protocol):
    """Decodes and encodes bodies off the event loop."""

    async def run(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of a function, which is called elsewhere if it has much to do.

        Args:
            size: Bytes, about, that it decodes or encodes.
            function: A function of a module, so that it can be pickled.
            arguments: Its arguments.
        """
        ...


class CodecThreads:
    """Decodes and encodes in the threads of this process."""

    async def run(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of a function; see `Codec`."""
        return await off_loop(size, partial(function, *arguments))


def codec_of(answers: Sequence[Answer], codec: Codec) -> Codec:
    """Return what encodes answers: `codec` for vectors, threads for answers of many objects."""
    return codec if isinstance(answers[0], Vector) else CodecThreads()


class CodecProcess:
    """Decodes and encodes in a process, and in threads after that has ended."""

    def __init__(self) -> None:
        """Fork the process. No thread may run yet: the fork has none of them."""
        ours, theirs = socket.socketpair()
        gc.collect()
        gc.freeze()  # later collections would copy the pages that the two share
        self.pid = os.fork()
        if not self.pid:
            _serve(theirs)
        theirs.close()
        self._channel = Channel(ours)
        self._keys = itertools.count()
        self._calls: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._has_ended = False

    def start(self) -> None:
        """Begin to receive what is decoded."""
        threading.Thread(target=self._receive, name="decoded", daemon=True).start()

    async def run(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of a function; see `Codec`."""
        if size <= SMALL:
            return function(*arguments)
        async with self._turns:
            try:
                result: _T = await self._call(function, arguments)
                return result
            except _NoResultError:
                return await off_loop(size, partial(function, *arguments))

    async def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        loop, key = asyncio.get_running_loop(), next(self._keys)
        future = loop.create_future()
        with self._lock:
            if self._has_ended:
                raise _NoResultError
            self._calls[key] = loop, future
        try:
            self._channel.send((key, function, arguments))
            return await future
        finally:
            self._calls.pop(key, None)

    def _receive(self) -> None:
        try:
            while (outcome := self._channel.receive()) is not None:
                self._end(outcome)  # type: ignore[arg-type]
        finally:  # an answer that cannot be read ends the process, too
            self._close()

    def _close(self) -> None:
        self._channel.close()
        with self._lock:
            self._has_ended = True
        logger.error("The process for large bodies has ended; threads take its place")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for key in list(self._calls):
            self._end((key, False, _NoResultError()))

    def _end(self, outcome: _Outcome) -> None:
        key, is_result, value = outcome
        call = self._calls.get(key)
        if call is None:
            return  # cancelled
        loop, future = call
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(_settle, future, is_result, value)


class _NoResultError(Exception):
    """The process has ended, or failed in a way that nobody expected."""


def _settle(future: asyncio.Future[Any], is_result: bool, value: Any) -> None:
    if future.done():
        return
    if is_result:
        future.set_result(value)
    else:
        future.set_exception(value)


def _serve(connection: socket.socket) -> NoReturn:
    """Be the process: call functions until the other end is closed."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT):  # the other process decides
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(connection.fileno())
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
        channel = Channel(connection)
        while (call := channel.receive()) is not None:
            channel.send(_outcome_of(*call))  # type: ignore[misc]
            del call  # a body and what it became are not kept until the next
    finally:
        os._exit(0)


def _outcome_of(key: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Outcome:
    try:
        return key, True, function(*arguments)
    except PredictorError as error:
        return key, False, error
    # It fails in the same way in the other process, which knows what to do about it.
    except Exception:
        return key, False, _NoResultError()


def _close_all_but(fd: int) -> None:
    """Close inherited files: the engine process must see the end of the one that was forked."""
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
