"""A file of weights on local disk that looks whole, and holds what was fetched and not released.

It has the size and the header of the source's file. The rest is a hole, which takes no space, until
it is fetched; what is released becomes a hole again. A file beside it says what is there, so that
a later start goes on from there. Its time of modification never changes, since its readers take
another one for another file.

The caller holds the lock of the folder.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.errors import CheckpointError
from predictor.weights.remote import ranges
from predictor.weights.remote.source import RemoteFile, Source
from predictor.weights.store.atomic import write_atomically

_FIRST = 64 * 1024
"""Bytes of a file that are read for its header at first. Most headers are smaller."""

_LARGEST_HEADER = 100_000_000
"""The limit of the safetensors library itself."""

_PUNCH = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of fallocate(2)."""

_BATCH = 256 * 1024**2
"""Bytes that are released at one time: each writes the state once."""


class Shard:
    """One file of a source.

    Attributes:
        path: The local file.
        file: The file of the source.
        fetched: Called with the bytes of each piece that was fetched.
    """

    def __init__(self, folder: Path, file: RemoteFile, source: Source) -> None:
        """Read the state, and the header from the source if it is not there yet.

        Args:
            folder: The local folder.
            file: The file of the source.
            source: The source.

        Raises:
            HubUnreachable: The source cannot be reached.
            CheckpointError: The file is no safetensors file.
            OSError: The volume fails.
        """
        self.path, self.file = folder / file.name, file
        self.fetched: Callable[[int], None] = lambda _: None
        self._source, self._state_file = source, folder / f".{file.name}.state"
        self._pieces: set[int] = set()
        self._released: set[str] = set()
        self._is_checked = False
        self._waiting: set[str] = set()
        if not self._read_state():
            self._create()
        self._begin = data_start(self.path)
        header = read_header(self.path)
        in_order = sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0]))
        self._tensors: Mapping[str, Any] = dict(in_order)
        self._in_order = list(self._tensors)
        self._begins = [self._span(name)[0] for name in self._in_order]
        self._ends = [self._span(name)[1] for name in self._in_order]

    @property
    def names(self) -> Collection[str]:
        """The names of its tensors."""
        return self._tensors.keys()

    @property
    def missing_bytes(self) -> int:
        """Bytes that would have to be fetched for all tensors."""
        held, last = len(self._pieces) * ranges.PIECE, self._count - 1
        if last in self._pieces:
            held -= self._count * ranges.PIECE - self.file.size
        return self.file.size - held

    def has(self, names: Collection[str]) -> bool:
        """Return whether tensors are there, as the source has them."""
        return self._is_checked and self._released.isdisjoint(names)

    def require(self, names: Collection[str]) -> None:
        """Have tensors there. Unless they are, the whole file is fetched and checked.

        Raises:
            HubUnreachable, CheckpointError, OSError: As of `ranges.fetch_pieces`.
        """
        self._waiting.difference_update(names)
        if self.has(names):
            return
        for is_last in (False, True):
            self._released, self._is_checked = set(), False
            self._fetch(self._missing())
            if self._is_right():
                break
            self._pieces = set()
            self._write_state()
            if is_last:
                raise CheckpointError(
                    f"{self.file.name} of {self._source.name} is damaged: it does not have the "
                    "SHA-256 that the source states."
                )
        self._is_checked = True
        self._write_state()

    def names_within(self, begin: int, end: int) -> list[str]:
        """Return the tensors that have bytes between two offsets."""
        first = bisect.bisect_right(self._ends, begin)
        last = bisect.bisect_left(self._begins, end)
        return self._in_order[first:last]

    def preview(self, name: str) -> None:
        """Have one tensor there, without a check of the file."""
        if self._is_checked:
            self.require([name])
            return
        self._fetch(self._pieces_of([name]) - self._pieces)
        self._released.discard(name)

    def release(self, names: Collection[str]) -> None:
        """Make holes of tensors; small ones wait for others, or for `flush`."""
        self._waiting |= {name for name in names if name in self._tensors} - self._released
        if sum(self._bytes_of(name) for name in self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Release what waits for it. What is there is recorded before, and so is right if killed.

        Raises:
            OSError: The volume fails.
        """
        names, self._waiting = self._waiting, set()
        if not names:
            return
        self._released |= names
        self._pieces -= self._pieces_of(names)
        self._write_state()
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            if len(self._released) == len(self._tensors):
                os.ftruncate(descriptor, self._begin)
                os.ftruncate(descriptor, self.file.size)
            else:
                self._punch(descriptor, names)
        finally:
            os.close(descriptor)
        self._keep_time()

    def _punch(self, descriptor: int, names: Collection[str]) -> None:
        """Make holes, on file systems that can; others release the file as a whole."""
        for name in names:
            begin, end = self._span(name)
            _fallocate(descriptor, _PUNCH, begin, end - begin)

    def _fetch(self, pieces: Collection[int] | Iterator[int]) -> None:
        def done(piece: int, size: int) -> None:
            self._pieces.add(piece)
            self._write_state()
            self.fetched(size)

        ranges.fetch_pieces(self._source, self.file, self.path, sorted(pieces), done)
        self._keep_time()

    def _is_right(self) -> bool:
        if self.file.sha256 is None:
            return True
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == self.file.sha256

    def _missing(self) -> list[int]:
        return [piece for piece in range(self._count) if piece not in self._pieces]

    def _pieces_of(self, names: Collection[str]) -> set[int]:
        """Return the pieces that hold bytes of tensors."""
        spans = [self._span(name) for name in names]
        return {
            piece
            for begin, end in spans
            for piece in range(begin // ranges.PIECE, -(-end // ranges.PIECE))
        }

    def _span(self, name: str) -> tuple[int, int]:
        begin, end = self._tensors[name]["data_offsets"]
        return self._begin + begin, self._begin + end

    def _bytes_of(self, name: str) -> int:
        begin, end = self._span(name)
        return end - begin

    @property
    def _count(self) -> int:
        """Pieces of the file."""
        return -(-self.file.size // ranges.PIECE)

    def _create(self) -> None:
        """Make the file of its header and a hole."""
        start = ranges.fetch_range(self._source, self.file, 0, min(_FIRST, self.file.size))
        if len(start) >= 8:
            (length,) = struct.unpack("<Q", start[:8])
            end = min(8 + min(length, _LARGEST_HEADER), self.file.size)
            if end > len(start):
                start += ranges.fetch_range(self._source, self.file, len(start), end)
            start = start[:end]
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("wb") as stream:
            stream.write(start)
            stream.truncate(self.file.size)
            os.fsync(stream.fileno())
        self._pieces, self._released, self._is_checked = set(), set(), False
        partial.replace(self.path)
        self._keep_time()
        self._write_state()

    def _keep_time(self) -> None:
        os.utime(self.path, (1, 1))

    def _read_state(self) -> bool:
        """Return whether the file is there, after reading what it holds."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(self._state_file.read_bytes())
            is_same = state["piece"] == ranges.PIECE and self.path.stat().st_size == self.file.size
            self._pieces = set(state["pieces"]) if is_same else set()
            self._released = set(state["released"])
            self._is_checked = is_same and bool(state["is_checked"])
            return is_same
        return False

    def _write_state(self) -> None:
        state = {
            "piece": ranges.PIECE,
            "pieces": sorted(self._pieces),
            "released": sorted(self._released),
            "is_checked": self._is_checked,
        }
        write_atomically(self._state_file, json.dumps(state))


def _fallocate(descriptor: int, mode: int, begin: int, length: int) -> None:
    """Call fallocate(2), whose failure is not one of ours: the space comes free later."""
    library = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64
    library.fallocate(descriptor, mode, offset(begin), offset(length))
