"""What a model and its load need of memory: arithmetic over integers, whatever is placed where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.placement.units import (
    STAGE,
    STAGES,
    STREAM_BUFFERS,
    STREAM_PIECE,
    Footprint,
    PlacementUnit,
    count_pieces,
    is_staged,
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be placed: a model and how many full sequences are to run at one time."""

    footprint: Footprint
    concurrency: int

    def kv(self, unit: PlacementUnit) -> int:
        """Bytes of KV cache of a unit at full load."""
        per_sequence = unit.kv_fixed + unit.kv_per_token * self.footprint.max_model_len
        return self.concurrency * per_sequence

    @property
    def activations(self) -> int:
        """Bytes of one forward pass at full load, besides weights and KV."""
        more = (self.concurrency - 1) * self.footprint.activations_per_sequence
        return self.footprint.activations + more

    def resident(self, unit: PlacementUnit) -> int:
        """Bytes of a unit on the device where it both stays and executes."""
        return unit.weights + unit.buffers + self.kv(unit)

    def streaming_bytes(self, units: Sequence[PlacementUnit]) -> int:
        """Bytes of a GPU to stream these units through it.

        Blocks are streamed whole; what is none takes a leaf module at a time. Accelerate converts
        it there, where it is in its stored dtype besides, up to twice as large as served.
        """
        leaf = (3 if self.footprint.needs_cast else 1) * self._largest_leaf(units)
        return STREAM_BUFFERS * self._largest_block(units) + leaf

    def reading_bytes(
        self,
        units: Sequence[PlacementUnit],
        *,
        executes: bool,
        waiting: Sequence[PlacementUnit] = (),
    ) -> int:
        """Bytes of main memory to read these units from disk.

        Args:
            units: The units. What is no block takes a leaf module at a time, and converting it
                another.
            executes: Whether they execute there. Blocks are then read whole, large ones by stages,
                and piece by piece where they are only on their way to a GPU.
            waiting: Units that wait in main memory for a GPU.
        """
        leaf = (2 if self.footprint.needs_cast else 1) * self._largest_leaf(units)
        largest = self._largest_block(units)
        if executes:
            return STREAM_BUFFERS * largest + is_staged(largest) * STAGES * STAGE + leaf
        pieces = count_pieces(largest) * min(largest, STREAM_PIECE)
        return max(pieces, self._loading(units, waiting)) + leaf

    def _loading(self, units: Sequence[PlacementUnit], waiting: Sequence[PlacementUnit]) -> int:
        """Bytes of main memory that loading takes besides the weights that wait there.

        Whole blocks are written to the offload store. By then transformers has read what waits only
        where it converts it, and that is moved block by block to where it can be copied from fast.
        """
        if self.footprint.needs_cast or self.footprint.needs_conversion:
            return self._largest_block([*units, *waiting])
        return self._largest_block(units) - sum(unit.weights for unit in waiting)

    def _is_whole(self, unit: PlacementUnit) -> bool:
        return self.footprint.by_block and unit.is_block

    def _largest_block(self, units: Sequence[PlacementUnit]) -> int:
        return max((unit.buffer for unit in units if self._is_whole(unit)), default=0)

    def _largest_leaf(self, units: Sequence[PlacementUnit]) -> int:
        return max((unit.largest_leaf for unit in units if not self._is_whole(unit)), default=0)
