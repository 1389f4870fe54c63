"""The options of a plan, and its result: a placement with its tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from predictor.placement.buffers import STREAM_BUFFERS
from predictor.placement.demand import max_attention_tokens
from predictor.placement.units import DraftModelSize


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """The user's bounds on a plan.

    Attributes:
        device_map: A strategy (``auto``, ``balanced``, ``balanced_low_0``, ``sequential``), one
            device, or an explicit map from module names to devices.
        max_memory: Most bytes by device: ``"0"``, ``"1"``... are GPUs, then ``"cpu"``, ``"disk"``.
        max_concurrency: Sequences of full length that the KV cache is planned for. None plans for
            one, and for as many more as fit without moving a unit.
        max_batch_size: Most sequences that run at one time.
        batch_concurrency: Sequences of full length that a batch of bulk work would fill. If weights
            are streamed anyway, more of them are, so that the KV cache has room for these.
        headroom: The fraction of each tier that is never planned.
        reserve: Further bytes of main memory that are never planned.
        disk: Bytes that the disk tier may take; None if blocks are read in place from the
            checkpoint and take no new space.
        in_place: Whether parts that need no conversion take no new space, whatever `disk` is.
        expert_slots: Whether the experts of a mixture that does not fit may be read one by one
            into slots; else its blocks are streamed whole.
    """

    device_map: str | dict[str, str] = "auto"
    max_memory: dict[str, int] = field(default_factory=dict)
    max_concurrency: int | None = 1
    max_batch_size: int = 1
    batch_concurrency: int = 0
    headroom: float = 0.05
    reserve: int = 0
    disk: int | None = None
    in_place: bool = False
    expert_slots: bool = False


@dataclass(frozen=True, slots=True)
class ExpertSlots:
    """The experts of one layer that are read one by one, and the slots that some of them stay in.

    A slot is memory that any expert of the layer can be in. All experts are on disk too.

    Attributes:
        module: The name of the experts' module.
        count: The experts of the layer.
        routed: The experts that a token uses.
        size: Bytes of a slot, the same in all layers.
        device_slots: Experts that stay on the device that executes.
        host_slots: Experts that stay in main memory on their way to a GPU; 0 if the processor
            executes.
    """

    module: str
    count: int
    routed: int
    size: int
    device_slots: int
    host_slots: int

    @property
    def in_memory(self) -> int:
        """Most experts that are in a slot of either kind at one time."""
        return min(self.count, self.device_slots + self.host_slots)


@dataclass(frozen=True, slots=True)
class Tier:
    """One device of a plan, in bytes.

    Attributes:
        name: ``"0"``, ``"1"``... for GPUs, ``"cpu"`` or ``"disk"``.
        owned: Bytes that the pod owns there; None for a disk tier that takes no new space.
        budget: Bytes that may be planned: owned less headroom and reserve, or `max_memory`.
        weights: Weights and computed buffers.
        kv: KV cache of all units that execute there.
        staging: The buffers through which offloaded parts are streamed.
        activations: One forward pass, without weights and KV.
        units: How many units are placed there.
        experts: Slots of the experts that stay there, copies of those on disk.
    """

    name: str
    owned: int | None
    budget: int | None
    weights: int = 0
    kv: int = 0
    staging: int = 0
    activations: int = 0
    units: int = 0
    experts: int = 0

    @property
    def planned(self) -> int:
        """Bytes that the plan takes."""
        return self.weights + self.kv + self.staging + self.activations + self.experts

    @property
    def reserve(self) -> int:
        """Bytes that the pod owns and the plan never takes."""
        return 0 if self.owned is None or self.budget is None else self.owned - self.budget


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan that fits.

    Attributes:
        architecture: The model class.
        dtype: The serving dtype, in which all layers are computed.
        device_map: From module (or tensor) names to GPU indices, ``"cpu"`` or ``"disk"``, as
            Accelerate takes it.
        tiers: GPUs in order, then main memory, then disk.
        execution_device: The device that executes offloaded parts: a GPU's index or ``"cpu"``.
        max_model_len: Tokens of the longest sequence.
        kv_tokens: Tokens of KV cache that may be in use at one time; 0 if none is kept.
        state_slots: Sequences whose states may be kept at one time; 0 if none is kept.
        window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
        window_tokens: Tokens of KV cache in layers with a window; 0 if all layers keep all.
        limited_by: The resource that keeps more of the model from a faster tier, as a phrase.
        by_block: Whether offloaded blocks are streamed whole.
        stream_buffers: Buffers that offloaded blocks, or their modules, are streamed through.
        modules: For each name of the device map, the modules in it that are streamed one by one if
            it is offloaded and not streamed whole.
        fixed: Names of the parameters that stay where they are read.
        notes: Sentences for the log, such as bounds that were lowered to the pod's resources.
        experts: The expert slots of each layer, in execution order; empty if the model has no
            experts, or they stay in their blocks. The device map names the dense parts alone.
        expert_staging: Slots on the executing device for experts that do not stay there.
        host_expert_staging: Slots in main memory for experts on their way from disk to a GPU; 0 if
            the processor executes.
        quantization: The formats in which layers are packed; empty if none is.
        weights_layout: The form of served weights, for the names of files that hold them.
        least_row_tokens: Tokens of prefill that take as much memory as a row of a few tokens.
        draft_model: The draft model, on the device that executes; None without one. The tiers have
            its bytes.
        prefill_chunk: Most new tokens of a forward pass that prefills; 0 if each sequence has a
            cache of its own.
    """

    architecture: str
    dtype: str
    device_map: dict[str, int | str]
    tiers: tuple[Tier, ...]
    execution_device: int | str
    max_model_len: int
    kv_tokens: int
    limited_by: str
    state_slots: int = 0
    window: int = 0
    window_tokens: int = 0
    by_block: bool = False
    stream_buffers: int = STREAM_BUFFERS
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    experts: tuple[ExpertSlots, ...] = ()
    expert_staging: int = 0
    host_expert_staging: int = 0
    quantization: str = ""
    weights_layout: str = ""
    least_row_tokens: int = 1
    draft_model: DraftModelSize | None = None
    prefill_chunk: int = 0

    @property
    def max_attention_tokens(self) -> int:
        """Most cached tokens that one forward pass may attend to, padding included."""
        return max_attention_tokens(self.kv_tokens)

    @property
    def weights(self) -> int:
        """Bytes of the weights and computed buffers in all tiers."""
        return sum(tier.weights for tier in self.tiers)

    @property
    def offloaded(self) -> frozenset[str]:
        """Names of modules (or tensors) that are stored on another device than they execute on."""
        elsewhere = {"disk"} if self.execution_device == "cpu" else {"cpu", "disk"}
        return frozenset(name for name, device in self.device_map.items() if device in elsewhere)

    def tier(self, name: str) -> Tier:
        """Return the tier of this name."""
        return next(tier for tier in self.tiers if tier.name == name)
