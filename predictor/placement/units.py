"""The units that a model is placed by, and the bytes that each needs: plain numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from predictor.placement.buffers import PAGE_SLACK


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one block, which can be placed apart from its dense part.

    Attributes:
        module: The name of their module.
        count: The number of experts.
        routed: The number of experts that a token uses.
        size: Bytes of a slot for one expert.
        weights: Bytes of all experts, as the block holds them.
        modules: The names of the modules of the block's dense part that are streamed one by one if
            the block is offloaded and not streamed whole.
        largest_module: Bytes of the largest of these.
    """

    module: str
    count: int
    routed: int
    size: int
    weights: int
    modules: tuple[str, ...] = ()
    largest_module: int = 0


@dataclass(frozen=True, slots=True)
class PlacementUnit:
    """A part of the model that is placed as one; sizes are bytes as it is served, packed or not.

    Attributes:
        names: Its modules (or single parameters); several if they share tied weights.
        block: Its index among the blocks; None for embeddings, norms and head.
        weights: Bytes of parameters, tied ones once, and of the buffers in the checkpoint. If
            experts are placed apart, bytes of the dense part alone.
        buffers: Bytes of computed buffers, which stay where the unit executes.
        largest_module: Bytes of the largest of its `modules`.
        kv_per_token: Bytes of KV cache for one more token of one sequence.
        kv_windowed: Bytes of KV cache for one token that is within the window of its sequence.
        kv_fixed: Bytes of cache that a sequence takes at any length.
        experts: Its experts, if it is a block of a mixture whose experts can be read one by one.
        modules: The names of the modules in it that are streamed one by one if it is offloaded and
            not streamed whole.
        fixed: Bytes of further parameters, which stay where the unit executes: modules around it
            read them, or no file has them.
        fixed_names: The names of these parameters.
    """

    names: tuple[str, ...]
    block: int | None
    weights: int
    buffers: int
    largest_module: int
    kv_per_token: int = 0
    kv_fixed: int = 0
    experts: Experts | None = None
    kv_windowed: int = 0
    modules: tuple[str, ...] = ()
    fixed: int = 0
    fixed_names: tuple[str, ...] = ()

    @property
    def is_block(self) -> bool:
        """Whether it is one block and nothing else, which can be streamed whole."""
        return self.block is not None and len(self.names) == 1

    @property
    def stays(self) -> int:
        """Bytes that stay where it executes, wherever it is placed."""
        return self.buffers + self.fixed

    def stream_buffer(self, *, whole: bool) -> int:
        """Return the bytes of a buffer that it is streamed through, whole or by module."""
        size = self.weights if whole else self.largest_module
        return size + PAGE_SLACK if size else 0

    def dense_part(self) -> PlacementUnit:
        """Return the unit without the bytes of its experts."""
        if self.experts is None:
            return self
        return replace(
            self,
            weights=self.weights - self.experts.weights,
            modules=self.experts.modules,
            largest_module=self.experts.largest_module,
        )


@dataclass(frozen=True, slots=True)
class DraftModelSize:
    """The bytes of a draft model, which is wholly on the device that executes.

    Attributes:
        architecture: The model class.
        dtype: torch's name of its serving dtype.
        quantization: The formats in which its layers are packed; empty if none is.
        weights: Bytes of its weights.
        kv_per_token: Bytes of its KV cache for one more token of one sequence.
    """

    architecture: str
    dtype: str
    quantization: str
    weights: int
    kv_per_token: int


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
        quantization: The formats in which layers are packed; empty if none is.
        quantised_to: The layout in which weights are packed while they are loaded; empty if the
            checkpoint has them as they are served.
        experts_in_place: Whether nothing has to be written again if experts are read one by one.
        activations_per_sequence: Additional bytes for a batch with the tokens of one more such
            sequence.
        by_block: Whether the model calls each block as a module, equally often, so that blocks can
            be streamed whole.
        by_expert: Whether experts are placed apart from their blocks, see `with_experts_apart`.
        whole_mixtures: The number of blocks whose experts cannot be read one by one.
        least_row_tokens: Tokens of prefill that take as much memory as a row of a few tokens.
        window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
        prefill_chunk: Most new tokens of a forward pass, which such layers keep until it has ended.
        largest_chunk: The largest `prefill_chunk` that the model can have; 0 for no other.
        activations_per_chunk_token: Additional bytes for each further token of the chunk.
        draft_model: The draft model beside it; None without one.
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
    by_expert: bool = False
    whole_mixtures: int = 0
    experts_in_place: bool = False
    quantization: str = ""
    quantised_to: str = ""
    least_row_tokens: int = 1
    window: int = 0
    prefill_chunk: int = 0
    largest_chunk: int = 0
    activations_per_chunk_token: int = 0
    draft_model: DraftModelSize | None = None

    @property
    def weights_layout(self) -> str:
        """The form of served weights, for the names of files that hold them."""
        return "-".join(filter(None, (self.dtype, self.quantised_to)))

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        apart = sum(experts.weights for experts in self.experts_apart)
        return sum(unit.weights + unit.fixed for unit in self.units) + apart

    @property
    def experts_apart(self) -> tuple[Experts, ...]:
        """The experts that are placed apart from their blocks, in execution order."""
        if not self.by_expert:
            return ()
        return tuple(unit.experts for unit in self.units if unit.experts is not None)

    def with_experts_apart(self) -> Footprint | None:
        """Return the footprint whose units are dense parts; None if there are no experts to read.

        Dense parts are then streamed whole, or by module if that is demanded.
        """
        if not self.by_block or not any(unit.experts for unit in self.units):
            return None
        return replace(
            self,
            units=tuple(unit.dense_part() for unit in self.units),
            needs_conversion=self.needs_conversion and not self.experts_in_place,
            by_expert=True,
        )

    def with_chunk(self, tokens: int) -> Footprint:
        """Return the footprint with a larger chunk of prefill."""
        more = (tokens - self.prefill_chunk) * self.activations_per_chunk_token
        return replace(self, prefill_chunk=tokens, activations=self.activations + more)

    def with_draft_model(self, draft: Footprint) -> Footprint:
        """Return the footprint beside a draft model, which stays where offloaded parts execute.

        It runs between the forward passes of the model, so the larger activations of both count.

        Args:
            draft: The footprint of the draft model.
        """
        size = DraftModelSize(
            *(draft.architecture, draft.dtype, draft.quantization),
            weights=sum(unit.weights + unit.stays for unit in draft.units),
            kv_per_token=draft.kv_per_token + draft.kv_windowed,
        )
        unit = PlacementUnit((), None, 0, size.weights, 0, kv_per_token=size.kv_per_token)
        growth = max(self.activations_per_sequence, draft.activations_per_sequence)
        return replace(
            self,
            units=(unit, *self.units),
            activations=max(self.activations, draft.activations),
            activations_per_sequence=growth,
            draft_model=size,
        )

    def without_draft_model(self) -> Footprint:
        """Return the footprint of the model alone, with the activations of both."""
        if self.draft_model is None:
            return self
        return replace(self, units=self.units[1:], draft_model=None)

    def with_own_caches(self) -> Footprint:
        """Return the footprint if each sequence has a cache of its own, one at a time.

        That keeps no more than windows as soon as a layer has run. The pool of a batch keeps the
        new tokens of a forward pass until the pass has ended.
        """
        return replace(self, prefill_chunk=0, largest_chunk=0)

    @property
    def kv_fixed(self) -> int:
        """Bytes that are cached of a sequence of any length, over all blocks."""
        return sum(unit.kv_fixed for unit in self.units)

    @property
    def has_slots(self) -> bool:
        """Whether a part of the cache of a sequence has a fixed size, whatever its length."""
        return self.kv_fixed > 0 or self.window > 0

    @property
    def kv_windowed(self) -> int:
        """Bytes of KV cache for one token within its window, over all blocks."""
        return sum(unit.kv_windowed for unit in self.units)

    @property
    def kv_per_token(self) -> int:
        """Bytes of KV cache for one token over all blocks."""
        return sum(unit.kv_per_token for unit in self.units)


def describe_dtype(dtype: str, quantization: str) -> str:
    """Return how a model is served, for example: fp8 (block 128x128), computed in bfloat16.

    Args:
        dtype: The serving dtype.
        quantization: The formats in which layers are packed; empty if none is.
    """
    return f"{quantization}, computed in {dtype}" if quantization else dtype
