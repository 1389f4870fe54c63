"""Hand-made footprints and resources: small numbers, so that every byte can be followed.

`plan` deals in MiB where it proposes remedies, so these sizes are in MiB.
"""

from __future__ import annotations

from pathlib import Path

from predictor.placement.buffers import PAGE_SLACK
from predictor.placement.demand import Demand
from predictor.placement.tiers import Budgets
from predictor.placement.units import Experts, Footprint, PlacementUnit
from predictor.pod.resources import Accelerator, Memory, PodResources, Volume

MIB = 1024**2


def footprint(
    *,
    blocks: int = 4,
    block: int = 10,
    kv: int = 1,
    embeddings: int = 6,
    head: int = 8,
    norm: int = 0,
    activations: int = 3,
    module: int = 2,
    max_model_len: int = 4,
    needs_cast: bool = False,
    needs_conversion: bool = False,
    experts: int = 0,
    expert: int = 4,
    routed: int = 2,
) -> Footprint:
    """Return a model of a norm, embeddings, a head and equal blocks.

    Sizes are in MiB; `kv` is for one token in one block. With the defaults:

    ===========  =======  ==  ======================
    unit         weights  kv  module, and its buffer
    ===========  =======  ==  ======================
    norm               0   0               0
    embeddings         6   0               6
    head               8   0               8
    4 blocks          10   4               2    (kv for 4 tokens)
    ===========  =======  ==  ======================

    With experts, each block has so many in addition, of `expert` MiB each.
    """
    parts = [("norm", norm), ("embeddings", embeddings), ("head", head)]
    others = tuple(
        PlacementUnit((name,), None, size * MIB, 0, _module(size)) for name, size in parts
    )
    return Footprint(
        architecture="Small",
        dtype="float32",
        units=others
        + tuple(
            PlacementUnit(
                (f"blocks.{index}",),
                index,
                (block + experts * expert) * MIB,
                0,
                _module(max(module, experts * expert)),
                kv * MIB,
                experts=_experts(index, experts, expert, routed, module) if experts else None,
            )
            for index in range(blocks)
        ),
        max_model_len=max_model_len,
        activations=activations * MIB,
        needs_cast=needs_cast,
        needs_conversion=needs_conversion,
        probed=True,
        by_block=experts > 0,
    )


def _module(size: int) -> int:
    """Bytes of a module whose buffer has these MiB."""
    return max(0, size * MIB - PAGE_SLACK)


def _experts(block: int, count: int, size: int, routed: int, module: int) -> Experts:
    name = f"blocks.{block}.experts"
    weights = count * size * MIB
    return Experts(name, count, routed, size * MIB, weights, largest_module=_module(module))


def pod(*gpus: int, memory: int = 0) -> PodResources:
    """Return a pod with GPUs and main memory of these MiB."""
    return PodResources(
        accelerators=tuple(
            Accelerator(index, "cuda", "test", size * MIB, size * MIB)
            for index, size in enumerate(gpus)
        ),
        memory=Memory(None, memory * MIB, "test"),
        volume=Volume(Path("/offload"), 0, True, "ext4", None),
    )


def budgets(*gpus: int, cpu: int = 0, disk: int | None = None) -> Budgets:
    """Return budgets of these MiB for GPUs and main memory, and of `disk` bytes."""
    return Budgets({str(i): size * MIB for i, size in enumerate(gpus)}, cpu * MIB, disk)


DEMAND = Demand(footprint(), 1)
"""Norm 0, embeddings 6, head 8, four blocks of 10 with 4 of KV."""
