"""The experts that are on an accelerator: slots that are filled from those in main memory.

Main memory has an `ExpertCache` of its own, which reads from disk. So there are three tiers: an
expert is on the accelerator, or is copied from main memory, or is read before. While one expert
computes, the next one is copied. Where it takes less time, the processor computes those that do not
stay on the accelerator, and they are not copied; see `Way.COMPUTED`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch

from predictor.metrics import WeightMetrics
from predictor.mixture.forward import ExpertWeights
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.experts.cache import CachedLayer, ExpertCache
from predictor.weights.experts.layer_slots import LayerSlots
from predictor.weights.experts.reader import ExpertReader
from predictor.weights.experts.slot_policy import Step
from predictor.weights.experts.slots import LayerExperts, views_by_layout
from predictor.weights.experts.ways import Way
from predictor.weights.streaming.copy_stream import CopyStream, Event


class DeviceExpertCache:
    """The slots of all layers on an accelerator; one forward pass at a time.

    Attributes:
        layers: The layers, in execution order. Each is the source of its module's experts.
        reader: Reads experts into main memory.
        slots: The memory of each slot, of uint8.
        free: Slots that hold no expert that stays.
        device_bytes: Bytes of the accelerator's memory.
    """

    def __init__(
        self,
        layers: Sequence[LayerExperts],
        staging: int,
        host: ExpertCache,
        stream: CopyStream,
        device: torch.device,
        metrics: WeightMetrics,
    ) -> None:
        """Allocate the slots.

        Args:
            layers: The layers, in execution order.
            staging: Slots on the accelerator that are free between two passes, at least two.
            host: The slots in main memory; `close` closes it.
            stream: Copies to the accelerator.
            device: The accelerator.
            metrics: Counts hits and copies.
        """
        self.stream, self.metrics, self.tier = stream, metrics, str(device.index or 0)
        self._host = host
        size = max(layer.layout.size for layer in layers)
        count = staging + sum(layer.device_quota for layer in layers)
        self.device_bytes = count * size
        memory = torch.empty(self.device_bytes, dtype=torch.uint8, device=device)
        self.slots = tuple(memory[at : at + size] for at in range(0, count * size, size))
        self.free = deque(range(count))
        views = views_by_layout(self.slots, layers)
        self.layers = tuple(
            _DeviceLayer(self, layer, source, host.slots, views[layer.layout])
            for layer, source in zip(layers, host.layers, strict=True)
        )

    @property
    def computes_beside(self) -> bool:
        """Whether the processor computes experts of this pass that do not stay here."""
        return self._host.choice.way is Way.COMPUTED

    @property
    def reader(self) -> ExpertReader:
        """Reads experts into main memory."""
        return self._host.reader

    @property
    def buffers(self) -> tuple[AlignedBuffer, ...]:
        """Main memory that experts take."""
        return self._host.buffers

    def close(self) -> None:
        """End reading. The model cannot run any more."""
        self._host.close()


class _Copy(NamedTuple):
    """An expert on its way to a slot, and the event of its arrival."""

    expert: int
    slot: int
    end: Event


class _DeviceLayer:
    """The experts of one layer: an `ExpertSource`."""

    def __init__(
        self,
        cache: DeviceExpertCache,
        experts: LayerExperts,
        source: CachedLayer,
        host_slots: Sequence[torch.Tensor],
        views: Sequence[ExpertWeights],
    ) -> None:
        self.name = experts.name
        self.slots = LayerSlots(len(experts.extents), experts.device_quota, cache.free)
        self._cache, self._source, self._host_slots = cache, source, host_slots
        self._views = views
        source.elsewhere = self.slots.held

    @property
    def in_slots(self) -> dict[str, tuple[int, ...]]:
        """The experts in slots, by tier."""
        return {self._cache.tier: self.slots.experts, **self._source.in_slots}

    def fetch(
        self, counts: Sequence[int], hidden_states: torch.Tensor | None = None
    ) -> Iterator[tuple[int, ExpertWeights]]:
        """Yield each expert that has rows, those on the accelerator first; see `ExpertSource`.

        Raises:
            WeightsUnreadable: An expert cannot be read.
        """
        slots = self.slots
        step = slots.begin(counts)
        try:
            for expert in step.hits:
                yield expert, self._views[slots.held[expert]]
                slots.leave(expert)  # a copy into the slot waits for what is computed until then
            self._cache.metrics.count_experts(self._cache.tier, len(step.hits), 0)
            yield from self._arrivals(step, counts, hidden_states)
        finally:
            slots.end()

    def _arrivals(
        self, step: Step, counts: Sequence[int], hidden_states: torch.Tensor | None
    ) -> Iterator[tuple[int, ExpertWeights]]:
        """Yield the other experts as they arrive, each while the next one is copied."""
        missing = [0] * len(counts)
        for expert in step.misses:
            missing[expert] = counts[expert]
        pending: deque[_Copy] = deque()
        staying = set(step.admitted)
        try:
            with closing(
                self._source.fetch_slots(missing, hidden_states, rows=sum(counts))
            ) as experts:
                for expert, host_slot in experts:
                    if self._cache.computes_beside and expert not in staying:
                        yield expert, self._source.views[host_slot]
                        continue
                    pending.append(self._copy(expert, host_slot))
                    if len(pending) > 1:
                        yield from self._compute_first(pending)
                    self._await(pending[-1])
            if pending:
                yield from self._compute_first(pending)
        finally:
            self._cache.free.extend(copy.slot for copy in pending)

    def _compute_first(self, pending: deque[_Copy]) -> Iterator[tuple[int, ExpertWeights]]:
        """Yield the expert that has arrived first, and settle its slot."""
        yield pending[0].expert, self._views[pending[0].slot]
        copy = pending.popleft()
        self.slots.settle(copy.expert, copy.slot)

    def _copy(self, expert: int, host_slot: int) -> _Copy:
        """Begin to copy an expert into a free slot, once what uses that slot has computed."""
        cache = self._cache
        slot = cache.free.popleft()
        end = cache.stream.copy(
            [cache.slots[slot]], [self._host_slots[host_slot]], cache.stream.record()
        )
        return _Copy(expert, slot, end)

    def _await(self, copy: _Copy) -> None:
        """Wait for the end of a copy: then its slot in main memory may be filled again."""
        cache, began = self._cache, time.perf_counter()
        cache.stream.synchronize(copy.end)
        cache.metrics.count_stall(time.perf_counter() - began)
        cache.metrics.count_copied(len(cache.slots[copy.slot]))
