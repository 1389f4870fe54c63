"""Verify drafts: sample after each of them as if it were known, as long as it is what was sampled.

Each token is sampled from the model's distribution by the sequence's own parameters and generator,
as without drafts, and with as many draws. A draft is accepted if it is the token that was sampled.
So drafts change no reply: greedy ones are the same, sampled ones have the same distribution, and
those with a seed repeat, whatever was drafted. Penalties and grammars follow each sampled token
before the next is sampled, so nothing has to be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import Token

Sampled = list[Token | Exception]
"""The tokens of a row in order; an error ends them. Empty if no token is due."""


def sample_rows(
    rows: Sequence[SequenceChunk],
    samplers: Sequence[Sampler | None],
    logits: torch.Tensor,
    batch_sampler: BatchSampler,
) -> list[Sampled]:
    """Return the next tokens of each row: one, and one more for each draft that is accepted.

    Args:
        rows: The rows of a forward pass.
        samplers: For each row the sampler of its sequence; None if no token is due.
        logits: Those of the runner, see `Runner.run`.
        batch_sampler: Samples a token of each row.
    """
    columns = len(logits) // len(rows)
    sampled: list[Sampled] = [[] for _ in rows]
    going = list(range(len(rows)))
    while going:
        at = [_position(rows, index, columns) + len(sampled[index]) for index in going]
        own = logits if len(at) == len(logits) else logits[at]
        results = batch_sampler.sample([samplers[index] for index in going], own)
        for index, result in zip(going, results, strict=True):
            sampled[index] += [] if result is None else [result]
        going = [index for index in going if _goes_on(rows[index], samplers[index], sampled[index])]
    return sampled


def _position(rows: Sequence[SequenceChunk], index: int, columns: int) -> int:
    """Return which logits are those after the last known token of a row."""
    return columns * (index + 1) - 1 - rows[index].drafts


def _goes_on(row: SequenceChunk, sampler: Sampler | None, sampled: Sampled) -> bool:
    """Return whether the last token is the one that was drafted, and does not end the sequence."""
    if sampler is None or len(sampled) > row.drafts:
        return False
    last, drafted = sampled[-1], row.tokens[len(sampled) - 1 - row.drafts]
    if not isinstance(last, Token) or last.id != drafted:
        return False
    return last.id not in sampler.ends and not sampler.is_complete
