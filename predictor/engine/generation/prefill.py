"""Which chunks of prompts are computed next: the first by priority, and those that join cheaply."""

from __future__ import annotations

from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits, choose_company
from predictor.engine.generation.prefixes import Prefixes, without_followers
from predictor.engine.generation.scheduled_sequence import ScheduledSequence, priority


def select_prefill(
    prompts: list[tuple[ScheduledSequence, Chunk]], prefixes: Prefixes, limits: SchedulerLimits
) -> list[Chunk]:
    """Choose the chunks of prompts to compute next: the first by priority, and cheap company.

    A chunk is all that is left of a prompt, up to `SchedulerLimits.chunk` tokens, or what is left
    beyond a multiple of it if a state begins. Further prompts join, in order of priority, if their
    padding costs less than another forward pass.

    Args:
        prompts: The sequences, and the next chunk of each.
        prefixes: The tokens that sequences have in common.
        limits: The limits of a forward pass that prefills.
    """
    prompts = sorted(prompts, key=lambda prompt: priority(prompt[0]))
    chunks = [chunk for _, chunk in prompts]
    leaders = without_followers(chunks, prefixes, limits.breakeven_tokens)
    chunks = choose_company(leaders, limits)
    selected = {chunk.key for chunk in chunks}
    positions = (sequence.place for sequence, _ in prompts if sequence.key in selected)
    last = max(positions, default=(0, 0, 0))
    for sequence, _ in prompts:
        if sequence.key in selected:
            sequence.overtaken = 0
        elif sequence.place < last:
            sequence.overtaken += 1
    return chunks
