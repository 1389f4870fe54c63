"""Decides from where experts are read, and opens the cache that reads them.

1. A store that holds them is used, as for blocks.
2. Otherwise experts are read from the checkpoint in place, cast if need be: as it is published, it
   has them one by one.
3. If transformers computes them from what is stored, or the checkpoint holds pickles, it writes
   them to the folder for converted weights, as it does for blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.safetensors_header import read_header
from predictor.metrics import WeightMetrics
from predictor.mixture.forward import attach_source
from predictor.mixture.modules import names_of_experts
from predictor.mixture.parameters import holds_experts_alone, input_width
from predictor.mixture.router import router_of
from predictor.placement.plan import Placement
from predictor.private.stored_names import CheckpointNames, StoredParameter, stored_parameters
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.experts.extents import (
    ExpertExtent,
    SlotLayout,
    StoredExperts,
    expert_name,
    parameters_of_experts,
)
from predictor.weights.experts.reader import ExpertReader
from predictor.weights.experts.slots import LayerExperts
from predictor.weights.extents import BlockParameters, CheckpointIndex
from predictor.weights.streaming.copy_stream import CopyStream, page_lock_within

ExpertExtents = Mapping[str, ExpertExtent]
"""The extents of experts by their name."""


class OffloadedExperts:
    """The experts of one start that are read one by one.

    Attributes:
        modules: The names of the experts modules, in execution order.
        parameters: For each expert its tensors by name, as they are served.
        names: The names of the model's parameters that hold experts.
        in_checkpoint: The experts in the checkpoint's own files; None if they are not there as they
            are served.
    """

    def __init__(
        self, placement: Placement, skeleton: PreTrainedModel, checkpoint: Checkpoint
    ) -> None:
        """Read the headers of the checkpoint's files, if experts are offloaded.

        Args:
            placement: The plan.
            skeleton: The model on the meta device.
            checkpoint: Files on local disk.
        """
        self.modules = tuple(slots.module for slots in placement.experts)
        self.names = names_of_experts(skeleton, self.modules)
        self.parameters: BlockParameters = parameters_of_experts(skeleton, self.modules)
        self.in_checkpoint: ExpertExtents | None = None
        self._placement = placement
        if self.modules and checkpoint.kind == "safetensors" and checkpoint.stored is not None:
            files = checkpoint.stored.files
            keys = (key for file in files for key in read_header(file))
            stored = stored_parameters(CheckpointNames(skeleton), keys, self.names.__contains__)
            self.in_checkpoint = self._find(StoredExperts(skeleton, stored, files))

    def find_converted(self, model: PreTrainedModel, index: CheckpointIndex) -> ExpertExtents:
        """Return the experts among the weights that transformers has written; none in a store.

        Args:
            model: The loaded model.
            index: The location of each parameter on disk.
        """
        if not self.names <= index.keys():
            return {}
        entries = {name: index[name] for name in self.names}
        stored = {
            name: StoredParameter(((entry["weight_name"],),), is_merged=False)
            for name, entry in entries.items()
        }
        files = {Path(entry["safetensors_file"]) for entry in entries.values()}
        return self._find(StoredExperts(model, stored, files)) or {}

    def device_map(self, *, in_store: bool) -> dict[str, int | str]:
        """Return the entries of a device map for `from_pretrained`.

        Args:
            in_store: Whether a store holds the experts.
        """
        needs_conversion = not in_store and self.in_checkpoint is None
        return dict.fromkeys(self.names, "disk" if needs_conversion else "meta")

    def open(
        self,
        model: PreTrainedModel,
        extents: ExpertExtents,
        metrics: WeightMetrics,
        *,
        page_locked_bytes: int,
    ) -> ExpertCache | DeviceExpertCache | None:
        """Attach a cache to a model's experts modules; None if no experts are offloaded.

        Args:
            model: The loaded model.
            extents: The experts.
            metrics: Counts reads, copies, hits and misses.
            page_locked_bytes: Most bytes of main memory to page-lock.

        Raises:
            LoadFailed: The driver refuses to page-lock memory.
        """
        if not self.modules:
            return None
        placement, device = self._placement, torch.device(self._placement.execution_device)
        layers = self._layers(model, extents, executes=device.type == "cpu")
        reader = ExpertReader(metrics)
        cache: ExpertCache | DeviceExpertCache
        if device.type == "cpu":
            cache = ExpertCache(layers, placement.expert_staging, reader, metrics)
        else:
            host = ExpertCache(
                layers,
                placement.host_expert_staging,
                reader,
                metrics,
                computes_beside=all(
                    holds_experts_alone(model.get_submodule(name)) for name in self.modules
                ),
            )
            if device.type == "cuda":
                page_lock_within(page_locked_bytes, host.slot_buffers)
            stream = CopyStream(device)
            cache = DeviceExpertCache(
                layers, placement.expert_staging, host, stream, device, metrics
            )
        metrics.expert_slots.set(sum(layer.quota + layer.device_quota for layer in layers))
        for layer in cache.layers:
            attach_source(model.get_submodule(layer.name), layer)
        return cache

    def _layers(
        self, model: PreTrainedModel, extents: ExpertExtents, *, executes: bool
    ) -> list[LayerExperts]:
        """Return the layers; the slots in main memory are the executing device's if it executes."""
        return [
            LayerExperts(
                slots.module,
                SlotLayout.of(model.get_submodule(slots.module)),
                tuple(extents[expert_name(slots.module, e)] for e in range(slots.count)),
                quota=slots.device_slots if executes else slots.host_slots,
                device_quota=0 if executes else slots.device_slots,
                guess=router_of(
                    model,
                    slots.module,
                    slots.count,
                    slots.routed,
                    input_width(model.get_submodule(slots.module)),
                ),
            )
            for slots in self._placement.experts
        ]

    def _find(self, stored: StoredExperts) -> ExpertExtents | None:
        extents: dict[str, ExpertExtent] = {}
        for module in self.modules:
            experts = stored.find(module)
            if experts is None:
                return None
            extents.update((expert.name, expert) for expert in experts)
        return extents
