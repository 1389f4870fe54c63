"""The offload store's file: blocks in execution order, each one aligned extent, as it is served.

    8 bytes   magic
    8 bytes   length of the header, little endian
    4 bytes   CRC-32 of the header, little endian
    header    JSON: format, model, dtype, the files that it was written from, and for each block its
              extent, checksum and tensors
    padding   to a page
    blocks    each begins on a page

A file under its own name is complete: it is written under another name, synced and renamed. It
never changes afterwards, so processes read it without a lock. A newer file takes its name, and
leaves its bytes alone. Writing is left to `writer`.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from predictor.weights.direct_io import AlignedBuffer, open_block_reader
from predictor.weights.extents import (
    BlockExtent,
    FileIdentity,
    FileSegment,
    TensorView,
    identify_file,
    largest,
)
from predictor.weights.store.sources import Sources

FORMAT = 2
"""The version of the layout. A store of another version is written anew."""

MAGIC = b"ACPSTORE"
START = struct.Struct("<8sQI")
_LARGEST_HEADER = 256 * 1024**2


def _ignore(_: str) -> None:
    pass


class StoreCorrupt(Exception):
    """A store that cannot be used; the message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The weights that a store holds.

    Attributes:
        model: The model's id on the hub, or its directory.
        name: A name that no other model, revision and dtype has.
        dtype: torch's name of the serving dtype.
    """

    model: str
    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Store:
    """A complete store.

    Attributes:
        identity: The weights that it holds.
        blocks: The blocks by name, in execution order.
        checksums: CRC-32 of each block's extent.
        sources: The files that it was written from.
    """

    identity: Identity
    blocks: Mapping[str, BlockExtent]
    checksums: Mapping[str, int]
    sources: Sources

    def check_all(self, names: Collection[str], done: Callable[[str], None] = _ignore) -> None:
        """Read blocks, and compare them with their checksums.

        Args:
            names: The blocks.
            done: Called with the name of each checked block.

        Raises:
            StoreCorrupt: A block was altered.
            OSError: A block cannot be read.
        """
        buffer = AlignedBuffer(largest(self.blocks[name] for name in names))
        with open_block_reader() as reader:
            for name in names:
                reader.read(self.blocks[name], buffer)
                self._check(name, buffer)
                done(name)

    def _check(self, name: str, buffer: AlignedBuffer) -> None:
        block = self.blocks[name]
        if zlib.crc32(buffer.bytes[: block.size]) != self.checksums[name]:
            raise StoreCorrupt(f"{block.segments[0].file} is damaged: {name} was altered.")


def read_store(file: Path) -> Store:
    """Return a store, after a check of its header and its size.

    Raises:
        FileNotFoundError: There is no such file.
        StoreCorrupt: The store is of another format, cut short, or altered.
        OSError: The file cannot be read.
    """
    header, file_identity = _read_header(file)
    if header["format"] != FORMAT:
        raise StoreCorrupt(f"{file} is of format {header['format']} and not {FORMAT}.")
    blocks = {entry["name"]: _extent(file, file_identity, entry) for entry in header["blocks"]}
    end = max((block.segments[0].start + block.size for block in blocks.values()), default=0)
    size = file_identity[2]
    if size != end:
        raise StoreCorrupt(f"{file} has {size} bytes and not the {end} of its header.")
    checksums = {entry["name"]: entry["checksum"] for entry in header["blocks"]}
    sources = Sources.from_json(header["sources"])
    return Store(Identity(**header["identity"]), blocks, checksums, sources)


def model_of_store(file: Path) -> str | None:
    """Return the model whose weights a store of any format holds; None if it is no store."""
    try:
        header, _ = _read_header(file)
        model: str = header["identity"]["model"]
    except (StoreCorrupt, OSError, KeyError):
        return None
    return model


def _read_header(file: Path) -> tuple[dict[str, Any], FileIdentity]:
    with file.open("rb") as stream:
        start = stream.read(START.size)
        if len(start) < START.size or not start.startswith(MAGIC):
            raise StoreCorrupt(f"{file} is no offload store.")
        _, length, checksum = START.unpack(start)
        text = stream.read(length) if length <= _LARGEST_HEADER else b""
        file_identity = identify_file(os.fstat(stream.fileno()))
    if zlib.crc32(text) != checksum or len(text) != length:
        raise StoreCorrupt(f"{file} is damaged: its header was altered.")
    return json.loads(text), file_identity


def _extent(file: Path, file_identity: FileIdentity, entry: Mapping[str, Any]) -> BlockExtent:
    tensors = tuple(tensor_of(tensor) for tensor in entry["tensors"])
    segment = FileSegment(file, entry["start"], entry["length"], 0, file_identity)
    return BlockExtent(entry["name"], (segment,), tensors, "store")


def tensor_of(entry: Mapping[str, Any]) -> TensorView:
    """Return the tensor that an entry of the header describes."""
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    return TensorView(entry["name"], dtype, tuple(entry["shape"]), entry["at"])
