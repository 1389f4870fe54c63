"""Sampling of the next token, against parameters applied the long way."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from predictor.engine.generation import batch_sampler
from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import SamplingParams, Token

NAN, INF = float("nan"), float("inf")
BATCH = BatchSampler()


def sampler(*prompt: int, **params: Any) -> Sampler:
    return Sampler(SamplingParams(max_new_tokens=100, **params), prompt)


def sample(chooser: Sampler, logits: torch.Tensor) -> Token:
    """Return the next token of one sequence alone, or raise its error."""
    (result,) = BATCH.sample([chooser], logits.unsqueeze(0))
    if isinstance(result, Exception):
        raise result
    assert result is not None
    return result


def choices(logits: list[float], count: int, *prompt: int, **params: Any) -> list[int]:
    """Tokens that are chosen one after another where the model always says the same."""
    chooser = sampler(*prompt, **params)
    return [sample(chooser, torch.tensor(logits)).id for _ in range(count)]


def reference(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """The distribution that is to be sampled, by sorting everything in double precision."""
    scores = logits.double() / temperature
    order = scores.argsort(descending=True)
    if top_k:
        order = order[:top_k]
    probabilities = torch.softmax(scores[order], dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    is_kept = (before < top_p) & (probabilities >= min_p * probabilities.max())
    probabilities = torch.where(is_kept, probabilities, 0.0)
    distribution = torch.zeros_like(scores)
    distribution[order] = probabilities / probabilities.sum()
    return distribution


def check_distribution(counts: Counter[int], wanted: torch.Tensor) -> None:
    """Holds counts against a distribution; chi-square within five deviations of its mean."""
    total = sum(counts.values())
    possible = {index for index, p in enumerate(wanted.tolist()) if p > 0}
    assert set(counts) <= possible, "a token outside of the params"
    if (freedom := len(possible) - 1) == 0:
        return
    chi_square = sum(
        (counts[index] - total * float(wanted[index])) ** 2 / (total * float(wanted[index]))
        for index in possible
    )
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


# Greedy


def test_temperature_0_takes_the_most_probable() -> None:
    assert choices([0.5, 3.0, -1.0, 2.9], 3) == [1, 1, 1]
    assert sampler().is_greedy


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"logit_bias": {3: 1.0}},
        {"logprobs": 0},
    ],
)
def test_parameters_beyond_the_temperature_are_not_greedy(params: dict[str, Any]) -> None:
    assert not sampler(**params).is_greedy


def test_many_rows_at_once_choose_as_each_alone_would() -> None:
    logits = torch.randn(50, 264, generator=torch.Generator().manual_seed(1))
    together = BATCH.sample([sampler() for _ in logits], logits)
    assert together == [sample(sampler(), row) for row in logits]


def test_a_row_without_numbers_has_no_choice_and_spoils_no_other() -> None:
    rows = [[1.0, 2.0], [NAN, 1.0], [-INF, -INF], [INF, 1.0], [-INF, 1.0]]
    for temperature in (0.0, 1e-3):
        samplers = [sampler(temperature=temperature) for _ in rows]
        first, *failed, last = BATCH.sample(samplers, torch.tensor(rows))
        assert (first, last) == (Token(1), Token(1))
        assert all(isinstance(error, ArithmeticError) for error in failed)


@pytest.mark.parametrize("logits", [[NAN, 1.0], [1.0, NAN], [-INF, -INF], [INF, 1.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_raise(logits: list[float], temperature: float) -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        sample(sampler(temperature=temperature), torch.tensor(logits))


def test_a_model_may_rule_tokens_out() -> None:
    assert set(choices([-INF, 0.0, 0.0, -INF], 40, temperature=1.0, seed=1)) == {1, 2}


# Penalties and bias


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    # Prompt 0: 4 / 2 = 2 < 3, so 1; then 3 / 2 = 1.5 < 2, so 0.
    assert choices([4.0, 3.0, -1.0], 2, 0, repetition_penalty=2.0) == [1, 0]
    # Prompt 0: -1 * 2 = -2 < -1.5, so 1; then -1.5 * 2 = -3 < -2, so 0.
    assert choices([-1.0, -1.5, -9.0], 2, 0, repetition_penalty=2.0) == [1, 0]
    # Below 1 it rewards: 1 / 0.5 = 2 > 1.5.
    assert choices([1.0, 1.5], 1, 0, repetition_penalty=0.5) == [0]


def test_the_presence_penalty_is_taken_once_and_for_the_reply_alone() -> None:
    # 2, 1.6 with 0 in the prompt: 0. Then 1, 1.6: 1. Then 1, 0.6: 0 for good.
    assert choices([2.0, 1.6], 5, 0, presence_penalty=1.0) == [0, 1, 0, 0, 0]


def test_the_frequency_penalty_is_taken_each_time() -> None:
    # 2, 1.6 | 1, 1.6 | 1, 0.6 | 0, 0.6 | 0, -0.4
    assert choices([2.0, 1.6], 5, 0, frequency_penalty=1.0) == [0, 1, 0, 1, 0]


def test_both_penalties_add_up() -> None:
    # 3: 0. Then 3 - 1 - 0.5 = 1.5, 3 - 1 - 1 = 1 and 0.5: 0. Then 0 < 0.1: 1.
    assert choices([3.0, 0.1], 5, presence_penalty=1.0, frequency_penalty=0.5) == [0, 0, 0, 0, 1]


def test_a_bias_forbids_forces_and_tips() -> None:
    assert choices([5.0, 4.0, 0.0], 1, logit_bias={0: -100.0}) == [1]
    assert choices([5.0, 4.0, 0.0], 1, logit_bias={2: 100.0}) == [2]
    assert choices([5.0, 4.0, 0.0], 1, logit_bias={1: 0.5, 0: -0.6}) == [1]


def test_a_bias_acts_where_it_is_sampled_too() -> None:
    tokens = choices([0.0] * 5, 200, temperature=1.0, seed=3, logit_bias={1: -100.0, 4: -100.0})
    assert set(tokens) == {0, 2, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_models_logits_are_left_as_they_are(dtype: torch.dtype) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = logits.clone()
    params = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "logit_bias": {1: 3.0}}
    chooser = sampler(1, 2, 3, temperature=0.7, top_p=0.8, seed=1, **params)
    for _ in range(3):
        sample(chooser, logits)
    assert torch.equal(logits, before)


# Log probabilities


def test_log_probabilities_are_the_models_own_before_the_parameters() -> None:
    logits = torch.randn(264, generator=torch.Generator().manual_seed(4)) * 3
    wanted = torch.log_softmax(logits, dim=-1)
    best = wanted.sort(descending=True)
    params = {"repetition_penalty": 3.0, "logit_bias": {7: 50.0}, "temperature": 2.0, "seed": 1}
    chooser = sampler(*range(50), logprobs=5, **params)
    for _ in range(3):
        token = sample(chooser, logits)
        assert token.id == 7
        assert token.logprob == pytest.approx(float(wanted[7]), abs=1e-6)
        assert [index for index, _ in token.top] == best.indices[:5].tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values[:5].tolist())


@pytest.mark.parametrize(("requested", "returned"), [(0, 0), (3, 3), (20, 4)])
def test_as_many_alternatives_are_returned_as_are_requested_and_exist(
    requested: int, returned: int
) -> None:
    token = sample(sampler(logprobs=requested), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert token.logprob is not None
    assert len(token.top) == returned


def test_no_log_probability_is_returned_unless_requested() -> None:
    token = sample(sampler(temperature=1.0), torch.tensor([1.0, 2.0]))
    assert (token.logprob, token.top) == (None, ())


# Sampling


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"top_p": 0.9999999},
        {"top_k": 7, "top_p": 0.6},
        {"top_k": 7, "top_p": 0.7, "temperature": 2.0},
        {"min_p": 0.3},
        {"min_p": 0.2, "top_p": 0.9, "temperature": 1.5},
        {"min_p": 0.1, "top_k": 4},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_the_parameters(params: dict[str, Any]) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(6)) * 1.5
    chooser = sampler(**{"temperature": 1.0, "seed": 7} | params)
    counts = Counter(sample(chooser, logits).id for _ in range(4000))
    check_distribution(counts, reference(logits, **params))
    check_distribution(drawn_together(logits, 4000, **params), reference(logits, **params))


def test_top_p_holds_where_many_tokens_are_needed_for_it() -> None:
    # Nearly flat over 3000 tokens: the 512 most probable hold far less than 0.5.
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(8)) * 0.1
    wanted = reference(logits, top_p=0.5)
    assert int((wanted > 0).sum()) > 1000
    chooser = sampler(temperature=1.0, top_p=0.5, seed=9)
    counts = Counter(sample(chooser, logits).id for _ in range(3000))
    assert len(counts) > 700
    check_distribution(counts, wanted)
    check_distribution(drawn_together(logits, 3000, top_p=0.5), wanted)


def test_top_p_holds_where_few_of_many_tokens_suffice() -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(10)) * 4
    wanted = reference(logits, top_p=0.7)
    assert int((wanted > 0).sum()) < 100
    chooser = sampler(temperature=1.0, top_p=0.7, seed=11)
    check_distribution(Counter(sample(chooser, logits).id for _ in range(3000)), wanted)
    check_distribution(drawn_together(logits, 3000, top_p=0.7), wanted)


def drawn_together(logits: torch.Tensor, count: int, **params: Any) -> Counter[int]:
    """Count the tokens of rows that have equal logits and no seed, and are drawn at once."""
    batch = BatchSampler()
    batch._generator = torch.Generator().manual_seed(12)
    samplers = [sampler(**{"temperature": 1.0} | params) for _ in range(count)]
    tokens = batch.sample(samplers, logits.expand(count, -1))
    return Counter(token.id for token in tokens if isinstance(token, Token))


def test_the_one_most_probable_is_always_kept() -> None:
    assert set(choices([0.0, 0.1, 0.0], 50, temperature=1.0, top_p=1e-6)) == {1}


# Seeds


@pytest.mark.parametrize("seed", [0, 11, 2**63 - 1])
def test_a_seed_repeats_and_another_differs(seed: int) -> None:
    flat = [0.0] * 1000
    tokens = choices(flat, 20, temperature=1.0, seed=seed)
    assert choices(flat, 20, temperature=1.0, seed=seed) == tokens
    assert choices(flat, 20, temperature=1.0, seed=seed ^ 1) != tokens
    assert len(set(tokens)) > 10


def test_without_a_seed_replies_differ() -> None:
    flat = [0.0] * 1000
    assert choices(flat, 20, temperature=1.0) != choices(flat, 20, temperature=1.0)


def test_samplers_share_no_generator_with_each_other_or_with_torch() -> None:
    logits = torch.zeros(1000)
    alone = choices([0.0] * 1000, 10, temperature=1.0, seed=5)
    before = torch.get_rng_state()
    one, other = (sampler(temperature=1.0, seed=seed) for seed in (5, 6))
    tokens = []
    for _ in range(10):
        tokens.append(sample(one, logits).id)
        sample(other, logits)
    assert tokens == alone
    assert torch.equal(torch.get_rng_state(), before)


# Together

MANY: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"repetition_penalty": 3.0, "presence_penalty": 1.0, "logprobs": 0},
    {"frequency_penalty": 2.0, "logit_bias": {4: 9.0}},
    {"temperature": 1.5, "seed": 1, "logprobs": 2},
    {"temperature": 1.5, "seed": 2, "top_p": 0.8, "repetition_penalty": 2.0},
    {"temperature": 1.5, "seed": 3, "top_k": 9},
]
"""Parameters whose tokens can be known: greedy, or with a seed."""


def test_a_row_has_the_same_tokens_and_log_probabilities_in_any_batch() -> None:
    logits = torch.randn(8, len(MANY), 3000, generator=torch.Generator().manual_seed(13))
    alone = [sampler(1, 2, 3, **params) for params in MANY]
    together = [sampler(1, 2, 3, **params) for params in MANY]
    company = [sampler(temperature=1.0, top_p=0.9), sampler(temperature=2.0), None]
    for step in logits:
        expected = [sample(each, row) for each, row in zip(alone, step, strict=True)]
        rows = torch.cat((step[:3], step[:2], step[3:], step[:1]))
        mixed = [*together[:3], *company[:2], *together[3:], company[2]]
        tokens = BATCH.sample(mixed, rows)
        assert [*tokens[:3], *tokens[5:-1]] == expected
        assert tokens[-1] is None
        assert all(isinstance(token, Token) for token in tokens[3:5])


def test_a_row_whose_sampling_fails_fails_alone() -> None:
    samplers = [sampler(), sampler(logit_bias={10: 1.0}), sampler(presence_penalty=1.0)]
    first, failed, last = BATCH.sample(samplers, torch.tensor([[1.0, 2.0]] * 3))
    assert (first, last) == (Token(1), Token(1))
    assert isinstance(failed, IndexError)
    # What was counted once is not counted again.
    assert sample(samplers[2], torch.tensor([1.0, 2.5])) == Token(1)


def test_a_row_without_numbers_fails_alone_whatever_its_company_needs() -> None:
    rows = torch.randn(4, 50).index_fill(0, torch.tensor([1]), NAN)
    for params in MANY:
        tokens = BATCH.sample([sampler(**params) for _ in rows], rows)
        assert [isinstance(token, Token) for token in tokens] == [True, False, True, True]


def test_a_top_p_too_small_for_float32_keeps_the_most_probable() -> None:
    logits = torch.linspace(0, 1, 1000)
    for params in ({"top_p": 1e-50}, {"top_p": 1e-50, "top_k": 5}):
        assert sample(sampler(temperature=1.0, **params), logits).id == 999


def test_many_rows_are_sampled_in_slices_with_the_same_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 2},
        {"temperature": 1.0, "seed": 5, "logprobs": 1},
        {"temperature": 1.0, "top_k": 1},
    ]

    def together() -> list[Any]:
        return BATCH.sample([sampler(**kinds[row % 3]) for row in range(12)], logits)

    whole = together()
    monkeypatch.setattr(batch_sampler, "_SLICE_ELEMENTS", 40)  # 5 rows, or 3 of those with choices
    assert together() == whole


def test_min_p_leaves_the_tokens_that_transformers_leaves() -> None:
    from transformers import MinPLogitsWarper

    logits = torch.randn(1, 2000, generator=torch.Generator().manual_seed(3)) * 2
    kept = MinPLogitsWarper(min_p=0.3)(torch.zeros(1, 1), logits).softmax(dim=-1)[0]
    check_distribution(drawn_together(logits[0], 3000, min_p=0.3), kept)
    chooser = sampler(temperature=1.0, min_p=0.3, seed=4)
    check_distribution(Counter(sample(chooser, logits[0]).id for _ in range(2000)), kept)
