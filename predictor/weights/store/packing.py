"""Writes an offload store, and measures whether that pays."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from predictor.quantity import format_bytes
from predictor.weights.extents import Block, Segment, stamp_of
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import StoreDamaged, read_store
from predictor.weights.store.writer import StoreWriter, partial_of
from predictor.weights.streaming.direct_io import Buffer, opened_files

logger = logging.getLogger(__name__)

Index = Mapping[str, Mapping[str, str]]
"""transformers' index of weights on disk: file and name within it, by parameter."""

Parameters = Mapping[str, Mapping[str, torch.Tensor]]
"""For each block its parameters by name, on the meta device."""

_SAMPLE = 64 * 1024**2
"""Bytes that a volume's speed is measured with: enough to reach it, and a fraction of a second."""

_PAYS = 1.2
"""How many times as fast as the checkpoint's the offload volume has to be, measured that briefly,
for a copy of the model to be worth its space."""


class VolumeFull(Exception):
    """There is no room for a store; the message is the end of a sentence about the volume."""


def pack(
    folder: StoreFolder, wanted: Parameters, index: Index, *, free: int, progress: Progress
) -> None:
    """Writes the store of these blocks, and of those that the present one has besides.

    So pods that share a volume and have room for different blocks do not write it in turns.

    Args:
        folder: Where.
        wanted: The parameters of each block.
        index: Where transformers found each on disk.
        free: Bytes that may be written.
        progress: Is told of each block.

    Raises:
        VolumeFull: There is no room.
        OSError: The volume fails.
    """
    left = partial_of(folder.file)
    if left.exists():  # by a process that was killed; we alone write now
        free += left.stat().st_size
        left.unlink()
    others = _others(folder, wanted)
    writer = StoreWriter(folder.file, folder.identity, {**wanted, **_shapes(others)})
    if writer.size > free and others:
        writer.discard()
        others = {}
        writer = StoreWriter(folder.file, folder.identity, wanted)
    try:
        free = folder.make_room(writer.size, free)
        if writer.size > free:
            raise VolumeFull(
                f"lacks space: the store takes {format_bytes(writer.size)} and "
                f"{format_bytes(free)} are free"
            )
        logger.info("Writing the offload store %s, %s", folder.file, format_bytes(writer.size))
        _write(writer, wanted, others, index, progress)
    except BaseException:
        writer.discard()
        raise


def _write(
    writer: StoreWriter,
    wanted: Parameters,
    others: Mapping[str, Block],
    index: Index,
    progress: Progress,
) -> None:
    sizes = _sizes(wanted) | {name: block.size for name, block in others.items()}
    progress.begin("writing the offload store", sizes)
    try:
        for name, parameters in wanted.items():
            writer.write(name, dict(_stored(parameters, index)))
            progress.done(name)
        with opened_files() as files:
            for name, block in others.items():
                writer.copy(block, files)
                progress.done(name)
        writer.finish()
    finally:
        progress.end()


def _others(folder: StoreFolder, wanted: Parameters) -> dict[str, Block]:
    """Blocks of the store that there is, besides these; checked, since they are copied."""
    try:
        store = read_store(folder.file)
        others = {name: block for name, block in store.blocks.items() if name not in wanted}
        if store.identity != folder.identity or not others:
            return {}
        store.check_all(others)
    except (StoreDamaged, OSError):
        return {}
    return others


def _shapes(blocks: Mapping[str, Block]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {
            tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for tensor in block.tensors
        }
        for name, block in blocks.items()
    }


def _sizes(wanted: Parameters) -> dict[str, int]:
    return {
        name: sum(parameter.nbytes for parameter in parameters.values())
        for name, parameters in wanted.items()
    }


def _stored(
    parameters: Mapping[str, torch.Tensor], index: Index
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in parameters:
        entry = index[name]
        with safe_open(entry["safetensors_file"], framework="pt") as file:
            yield name, file.get_tensor(entry["weight_name"])


def is_faster(folder: Path, blocks: Sequence[Block]) -> bool:
    """Returns whether the offload volume is worth a copy of what the checkpoint's volume holds."""
    checkpoint = blocks[0].segments[0].file
    if os.stat(checkpoint).st_dev == os.stat(folder).st_dev:
        return False
    theirs, ours = _speed(blocks), _speed_of_folder(folder)
    logger.info(
        "The checkpoint's volume reads %s/s, the offload volume %s/s",
        format_bytes(int(theirs)),
        format_bytes(int(ours)),
    )
    return ours > _PAYS * theirs


def _speed(blocks: Sequence[Block]) -> float:
    """Bytes per second at which the first blocks are read."""
    buffer = Buffer(max(block.size for block in blocks))
    read, began = 0, time.perf_counter()
    with opened_files() as files:
        for block in blocks:
            files.read(block, buffer)
            read += block.size
            if read >= _SAMPLE:
                break
    return read / (time.perf_counter() - began)


def _speed_of_folder(folder: Path) -> float:
    """Bytes per second at which a file is read that was just written."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".sample-") as file:
        piece = os.urandom(1024**2)
        for _ in range(_SAMPLE // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        stamp = stamp_of(os.fstat(file.fileno()))
        segment = Segment(Path(file.name), 0, _SAMPLE, 0, stamp)
        return _speed([Block("sample", (segment,), (), "store")])
