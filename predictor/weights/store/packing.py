"""Writes the offload store of a model, and measures whether the store pays.

The caller holds the lock of the store's folder. Whether a store is wanted is decided in
`block_source`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open

from predictor.checkpoint.remote_files import RemoteWeights
from predictor.errors import HubUnreachable
from predictor.quantity import format_bytes
from predictor.weights.direct_io import AlignedBuffer, open_block_reader
from predictor.weights.extents import (
    BlockExtent,
    BlockParameters,
    CheckpointIndex,
    FileSegment,
    identify_file,
    largest,
    pages,
)
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import StoreCorrupt, read_store
from predictor.weights.store.journal import remove_abandoned
from predictor.weights.store.locks import OWNER_ONLY
from predictor.weights.store.writer import StoreWriter, partial_file

logger = logging.getLogger(__name__)

_SAMPLE = 64 * 1024**2
"""Bytes read to measure a volume's bandwidth: enough to reach it, in a fraction of a second."""

_WORTHWHILE_SPEEDUP = 1.2
"""A copy of the model is worth its space if the offload volume's bandwidth is so many times that of
the checkpoint's volume. The measurement is brief, and so not exact."""


class VolumeFull(Exception):
    """The volume is too full for a store; the message ends a sentence about the volume."""


Fill = Callable[[torch.Tensor], None]
"""Reads a block into a buffer of uint8, as it is stored."""


def write_store(
    folder: StoreFolder,
    blocks: BlockParameters,
    index: CheckpointIndex,
    fills: Mapping[str, Fill] = MappingProxyType({}),
    *,
    free: int,
    progress: Progress,
    remote: RemoteWeights | None = None,
) -> None:
    """Write a store with these blocks, and with the other blocks of the present store.

    Pods that share a volume may stream different blocks. Keeping the others' blocks spares the pods
    from rewriting the store in turns.

    Args:
        folder: The folder of the store.
        blocks: The blocks.
        index: The location of each parameter on disk.
        fills: For blocks whose parameters are not in the index, what reads them.
        free: Bytes that may be written.
        progress: Counts each block.
        remote: Fetches weights that are not on local disk, and releases those that are stored.

    Raises:
        VolumeFull: The store does not fit.
        OSError: The volume fails.
        LoadFailed: A file of the weights was changed meanwhile.
    """
    free += remove_abandoned(partial_file(folder.file), keeps=remote is not None)
    writer, others = _open_writer(folder, blocks, free, resumes=remote is not None)
    try:
        free = folder.make_room(writer.size, free)
        if writer.size > free:
            raise VolumeFull(
                f"lacks space: the store takes {format_bytes(writer.size)} and "
                f"{format_bytes(free)} are free"
            )
        logger.info("Writing the offload store %s, %s", folder.file, format_bytes(writer.size))
        _write(writer, blocks, others, index, fills, progress, remote)
        folder.weights.check_unchanged()
        writer.finish()
    except BaseException as error:
        writer.discard(keeps=isinstance(error, HubUnreachable))
        raise


def _open_writer(
    folder: StoreFolder, blocks: BlockParameters, free: int, *, resumes: bool
) -> tuple[StoreWriter, dict[str, BlockExtent]]:
    """Return the writer, and the other blocks of the store if there is room for them."""
    create = partial(
        StoreWriter, folder.file, folder.identity, sources=folder.weights.sources, resumes=resumes
    )
    others = _other_blocks(folder, blocks)
    writer = create({**blocks, **_shapes(others)})
    if writer.size <= free or not others:
        return writer, others
    writer.discard()
    return create(blocks), {}


def _write(
    writer: StoreWriter,
    blocks: BlockParameters,
    others: Mapping[str, BlockExtent],
    index: CheckpointIndex,
    fills: Mapping[str, Fill],
    progress: Progress,
    remote: RemoteWeights | None,
) -> None:
    sizes = _sizes(blocks) | {name: block.size for name, block in others.items()}
    progress.begin("writing the offload store", sizes)
    try:
        for name, parameters in blocks.items():
            if name in fills and name not in writer.written:
                writer.fill(name, fills[name])
            elif name not in writer.written:
                writer.write(name, dict(_stored(parameters, index, remote)))
                _release(parameters, index, remote)
            progress.done(name)
        with open_block_reader() as reader:
            for name, block in others.items():
                if name not in writer.written:
                    writer.copy(block, reader)
                progress.done(name)
    finally:
        progress.end()


def _other_blocks(folder: StoreFolder, blocks: BlockParameters) -> dict[str, BlockExtent]:
    """Return the served weights' blocks in the present store besides these, after a check."""
    try:
        store = read_store(folder.file)
        others = {
            name: block
            for name, block in store.blocks.items()
            if name not in blocks and not _overlaps(name, blocks)
        }
        is_current = store.identity == folder.identity and folder.weights.are_in(store.sources)
        if not (is_current and others):
            return {}
        store.check_all(others)
    except (StoreCorrupt, OSError):
        return {}
    return others


def _overlaps(name: str, blocks: BlockParameters) -> bool:
    """Return whether a block holds one of these, or is a part of one: an expert of a block."""
    parts = name.split(".")
    outer = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(other in blocks for other in outer) or any(
        other.startswith(f"{name}.") for other in blocks
    )


def _shapes(blocks: Mapping[str, BlockExtent]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {
            tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for tensor in block.tensors
        }
        for name, block in blocks.items()
    }


def _sizes(blocks: BlockParameters) -> dict[str, int]:
    return {
        name: sum(parameter.nbytes for parameter in parameters.values())
        for name, parameters in blocks.items()
    }


def _stored(
    parameters: Mapping[str, torch.Tensor], index: CheckpointIndex, remote: RemoteWeights | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in parameters:
        entry = index[name]
        if remote is not None:
            remote.require(Path(entry["safetensors_file"]), [entry["weight_name"]])
        with safe_open(entry["safetensors_file"], framework="pt") as file:
            yield name, file.get_tensor(entry["weight_name"])


def _release(
    parameters: Mapping[str, torch.Tensor], index: CheckpointIndex, remote: RemoteWeights | None
) -> None:
    """Release the stored tensors of a block that was written."""
    if remote is None:
        return
    for entry in (index[name] for name in parameters):
        remote.release(Path(entry["safetensors_file"]), [entry["weight_name"]])


def measure_blocks(blocks: Sequence[BlockExtent]) -> float:
    """Return the bytes per second at which the first blocks are read."""
    buffer = AlignedBuffer(largest(blocks))
    count, began = 0, time.perf_counter()
    with open_block_reader() as reader:
        for block in blocks:
            reader.read(block, buffer)
            count += block.size
            if count >= _SAMPLE:
                break
    return count / (time.perf_counter() - began)


def measure_file(file: Path) -> float:
    """Return the bytes per second at which the beginning of a file is read.

    Raises:
        OSError: The file cannot be read.
    """
    identity = identify_file(file.stat())
    segment = FileSegment(file, 0, min(_SAMPLE, pages(file.stat().st_size)), 0, identity)
    return measure_blocks([BlockExtent("sample", (segment,), (), "checkpoint")])


def measure_folder(store: Path) -> float:
    """Return the bytes per second at which a file is read that was just written beside a store.

    The file has the name of the store while it is written. So the next process that holds the
    store's lock removes it if this one is killed.

    Args:
        store: The file of the store, whose lock is held.
    """
    sample = partial_file(store)
    try:
        with open(sample, "wb", opener=_open_private) as file:
            piece = os.urandom(1024**2)
            for _ in range(_SAMPLE // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file_identity = identify_file(os.fstat(file.fileno()))
        segment = FileSegment(sample, 0, _SAMPLE, 0, file_identity)
        return measure_blocks([BlockExtent("sample", (segment,), (), "store")])
    finally:
        sample.unlink(missing_ok=True)


def _open_private(file: str, flags: int) -> int:
    return os.open(file, flags, OWNER_ONLY)


def is_faster(
    store: Path,
    blocks: Sequence[BlockExtent],
    *,
    block_bandwidth: Callable[[Sequence[BlockExtent]], float] = measure_blocks,
    folder_bandwidth: Callable[[Path], float] = measure_folder,
) -> bool:
    """Return whether the offload volume is so much faster that a copy of the checkpoint pays.

    Args:
        store: The file of the store, whose lock is held.
        blocks: Blocks in the checkpoint.
        block_bandwidth: Returns the bytes per second of reading blocks.
        folder_bandwidth: Returns the bytes per second of reading a file beside a store.
    """
    checkpoint = blocks[0].segments[0].file
    if os.stat(checkpoint).st_dev == os.stat(store.parent).st_dev:
        return False
    in_place = block_bandwidth(blocks)
    in_store = folder_bandwidth(store)
    logger.info(
        "The checkpoint's volume reads %s/s, the offload volume %s/s",
        format_bytes(int(in_place)),
        format_bytes(int(in_store)),
    )
    return in_store > _WORTHWHILE_SPEEDUP * in_place
