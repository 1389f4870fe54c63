"""How many prompt tokens a forward pass computes: as many as pay, and as users can wait for.

A pass over the weights costs as much as `breakeven_tokens` tokens. In a chunk of `_PAYS` times as
many it is a ninth of the time, and a larger chunk saves little more. While somebody is in the
middle of a reply, the next token of the reply waits for the chunk. Then a step keeps within a
target, but a chunk takes at least as long as the pass over the weights itself.
"""

from __future__ import annotations

_PAYS = 8
"""The largest chunk that pays, as a multiple of the tokens that cost as much as a pass."""

_STEP = 16
"""Chunks are multiples of so many tokens, which are blocks of matrix products and of pages."""


def chunk_sizes(
    *, breakeven_tokens: int, seconds: float, planned: int, least: int, target: float
) -> tuple[int, int]:
    """Return the most prompt tokens of a forward pass: for prompts alone, and beside replies.

    Args:
        breakeven_tokens: Tokens that cost as much as a pass over the weights.
        seconds: The duration of a pass of one token.
        planned: Tokens that the plan has memory for.
        least: Tokens of a prompt that are computed at one time if no more pay.
        target: Seconds that a step should take at most while somebody is in the middle of a reply.
    """
    alone = min(planned, max(least, _rounded(_PAYS * breakeven_tokens)))
    if breakeven_tokens < 1 or seconds <= 0:
        return alone, alone
    # The replies' own pass is another one if they share none with the prompt.
    room = int(breakeven_tokens * (target / seconds - 2))
    return alone, min(alone, _rounded(max(breakeven_tokens, room)))


def _rounded(tokens: int) -> int:
    return max(_STEP, tokens // _STEP * _STEP)
