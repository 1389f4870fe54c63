"""The experts that are in memory: slots for those that stay, and for those that are on their way.

All slots have one size and lie one behind the other, so that any expert of any layer can be in any
of them. Each layer keeps as many experts as its quota says; which ones, its `SlotPolicy` decides. A
few more slots are free between two forward passes: experts that are not kept are read into them. If
an expert stays after all, it keeps its slot, and the slot of another expert becomes free. So
nothing is copied, and a pass that uses every expert of a layer takes no more memory.

While the experts in memory compute, the others are read. A large pass, which uses most experts, has
those of the next layer read ahead as well; whether that pays is measured, see `WayChoice`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing

import torch

from predictor.metrics import WeightMetrics
from predictor.mixture.forward import ExpertWeights
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.experts.extents import ExpertExtent
from predictor.weights.experts.layer_slots import LayerSlots
from predictor.weights.experts.reader import ExpertRead, ExpertReader
from predictor.weights.experts.slots import LayerExperts, allocate, slots_in, views_by_layout
from predictor.weights.experts.ways import Way, WayChoice


class ExpertCache:
    """The slots of all layers; one forward pass at a time.

    Attributes:
        layers: The layers, in execution order. Each is the source of its module's experts.
        reader: Reads experts.
        slot_buffers: The memory of the slots.
        slots: The memory of each slot, of uint8.
        free: Slots that hold no expert that stays.
        choice: Chooses whether passes read ahead.
    """

    def __init__(
        self,
        layers: Sequence[LayerExperts],
        staging: int,
        reader: ExpertReader,
        metrics: WeightMetrics,
        *,
        computes_beside: bool = False,
    ) -> None:
        """Allocate the slots, and read nothing yet.

        Args:
            layers: The layers, in execution order.
            staging: Slots that are free between two passes.
            reader: Reads experts; `close` closes it.
            metrics: Counts hits, misses and waits.
            computes_beside: Whether the processor may compute experts beside an accelerator.
        """
        self.reader = reader
        ways = [Way.NONE, Way.ALL]
        if any(layer.guess for layer in layers):
            ways.append(Way.GUESSED)
        if computes_beside:
            ways.append(Way.COMPUTED)
        self.choice = WayChoice(ways, clock=time.perf_counter)
        self._metrics = metrics
        self._next: Sequence[int] | None = None
        self._hidden_states: torch.Tensor | None = None
        size = max(layer.layout.size for layer in layers)
        count = staging + sum(layer.quota for layer in layers)
        self.slot_buffers = allocate(count, size)
        slots = [slot for buffer in self.slot_buffers for slot in slots_in(buffer, size)]
        self.slots: tuple[torch.Tensor, ...] = tuple(slots)
        views = views_by_layout(slots, layers)
        self.free = deque(range(count))
        self.layers = tuple(
            CachedLayer(self, index, layer, views[layer.layout])
            for index, layer in enumerate(layers)
        )

    @property
    def device_bytes(self) -> int:
        """Bytes of an accelerator's memory: 0, since experts stay in main memory."""
        return 0

    @property
    def buffers(self) -> tuple[AlignedBuffer, ...]:
        """Main memory that experts take: the slots, and the bounce buffers of the reader."""
        return (*self.slot_buffers, *self.reader.buffers)

    def begin_layer(self, index: int, rows: int, hidden_states: torch.Tensor | None) -> None:
        """Note that a forward pass comes to a layer with so many rows."""
        if index == 0:
            self.choice.begin_pass(rows)
        self._hidden_states, self._next = hidden_states, None

    def end_layer(self, index: int, hits: int, misses: int) -> None:
        """Note that a forward pass has computed a layer's experts."""
        self._metrics.count_experts("cpu", hits, misses)
        if index == len(self.layers) - 1:
            self.choice.end_pass()

    def wait(self, requests: Collection[ExpertRead]) -> ExpertRead:
        """Return one of these reads that is done, and count the time that it took.

        Raises:
            WeightsUnreadable: Its expert cannot be read.
        """
        began = time.perf_counter()
        try:
            return self.reader.wait(requests)
        finally:
            self._metrics.count_stall(time.perf_counter() - began)

    def read_next(self, index: int) -> None:
        """Read experts of the layer after this one ahead, if that pays, into free slots."""
        if index + 1 == len(self.layers):
            return
        following = self.layers[index + 1]
        if self._next is None:  # guessed only when the reads of this layer have begun
            self._next = following.absent(self.choice.way, self._hidden_states)
        following.read_ahead(self._next)

    def reclaim(self, index: int) -> None:
        """Free the slots of experts that were read ahead for other layers than this one."""
        for layer in self.layers:
            if layer.index != index:
                layer.drop_ahead(())

    def close(self) -> None:
        """End reading. The model cannot run any more."""
        self.reader.close()


class CachedLayer:
    """The experts of one layer: an `ExpertSource`.

    Attributes:
        index: The layer's number among those with experts.
        name: The name of the experts module.
        slots: The slots of its experts.
        views: For each slot of main memory the tensors of an expert in it.
        elsewhere: Experts that are on an accelerator, and not read ahead.
    """

    def __init__(
        self,
        cache: ExpertCache,
        index: int,
        experts: LayerExperts,
        views: Sequence[ExpertWeights],
    ) -> None:
        """Begin with no expert in memory.

        Args:
            cache: The slots.
            index: The layer's number among those with experts.
            experts: The experts on disk.
            views: For each slot the tensors of an expert in it.
        """
        self.index, self.name = index, experts.name
        self.slots = LayerSlots(len(experts.extents), experts.quota, cache.free)
        self._cache, self._reader = cache, cache.reader
        self._extents, self.views, self._guess = experts.extents, views, experts.guess
        self.elsewhere: Container[int] = ()
        self._ahead: dict[int, ExpertRead] = {}

    @property
    def in_slots(self) -> dict[str, tuple[int, ...]]:
        """The experts in slots, by tier."""
        return {"cpu": self.slots.experts}

    def fetch(
        self, counts: Sequence[int], hidden_states: torch.Tensor | None = None
    ) -> Iterator[tuple[int, ExpertWeights]]:
        """Yield each expert that has rows, those in memory first; see `ExpertSource`.

        Raises:
            WeightsUnreadable: An expert cannot be read.
        """
        with closing(self.fetch_slots(counts, hidden_states)) as experts:
            for expert, slot in experts:
                yield expert, self.views[slot]

    def fetch_slots(
        self,
        counts: Sequence[int],
        hidden_states: torch.Tensor | None = None,
        *,
        rows: int | None = None,
    ) -> Generator[tuple[int, int]]:
        """Yield each expert that has rows, and its slot, which it keeps until the next one.

        Args:
            counts: For each expert its number of rows.
            hidden_states: The router's input, to guess by; None to guess nothing.
            rows: The rows of all experts, if some are elsewhere; None for the sum of `counts`.

        Raises:
            WeightsUnreadable: An expert cannot be read.
        """
        cache, slots = self._cache, self.slots
        cache.begin_layer(self.index, sum(counts) if rows is None else rows, hidden_states)
        step = slots.begin(counts)
        self.drop_ahead(step.misses)
        requests = {self._ahead.pop(e): e for e in step.misses if e in self._ahead}
        for read in requests:
            self._reader.hasten(read)
        begun = set(requests.values())
        waiting = deque(expert for expert in step.misses if expert not in begun)
        try:
            self._begin(waiting, requests)
            for expert in step.hits:
                yield expert, slots.held[expert]
                if slots.leave(expert):
                    self._begin(waiting, requests)
            self._begin(waiting, requests)
            while requests:
                read = cache.wait(requests)
                expert = requests.pop(read)
                try:
                    yield expert, read.slot
                finally:
                    slots.settle(expert, read.slot)
                self._begin(waiting, requests)
            cache.end_layer(self.index, len(step.hits), len(step.misses))
        finally:
            self._release(requests)
            slots.end()

    def absent(self, way: Way, hidden_states: torch.Tensor | None) -> Sequence[int]:
        """Return the experts to read ahead, given the hidden states of the layer before."""
        if way is Way.ALL:
            return range(len(self._extents))
        if way is Way.GUESSED and self._guess is not None and hidden_states is not None:
            return self._guess(hidden_states)
        return ()

    def read_ahead(self, experts: Iterable[int]) -> None:
        """Begin to read those of these experts that are not in memory into free slots."""
        for expert in experts:
            if not self._cache.free:
                return
            if not (expert in self.slots.held or expert in self._ahead or expert in self.elsewhere):
                self._ahead[expert] = self._read(self._extents[expert], ahead=True)

    def drop_ahead(self, needed: Sequence[int]) -> None:
        """Free the slots of experts that were read ahead, but for those that are needed."""
        dropped = [self._ahead.pop(expert) for expert in self._ahead.keys() - set(needed)]
        self._release(dropped)

    def _begin(self, waiting: deque[int], requests: dict[ExpertRead, int]) -> None:
        """Begin to read experts, as many as there are free slots."""
        cache = self._cache
        if waiting and not (cache.free or requests):
            cache.reclaim(self.index)
        while waiting and cache.free:
            expert = waiting.popleft()
            requests[self._read(self._extents[expert])] = expert
        if not waiting:
            cache.read_next(self.index)

    def _read(self, extent: ExpertExtent, *, ahead: bool = False) -> ExpertRead:
        slot = self._cache.free.popleft()
        return self._reader.read(extent, slot, self._cache.slots[slot], ahead=ahead)

    def _release(self, requests: Collection[ExpertRead]) -> None:
        """End reads that nobody waits for, and free their slots."""
        if requests:
            self._reader.abandon(requests)
            self._cache.free.extend(read.slot for read in requests)
