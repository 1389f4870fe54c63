"""A forward-only stream, such as a compressed file, that can be read as if it were seekable.

Seeking back restarts the decompression, which takes a minute for a model's weights. Therefore the
end of the stream, which holds a zip archive's directory, can be kept in memory. Skipped bytes are
discarded in small chunks; `zipfile` itself would read 16 MiB at once.
"""

from __future__ import annotations

import io
from typing import Protocol

from predictor.errors import ArchiveError

_SKIP_CHUNK = 256 * 1024
"""Bytes that are skipped at once."""

_TAIL = 1024**2
"""Bytes of the end that are kept at least: a directory of 10,000 members."""


class Readable(Protocol):
    """The stream under a `SeekableStream`."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, or fewer only at the end."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Seek and return the new position."""


class SeekableStream(io.RawIOBase):
    """A seekable view of a stream that can only be read forwards or restarted."""

    def __init__(self, file: Readable, size: int, name: str, *, is_seekable: bool = False) -> None:
        """Wrap a stream that is at its start.

        Args:
            file: The stream.
            size: Its size in bytes.
            name: Its name, for error sentences.
            is_seekable: Whether seeking back in the stream costs nothing.
        """
        self._file, self._size, self._name = file, size, name
        self._is_seekable = is_seekable
        self._file_position = 0
        self._position = 0  # of the reader
        self._tail, self._tail_start = b"", size

    def keep_tail(self) -> None:
        """Read the whole stream once and keep its end, from which later reads are served.

        Raises:
            ArchiveError: The stream is shorter than its declared size.
        """
        previous = last = b""
        while chunk := self._pull(_TAIL):
            previous, last = last, chunk
        if self._file_position != self._size:
            missing = self._size - self._file_position
            raise ArchiveError(f"{self._name} is cut short: {missing} bytes are missing.")
        self._tail = previous + last
        self._tail_start = self._size - len(self._tail)

    def seekable(self) -> bool:
        """Return True: any position can be reached, at a price."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Seek; this costs nothing until the next read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("its parts lie before its beginning")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes or, if it is negative, the rest; fewer only at the end."""
        if size < 0:
            size = max(0, self._size - self._position)
        data = self._read_some(size)
        while len(data) < size and (more := self._read_some(size - len(data))):
            data += more
        return data

    def _read_some(self, most: int) -> bytes:
        """Return at most `most` of the next bytes."""
        if self._position >= self._tail_start:
            start = self._position - self._tail_start
            data = self._tail[start : start + most]
        else:
            self._catch_up()
            data = self._pull(min(most, self._tail_start - self._position))
        self._position += len(data)
        return data

    def _catch_up(self) -> None:
        """Move the underlying stream to the reader's position."""
        if self._is_seekable:
            self._file_position = self._file.seek(self._position)
        if self._position < self._file_position:
            self._file_position = self._file.seek(0)
        while self._file_position < self._position:
            if not self._pull(min(_SKIP_CHUNK, self._position - self._file_position)):
                break

    def _pull(self, most: int) -> bytes:
        data = self._file.read(most)
        self._file_position += len(data)
        return data
