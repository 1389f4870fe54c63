"""Writes the file of an offload store, in the layout of `format`.

It knows nothing of other processes: locks and free space are left to `folder` and `packing`.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from predictor.dtypes import name_of
from predictor.placement.buffers import STREAM_PIECE, TENSOR_ALIGNMENT
from predictor.weights.direct_io import NOT_DIRECT, AlignedBuffer, BlockReader, open_direct
from predictor.weights.extents import PAGE, BlockExtent, BlockParameters, pages, view_of
from predictor.weights.store.atomic import PARTIAL
from predictor.weights.store.format import FORMAT, MAGIC, START, Identity, tensor_of
from predictor.weights.store.journal import Journal, journal_file, remove_partial
from predictor.weights.store.sources import NO_SOURCES, Sources

_SLACK = 32
"""Most digits by which the start and checksum of a block lengthen the header, once written."""


class StoreWriter:
    """Writes a store, block by block, under a temporary name; `finish` renames it.

    Attributes:
        file: The file of the finished store.
        partial: The file while it is written.
    """

    def __init__(
        self,
        file: Path,
        identity: Identity,
        blocks: BlockParameters,
        sources: Sources = NO_SOURCES,
        *,
        resumes: bool = False,
    ) -> None:
        """Create the file, which only its owner may read.

        Args:
            file: The file of the finished store.
            identity: The weights that the store will hold.
            blocks: The blocks in execution order. Only dtypes and shapes of their parameters are
                used.
            sources: The files that the blocks come from.
            resumes: Whether to go on where an earlier process was killed, and to let a later one
                do so: what has been written is recorded, once it is on disk.

        Raises:
            OSError: The file cannot be written.
        """
        self.file = file
        self.partial = partial_file(file)
        self._identity = identity
        self._sources = sources
        self._entries = _entries(blocks)
        header = len(self._header())
        for entry in self._entries.values():
            entry["start"] += pages(START.size + header + _SLACK * len(blocks))
        self._buffer = AlignedBuffer(max((e["length"] for e in self._entries.values()), default=0))
        self._journal = Journal(self.partial, self._entries, self._content()) if resumes else None
        self._output = _Output(self.partial, keeps=bool(self.written))

    @property
    def written(self) -> frozenset[str]:
        """The names of blocks that an earlier process has written."""
        return frozenset() if self._journal is None else self._journal.written

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return max((e["start"] + e["length"] for e in self._entries.values()), default=0)

    def write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a block.

        Args:
            name: The block's name.
            tensors: Its parameters, in any dtype. They are stored in the dtype given at creation.

        Raises:
            OSError: The volume is full, or fails.
        """
        entry = self._entries[name]
        self._buffer.tensor[: entry["length"]] = 0
        for tensor in entry["tensors"]:
            view_of(self._buffer.tensor, tensor_of(tensor)).copy_(tensors[tensor["name"]])
        self._write_extent(entry)

    def fill(self, name: str, read: Callable[[torch.Tensor], None]) -> None:
        """Write a block whose bytes are read as they are stored.

        Args:
            name: The block's name.
            read: Reads the block into a buffer of uint8, with each tensor where `TensorView` says.

        Raises:
            OSError: The block cannot be read or written.
        """
        entry = self._entries[name]
        self._buffer.tensor[: entry["length"]] = 0
        read(self._buffer.tensor)
        self._write_extent(entry)

    def copy(self, block: BlockExtent, reader: BlockReader) -> None:
        """Copy a block from another store.

        Raises:
            OSError: The block cannot be read or written.
        """
        reader.read(block, self._buffer)
        self._write_extent(self._entries[block.name])

    def finish(self) -> None:
        """Write the header, sync, and rename the file.

        Raises:
            OSError: The volume is full, or fails.
        """
        header = self._header()
        start = START.pack(MAGIC, len(header), zlib.crc32(header)) + header
        space = AlignedBuffer(len(start))
        space.bytes[: len(start)] = start
        self._output.write(space, pages(len(start)), 0)
        self._output.sync()
        self._output.close()
        self.partial.rename(self.file)
        journal_file(self.partial).unlink(missing_ok=True)
        _sync_folder(self.file.parent)

    def discard(self, *, keeps: bool = False) -> None:
        """Remove the unfinished file; `keeps` leaves it to a later process that resumes."""
        self._output.close()
        if self._journal is None or not keeps:
            remove_partial(self.partial)

    def _write_extent(self, entry: dict[str, Any]) -> None:
        entry["checksum"] = zlib.crc32(self._buffer.bytes[: entry["length"]])
        self._output.write(self._buffer, entry["length"], entry["start"])
        if self._journal is not None:
            self._output.sync()
            self._journal.add(entry["name"], entry["checksum"])

    def _content(self) -> bytes:
        """Return what the store will hold, alike in every start with the same weights."""
        sources = replace(self._sources, read_at=0).as_json()
        return json.dumps([asdict(self._identity), sources, self._entries]).encode()

    def _header(self) -> bytes:
        blocks = list(self._entries.values())
        header = {
            "format": FORMAT,
            "identity": asdict(self._identity),
            "sources": self._sources.as_json(),
            "blocks": blocks,
        }
        return json.dumps(header).encode()


def partial_file(file: Path) -> Path:
    """Return the temporary name under which a store is written."""
    return file.with_name(f"{file.name}{PARTIAL}")


def _entries(blocks: BlockParameters) -> dict[str, dict[str, Any]]:
    """Return the header's entries, with starts that do not yet count the header itself."""
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name, parameters in blocks.items():
        at, tensors = 0, []
        for parameter, tensor in parameters.items():
            dtype = name_of(tensor.dtype)
            tensors.append({"name": parameter, "dtype": dtype, "shape": [*tensor.shape], "at": at})
            at += -(-tensor.nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
        length = pages(at)
        entries[name] = {
            "name": name,
            "start": start,
            "length": length,
            "checksum": 0,
            "tensors": tensors,
        }
        start += length
    return entries


class _Output:
    """A file that is written in large direct writes, or else synced and dropped from the cache."""

    def __init__(self, file: Path, *, keeps: bool) -> None:
        self._file = file
        if not keeps:
            file.unlink(missing_ok=True)
        self._descriptor, self._is_direct = open_direct(file, os.O_WRONLY | os.O_CREAT)

    def write(self, buffer: AlignedBuffer, length: int, start: int) -> None:
        done = 0
        while done < length:
            piece = buffer.bytes[done : min(done + STREAM_PIECE, length)]
            try:
                count = os.pwritev(self._descriptor, [piece], start + done)
            except OSError as error:
                if not self._is_direct or error.errno not in NOT_DIRECT:
                    raise
                self._reopen_buffered()
                continue
            if self._is_direct:
                count = count // PAGE * PAGE
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
            done += count
        if not self._is_direct:
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _reopen_buffered(self) -> None:
        self.close()
        self._descriptor, self._is_direct = os.open(self._file, os.O_WRONLY), False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
