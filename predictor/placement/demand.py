"""The memory that a model needs at full load, by unit and by kind: KV cache, activations, buffers.

KV is counted here for the plan: `Demand.kv_tokens` tokens are cached at one time, of which layers
with a window keep `window_tokens`. `kv_bytes` is their size in one unit, and a forward pass attends
to at most `max_attention_tokens` of them. The sizes per token are measured by `profiling`; the
engine keeps within `Placement.kv_tokens` and `Placement.window_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from predictor.placement.buffers import (
    BOUNCE_BUFFER,
    BOUNCE_BUFFERS,
    EXPERT_BOUNCE_BUFFER,
    EXPERT_KERNELS,
    EXPERT_READERS,
    PART_BUFFERS,
    RESIDENT_READERS,
    STREAM_BUFFERS,
    STREAM_PIECE,
    WIDEST_STORED,
    count_pieces,
    count_staging_slots,
    needs_bounce_buffers,
)
from predictor.placement.units import Footprint, PlacementUnit

ATTENTION_PADDING_FACTOR = 2
"""Tokens that one forward pass may attend to, padding included, for each token of KV cache. The
rows of a batch are padded to the longest, and sequences that do not fit take another pass over all
weights. A larger factor costs little memory, because a layer's rows are gathered for that layer
alone."""


def max_attention_tokens(kv_tokens: int) -> int:
    """Return the most cached tokens that one forward pass may attend to, padding included.

    Args:
        kv_tokens: Tokens of KV cache.
    """
    return ATTENTION_PADDING_FACTOR * kv_tokens


@dataclass(frozen=True, slots=True)
class Demand:
    """A model at full load.

    Attributes:
        footprint: The model.
        concurrency: Sequences of full length whose tokens are cached at one time.
        state_slots: Sequences, of whatever length, whose states and windows are kept at one time.
            At least as many are as there are sequences of full length.
        stream_buffers: Buffers for blocks, or for their modules. With one, each is read after the
            block before it has computed.
    """

    footprint: Footprint
    concurrency: int
    state_slots: int = 0
    stream_buffers: int = STREAM_BUFFERS

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache at full load; 0 if the model keeps nothing of a token."""
        keeps_tokens = self.footprint.kv_per_token or self.footprint.kv_windowed
        return self.concurrency * self.footprint.max_model_len if keeps_tokens else 0

    @property
    def window_tokens(self) -> int:
        """Tokens of KV cache at full load in layers with a window; 0 if all layers keep all.

        They are the windows of all sequences, and a chunk for the new tokens of a forward pass, but
        never more tokens than are cached.
        """
        window, chunk = self.footprint.window, self.footprint.prefill_chunk
        return min(self.slots * window + chunk, self.kv_tokens) if window else 0

    @property
    def slots(self) -> int:
        """Sequences that states and windows, which have a fixed size, are planned for."""
        return max(self.concurrency, self.state_slots)

    def kv_bytes(self, unit: PlacementUnit) -> int:
        """Return the bytes of a unit's KV cache at full load."""
        tokens = unit.kv_per_token * self.kv_tokens + unit.kv_windowed * self.window_tokens
        return tokens + unit.kv_fixed * self.slots

    @property
    def activations(self) -> int:
        """Bytes of one forward pass at full load, without weights and KV."""
        more = (self.concurrency - 1) * self.footprint.activations_per_sequence
        return self.footprint.activations + more

    @property
    def kernels(self) -> int:
        """Bytes of the kernels that are compiled for experts if the processor executes them."""
        is_half = self.footprint.dtype in ("bfloat16", "float16")
        has_experts = any(unit.experts for unit in self.footprint.units)
        return EXPERT_KERNELS if is_half and has_experts else 0

    def by_module(self) -> Demand:
        """Return the same demand, with offloaded blocks streamed module by module.

        That takes less memory than buffers for whole blocks, and more reads.
        """
        return replace(self, footprint=replace(self.footprint, by_block=False))

    def with_one_buffer(self) -> Demand:
        """Return the same demand, with offloaded blocks streamed through one buffer by module.

        That takes the least memory, and reading no longer overlaps computing.
        """
        return replace(self.by_module(), stream_buffers=1)

    def by_expert(self) -> Demand | None:
        """Return the same demand with experts apart from their blocks; None if there are none."""
        footprint = self.footprint.with_experts_apart()
        return None if footprint is None else replace(self, footprint=footprint)

    @property
    def expert_slot(self) -> int:
        """Bytes of an expert slot, which any expert of any layer can be in; 0 without slots."""
        return max((experts.size for experts in self.footprint.experts_apart), default=0)

    @property
    def expert_staging(self) -> int:
        """Slots for experts that do not stay, which all layers share."""
        most = max((experts.count for experts in self.footprint.experts_apart), default=0)
        return count_staging_slots(most, self.expert_slot) if most else 0

    def resident_bytes(self, unit: PlacementUnit) -> int:
        """Return the bytes of a unit on the device where it both stays and executes."""
        return unit.weights + unit.stays + self.kv_bytes(unit)

    def device_buffer_bytes(self, units: Sequence[PlacementUnit]) -> int:
        """Return the bytes of GPU memory through which these offloaded units are streamed.

        Blocks go through two buffers or one, whole or by module, and other units through a further
        one, by module. Experts that do not stay take staging slots, however many a forward pass
        needs.
        """
        block, part = self._largest(units)
        return self.stream_buffers * block + PART_BUFFERS * part + self._staging_slots

    def host_buffer_bytes(
        self,
        units: Sequence[PlacementUnit],
        *,
        executes: bool,
        waiting: Sequence[PlacementUnit] = (),
        resident: Sequence[PlacementUnit] = (),
    ) -> int:
        """Return the bytes of main memory through which these units are read from disk.

        Args:
            units: The units on disk.
            executes: Whether the processor executes them. They are then read into the same buffers
                as a GPU's, and large ones of blocks through bounce buffers. On their way to a GPU
                they are read in pieces. Experts are read through bounce buffers of their own into
                staging slots in both cases.
            waiting: The units that wait in main memory for a GPU.
            resident: The units that stay there and execute there.
        """
        block, part = self._largest(units)
        if executes:
            bounce = BOUNCE_BUFFERS * BOUNCE_BUFFER if needs_bounce_buffers(block) else 0
            own = self.stream_buffers * block + PART_BUFFERS * part
            cast = self._cast_buffers(block, part) + self._filling(resident)
            return own + bounce + cast + self._expert_reads
        pieces = sum(count_pieces(size) * min(size, STREAM_PIECE) for size in (block, part))
        pieces += self._cast_buffers(block, part)
        return max(pieces, self._loading(units, waiting)) + self._expert_reads

    @property
    def _staging_slots(self) -> int:
        return self.expert_staging * self.expert_slot

    @property
    def _expert_reads(self) -> int:
        """Bytes of main memory through which experts are read from disk."""
        bounce = EXPERT_READERS * EXPERT_BOUNCE_BUFFER if self.footprint.by_expert else 0
        return self._staging_slots + bounce

    def _cast_buffers(self, *largest: int) -> int:
        """Return the bytes through which tensors are read that are cast while they are read.

        Blocks, and parts outside of blocks, have a buffer each, no larger than a tensor as stored.

        Args:
            largest: Bytes of a buffer for blocks, and of one for other parts.
        """
        if not self.footprint.needs_cast:
            return 0
        return sum(min(BOUNCE_BUFFER, WIDEST_STORED * size) for size in largest)

    def _filling(self, resident: Sequence[PlacementUnit]) -> int:
        """Return the bytes through which blocks that stay are cast while they arrive.

        Blocks that need no cast are read straight to where they stay.
        """
        block, _ = self._largest(resident)
        return RESIDENT_READERS * self._cast_buffers(block)

    def _loading(self, units: Sequence[PlacementUnit], waiting: Sequence[PlacementUnit]) -> int:
        """Return the bytes of main memory that loading takes beyond the weights that wait there.

        What is streamed at one time is written to the offload store at one time. By then
        transformers has read the waiting units only if it converts them. Those are moved in the
        same way to page-locked memory.
        """
        if self.footprint.needs_cast or self.footprint.needs_conversion:
            return max(self._largest([*units, *waiting]))
        return max(self._largest(units)) - sum(unit.weights for unit in waiting)

    def _largest(self, units: Sequence[PlacementUnit]) -> tuple[int, int]:
        """Return the bytes of a buffer for blocks, and of one for parts outside of blocks."""
        block = part = 0
        for unit in units:
            size = unit.stream_buffer(whole=self.footprint.by_block and unit.is_block)
            if unit.block is None:
                part = max(part, size)
            else:
                block = max(block, size)
        return block, part
