"""The input of a batch: lines of bounded size, read window by window.

A window is indexed as a whole and ordered (`order`); only the place of each line is kept. A line is
read again when its turn comes, so a file may be larger than memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from predictor.batch.lines import digest_of
from predictor.batch.order import LineShape, ordered, shape_of
from predictor.batch.volume import volume_errors

WINDOW = 16384
"""Lines that are ordered together: some hundred batches, and 5 MiB of places."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PIECE = 1024**2


@dataclass(frozen=True, slots=True)
class Shard:
    """The lines that one of several processes takes: each `count`-th one.

    Attributes:
        index: The number of the process, from 0.
        count: How many processes there are.
    """

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Return whether a line, whose number counts from 1, is one of them."""
        return (number - 1) % self.count == self.index


@dataclass(frozen=True, slots=True)
class InputLine:
    """The place of a line.

    Attributes:
        number: Its number in the file, from 1.
        offset: Where it begins.
        size: Its bytes.
        digest: See `digest_of`; of a line that is too long, that of its beginning.
        shape: The shape of its request.
    """

    number: int
    offset: int
    size: int
    digest: str
    shape: LineShape


class InputFile:
    """The lines of a file.

    Attributes:
        size: Bytes of the file.
        longest: Most bytes of a line; of a longer one, only the place is known.
    """

    def __init__(self, path: Path, *, longest: int, shard: Shard = Shard()) -> None:
        """Open a file.

        Args:
            path: The file.
            longest: Most bytes of a line.
            shard: The lines that are taken.

        Raises:
            ConfigurationError: It cannot be read.
            LoadFailed: Its volume fails.
        """
        self._unreadable = f"The input {path} cannot be read"
        with volume_errors(self._unreadable):
            self._file: BinaryIO = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self.longest = longest
        self._shard = shard

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def windows(self, is_done: Callable[[InputLine], bool]) -> Iterator[list[InputLine]]:
        """Yield the lines that are to be computed, window by window, in order within each.

        Args:
            is_done: Returns whether a line has a result.
        """
        window: list[InputLine] = []
        for line in self._lines():
            if not is_done(line):
                window.append(line)
            if len(window) == WINDOW:
                yield _in_order(window)
                window = []
        if window:
            yield _in_order(window)

    def read(self, line: InputLine) -> bytes:
        """Return a line that is not too long.

        Raises:
            LoadFailed: The volume fails.
        """
        with volume_errors(self._unreadable):
            return os.pread(self._file.fileno(), line.size, line.offset)

    def _lines(self) -> Iterator[InputLine]:
        """Yield the lines of the shard that are not blank."""
        self._file.seek(0)
        offset = number = 0
        while text := self._read_line(self.longest + 1):
            number, start = number + 1, offset
            if number == 1 and text.startswith(_BYTE_ORDER_MARK):
                start += len(_BYTE_ORDER_MARK)
                text = text.removeprefix(_BYTE_ORDER_MARK)
            size = len(text) if text.endswith(b"\n") else len(text) + self._skip(text)
            offset = start + size
            if self._shard.has(number) and (size > len(text) or text.strip()):
                yield self._line(number, start, size, text)

    def _read_line(self, most: int) -> bytes:
        with volume_errors(self._unreadable):
            return self._file.readline(most)

    def _skip(self, text: bytes) -> int:
        """Return the bytes of the rest of a line that is too long."""
        skipped = 0
        while text and not text.endswith(b"\n"):
            text = self._read_line(_PIECE)
            skipped += len(text)
        return skipped

    def _line(self, number: int, start: int, size: int, text: bytes) -> InputLine:
        document: object = None
        if size <= self.longest:
            with contextlib.suppress(orjson.JSONDecodeError):
                document = orjson.loads(text)
        return InputLine(number, start, size, digest_of(text), shape_of(document, len(text)))


def _in_order(window: list[InputLine]) -> list[InputLine]:
    return [window[position] for position in ordered([line.shape for line in window])]
