"""Fetches pieces of a file side by side, tries again after an outage, and writes each in place."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from predictor.errors import HubUnreachable
from predictor.weights.remote.source import RateLimited, RemoteFile, Source

logger = logging.getLogger(__name__)

PIECE = 16 * 1024**2
"""Bytes of a piece. A killed start loses as much for each thread."""

_THREADS = 4
"""Pieces at a time. One connection of a bucket or a hub gives a fraction of a network's rate."""

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt. Half a minute outlasts a restart of a proxy."""

_LONGEST_WAIT = 300
"""Most seconds that a source may state. The hub counts requests in windows of five minutes."""

sleep = time.sleep


def fetch_range(source: Source, file: RemoteFile, begin: int, end: int) -> bytes:
    """Return bytes of a file, after further attempts if the source fails.

    Raises:
        HubUnreachable: The source cannot be reached.
        CheckpointError: The source denies access.
        LoadFailed: The source has another file than it listed.
    """
    received = bytearray()

    def take(data: bytes, at: int) -> None:
        del received[at - begin :]
        received.extend(data)

    _attempt(source, file, begin, end, take)
    return bytes(received)


def fetch_pieces(
    source: Source,
    file: RemoteFile,
    path: Path,
    pieces: Iterable[int],
    done: Callable[[int, int], None],
) -> None:
    """Write pieces of a file to their places in a local one.

    Args:
        source: The source.
        file: The file there.
        path: The local file.
        pieces: The numbers of the pieces.
        done: Called with the number of each piece and its bytes once it is on disk, by one thread
            at a time.

    Raises:
        HubUnreachable: The source cannot be reached.
        CheckpointError: The source denies access.
        LoadFailed: The source has another file than it listed.
        OSError: The volume is full, or fails.
    """
    descriptor = os.open(path, os.O_WRONLY)

    def fetch(piece: int) -> tuple[int, int]:
        begin = piece * PIECE
        end = min(begin + PIECE, file.size)
        _attempt(source, file, begin, end, lambda data, at: _write(descriptor, data, at))
        return piece, end - begin

    pool = ThreadPoolExecutor(_THREADS, "fetching")
    try:
        waiting = list(pieces)
        running = {pool.submit(fetch, piece) for piece in waiting[: 2 * _THREADS]}
        waiting = waiting[2 * _THREADS :]
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            results = [future.result() for future in finished]
            os.fdatasync(descriptor)
            for piece, size in results:
                done(piece, size)
            running |= {pool.submit(fetch, piece) for piece in waiting[: len(results)]}
            waiting = waiting[len(results) :]
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _attempt(
    source: Source, file: RemoteFile, begin: int, end: int, take: Callable[[bytes, int], None]
) -> None:
    """Read a range, and go on where it broke off after each failure."""
    at, failures = begin, 0
    while at < end:
        try:
            for data in source.read(file, at, end):
                take(data[: end - at], at)
                at += min(len(data), end - at)
                failures = 0 if data else failures
            if at < end:
                raise HubUnreachable("it ended a file early")
        except HubUnreachable as error:
            if failures == len(_WAITS):
                raise HubUnreachable(
                    f"{file.name} cannot be fetched from {source.name} ({error}); a later start "
                    "goes on where this one stopped."
                ) from None
            logger.info("Trying %s of %s again: %s", file.name, source.name, error)
            stated = error.seconds if isinstance(error, RateLimited) else 0
            sleep(max(_WAITS[failures], min(stated, _LONGEST_WAIT)))
            failures += 1


def _write(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
