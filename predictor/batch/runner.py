"""Runs the lines of a batch, as many at a time as keep the engine full.

What is in flight is bounded in sequences and in bytes of lines. One group of lines more is read. A
line that the model cannot take now, because it stalls, is tried again until it can. Any other
outcome is a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from predictor.batch.endpoints import BatchEndpoints
from predictor.batch.input_file import InputFile, InputLine
from predictor.batch.lines import (
    LineRequest,
    LineResponse,
    decode_line,
    encode_error,
    encode_response,
)
from predictor.batch.volume import FileThreads
from predictor.errors import RequestError
from predictor.protocol.http.off_loop import off_loop

_SECONDS_BETWEEN_TRIALS = 1.0

_LINES_OF_A_GROUP, _BYTES_OF_A_GROUP = 256, 1024**2
"""Lines that are read together, and their bytes but for the last one. A change of threads takes
longer than to read a line."""

_FULL_BATCHES = 4
"""Batches of sequences in flight. One runs; the others wait at the engine, which chooses rows of
like lengths among them, and short ones may take less time than their replies do on their way."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What may be in flight at one time; a line that is alone always may.

    Attributes:
        sequences: Most sequences.
        bytes: Most bytes of lines.
    """

    sequences: int
    bytes: int

    @classmethod
    def of(cls, batch_size: int, size: int) -> RunLimits:
        """Return the limits for batches of so many sequences, and for so many bytes."""
        return cls(_FULL_BATCHES * batch_size, size)


@dataclass(frozen=True, slots=True)
class LineResult:
    """The result of a line.

    Attributes:
        line: The line.
        text: The line of the output.
        is_ok: Whether the request was answered.
    """

    line: InputLine
    text: bytes
    is_ok: bool


class BatchRunner:
    """Runs lines of one input."""

    def __init__(
        self,
        source: InputFile,
        endpoints: BatchEndpoints,
        limits: RunLimits,
        take: Callable[[Sequence[LineResult]], Awaitable[None]],
        *,
        files: FileThreads,
        endpoint: str | None = None,
    ) -> None:
        """Create a run.

        Args:
            source: The input.
            endpoints: Answer the requests.
            limits: What may be in flight.
            take: Called with results, in the order in which they come.
            files: Reads the input.
            endpoint: The only URL that a line may have; None for any.
        """
        self._source, self._endpoints, self._limits = source, endpoints, limits
        self._take, self._endpoint, self._files = take, endpoint, files
        self._running: dict[asyncio.Task[LineResult], InputLine] = {}
        self._sequences = self._bytes = 0
        self._is_over = False

    async def run(self, windows: Iterator[list[InputLine]]) -> None:
        """Answer lines, which begin in their order, each as soon as there is room.

        The first error of `take` ends the run. Cancelling this cancels what is in flight, which
        has no result then.
        """
        try:
            while (window := await self._files.run(next, windows, None)) is not None:
                for group in _groups(window):
                    await self._run_group(group)
            while self._running:
                await self._settle()
        finally:
            self._is_over = True
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _run_group(self, lines: Sequence[InputLine]) -> None:
        texts = await self._files.run(self._read, lines)
        for line, text in zip(lines, texts, strict=True):
            while self._running and not self._has_room(line):
                await self._settle()
            self._begin(line, text)

    def _read(self, lines: Sequence[InputLine]) -> list[bytes]:
        """Return lines, empty ones in place of those that are too long."""
        longest = self._source.longest
        return [self._source.read(line) if line.size <= longest else b"" for line in lines]

    def _has_room(self, line: InputLine) -> bool:
        sequences = self._sequences + line.shape.sequences
        size = self._bytes + line.size * line.shape.weight
        return sequences <= self._limits.sequences and size <= self._limits.bytes

    def _begin(self, line: InputLine, text: bytes) -> None:
        self._running[asyncio.create_task(self._result(line, text))] = line
        self._count(line, 1)

    async def _settle(self) -> None:
        """Wait for at least one result, and hand over those that are there."""
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._count(self._running.pop(task), -1)
        await self._take([task.result() for task in done])

    def _count(self, line: InputLine, sign: int) -> None:
        self._sequences += sign * line.shape.sequences
        self._bytes += sign * line.size * line.shape.weight

    async def _result(self, line: InputLine, text: bytes) -> LineResult:
        if line.size > self._source.longest:
            sentence = (
                f"The line has {line.size} bytes; at most {self._source.longest} are taken "
                "(max_body_size)."
            )
            return self._refused(line, None, sentence)
        custom_id, request = await off_loop(line.size, partial(decode_line, text))
        del text  # while its request waits
        try:
            if isinstance(request, RequestError):
                raise request
            self._check(request)
            response = await self._answer(request)
        except RequestError as error:
            return self._refused(line, custom_id, str(error))
        result = encode_response(line.number, line.digest, custom_id, response)
        return LineResult(line, result, response.is_ok)

    def _check(self, request: LineRequest) -> None:
        if self._endpoint is not None and request.url != self._endpoint:
            raise RequestError(f"url must be {self._endpoint!r}, the endpoint of the batch.")

    async def _answer(self, request: LineRequest) -> LineResponse:
        while not self._is_over:  # an endpoint that ends may take no notice of a cancellation
            response = await self._endpoints.answer(request)
            if response.status != HTTPStatus.SERVICE_UNAVAILABLE:
                return response
            await asyncio.sleep(_SECONDS_BETWEEN_TRIALS)
        raise asyncio.CancelledError

    def _refused(self, line: InputLine, custom_id: str | None, sentence: str) -> LineResult:
        text = encode_error(line.number, line.digest, custom_id, sentence)
        return LineResult(line, text, is_ok=False)


def _groups(window: Sequence[InputLine]) -> Iterator[list[InputLine]]:
    """Yield the lines of a window in groups that are read together."""
    group: list[InputLine] = []
    size = 0
    for line in window:
        group.append(line)
        size += line.size
        if len(group) == _LINES_OF_A_GROUP or size >= _BYTES_OF_A_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
