"""The default and the longest length of a sequence, by the config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, Phi3Config, PreTrainedConfig

from predictor.checkpoint.positions import context_length, max_positions
from tests.checkpoints import CONFIGS


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=131072), 8192),
        (CONFIGS["gpt2"], 256),
        (CONFIGS["bloom"], 2048),
    ],
)
def test_the_default_context_is_the_models_own_up_to_8192(
    config: PreTrainedConfig, tokens: int
) -> None:
    assert context_length(config) == tokens


def test_the_position_limit_is_the_configs() -> None:
    assert max_positions(CONFIGS["gpt2"]) == 256
    assert max_positions(CONFIGS["bloom"]) is None  # ALiBi knows no positions


def test_positions_beyond_those_before_longrope_are_not_served() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = Phi3Config(
        hidden_size=32,
        num_attention_heads=2,
        pad_token_id=0,
        max_position_embeddings=4096,
        original_max_position_embeddings=128,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, **factors},
    )
    assert max_positions(config) == context_length(config) == 128


SLIDING = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": SLIDING,
}
BOTH_EXTENDED = {**GEMMA3, "sliding_attention": {**SLIDING, "rope_type": "linear", "factor": 4.0}}


@pytest.mark.parametrize(
    ("model_type", "values", "longest"),
    [
        # As the READMEs of Qwen2.5 and Qwen3 say it, in both spellings
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 65536),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 131072),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 2048},
            8192,
        ),
        # Configs that include the extension: DeepSeek-V3, gpt-oss, Llama-3.1
        (
            "deepseek_v3",
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "original_max_position_embeddings": 4096,
                },
            },
            163840,
        ),
        ("gpt_oss", {"max_position_embeddings": 131072}, 131072),
        (
            "llama",
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        # Other angles beyond a length
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 32768),
        # By type of layer: as much as all of them
        ("gemma3_text", {"rope_parameters": GEMMA3}, 32768),
        ("gemma3_text", {"rope_parameters": BOTH_EXTENDED}, 131072),
        ("llama", {}, 32768),
    ],
)
def test_the_rope_of_a_config_extends_its_positions(
    model_type: str, values: dict[str, Any], longest: int
) -> None:
    config = AutoConfig.for_model(model_type, **{"max_position_embeddings": 32768} | values)

    assert max_positions(config) == longest
    assert context_length(config) == min(config.max_position_embeddings, 8192)


def test_the_rope_of_a_wrappers_text_model_counts() -> None:
    text = {
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }
    config = AutoConfig.for_model("llava", text_config={"model_type": "llama", **text})

    assert max_positions(config) == 131072


def test_a_length_below_zero_is_none() -> None:
    assert max_positions(AutoConfig.for_model("xlnet")) is None
