"""How many prompt tokens a forward pass of an offloaded model may have: what memory is left for.

A prompt of an offloaded model takes a pass over the weights for each chunk, however large it is. So
the plan takes the largest chunk whose activations leave the rest as it is, or nearly: the cost of a
token of a reply grows by no more than `_MOST_STREAMED`, and `_LEAST_SEQUENCES` of the sequences
stay. How much of the chunk pays is measured once the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from predictor.placement.decision import Decision, is_offloaded
from predictor.placement.demand import Demand
from predictor.placement.expert_slots import share_slots
from predictor.placement.load import decide_for_states, for_batch, with_most
from predictor.placement.plan import PlacementOptions
from predictor.placement.tiers import Budgets, fill_tiers, main_device
from predictor.placement.units import Footprint

_MOST_STREAMED = 1.03
"""Most bytes that a pass may stream, as a multiple of those with the least chunk."""

_LEAST_SEQUENCES = 7 / 8
"""Least sequences of full length whose tokens may be cached, likewise."""


def decide_load(demand: Demand, budgets: Budgets, options: PlacementOptions) -> Decision | None:
    """Return the decision for as many sequences, and as large a chunk, as there is memory for.

    Args:
        demand: The demand of the fewest sequences, with the least chunk.
        budgets: Bytes of each tier.
        options: The bounds on the plan.
    """
    least = _decide(demand, budgets, options)
    if least is None or not is_offloaded(least):
        return least
    for tokens in _larger_chunks(demand.footprint):
        footprint = demand.footprint.with_chunk(tokens)
        larger = _decide(replace(demand, footprint=footprint), budgets, options)
        if larger is not None and _is_as_good(larger, least, budgets):
            return larger
    return least


def _decide(demand: Demand, budgets: Budgets, options: PlacementOptions) -> Decision | None:
    decision = decide_for_states(demand, budgets, options)
    if decision is not None and options.max_concurrency is None:
        decision = with_most(decision, budgets, "concurrency", options.max_batch_size)
        decision = for_batch(decision, demand, budgets, options)
    if decision is not None and demand.footprint.has_slots:
        decision = with_most(decision, budgets, "state_slots", options.max_batch_size)
    return decision


def _larger_chunks(footprint: Footprint) -> Iterator[int]:
    """Yield the chunks to try, the largest first."""
    tokens, least = footprint.largest_chunk, max(1, footprint.prefill_chunk)
    while tokens >= 2 * least:
        yield tokens
        tokens //= 2


def _is_as_good(larger: Decision, least: Decision, budgets: Budgets) -> bool:
    ways = [(x.demand.footprint.by_block, x.demand.stream_buffers) for x in (larger, least)]
    return (
        ways[0] == ways[1]
        and main_device(larger.assignment) == main_device(least.assignment)
        and larger.demand.concurrency >= _LEAST_SEQUENCES * least.demand.concurrency
        and larger.demand.slots >= _LEAST_SEQUENCES * least.demand.slots
        and all(
            more <= _MOST_STREAMED * few
            for more, few in zip(_streamed(larger, budgets), _streamed(least, budgets), strict=True)
        )
    )


def _streamed(decision: Decision, budgets: Budgets) -> tuple[int, int]:
    """Return the bytes that are not where they execute, and those that are on disk alone."""
    slots = share_slots(decision.demand, decision.assignment, budgets)
    tiers = fill_tiers(decision.demand, decision.assignment, budgets, slots)
    main = main_device(decision.assignment)
    held = {name: tier.weights + tier.experts for name, tier in tiers.items() if name != "disk"}
    total = sum(tier.weights for tier in tiers.values())
    on_device = sum(size for name, size in held.items() if name == main or name.isdigit())
    return total - on_device, total - sum(held.values())
