"""A compressed file that is read as if one could go anywhere in it.

Going back begins its decompression again, which for a model's weights takes a minute. So the end of
the file, where a zip archive has its directory, can be kept in memory; and bytes that are passed
over are thrown away in chunks, where `zipfile` itself reads 16 MiB at once.
"""

from __future__ import annotations

import io
from typing import Protocol

from predictor.errors import ArchiveError

_STEP = 256 * 1024
"""Bytes that are passed over at once."""

_TAIL = 1024**2
"""Bytes of the end that are kept at least: a directory of 10,000 members."""


class Readable(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """Returns so many bytes, and fewer only at the end."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Goes to a place and returns it."""


class Forward(io.RawIOBase):
    """Bytes of a file that can only be read forwards or begun again."""

    def __init__(
        self, file: Readable, size: int, where: str, *, goes_anywhere: bool = False
    ) -> None:
        """Takes the file, at its beginning.

        Args:
            file: The file.
            size: Bytes that it has.
            where: Its name, for sentences.
            goes_anywhere: Whether it is not compressed after all.
        """
        self._file, self._size, self._where = file, size, where
        self._goes_anywhere = goes_anywhere
        self._read_to = 0  # where the file is
        self._position = 0  # where the reader wants to be
        self._tail, self._tail_at = b"", size

    def keep_tail(self) -> None:
        """Reads the file once and keeps its end, from which reads are answered thereafter.

        Raises:
            ArchiveError: It has fewer bytes than it is said to have.
        """
        before = last = b""
        while chunk := self._pull(_TAIL):
            before, last = last, chunk
        if self._read_to != self._size:
            missing = self._size - self._read_to
            raise ArchiveError(f"{self._where} is cut short: {missing} bytes are missing.")
        self._tail = before + last
        self._tail_at = self._size - len(self._tail)

    def seekable(self) -> bool:
        """Says that one can go anywhere in it, at a price."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a place; costs nothing until something is read there."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("its parts lie before its beginning")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Returns so many bytes, or all that are left, and fewer only at the end."""
        if size < 0:
            size = max(0, self._size - self._position)
        data = self._next(size)
        while len(data) < size and (more := self._next(size - len(data))):
            data += more
        return data

    def _next(self, most: int) -> bytes:
        """Returns the bytes that are next, or some of them."""
        if self._position >= self._tail_at:
            start = self._position - self._tail_at
            data = self._tail[start : start + most]
        else:
            self._go()
            data = self._pull(min(most, self._tail_at - self._position))
        self._position += len(data)
        return data

    def _go(self) -> None:
        """Brings the file to where the reader is."""
        if self._goes_anywhere:
            self._read_to = self._file.seek(self._position)
        if self._position < self._read_to:
            self._read_to = self._file.seek(0)
        while self._read_to < self._position:
            if not self._pull(min(_STEP, self._position - self._read_to)):
                break

    def _pull(self, most: int) -> bytes:
        data = self._file.read(most)
        self._read_to += len(data)
        return data
