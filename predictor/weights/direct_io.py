"""Direct reads of blocks: at the device's own speed, and without a trace in the page cache.

Direct reads bypass the page cache. So they use no memory that the pod's limit counts, and hardly
any processor time. If a file system refuses direct reads, pages are read as usual and dropped
afterwards. Which bytes are read is decided in `extents` and `store`.
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

from predictor.placement.buffers import STREAM_PIECE
from predictor.weights.extents import (
    PAGE,
    BlockExtent,
    FileIdentity,
    FileSegment,
    identify_file,
    pages,
)

logger = logging.getLogger(__name__)

_HUGE_PAGE = 2 * 1024**2
"""Bytes of a huge page. A request to a disk takes a limited number of pieces of memory. With pages
of 4 KiB, requests were so small that a disk gave 1.1 GB/s instead of 2.4."""

_TRIES = 3
_SECONDS_BETWEEN_TRIES = 0.2
NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""Errors of file systems that take no direct reads or writes."""

_MODE = 0o600
"""The mode of a new file: it holds weights, which may be secret, and others must not alter them."""


class AlignedBuffer:
    """Memory that direct reads may go to.

    Attributes:
        bytes: A view of the memory to read files into.
        tensor: The same memory as a tensor of uint8.
    """

    def __init__(self, size: int, *, touch: bool = True) -> None:
        """Allocate the memory, in huge pages where whole ones fit.

        Args:
            size: Its bytes.
            touch: Whether to touch all of it now. Otherwise it is in use as far as it is written.
        """
        size = max(pages(size), PAGE)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, size + _HUGE_PAGE, flags=private)
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        start = -whole.data_ptr() % _HUGE_PAGE
        self.bytes = memoryview(self._map)[start : start + size]
        self.tensor = whole[start : start + size]
        if size >= _HUGE_PAGE:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE_PAGE * _HUGE_PAGE)
        if touch:
            self.tensor.zero_()


class BlockReader:
    """Reads blocks, and keeps their files open; one thread at a time."""

    def __init__(self, *, seconds_between_tries: float = _SECONDS_BETWEEN_TRIES) -> None:
        """Open nothing yet.

        Args:
            seconds_between_tries: Seconds to wait before a failed read is tried again.
        """
        self._seconds_between_tries = seconds_between_tries
        self._open: dict[Path, tuple[int, bool]] = {}

    def read(self, block: BlockExtent, buffer: AlignedBuffer) -> None:
        """Read a block's segments into a buffer.

        Raises:
            OSError: A file cannot be read, after some tries, or is shorter than it was.
        """
        for segment in block.segments:
            self.read_segment(segment, buffer)

    def read_segment(self, segment: FileSegment, buffer: AlignedBuffer) -> None:
        """Read a segment. A failed read is tried again: a network volume may fail for a moment.

        Raises:
            OSError: The file cannot be read, after some tries, or is shorter than it was.
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
                time.sleep(self._seconds_between_tries)

    def close(self) -> None:
        """Close all files."""
        for descriptor, _ in self._open.values():
            with contextlib.suppress(OSError):  # a network volume may fail here, too
                os.close(descriptor)
        self._open.clear()

    def _read(self, segment: FileSegment, buffer: AlignedBuffer) -> None:
        descriptor, is_direct = self._descriptor(segment)
        done = 0
        while done < segment.needed:
            end = min(done + STREAM_PIECE, segment.length)
            into = buffer.bytes[segment.at + done : segment.at + end]
            try:
                count = os.preadv(descriptor, [into], segment.start + done)
            except OSError as error:
                if not is_direct or error.errno not in NOT_DIRECT:
                    raise
                descriptor, is_direct = self._descriptor(segment, buffered=True)
                continue
            done += count
            if count == 0 or (is_direct and done < segment.needed and done % PAGE):
                raise too_short(segment.file)
        if not is_direct:
            os.posix_fadvise(descriptor, segment.start, segment.length, os.POSIX_FADV_DONTNEED)

    def _descriptor(self, segment: FileSegment, *, buffered: bool = False) -> tuple[int, bool]:
        """Return a file's descriptor, and whether its reads are direct.

        Args:
            segment: A segment of the file.
            buffered: Whether to open the file again, for reads through the page cache.
        """
        file = segment.file
        if buffered:
            self._forget(file)
            logger.info("%s does not take direct reads; its pages are dropped instead", file)
        if file not in self._open:
            plain = (os.open(file, os.O_RDONLY), False) if buffered else None
            self._open[file] = plain or open_direct(file, os.O_RDONLY)
        if identify_file(os.fstat(self._open[file][0])) != segment.file_identity:
            raise OSError(errno.ESTALE, "the file was replaced or changed", str(file))
        return self._open[file]

    def _forget(self, file: Path) -> None:
        descriptor, _ = self._open.pop(file, (-1, False))
        if descriptor >= 0:
            os.close(descriptor)


def too_short(file: Path) -> OSError:
    """Return the error of a file that ends before the bytes that it has to hold."""
    return OSError(errno.EIO, "the file is shorter than it was", str(file))


def split_range(
    file: Path, offset: int, file_identity: FileIdentity, into: torch.Tensor, part_bytes: int
) -> Iterator[tuple[FileSegment, int, torch.Tensor]]:
    """Yield segments with the bytes of a file from an offset on, which need not begin at a page.

    Args:
        file: The file.
        offset: Offset of the first byte in the file.
        file_identity: The identity of the file when its layout was read.
        into: A tensor of uint8, as long as the bytes to read.
        part_bytes: Most bytes of a segment, a multiple of a page.

    Yields:
        A segment, the bytes of it to skip, and the part of the tensor that the others belong to.

    Raises:
        OSError: The file is shorter than it was.
    """
    _, _, size, _ = file_identity
    if offset + len(into) > size:
        raise too_short(file)
    done = 0
    while done < len(into):
        start = (offset + done) // PAGE * PAGE
        skip = offset + done - start
        count = min(len(into) - done, part_bytes - skip)
        segment = FileSegment(file, start, pages(skip + count), 0, file_identity)
        yield segment, skip, into[done : done + count]
        done += count


def open_direct(file: Path, flags: int) -> tuple[int, bool]:
    """Return a file's descriptor, and whether its reads and writes are direct.

    Raises:
        OSError: The file cannot be opened either way.
    """
    try:
        return os.open(file, flags | os.O_DIRECT, _MODE), True
    except OSError as error:
        if error.errno not in NOT_DIRECT:
            raise
    return os.open(file, flags, _MODE), False


@contextlib.contextmanager
def open_block_reader(
    *, seconds_between_tries: float = _SECONDS_BETWEEN_TRIES
) -> Iterator[BlockReader]:
    """Yield a reader whose files are closed afterwards."""
    with contextlib.closing(BlockReader(seconds_between_tries=seconds_between_tries)) as reader:
        yield reader
