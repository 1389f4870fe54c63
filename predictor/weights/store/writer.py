"""Writes an offload store; see `store` for what it is."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from predictor.dtypes import name_of
from predictor.placement.units import STREAM_PIECE
from predictor.weights.extents import PAGE, Block, pages, view_of
from predictor.weights.store.format import FORMAT, MAGIC, START, Identity, tensor_of
from predictor.weights.streaming.direct_io import NOT_DIRECT, Buffer, Files, open_direct

_ALIGNED = 64
"""Bytes that tensors are aligned to within a block: a processor's cache line."""

_SLACK = 32
"""Digits by which a block's start and checksum may make the header longer once they are known."""


class StoreWriter:
    """Writes a store, block by block, under a name of its own; `finish` gives it its name."""

    def __init__(
        self, file: Path, identity: Identity, blocks: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """Begins the file anew.

        Args:
            file: The store to be.
            identity: Whose weights they are.
            blocks: For each block in execution order its parameters, of which dtypes and shapes
                are taken; they may be on the meta device.

        Raises:
            OSError: The file cannot be written.
        """
        self.file = file
        self.partial = partial_of(file)
        self._identity = identity
        self._entries = _entries(blocks)
        header = len(self._header())
        for entry in self._entries.values():
            entry["start"] += pages(START.size + header + _SLACK * len(blocks))
        self._buffer = Buffer(max((e["length"] for e in self._entries.values()), default=0))
        self._output = _Output(self.partial)

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return max((e["start"] + e["length"] for e in self._entries.values()), default=0)

    def write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes a block.

        Args:
            name: Its name.
            tensors: Its parameters, of any dtype; they are stored in that given at the beginning.

        Raises:
            OSError: The volume is full, or fails.
        """
        entry = self._entries[name]
        self._buffer.tensor[: entry["length"]] = 0
        for one in entry["tensors"]:
            view_of(self._buffer.tensor, tensor_of(one)).copy_(tensors[one["name"]])
        self._put(entry)

    def copy(self, block: Block, files: Files) -> None:
        """Writes a block as it lies in another store.

        Raises:
            OSError: It cannot be read or written.
        """
        files.read(block, self._buffer)
        self._put(self._entries[block.name])

    def finish(self) -> None:
        """Writes the header, syncs, and gives the file its name.

        Raises:
            OSError: The volume is full, or fails.
        """
        header = self._header()
        start = START.pack(MAGIC, len(header), zlib.crc32(header)) + header
        space = Buffer(len(start))
        space.bytes[: len(start)] = start
        self._output.write(space, pages(len(start)), 0)
        self._output.sync()
        self._output.close()
        self.partial.rename(self.file)
        _sync_folder(self.file.parent)

    def discard(self) -> None:
        """Removes what was written."""
        self._output.close()
        self.partial.unlink(missing_ok=True)

    def _put(self, entry: dict[str, Any]) -> None:
        entry["checksum"] = zlib.crc32(self._buffer.bytes[: entry["length"]])
        self._output.write(self._buffer, entry["length"], entry["start"])

    def _header(self) -> bytes:
        blocks = list(self._entries.values())
        header = {"format": FORMAT, "identity": asdict(self._identity), "blocks": blocks}
        return json.dumps(header).encode()


def partial_of(file: Path) -> Path:
    """Returns the name under which a store is written."""
    return file.with_name(f"{file.name}.partial")


def _entries(blocks: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, Any]]:
    """The header's entries; extents begin at 0 until the header's own length is known."""
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name, parameters in blocks.items():
        at, tensors = 0, []
        for parameter, tensor in parameters.items():
            dtype = name_of(tensor.dtype)
            tensors.append({"name": parameter, "dtype": dtype, "shape": [*tensor.shape], "at": at})
            at += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
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
    """A file that is written in large direct writes, or synced piece by piece and dropped."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.unlink(missing_ok=True)
        self._descriptor, self._direct = open_direct(file, os.O_WRONLY | os.O_CREAT)

    def write(self, buffer: Buffer, length: int, start: int) -> None:
        done = 0
        while done < length:
            piece = buffer.bytes[done : min(done + STREAM_PIECE, length)]
            try:
                count = os.pwritev(self._descriptor, [piece], start + done)
            except OSError as error:
                if not self._direct or error.errno not in NOT_DIRECT:
                    raise
                self._go_plain()
                continue
            if self._direct:
                count = count // PAGE * PAGE
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
            done += count
        if not self._direct:
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _go_plain(self) -> None:
        self.close()
        self._descriptor, self._direct = os.open(self._file, os.O_WRONLY), False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
