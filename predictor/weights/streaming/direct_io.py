"""Reads blocks into buffers at the device's own speed, without a trace in the page cache.

Direct reads bypass the page cache, so they cost no memory that the pod's limit counts and hardly
any processor time. Where a file system refuses them, pages are read as usual and dropped behind.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from predictor.placement.units import STREAM_PIECE
from predictor.weights.extents import PAGE, Block, Segment, pages, stamp_of

logger = logging.getLogger(__name__)

_HUGE = 2 * 1024**2
"""Bytes of a huge page. A request to a disk takes a limited number of pieces of memory, so with
pages of 4 KiB requests were so small that a disk gave 1.1 GB/s instead of 2.4."""

_TRIES = 3
_SECONDS_BETWEEN_TRIES = 0.2
NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""Errors of file systems that take no direct reads or writes."""

_MODE = 0o644


class Buffer:
    """Memory that direct reads may go to.

    Attributes:
        bytes: A view of it for reading files into.
        tensor: The same memory as a tensor of uint8.
    """

    def __init__(self, size: int) -> None:
        """Takes memory, which counts at once: in huge pages, as far as whole ones go."""
        size = max(pages(size), PAGE)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, size + _HUGE, flags=private)
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        start = -whole.data_ptr() % _HUGE
        self.bytes = memoryview(self._map)[start : start + size]
        self.tensor = whole[start : start + size]
        if size >= _HUGE:
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE * _HUGE)
        self.tensor.zero_()


class Files:
    """Open files that blocks are read from; one thread at a time."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, bool]] = {}

    def read(self, block: Block, buffer: Buffer) -> None:
        """Reads a block's segments into a buffer.

        Raises:
            OSError: A file cannot be read, after some tries, or is shorter than it has to be.
        """
        for segment in block.segments:
            self.read_segment(segment, buffer)

    def read_segment(self, segment: Segment, buffer: Buffer) -> None:
        """Reads a segment, again where that fails: a volume on the network may be away for once.

        Raises:
            OSError: The file cannot be read, after some tries, or is shorter than it has to be.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                self._read(segment, buffer)
                return
            except OSError as error:
                self._forget(segment.file)
                if not tries_left:
                    raise
                logger.warning("Reading %s failed (%s); again", segment.file, error.strerror)
                time.sleep(_SECONDS_BETWEEN_TRIES)

    def close(self) -> None:
        """Closes all files."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _read(self, segment: Segment, buffer: Buffer) -> None:
        descriptor, is_direct = self._opened(segment)
        done = 0
        while done < segment.needed:
            end = min(done + STREAM_PIECE, segment.length)
            into = buffer.bytes[segment.at + done : segment.at + end]
            try:
                count = os.preadv(descriptor, [into], segment.start + done)
            except OSError as error:
                if not is_direct or error.errno not in NOT_DIRECT:
                    raise
                descriptor, is_direct = self._opened(segment, again=True)
                continue
            done += count
            if count == 0 or (is_direct and done < segment.needed and done % PAGE):
                raise too_short(segment.file)
        if not is_direct:
            os.posix_fadvise(descriptor, segment.start, segment.length, os.POSIX_FADV_DONTNEED)

    def _opened(self, segment: Segment, *, again: bool = False) -> tuple[int, bool]:
        """Returns a file's descriptor and whether its reads are direct."""
        file = segment.file
        if again:
            self._forget(file)
            logger.info("%s does not take direct reads; its pages are dropped instead", file)
        if file not in self._open:
            plain = (os.open(file, os.O_RDONLY), False) if again else None
            self._open[file] = plain or open_direct(file, os.O_RDONLY)
        if stamp_of(os.fstat(self._open[file][0])) != segment.stamp:
            raise OSError(errno.ESTALE, "the file was replaced or changed", str(file))
        return self._open[file]

    def _forget(self, file: Path) -> None:
        descriptor, _ = self._open.pop(file, (-1, False))
        if descriptor >= 0:
            os.close(descriptor)


def too_short(file: Path) -> OSError:
    """Returns the error of a file that ends before what it has to hold."""
    return OSError(errno.EIO, "the file is shorter than it was", str(file))


def open_direct(file: Path, flags: int) -> tuple[int, bool]:
    """Returns a file's descriptor, and whether its reads and writes are direct.

    Raises:
        OSError: It cannot be opened either way.
    """
    try:
        return os.open(file, flags | os.O_DIRECT, _MODE), True
    except OSError as error:
        if error.errno not in NOT_DIRECT:
            raise
    return os.open(file, flags, _MODE), False


@contextlib.contextmanager
def opened_files() -> Iterator[Files]:
    """Gives files that are closed afterwards."""
    files = Files()
    try:
        yield files
    finally:
        files.close()
