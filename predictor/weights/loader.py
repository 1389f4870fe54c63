"""Loads a model the way a placement says, and gives it back ready to run.

`load` is the one way from files to a model that runs. Offloaded blocks are streamed by `streaming`;
that Accelerate's hooks stream what is left is known to `from_pretrained` alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.errors import LoadFailed, reason_of
from predictor.metrics import WeightMetrics
from predictor.placement.plan import Placement
from predictor.pod.usage import count_usage
from predictor.profiling.blocks import find_blocks
from predictor.quantity import format_bytes
from predictor.weights.block_source import BlockSourceResolver, OffloadConfig
from predictor.weights.converted import (
    ConvertedCheckpoint,
    folder_name,
    needs_conversion,
    source_of,
)
from predictor.weights.extents import Block
from predictor.weights.from_pretrained import DeferredDispatch, from_pretrained
from predictor.weights.progress import Progress
from predictor.weights.resident import make_resident
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Identity
from predictor.weights.store.warmup_cache import WarmupCache
from predictor.weights.streaming.device_loader import Waiting
from predictor.weights.streaming.hooks import Streaming, stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, every part where the placement puts it.

    Attributes:
        model: The model, in evaluation mode. Exactly one forward pass may run at a time: neither
            our hooks nor Accelerate's are thread-safe.
        streaming: What streams its blocks; None where none are, or where Accelerate does.
        supply: Where the blocks come from.
        known: What was found out by running it, where that is kept: on the offload volume.
    """

    model: PreTrainedModel
    streaming: Streaming | None
    supply: BlockSourceResolver
    known: WarmupCache

    @property
    def buffer_bytes(self) -> int:
        """Bytes of main memory that its blocks are streamed through."""
        buffers = () if self.streaming is None else self.streaming.lane.buffers
        return sum(buffer.tensor.nbytes for buffer in buffers)

    @property
    def device_bytes(self) -> int:
        """Bytes of the executing accelerator's memory that its blocks are brought to."""
        return 0 if self.streaming is None else self.streaming.lane.device_bytes

    def serve(self) -> None:
        """Marks the offload volume as used; to be called when requests are answered."""
        self.supply.serve()

    def release(self) -> None:
        """Ends the use of the offload volume, as a process does that ends as it should."""
        self.supply.release()


def load(
    checkpoint: Checkpoint,
    placement: Placement,
    offload: OffloadConfig,
    *,
    trust_remote_code: bool,
    progress: Progress,
    skeleton: PreTrainedModel,
    metrics: WeightMetrics,
    pinned_fraction: float,
) -> Loaded:
    """Returns the model with every part where the placement puts it.

    Args:
        checkpoint: Files on local disk.
        placement: Where each part goes.
        offload: What is known and wanted of parts on disk.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Is told how far it is.
        skeleton: The model on the meta device, for names and sizes.
        metrics: The streaming's.
        pinned_fraction: Of main memory, how much may be page-locked.

    Raises:
        CheckpointError: The checkpoint lacks weights of the model, or has them in other shapes.
        ConfigurationError: The offload folder is needed and cannot be used.
        LoadFailed: Reading failed in another way.
    """
    blocks = find_blocks(skeleton)
    loading = _Loading(
        checkpoint, placement, offload, skeleton, blocks, trust_remote_code, progress, metrics
    )
    streamed = _streamed(placement, skeleton, blocks)
    on_disk = [name for name in streamed if placement.device_map[name] == "disk"]
    waits = [name for name in streamed if name not in on_disk]
    supply = loading.supply(on_disk)
    with contextlib.ExitStack() as undone, _failures():
        undone.callback(supply.release)
        with supply.opened():
            model, dispatch, found = loading.place(supply)
        if on_disk and not found:
            waits = []  # the memory for whole blocks is what Accelerate streams with then
        copied, waiting = make_resident(model, progress, blocks=blocks, waits=waits)
        logger.info("Loaded: %s were read into main memory to stay", format_bytes(copied))
        streaming = loading.stream(model, dispatch, found, waiting, pinned_fraction=pinned_fraction)
        undone.pop_all()
    return Loaded(model, streaming, supply, loading.known(supply, found))


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Makes one sentence of what volumes and GPUs do."""
    try:
        yield
    except OSError as error:
        raise LoadFailed(f"The weights cannot be read: {reason_of(error)}") from error
    except torch.OutOfMemoryError as error:
        raise LoadFailed(f"A GPU has less memory than was planned: {reason_of(error)}") from error


@dataclass(frozen=True, slots=True)
class _Loading:
    """The steps of loading one model, and what they share."""

    checkpoint: Checkpoint
    placement: Placement
    offload: OffloadConfig
    skeleton: PreTrainedModel
    blocks: tuple[str, ...]
    trust_remote_code: bool
    progress: Progress
    metrics: WeightMetrics

    def supply(self, on_disk: Sequence[str]) -> BlockSourceResolver:
        """Where these blocks come from."""
        folder = _store_folder(self.checkpoint, self.placement, self.offload) if on_disk else None
        parameters = _parameters(self.skeleton, on_disk)
        return BlockSourceResolver(self.offload, folder, parameters, self.progress, self.metrics)

    def place(
        self, supply: BlockSourceResolver
    ) -> tuple[PreTrainedModel, DeferredDispatch, tuple[Block, ...]]:
        """The model with parts on disk on the meta device, and its blocks there that we stream."""
        streamed = supply.names
        device_map = _device_map(self.placement, self.skeleton, streamed if supply.store else ())
        sizes = {name: tensor.nbytes for name, tensor in self.skeleton.named_parameters()}
        self.progress.begin("placing weights", sizes, self.blocks)
        with _rewriting(self.checkpoint, self.placement, self.offload, device_map) as written:
            folder = None if written is None else written.path
            before = 0 if folder is None else count_usage(folder).used
            supply.rewritten = written
            model, dispatch = from_pretrained(
                self.checkpoint,
                self.placement,
                device_map,
                folder,
                trust_remote_code=self.trust_remote_code,
                progress=self.progress,
            )
        found: tuple[Block, ...] = ()
        if streamed:
            wanted = _parameters(model, streamed)
            spent = 0 if folder is None else count_usage(folder).used - before
            found = supply.blocks(wanted, dispatch.index, spent=spent) or ()
            if written is not None and supply.store is not None:
                written.remove(chain.from_iterable(wanted.values()))
        return model, dispatch, found

    def stream(
        self,
        model: PreTrainedModel,
        dispatch: DeferredDispatch,
        on_disk: Sequence[Block],
        waiting: Mapping[str, Waiting],
        *,
        pinned_fraction: float,
    ) -> Streaming | None:
        """Streams these blocks, and has Accelerate stream what else is offloaded."""
        ours = (*(block.name for block in on_disk), *waiting)
        dispatch.attach(self.placement, ours)
        _say_who_streams(self.placement, ours, self.blocks)
        return stream(
            model,
            on_disk,
            waiting,
            torch.device(self.placement.execution_device),
            pinnable=int(pinned_fraction * (self.placement.tier("cpu").owned or 0)),
            metrics=self.metrics,
        )

    def known(self, supply: BlockSourceResolver, found: Sequence[Block]) -> WarmupCache:
        """What an earlier start found out; nothing is kept where Accelerate streams."""
        return WarmupCache(
            supply.known_file if found else None,
            streamed=sum(block.size for block in found),
            source=[block.source for block in found[:1]],
            device=self.placement.execution_device,
        )


def _rewriting(
    checkpoint: Checkpoint,
    placement: Placement,
    offload: OffloadConfig,
    device_map: Mapping[str, int | str],
) -> contextlib.AbstractContextManager[ConvertedCheckpoint | None]:
    """Gives the folder for what transformers writes anew; None where it does not."""
    if offload.rewritten and "disk" in device_map.values():
        return needs_conversion(offload.folder, checkpoint, placement.dtype)
    return contextlib.nullcontext()


def _streamed(
    placement: Placement, skeleton: PreTrainedModel, blocks: Sequence[str]
) -> tuple[str, ...]:
    """The blocks that we stream, whole: offloaded, and sharing no weight with anything else."""
    if not placement.by_block:
        return ()
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    offloaded = placement.offloaded
    return tuple(
        name
        for name in blocks
        if name in offloaded
        and all(owners[id(p)] == 1 for p in skeleton.get_submodule(name).parameters())
    )


def _store_folder(
    checkpoint: Checkpoint, placement: Placement, offload: OffloadConfig
) -> StoreFolder | None:
    if offload.folder is None or offload.store == "never":
        return None
    name = folder_name(checkpoint, placement.dtype)
    return StoreFolder(offload.folder, Identity(source_of(checkpoint), name, placement.dtype))


def _device_map(
    placement: Placement, skeleton: PreTrainedModel, absent: Sequence[str]
) -> dict[str, int | str]:
    """The placement's map; blocks that a store holds are neither read nor kept.

    Their buffers are: they are computed, and stay where the block executes.
    """
    buffers = {
        f"{name}.{key}": placement.execution_device
        for name in absent
        for key, _ in skeleton.get_submodule(name).named_buffers()
    }
    return placement.device_map | dict.fromkeys(absent, "meta") | buffers


def _parameters(model: PreTrainedModel, names: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of each of these blocks, by their names in the whole model."""
    return {
        name: {
            f"{name}.{key}": parameter
            for key, parameter in model.get_submodule(name).named_parameters(remove_duplicate=False)
        }
        for name in names
    }


def _say_who_streams(placement: Placement, ours: Sequence[str], blocks: Sequence[str]) -> None:
    theirs = placement.offloaded - set(ours)
    if theirs and not theirs & set(blocks):
        logger.info("What is no block and offloaded is streamed by Accelerate's hooks")
    elif theirs:
        reason = "the checkpoint is not stored as it is served, and there is no offload store"
        if not placement.by_block:
            reason = "there is no memory for whole blocks, or the model does not call them so"
        logger.warning("Blocks are streamed by Accelerate's hooks, which is slow: %s", reason)
