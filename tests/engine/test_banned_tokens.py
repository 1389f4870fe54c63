"""Banned tokens, against n-grams that are collected the long way."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch

from predictor.engine.generation.banned_tokens import BannedTokens
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import SamplingParams

NOTHING = -torch.inf


def of_ngrams(sequence: list[int], size: int) -> set[int]:
    """The tokens that would repeat an n-gram, by transformers' definition."""
    tail = sequence[len(sequence) - size + 1 :]
    ngrams = [sequence[start : start + size] for start in range(len(sequence) - size + 1)]
    return {ngram[-1] for ngram in ngrams if ngram[:-1] == tail}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt", [0, 1, 40])
def test_what_repeats_is_what_followed_the_same_tokens(size: int, prompt: int) -> None:
    chance = random.Random(size)
    tokens = [chance.randrange(3) for _ in range(60)]
    source = [-1 - token for token in tokens]
    params = SamplingParams(100, no_repeat_ngram_size=size)
    banned = BannedTokens(params, source + tokens[:prompt], ())
    for count in range(prompt, len(tokens)):
        assert set(banned.repeating().tolist()) == of_ngrams(tokens[:count], size)
        banned.count(tokens[count])


def test_a_long_prompt_takes_a_few_bytes_for_each_token() -> None:
    prompt = tuple(range(20_000))
    tracemalloc.start()
    try:
        sampler = Sampler(SamplingParams(9, no_repeat_ngram_size=3), prompt)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sampler.has_penalties
    assert kept < 8 * len(prompt)


def test_lists_ban_in_their_phases() -> None:
    """Tokens beyond the vocabulary and below 0 are none."""
    params = SamplingParams(
        *(9,), suppress_tokens=(0, 77, -1), begin_suppress_tokens=(1,), min_new_tokens=2
    )
    sampler = Sampler(params, [5], frozenset({2}))
    banned = []
    for _ in range(4):
        scores = torch.zeros(8)
        sampler.penalise(scores)
        banned.append((scores == NOTHING).nonzero().flatten().tolist())
        sampler.count(6)
    assert banned == [[0, 1, 2], [0, 2], [0], [0]]
