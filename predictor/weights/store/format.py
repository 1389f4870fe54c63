"""The offload store's file: blocks in execution order, each one aligned extent, as it is served.

    8 bytes   magic
    8 bytes   length of the header, little endian
    4 bytes   CRC-32 of the header, little endian
    header    JSON: format, model, dtype, and for each block its extent, checksum and tensors
    padding   to a page
    blocks    each begins on a page

A file under its own name is complete: it is written under another, synced and renamed. It never
changes afterwards, so processes read it without a lock; a newer one takes its name and not its
bytes.
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

from predictor.weights.extents import Block, Segment, Stamp, Tensor, stamp_of
from predictor.weights.streaming.direct_io import Buffer, opened_files

FORMAT = 1
"""Raised when the layout changes; a store of another format is written anew."""

MAGIC = b"ACPSTORE"
START = struct.Struct("<8sQI")
_LARGEST_HEADER = 256 * 1024**2


def _ignore(_: str) -> None:
    pass


class StoreDamaged(Exception):
    """A store that cannot be used; the message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose weights a store holds.

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
        identity: Whose weights it holds.
        blocks: The blocks by name, in execution order.
        checksums: CRC-32 of each block's extent.
    """

    identity: Identity
    blocks: Mapping[str, Block]
    checksums: Mapping[str, int]

    def check_all(self, names: Collection[str], done: Callable[[str], None] = _ignore) -> None:
        """Reads blocks and holds them against their checksums.

        Args:
            names: The blocks.
            done: Is told of each.

        Raises:
            StoreDamaged: One was altered.
            OSError: One cannot be read.
        """
        buffer = Buffer(max((self.blocks[name].size for name in names), default=0))
        with opened_files() as files:
            for name in names:
                files.read(self.blocks[name], buffer)
                self._check(name, buffer)
                done(name)

    def _check(self, name: str, buffer: Buffer) -> None:
        block = self.blocks[name]
        if zlib.crc32(buffer.bytes[: block.size]) != self.checksums[name]:
            raise StoreDamaged(f"{block.segments[0].file} is damaged: {name} was altered.")


def read_store(file: Path) -> Store:
    """Returns a store after its header and its size were checked.

    Raises:
        FileNotFoundError: There is none.
        StoreDamaged: It is of another format, cut short, or altered.
        OSError: It cannot be read.
    """
    header, stamp = _read_header(file)
    if header["format"] != FORMAT:
        raise StoreDamaged(f"{file} is of format {header['format']} and not {FORMAT}.")
    blocks = {entry["name"]: _block(file, stamp, entry) for entry in header["blocks"]}
    end = max((block.segments[0].start + block.size for block in blocks.values()), default=0)
    if stamp[2] != end:
        raise StoreDamaged(f"{file} has {stamp[2]} bytes and not the {end} of its header.")
    checksums = {entry["name"]: entry["checksum"] for entry in header["blocks"]}
    return Store(Identity(**header["identity"]), blocks, checksums)


def owner_of(file: Path) -> str | None:
    """Returns the model whose weights a store of any format holds; None where it is no store."""
    try:
        header, _ = _read_header(file)
        model: str = header["identity"]["model"]
    except (StoreDamaged, OSError, KeyError):
        return None
    return model


def _read_header(file: Path) -> tuple[dict[str, Any], Stamp]:
    """The header, and which file it is of."""
    with file.open("rb") as stream:
        start = stream.read(START.size)
        if len(start) < START.size or not start.startswith(MAGIC):
            raise StoreDamaged(f"{file} is no offload store.")
        _, length, checksum = START.unpack(start)
        text = stream.read(length) if length <= _LARGEST_HEADER else b""
        stamp = stamp_of(os.fstat(stream.fileno()))
    if zlib.crc32(text) != checksum or len(text) != length:
        raise StoreDamaged(f"{file} is damaged: its header was altered.")
    return json.loads(text), stamp


def _block(file: Path, stamp: Stamp, entry: Mapping[str, Any]) -> Block:
    tensors = tuple(tensor_of(one) for one in entry["tensors"])
    segment = Segment(file, entry["start"], entry["length"], 0, stamp)
    return Block(entry["name"], (segment,), tensors, "store")


def tensor_of(entry: Mapping[str, Any]) -> Tensor:
    """Returns a tensor of a header's entry."""
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    return Tensor(entry["name"], dtype, tuple(entry["shape"]), entry["at"])
