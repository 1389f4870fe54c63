"""Mixtures that are served in this process, with experts kept in a number of slots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from predictor.engine.generation.sampling_params import SamplingParams
from predictor.mixture.modules import find_experts
from predictor.placement.plan import ExpertSlots, Placement
from predictor.profiling.blocks import find_blocks
from predictor.startup import Prepared
from tests.engine.test_engine import Held
from tests.serving import Collected, Up, bring_up

NEW_TOKENS = 8
STAGING = 2


@dataclass(frozen=True, slots=True)
class Way:
    """Where the experts are.

    Attributes:
        slots: Experts of each layer that stay in memory; None if all weights are resident.
        source: What the others are read from: ``"checkpoint"`` or ``"store"``.
    """

    slots: int | None
    source: str | None = None

    def __str__(self) -> str:
        return "resident" if self.slots is None else f"{self.slots}-slots-{self.source}"


RESIDENT = Way(None)
OFFLOADED = [Way(slots, source) for slots in (1, 2, 3, 16) for source in ("checkpoint", "store")]
WAYS = [*OFFLOADED, RESIDENT]


def placement_with_slots(prepared: Prepared, slots: int) -> Placement:
    """Return the plan of a model that is in memory, but for all but so many experts of each layer.

    Few staging slots make passes that use many experts read them in waves.
    """
    skeleton = prepared.skeleton
    layers = find_experts(skeleton, find_blocks(skeleton)).values()
    size = max(layer.slot_bytes for layer in layers)
    experts = tuple(
        ExpertSlots(layer.name, layer.count, layer.routed, size, min(slots, layer.count), 0)
        for layer in layers
    )
    return replace(prepared.placement, experts=experts, expert_staging=STAGING)


@contextlib.contextmanager
def served(folder: Path, way: Way, offload: Path, **flags: Any) -> Iterator[Up]:
    """Gives a mixture that is served with its experts in a way, and stops it.

    Args:
        folder: The checkpoint.
        way: Where the experts are.
        offload: The offload folder.
        flags: Further settings.
    """
    slots, store = way.slots, "always" if way.source == "store" else "never"
    up = bring_up(
        folder,
        offload_folder=str(offload),
        offload_store=store,
        max_concurrency=16,
        device_map="cpu",
        change_placement=(
            None if slots is None else lambda prepared: placement_with_slots(prepared, slots)
        ),
        **flags,
    )
    try:
        assert source_of_experts(up) == way.source
        yield up
    finally:
        up.task.engine.stop()
        assert up.task.engine.join(30)
        up.weights.release()
        if up.weights.experts is not None:
            up.weights.experts.close()


def source_of_experts(up: Up) -> str | None:
    """Where experts are read from; None if they are in their blocks."""
    if up.weights.experts is None:
        return None
    resolver = up.weights.resolver
    if resolver.store is not None:
        return "store"
    return "checkpoint" if resolver.converted is None else "converted checkpoint"


def tokens_together(up: Up, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the greedy tokens after prompts that are submitted at one time."""
    replies = [Collected() for _ in prompts]
    with Held(up.task.engine):
        for prompt, reply in zip(prompts, replies, strict=True):
            up.task.engine.submit(prompt, SamplingParams(max_new_tokens=NEW_TOKENS), reply)
    return [reply.wait().tokens for reply in replies]


def thinned_ways(names: Sequence[str], otherwise: Sequence[str] = ()) -> list[pytest.ParameterSet]:
    """Return every mixture in every way, most of them marked ``full_grid``.

    Args:
        names: Mixtures each of which runs in one way without ``--full-grid`` too. The ways take
            turns.
        otherwise: Further mixtures.
    """
    further = [name for name in otherwise if name not in names]
    return [
        pytest.param(
            name,
            way,
            marks=() if name in names and turn % len(OFFLOADED) == index else pytest.mark.full_grid,
        )
        for turn, name in enumerate([*names, *further])
        for index, way in enumerate(WAYS)
    ]
