"""Log probabilities of prompts: what they count for, and what they take."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest

from predictor.engine.generation.prompt_tokens import PromptToken, PromptTokens
from predictor.errors import RequestError
from predictor.protocol.http.json_body import dump_json
from predictor.protocol.openai.logprobs import completion_logprobs, prompt_logprobs
from predictor.tasks.prompt_scores import PromptScoring, ScoredPrompt
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt

BYTES_PER_TOKEN = 36
"""What a token takes by the documentation of `max_tokens_in_flight`."""


class Words:
    """Stands in for a tokenizer: a word for each token."""

    all_special_ids = (0,)

    def decode(self, ids: list[int]) -> str:
        return f" word{ids[0]}"


def tokens(count: int, alternatives: int) -> PromptTokens:
    draw = random.Random(count)

    def scored() -> tuple[int, float]:
        return draw.randrange(128_000), -float(draw.randrange(1000))

    top = [tuple(scored() for _ in range(alternatives)) for _ in range(count)]
    return PromptTokens.of([PromptToken(*scored(), 3, each) for each in top])


@pytest.mark.parametrize("alternatives", [0, 2])
def test_tokens_are_kept_as_numbers(alternatives: int) -> None:
    given = [
        PromptToken(n, -0.5 * n, n + 1, tuple((n + k, -0.25 * k) for k in range(alternatives)))
        for n in range(3)
    ]
    kept = PromptTokens.of(given)
    assert (list(kept), len(kept)) == (given, 3)
    assert list(PromptTokens.of([])) == []


@pytest.mark.parametrize("alternatives", [0, 1, 20])
def test_log_probabilities_take_no_more_than_they_count_for(alternatives: int) -> None:
    count = 4096
    weight = GenerationParameters(prompt_logprobs=alternatives).prompt_weight
    tracemalloc.start()
    parts = [tokens(256, alternatives) for _ in range(count // 256)]
    tracemalloc.reset_peak()
    prompt = ScoredPrompt.of(Words(), 5, parts)
    body = dump_json(
        {
            "echo": completion_logprobs((), 0, prompt, min(alternatives, 5)),
            "scores": prompt_logprobs(prompt, alternatives),
        }
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + len(body) <= count * weight * BYTES_PER_TOKEN  # orjson's buffer is not traced


def test_the_second_gate_counts_log_probabilities() -> None:
    def counted(**parameters: Any) -> int:
        return GenerationRequest(
            (Prompt("a" * 10, GenerationParameters(**parameters)),)
        ).most_tokens

    assert counted() == 10
    assert counted(prompt_logprobs=0) == 170
    assert counted(prompt_logprobs=20) == 2170


def test_a_request_with_too_many_is_refused_even_alone() -> None:
    scoring = PromptScoring(4000 * 217, has_encoder=False)
    requested = GenerationParameters(prompt_logprobs=20)
    assert scoring.alternatives(GenerationParameters(), (1,) * 10**6) is None
    assert scoring.alternatives(requested, (1,) * 4000) == 20
    with pytest.raises(RequestError, match=r"each counts for 217 tokens .*max_tokens_in_flight"):
        scoring.alternatives(requested, (1,))


def test_a_prompt_is_scored_once_for_all_its_replies() -> None:
    scoring = PromptScoring(10**6, has_encoder=False)
    requested = GenerationParameters(prompt_logprobs=2)
    first, other = (1, 2), (3, 4)
    prompts = [first, first, other, first]
    assert [scoring.alternatives(requested, ids) for ids in prompts] == [2, None, 2, None]
