"""Prompt lookup: what it drafts, and how it learns how much of that is right."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from predictor.engine.generation.drafts import Proposal, add_drafts
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.prompt_lookup import LEAST_MATCH, PromptLookup


def test_a_draft_is_what_followed_the_same_tokens_before() -> None:
    assert list(PromptLookup().propose([1, 2, 3, 4, 5, 6, 2, 3], 3)) == [4, 5, 6]


def test_of_two_places_the_one_with_the_longer_match_is_taken() -> None:
    tokens = [9, 1, 2, 3, 50, 60, 8, 2, 3, 70, 80, 9, 1, 2, 3]
    assert list(PromptLookup().propose(tokens, 2)) == [50, 60]


def test_of_two_places_with_equal_matches_the_later_is_taken() -> None:
    assert list(PromptLookup().propose([1, 2, 50, 7, 1, 2, 60, 8, 1, 2], 1)) == [60]


def test_one_equal_token_is_no_match() -> None:
    assert LEAST_MATCH == 2
    assert list(PromptLookup().propose([1, 2, 3, 4, 2], 3)) == []


def test_tokens_that_repeat_are_drafted_to_any_length() -> None:
    assert list(PromptLookup().propose([7, 1, 2, 3, 1, 2, 3], 7)) == [1, 2, 3, 1, 2, 3, 1]


def test_short_sequences_have_no_draft() -> None:
    for tokens in ([5], [5, 5], [4, 5, 5]):
        assert list(PromptLookup().propose(tokens, 4)) in ([], [5] * 4)
    assert list(PromptLookup().propose([5], 4)) == []


def test_a_sequence_may_grow_by_any_number_of_tokens_between_drafts() -> None:
    chance, lookup = random.Random(1), PromptLookup()
    tokens = [chance.randrange(3) for _ in range(4)]
    for _ in range(60):
        tokens += [chance.randrange(3) for _ in range(chance.randint(1, 5))]
        assert lookup.propose(tokens, 6) == PromptLookup().propose(tokens, 6)


def test_drafts_that_are_right_raise_the_rate_and_others_lower_it() -> None:
    lookup, tokens = PromptLookup(), [1, 2, 3, 4, 5, 6] * 3
    rates = []
    for _ in range(20):
        tokens += lookup.propose(tokens, 4)
        rates.append(lookup.rate)
    assert rates == sorted(rates)
    assert rates[-1] > 0.99

    chance = random.Random(2)
    for _ in range(400):
        tokens.append(chance.randrange(6))
        lookup.propose(tokens, 4)
    assert lookup.rate < 0.4


def test_a_match_that_was_never_right_is_no_better_than_all_together() -> None:
    lookup, one_by_one = PromptLookup(), iter(range(100, 200))
    text = [next(one_by_one) for _ in range(30)]
    tokens = [7]
    for pair in pairwise(text):
        tokens += [*pair, next(one_by_one)]
    for token in text:
        tokens.append(token)
        lookup.propose(tokens, 4)
    misled = lookup.rate
    assert misled < 0.1
    tokens += [*text[5:8], 9, *text[5:8]]
    lookup.propose(tokens, 4)  # the first match of more tokens
    assert lookup.rate < misled
    rates = []
    for token in (9, *text[5:8], 9):
        tokens.append(token)
        lookup.propose(tokens, 4)
        rates.append(lookup.rate)
    assert rates == sorted(rates)
    assert rates[-1] > 0.4


class Reply:
    """A reply of one user, whose forward passes are counted with their cost."""

    def __init__(self, prompt: list[int], text: list[int]) -> None:
        self.lookup, self.tokens, self.text, self.done = PromptLookup(), [*prompt], text, 0

    def allows(self, rows: int) -> bool:
        return True

    def propose(self, key: int, most: int) -> Proposal:
        most = min(most, len(self.text) - self.done - 1)
        draft = self.lookup.propose(self.tokens, most) if most > 0 else ()
        return Proposal(len(draft), self.lookup.rate)

    def speed(self, limits: SchedulerLimits) -> float:
        """Return the tokens per time, as a multiple of those without drafts."""
        cost = 0
        while self.done < len(self.text):
            (chunk,) = add_drafts([Chunk(0, 9, 1)], self, limits, 1000)
            drafts, right = list(self.lookup.draft)[: chunk.drafts], self.text[self.done :]
            pairs = enumerate(zip(drafts, right, strict=False))
            accepted = next((at for at, (a, b) in pairs if a != b), len(drafts))
            self.tokens += right[: accepted + 1]
            self.done += accepted + 1
            cost += limits.breakeven_tokens + limits.computed_tokens(1, chunk.count)
        return len(self.text) * (limits.breakeven_tokens + 1) / cost


def misleading(lengths: list[int]) -> Reply:
    """A reply whose prompt goes on otherwise after the same tokens, as many as these in turn."""
    numbers = iter(range(10_000))
    tokens = [next(numbers) for _ in range(64 + max(lengths))]
    prompt = []
    for end in range(len(tokens) - 1, max(lengths) - 1, -1):
        match = lengths[end % len(lengths)]
        prompt += [*tokens[end - match : end], next(numbers), next(numbers)]
    return Reply(prompt + tokens[: max(lengths)], tokens[max(lengths) :])


@pytest.mark.parametrize("bucket_shapes", [False, True])
@pytest.mark.parametrize("lengths", [[2], [3], [2, 3, 4, 5]])
def test_text_that_misleads_costs_three_percent_at_most(
    lengths: list[int], bucket_shapes: bool
) -> None:
    for breakeven_tokens in (2, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64, 100, 400, 2000):
        limits = SchedulerLimits(
            1000, 16, 512, breakeven_tokens, draft_tokens=15, bucket_shapes=bucket_shapes
        )
        reply = misleading(lengths)
        assert reply.speed(limits) > 0.97
        assert len(reply.lookup.draft) == 0 or reply.lookup.rate < 0.1


@pytest.mark.parametrize("bucket_shapes", [False, True])
@pytest.mark.parametrize(("breakeven_tokens", "least"), [(16, 2.7), (32, 3.0), (100, 3.4)])
def test_edited_text_is_several_times_as_fast_from_its_first_tokens_on(
    breakeven_tokens: int, least: float, bucket_shapes: bool
) -> None:
    limits = SchedulerLimits(
        1000, 16, 512, breakeven_tokens, draft_tokens=15, bucket_shapes=bucket_shapes
    )
    text = list(range(100, 164))
    prompt = [9 if token % 20 == 0 else token for token in text]
    assert Reply([*prompt, 1, 2], text).speed(limits) > least
