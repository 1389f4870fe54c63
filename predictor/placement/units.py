"""The parts that a model is placed by, and what each needs: plain numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_BUFFERS = 2
"""Blocks that streaming holds where they compute: one is brought while the one before computes.
More would only help where that is fast at times and slow at others, and each takes a block's
memory."""

STREAM_PIECE = 64 * 1024**2
"""Bytes of one read that is not staged, and most of a block that is in main memory on its way from
disk to a GPU. From 4 MiB on a disk is as fast as with any more, but between two reads the thread
that reads may have to wait for the one that computes."""

STAGE = 8 * 1024**2
"""Bytes of a stage: of one read on the way to the processor. They are still in the processor's
cache when they are copied on, which gains more than the waits between reads cost: 1.2 to 1.4 times
as fast from a virtual machine's disk. Volumes on the network were not measured."""

STAGES = 2
"""One is read to while the other is copied from."""

_PIECES = 8
"""Most pieces on their way to a GPU. A disk reads them in the time in which a link that is ten
times as fast copies a block of 5 GB from main memory, and so need not wait for it."""

_SLACK = 64 * 1024
"""Bytes of a buffer besides its block's: reads begin and end at whole pages, and so do tensors."""


def count_pieces(largest: int) -> int:
    """Returns how many pieces are in main memory at one time on their way to a GPU.

    Args:
        largest: Bytes of the largest block. Pieces take no more than two whole blocks would.
    """
    return max(STREAM_BUFFERS, min(_PIECES, STREAM_BUFFERS * largest // STREAM_PIECE))


def is_staged(largest: int) -> bool:
    """Returns whether blocks are read by stages to where the processor computes.

    Args:
        largest: Bytes of the largest block. Two smaller ones stay in the processor's cache anyway.
    """
    return largest > STAGES * STAGE


@dataclass(frozen=True, slots=True)
class PlacementUnit:
    """A part of the model that is placed as one; sizes are bytes in the serving dtype.

    Attributes:
        names: The modules (or lone parameters) in it: several where weights are tied.
        block: Its index among the blocks; None for embeddings, norms and head.
        weights: Bytes of parameters, tied ones once, and of the buffers stored with them.
        buffers: Bytes of the buffers that are computed, which stay where the unit executes.
        largest_leaf: Bytes of its largest leaf module: what streaming it needs at one time.
        kv_per_token: Bytes of KV cache for one more token of one sequence.
        kv_fixed: Bytes of cache that a sequence takes whatever its length.
    """

    names: tuple[str, ...]
    block: int | None
    weights: int
    buffers: int
    largest_leaf: int
    kv_per_token: int = 0
    kv_fixed: int = 0

    @property
    def is_block(self) -> bool:
        """Whether it is one block and nothing else, which can be streamed whole."""
        return self.block is not None and len(self.names) == 1

    @property
    def buffer(self) -> int:
        """Bytes of a buffer that it is streamed through whole."""
        return self.weights + _SLACK


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that the planner knows of a model.

    Attributes:
        architecture: The model class.
        dtype: torch's name of the serving dtype.
        units: First what is no block, smallest first; then the blocks in execution order.
        max_model_len: Tokens of context that KV and activations were measured for.
        activations: Bytes that one forward pass needs besides weights and KV: of a prefill chunk,
            or of a batch with as many tokens as one sequence of full length.
        needs_cast: Whether the checkpoint is stored in another dtype, so that a streamed tensor is
            held twice while it is converted.
        needs_conversion: Whether the weights must be written anew to be streamed (pickles, and
            models whose stored tensors are not the served ones).
        probed: Whether KV and activations were measured; formulas were used otherwise.
        activations_per_sequence: Bytes more for a batch with the tokens of one more such sequence.
        by_block: Whether the model calls its blocks as blocks, once each, so that they can be
            streamed whole.
    """

    architecture: str
    dtype: str
    units: tuple[PlacementUnit, ...]
    max_model_len: int
    activations: int
    needs_cast: bool
    needs_conversion: bool
    probed: bool
    activations_per_sequence: int = 0
    by_block: bool = False

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(unit.weights for unit in self.units)

    @property
    def kv_per_token(self) -> int:
        """Bytes of KV cache for one token over all blocks."""
        return sum(unit.kv_per_token for unit in self.units)
