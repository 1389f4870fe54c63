"""The units that a model is placed by, and the bytes that each needs: plain numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from predictor.placement.buffers import PAGE_SLACK


@dataclass(frozen=True, slots=True)
class PlacementUnit:
    """A part of the model that is placed as one; sizes are bytes in the serving dtype.

    Attributes:
        names: Its modules (or single parameters); several if they share tied weights.
        block: Its index among the blocks; None for embeddings, norms and head.
        weights: Bytes of parameters, tied ones once, and of the buffers in the checkpoint.
        buffers: Bytes of computed buffers, which stay where the unit executes.
        largest_leaf: Bytes of its largest leaf module, the least that is streamed at one time.
        kv_per_token: Bytes of KV cache for one more token of one sequence.
        kv_fixed: Bytes of cache that a sequence takes at any length.
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
    def stream_buffer(self) -> int:
        """Bytes of a buffer through which it is streamed whole."""
        return self.weights + PAGE_SLACK


@dataclass(frozen=True, slots=True)
class Footprint:
    """The bytes that a model needs, as the planner sees it.

    Attributes:
        architecture: The model class.
        dtype: torch's name of the serving dtype.
        units: First the units outside of blocks, smallest first; then the blocks in execution
            order.
        max_model_len: Tokens of context that KV and activations were measured for.
        activations: Bytes of one forward pass without weights and KV: of a prefill chunk, or of a
            batch with as many tokens as one sequence of full length.
        needs_cast: Whether the checkpoint has another dtype, so that a streamed tensor is held
            twice while it is cast.
        needs_conversion: Whether the weights must be written again before they can be streamed
            (pickles, and models whose stored tensors are not the served ones).
        probed: Whether KV and activations were measured on the meta device; else they come from
            formulas.
        activations_per_sequence: Additional bytes for a batch with the tokens of one more such
            sequence.
        by_block: Whether the model calls each block once, as a module, so that blocks can be
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
