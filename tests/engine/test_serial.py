"""The engine that serves one sequence at a time."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from predictor.engine.sampling import Sampling
from predictor.engine.serial import SerialEngine
from predictor.errors import GenerationFailed
from tests.conftest import Checkpoints
from tests.serving import blocks_on_disk, bring_up

PROMPT = list(range(10, 60))


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    checkpoints: Checkpoints = request.getfixturevalue("checkpoints")
    return AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()


def engine_of(model: Any, chunk: int = 512) -> SerialEngine:
    return SerialEngine(model, execution_device="cpu", prefill_chunk=chunk)


@pytest.mark.parametrize("architecture", ["bloom", "gpt2", "llama", "llama-tied", "opt", "mixtral"])
@pytest.mark.parametrize("chunk", [1, 7, 49, 50])
def test_the_size_of_prefill_chunks_changes_no_token(
    checkpoints: Checkpoints, architecture: str, chunk: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints(architecture)).eval()
    recipe = Sampling(max_new_tokens=8)
    whole = engine_of(model).generate(PROMPT, recipe)
    assert engine_of(model, chunk).generate(PROMPT, recipe) == whole


def test_a_seed_repeats_a_sampled_reply_and_leaves_the_generator_as_it_was(model: Any) -> None:
    engine = engine_of(model)
    recipe = Sampling(max_new_tokens=16, temperature=2.0, seed=11)
    before = torch.get_rng_state()
    first = engine.generate(PROMPT, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    engine.generate(PROMPT, Sampling(max_new_tokens=4, temperature=2.0))
    assert engine.generate(PROMPT, recipe) == first
    other = Sampling(max_new_tokens=16, temperature=2.0, seed=12)
    assert engine.generate(PROMPT, other) != first


def test_replies_without_a_seed_differ(model: Any) -> None:
    engine = engine_of(model)
    recipe = Sampling(max_new_tokens=16, temperature=5.0)
    assert len({engine.generate(PROMPT, recipe).tokens for _ in range(4)}) > 1


def test_greedy_inherits_no_sampling_from_the_models_own_config(checkpoints: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    expected = engine_of(model).generate(PROMPT, Sampling(max_new_tokens=12))
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    model.generation_config.repetition_penalty = 5.0
    engine = engine_of(model)
    for _ in range(3):
        assert engine.generate(PROMPT, Sampling(max_new_tokens=12)) == expected


def test_top_k_of_one_is_greedy_and_a_penalty_changes_the_reply(model: Any) -> None:
    engine = engine_of(model)
    greedy = engine.generate(PROMPT, Sampling(max_new_tokens=12))
    one = Sampling(max_new_tokens=12, temperature=3.0, top_k=1)
    assert engine.generate(PROMPT, one) == greedy
    narrow = Sampling(max_new_tokens=12, temperature=3.0, top_p=1e-6)
    assert engine.generate(PROMPT, narrow) == greedy
    penalty = Sampling(max_new_tokens=12, repetition_penalty=50.0)
    assert engine.generate(PROMPT, penalty) != greedy


def test_an_end_of_sequence_token_ends_the_reply(checkpoints: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    tokens = engine_of(model).generate(PROMPT, Sampling(max_new_tokens=12)).tokens
    end = tokens[5]
    model.generation_config.eos_token_id = [end, 2]
    generated = engine_of(model).generate(PROMPT, Sampling(max_new_tokens=12))
    assert generated.tokens == tokens[: tokens.index(end) + 1]
    assert generated.finish_reason == "stop"


def test_a_stop_check_ends_the_reply(model: Any) -> None:
    seen: list[int] = []

    def stopped(tokens: Sequence[int]) -> bool:
        seen.append(len(tokens))
        return len(tokens) == 3

    generated = engine_of(model).generate(PROMPT, Sampling(max_new_tokens=9, stopped=stopped))
    assert len(generated.tokens) == 3
    assert generated.finish_reason == "stop"
    assert seen[:3] == [1, 2, 3]


def test_length_is_the_reason_when_tokens_run_out(model: Any) -> None:
    generated = engine_of(model).generate(PROMPT, Sampling(max_new_tokens=4))
    assert (len(generated.tokens), generated.finish_reason) == (4, "length")


def test_a_request_that_fails_tells_nothing_and_the_next_is_answered(model: Any) -> None:
    engine = engine_of(model)
    expected = engine.generate(PROMPT, Sampling(max_new_tokens=4))
    with pytest.raises(GenerationFailed) as raised:
        engine.generate([10**6], Sampling(max_new_tokens=4))  # no such row in the embedding
    assert "index" not in str(raised.value)
    assert engine.generate(PROMPT, Sampling(max_new_tokens=4)) == expected


def test_threads_take_turns_at_a_model_with_accelerates_hooks(checkpoints: Checkpoints) -> None:
    """Without turns most of these calls raise: the hooks are not thread-safe."""
    folder = checkpoints("llama")
    engine = bring_up(folder, device_map=blocks_on_disk(folder)).task._engine
    expected = engine.generate(PROMPT, Sampling(max_new_tokens=4))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(engine.generate, PROMPT, Sampling(max_new_tokens=4)) for _ in range(12)]
    assert all(job.result() == expected for job in jobs)
