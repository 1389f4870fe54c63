"""Prompt lookup: what it drafts, and how it learns how much of that is right."""

from __future__ import annotations

import random

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
