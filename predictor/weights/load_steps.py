"""The steps of loading one model: what is read in which way, and each way of reading it.

Their order is that of `loader`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.linear.install import install
from predictor.linear.layers import PackedLayers
from predictor.metrics import WeightMetrics
from predictor.mixture.forward import compute_here
from predictor.placement.plan import Placement
from predictor.pod.usage import count_usage
from predictor.private.conversions import converts_weights
from predictor.private.model_classes import set_device
from predictor.profiling.blocks import find_blocks
from predictor.weights.block_source import BlockSourceResolver
from predictor.weights.converted import (
    ConvertedCheckpoint,
    folder_name,
    model_identity,
    open_conversion_folder,
)
from predictor.weights.expert_source import OffloadedExperts
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.experts.extents import Extents
from predictor.weights.extents import BlockExtent, parameters_of_blocks
from predictor.weights.filled_blocks import FilledBlocks, find_filled_blocks
from predictor.weights.filling import Filling
from predictor.weights.from_pretrained import DeferredDispatch, from_pretrained
from predictor.weights.kept_blocks import blocks_for_store
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.offloaded_parts import (
    StreamedParts,
    device_map,
    streamed_parts,
)
from predictor.weights.progress import Progress
from predictor.weights.resident import make_resident
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Identity
from predictor.weights.store.served_weights import ServedWeights
from predictor.weights.store.warmup_cache import WarmupCache
from predictor.weights.streaming.device_loader import HostBlock
from predictor.weights.streaming.parts import StreamedModel, stream_parts


@dataclass(frozen=True, slots=True)
class LoadSteps:
    """The steps of loading one model, and their common arguments."""

    checkpoint: Checkpoint
    placement: Placement
    offload: OffloadConfig
    skeleton: PreTrainedModel
    packed: PackedLayers
    blocks: tuple[str, ...]
    trust_remote_code: bool
    progress: Progress
    metrics: WeightMetrics
    weights: ServedWeights
    experts: OffloadedExperts
    pinned_fraction: float
    parts: StreamedParts
    filled: FilledBlocks

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        placement: Placement,
        offload: OffloadConfig,
        skeleton: PreTrainedModel,
        packed: PackedLayers,
        trust_remote_code: bool,
        progress: Progress,
        metrics: WeightMetrics,
        pinned_fraction: float,
    ) -> Self:
        """Look up which parts of the model are read in which way."""
        blocks, weights = find_blocks(skeleton), ServedWeights.of(checkpoint, offload.folder)
        experts = OffloadedExperts(placement, skeleton, checkpoint)
        own = placement.fixed | experts.names
        return cls(
            *(checkpoint, placement, offload, skeleton, packed, blocks, trust_remote_code),
            *(progress, metrics, weights, experts, pinned_fraction),
            streamed_parts(placement, skeleton, blocks, without=own),
            find_filled_blocks(checkpoint, placement, skeleton, blocks, packed, without=own),
        )

    @property
    def page_locked_bytes(self) -> int:
        """Most bytes of main memory that may be page-locked."""
        return int(self.pinned_fraction * (self.placement.tier("cpu").owned or 0))

    @property
    def kept(self) -> tuple[str, ...]:
        """The blocks that stay in memory and are kept in the store, too."""
        folder = self._store_folder() if self.packed.quantised_to else None
        if folder is None:
            return ()
        return blocks_for_store(
            *(self.placement, self.skeleton, self.blocks, folder),
            streamed=self.parts.on_disk,
            free=self.offload.free if self.offload.is_disk else 0,
        )

    def resolver(self) -> BlockSourceResolver:
        """Return the resolver of the source of blocks that we read, and of the experts."""
        experts, names = self.experts, [*self.parts.on_disk, *self.kept]
        is_needed = names or experts.modules or self.filled.names
        folder = self._store_folder() if is_needed else None
        parameters = parameters_of_blocks(self.skeleton, names, without=self._not_streamed)
        return BlockSourceResolver(
            *(self._offload(), folder, parameters, self.progress, self.metrics),
            *(experts.parameters, self._further_names),
        )

    def place(
        self, resolver: BlockSourceResolver
    ) -> tuple[PreTrainedModel, DeferredDispatch, Extents]:
        """Load the model, and return it with the extents of what we read from disk to serve.

        Parts on disk are on the meta device in the model.
        """
        in_store = resolver.store is not None
        devices = device_map(
            *(self.placement, self.skeleton, self.parts, self.kept), in_store=in_store
        )
        devices |= self.filled.device_map(self.skeleton)
        devices |= self.experts.device_map(in_store=in_store)
        sizes = {name: tensor.nbytes for name, tensor in self.skeleton.named_parameters()}
        self.progress.begin("placing weights", sizes, self.blocks)
        with self._conversion(devices) as converted:
            folder = None if converted is None else converted.path
            before = 0 if folder is None else count_usage(folder).used
            resolver.converted = converted
            model, dispatch = from_pretrained(
                self.checkpoint,
                self.placement,
                devices,
                folder,
                skeleton=self.skeleton,
                packed=self.packed,
                trust_remote_code=self.trust_remote_code,
                progress=self.progress,
            )
        has_ours = self.experts.modules or self.packed.experts
        if has_ours or self.placement.execution_device == "cpu":
            compute_here(model)  # a GPU with all experts has faster ways of its own
        if self.placement.execution_device == "cpu":
            install(model)
        parameters = parameters_of_blocks(model, resolver.names, without=self._not_streamed)
        experts = self.experts.in_checkpoint
        if experts is None:
            experts = self.experts.find_converted(model, dispatch.index)
        spent = 0 if folder is None else count_usage(folder).used - before
        extents = resolver.resolve(parameters, dispatch.index, experts, spent=spent)
        if converted is not None and resolver.store is not None:
            converted.remove((*chain.from_iterable(parameters.values()), *self._further_names))
        return model, dispatch, extents

    def make_resident(self, model: PreTrainedModel) -> tuple[int, dict[str, HostBlock]]:
        """Copy what stays in main memory; return the bytes, and the parts that wait for a GPU."""
        return make_resident(
            *(model, self.progress, self.checkpoint.remote),
            blocks=self.blocks,
            host_blocks=self.parts.in_memory,
            without=self._not_streamed,
        )

    def stream(
        self,
        model: PreTrainedModel,
        dispatch: DeferredDispatch,
        on_disk: Sequence[BlockExtent],
        host_blocks: Mapping[str, HostBlock],
    ) -> StreamedModel:
        """Stream the offloaded parts, and have Accelerate move data between GPUs."""
        dispatch.attach(self.placement)
        device = torch.device(self.placement.execution_device)
        set_device(model, device)
        return stream_parts(
            model,
            self.parts,
            on_disk,
            host_blocks,
            device,
            block_buffers=self.placement.stream_buffers,
            page_locked_bytes=self.page_locked_bytes,
            metrics=self.metrics,
        )

    def open_experts(
        self, model: PreTrainedModel, extents: Extents, host_blocks: Mapping[str, HostBlock]
    ) -> ExpertCache | DeviceExpertCache | None:
        """Open the experts; blocks that wait in main memory are page-locked before them."""
        taken = sum(block.size for block in host_blocks.values())
        left = max(0, self.page_locked_bytes - taken)
        return self.experts.open(model, extents.experts, self.metrics, page_locked_bytes=left)

    def warmup_cache(
        self, resolver: BlockSourceResolver, extents: Extents, filling: Filling
    ) -> WarmupCache:
        """Return the warm-up cache, which keeps nothing if nothing is read while serving."""
        is_read = extents.source or self.filled.names
        return WarmupCache(
            resolver.warmup_cache_file if is_read else None,
            self.weights,
            before_timing=filling.finish,
            streamed=extents.size,
            source=[extents.source] if extents.source else [],
            device=self.placement.execution_device,
        )

    @property
    def _further_names(self) -> frozenset[str]:
        """The names of the parameters that are in a store under the names of others."""
        return self.experts.names | self.parts.names_of_twins

    @property
    def _not_streamed(self) -> frozenset[str]:
        """The names of the parameters that no module is streamed with."""
        return self.placement.fixed | self.experts.names

    def _conversion(
        self, devices: Mapping[str, int | str]
    ) -> contextlib.AbstractContextManager[ConvertedCheckpoint | None]:
        """Open the folder for converted weights; None if transformers converts none."""
        if not self._offload().needs_conversion or "disk" not in devices.values():
            return contextlib.nullcontext()
        layout = self.placement.weights_layout
        return open_conversion_folder(self.offload.folder, self.checkpoint, layout)

    def _offload(self) -> OffloadConfig:
        """Return the offload configuration; experts that are read in place need no conversion."""
        converts = self.offload.needs_conversion
        if self.experts.in_checkpoint is not None:
            converts = converts_weights(self.skeleton, but=self.experts.names)
        return replace(self.offload, needs_conversion=converts, remote=self.checkpoint.remote)

    def _store_folder(self) -> StoreFolder | None:
        if self.offload.folder is None or self.offload.store == "never":
            return None
        layout = self.placement.weights_layout
        name = folder_name(self.checkpoint, layout)
        identity = Identity(model_identity(self.checkpoint), name, layout)
        return StoreFolder(self.offload.folder, identity, self.weights)
