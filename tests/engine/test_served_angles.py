"""Models whose RoPE has other angles beyond a length: one choice for all sequences that are served.

A sequence beyond that length gets the tokens of `generate`, in any company and in chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Phi3Config

from predictor.engine.generation.sampling_params import SamplingParams
from tests.checkpoints import VOCABULARY, byte_tokenizer
from tests.engine.test_contamination import Ask, generated, seeded
from tests.serving import Collected, bring_up

ORIGINAL, NEW = 32, 6
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [1.0 + n for n in range(8)]}


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi3")
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=ORIGINAL,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, "factor": 8.0, **FACTORS},
    )
    seeded(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def served(folder: Path, prompts: list[list[int]], length: int) -> tuple[list[list[int]], Any]:
    up = bring_up(folder, max_model_len=length, prefill_chunk=16)
    engine = up.task.engine
    try:
        callbacks = [Collected() for _ in prompts]
        for prompt, callback in zip(prompts, callbacks, strict=True):
            engine.submit(prompt, SamplingParams(max_new_tokens=NEW), callback)
        return [callback.wait().tokens for callback in callbacks], up.prepared.placement
    finally:
        engine.stop()
        assert engine.join(30)


def wanted(model: Any, prompt: list[int]) -> list[int]:
    tokens = generated(model, Ask(prompt, SamplingParams(max_new_tokens=NEW), 0)).tokens
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


def prompt_of(length: int) -> list[int]:
    return [20 + 7 * n % 200 for n in range(length)]


def test_beyond_the_original_length_all_get_the_long_factors(phi3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(phi3).eval()
    prompts = [prompt_of(ORIGINAL + 9), prompt_of(10), prompt_of(ORIGINAL + 1)]
    replies, placement = served(phi3, prompts, 64)

    assert [replies[0], replies[2]] == [wanted(model, prompts[0]), wanted(model, prompts[2])]
    config = model.config
    config.rope_parameters["short_factor"] = config.rope_parameters["long_factor"]
    assert replies[1] == wanted(type(model).from_pretrained(phi3, config=config), prompts[1])
    assert any("64 is beyond 32 positions" in note for note in placement.notes)


def test_up_to_the_original_length_all_get_the_short_ones(phi3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(phi3).eval()
    prompts = [prompt_of(20), prompt_of(9)]
    replies, placement = served(phi3, prompts, ORIGINAL)

    assert replies == [wanted(model, prompt) for prompt in prompts]
    assert not any("beyond" in note for note in placement.notes)
